//! The plain reading of a policy: rule by rule, for one packet. It matches rules without the code that compiles a policy to a table, so
//! that each can be tested against the other.

use super::ports::Asked;
use super::rules::{Policy, Ports, Rule, Target, Term};
use super::selector::{Selector, Wild};
use super::subject::{MAX_NARROWED, Offered, OfferedPort, Subject};
use crate::model::Label;

/// The decision of a policy about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The packet passes.
    Allow,
    /// The packet does not pass.
    Deny,
}

/// The verdict of `policy` about a packet from `from` to `to` that asks for `asked`. Without a policy, only `mesh.allow` of the
/// destination denies something.
#[must_use]
pub fn interpret(policy: Option<&Policy>, from: &Subject, to: &Subject, asked: Asked) -> Verdict {
    let by_policy = policy.is_none_or(|policy| {
        let mut rules = policy.rules.iter();
        policy.default_allow || rules.any(|rule| rule_allows(policy, rule, from, to, asked))
    });
    if by_policy && refusing_service(from, to, asked).is_none() {
        Verdict::Allow
    } else {
        Verdict::Deny
    }
}

/// Whether a rule allows the packet.
pub(super) fn rule_allows(
    policy: &Policy,
    rule: &Rule,
    from: &Subject,
    to: &Subject,
    asked: Asked,
) -> bool {
    let mut targets = rule.to.iter();
    has(policy, &rule.from, from)
        && targets.any(|target| target_allows(policy, target, from, to, asked))
}

/// Whether one of `terms` selects `subject`.
pub(super) fn has(policy: &Policy, terms: &[Term], subject: &Subject) -> bool {
    let mut selectors = terms.iter().flat_map(|term| policy.selectors(term));
    selectors.any(|selector| selects(selector, subject))
}

/// Whether a target selects `to` for packets of `from`, for any port.
pub(super) fn is_target(policy: &Policy, target: &Target, from: &Subject, to: &Subject) -> bool {
    let mut selectors = policy.selectors(&target.term).iter();
    selectors.any(|selector| match selector {
        Selector::SameProject => shares_a_project(from, to),
        selector => selects(selector, to),
    })
}

/// Whether a target opens what the packet asks for.
pub(super) fn target_allows(
    policy: &Policy,
    target: &Target,
    from: &Subject,
    to: &Subject,
    asked: Asked,
) -> bool {
    let mut selectors = policy.selectors(&target.term).iter();
    selectors.any(|selector| match selector {
        Selector::SameProject => {
            let mut shared = projects(from).filter(|project| in_project(to, project));
            shared.any(|project| {
                let project = Selector::Project(Wild::Is(project.clone()));
                selector_opens(&project, &target.ports, to, asked)
            })
        }
        selector => selector_opens(selector, &target.ports, to, asked),
    })
}

fn selector_opens(selector: &Selector, ports: &Ports, to: &Subject, asked: Asked) -> bool {
    if !selects(selector, to) {
        return false;
    }
    // A selector that is not about services selects all that are offered there.
    let is_about_services = matches!(
        selector,
        Selector::Service(_) | Selector::InProject(..) | Selector::Project(_)
    );
    let services = to.services.iter();
    let selected: Vec<&Offered> = services
        .filter(|offered| !is_about_services || selector.names(&offered.service))
        .collect();
    match (ports, asked) {
        (Ports::Fixed(set), asked) => set.contains(asked),
        (Ports::Named(name), Asked::Port(protocol, port)) => {
            let mut ports = selected.iter().flat_map(|offered| &offered.ports);
            ports.any(|own| {
                own.name.as_ref() == Some(name) && (own.protocol, own.port) == (protocol, port)
            })
        }
        (Ports::Named(_), Asked::Icmp | Asked::Other) => false,
        // A node declares no ports of its own, so a rule that selects the node and names no port opens all ports of the node.
        (Ports::Declared, _) if to.is_node && !is_about_services => true,
        // Neither does a network.
        (Ports::Declared, _) if to.network.is_some() => true,
        (Ports::Declared, Asked::Port(..)) => selected.iter().any(|o| declares(o, asked)),
        (Ports::Declared, Asked::Icmp) => true,
        // A fragment may be for any port: it passes only if all ports that an instance has are open.
        (Ports::Declared, Asked::Other) => {
            let mut all = to.services.iter().flat_map(|offered| &offered.ports);
            let is_open = |own: &OfferedPort| selected.iter().any(|o| declares(o, own.asked()));
            !to.is_node && all.all(is_open)
        }
    }
}

/// The first service of `to` whose `mesh.allow` refuses the packet.
pub(super) fn refusing_service<'a>(
    from: &Subject,
    to: &'a Subject,
    asked: Asked,
) -> Option<&'a Offered> {
    let refuses = |place: usize, offered: &Offered| {
        let is_admitted = place < MAX_NARROWED
            && offered.admitted().iter().any(|selector| match selector {
                Selector::SameProject => shares_a_project(from, to),
                selector => selects(selector, from),
            });
        is_concerned(to, offered, asked) && !is_admitted
    };
    let mut narrowed = to.narrowed().enumerate();
    let refusing = narrowed.find(|(place, offered)| refuses(*place, offered));
    refusing.map(|(_, offered)| offered)
}

/// Whether a packet concerns a service. One for a port that the service declares does, and one for a port of another service does not. A
/// port that nobody declares belongs to all services of an instance, but to none of those at the address of a node, where other programs
/// have ports too. A fragment may be for any port.
fn is_concerned(to: &Subject, offered: &Offered, asked: Asked) -> bool {
    match asked {
        Asked::Other => true,
        Asked::Icmp => !to.is_node,
        Asked::Port(..) => {
            let of_another = to.services.iter().any(|other| declares(other, asked));
            declares(offered, asked) || (!of_another && !to.is_node)
        }
    }
}

fn declares(offered: &Offered, asked: Asked) -> bool {
    offered.ports.iter().any(|own| own.asked() == asked)
}

/// Whether a selector selects a subject, without a look at the other side.
#[must_use]
pub fn selects(selector: &Selector, subject: &Subject) -> bool {
    match selector {
        Selector::Any => subject.network.is_none(),
        Selector::Service(_) | Selector::InProject(..) | Selector::Project(_) => {
            let mut services = subject.services.iter();
            services.any(|offered| selector.names(&offered.service))
        }
        Selector::Tag(tag) => subject.tags.iter().any(|own| tag.is(own)),
        Selector::Node(name) => subject.is_node && name.is(&subject.node),
        Selector::Guest(name) => subject.guest.as_ref().is_some_and(|own| name.is(own)),
        Selector::Route(name) => {
            let mut gateways = subject.network.iter().flat_map(|network| &network.gateways);
            gateways.any(|gateway| name.is(gateway))
        }
        Selector::SameProject | Selector::Unknown => false,
    }
}

fn projects(subject: &Subject) -> impl Iterator<Item = &Label> {
    let services = subject.services.iter();
    services.filter_map(|offered| offered.service.project.as_ref())
}

fn in_project(subject: &Subject, project: &Label) -> bool {
    projects(subject).any(|own| own == project)
}

fn shares_a_project(a: &Subject, b: &Subject) -> bool {
    projects(a).any(|project| in_project(b, project))
}
