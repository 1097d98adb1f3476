//! Runs the tests in a policy (`[[test]]`).

use std::collections::BTreeMap;
use std::fmt;

use super::compile::{Kinds, Owners, opened};
use super::explain::explain;
use super::interpret::selects;
use super::ports::PortSet;
use super::rules::{Policy, Ports, Target, Term, Test, Wanted};
use super::selector::{Selector, Wild};
use super::subject::{Offered, OfferedPort, Subject};
use super::table::{Class, Table};
use crate::model::{Label, Protocol, ServiceName};

/// A test that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The line of the test.
    pub line: usize,
    /// What is not as the test says, with one source and one destination for which it is not.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Runs the tests of a policy. Each is about all subjects that it names, or about one that is made up if the mesh has none of them: so
/// the tests of a policy can run without a mesh.
#[must_use]
pub fn run_tests(policy: &Policy, subjects: &[Subject]) -> Vec<Failure> {
    if policy.tests.is_empty() {
        return Vec::new();
    }
    let mut all = subjects.to_vec();
    for test in &policy.tests {
        for (term, ports) in [(&test.from, None), (&test.to.who, Some(&test.to.ports))] {
            let selectors = policy.selectors(term);
            let is_there = |subject: &Subject| selectors.iter().any(|s| selects(s, subject));
            if !subjects.iter().any(is_there) {
                all.extend(selectors.iter().map(|selector| made_up(selector, ports)));
            }
        }
    }
    let owners = Owners::of(&all);
    let kinds = Kinds::of(&all, &owners);
    let world = World {
        policy,
        table: Table::of_kinds(Some(policy), &kinds, &owners),
        subjects: &all,
        classes: &kinds.of_subject,
        is_live: |number| number < subjects.len(),
    };
    let tests = policy.tests.iter();
    tests.filter_map(|test| world.failure(test)).collect()
}

/// What tests run against.
struct World<'a, F> {
    policy: &'a Policy,
    table: Table,
    subjects: &'a [Subject],
    classes: &'a [Class],
    /// Whether the subject with this number is not made up.
    is_live: F,
}

impl<F: Fn(usize) -> bool> World<'_, F> {
    fn failure(&self, test: &Test) -> Option<Failure> {
        let failed = |message| {
            Some(Failure {
                line: test.line,
                message,
            })
        };
        let sources = self.selected(&test.from, |_, _| Some(PortSet::nothing()));
        let destinations = self.selected(&test.to.who, |selector, subject| {
            let asked = asked(selector, &test.to.ports, subject);
            (!asked.is_empty()).then_some(asked)
        });
        if destinations.is_empty() {
            return failed(self.without_ports(&test.to));
        }
        for (from, (source, _)) in &sources {
            for (to, (destination, asked)) in &destinations {
                let open = self.table.ports(*from, *to);
                let closed = asked.without(&open);
                let (wrong, verb) = match test.wanted {
                    Wanted::Allow => (closed, "does not reach"),
                    Wanted::Deny => (asked.without(&closed), "reaches"),
                };
                if let Some(example) = wrong.first() {
                    let why = explain(Some(self.policy), source, destination, example);
                    let message = format!("{source} {verb} {wrong} of {destination}: {why}");
                    return failed(message);
                }
            }
        }
        None
    }

    /// One subject of each class that a term selects, with what `ports` has for it. Those that are made up count only if there are no
    /// others.
    fn selected(
        &self,
        term: &Term,
        ports: impl Fn(&Selector, &Subject) -> Option<PortSet>,
    ) -> BTreeMap<Class, (&Subject, PortSet)> {
        let selectors = self.policy.selectors(term);
        let numbered = self.subjects.iter().zip(self.classes).enumerate();
        let selected: Vec<_> = numbered
            .filter(|(_, (subject, class))| {
                **class != Class::NOBODY && selectors.iter().any(|s| selects(s, subject))
            })
            .collect();
        let has_live = selected.iter().any(|(number, _)| (self.is_live)(*number));
        let mut of_class: BTreeMap<Class, (&Subject, PortSet)> = BTreeMap::new();
        for (number, (subject, class)) in selected {
            if (has_live && !(self.is_live)(number)) || of_class.contains_key(class) {
                continue;
            }
            let matching = selectors.iter().filter(|s| selects(s, subject));
            for more in matching.filter_map(|selector| ports(selector, subject)) {
                let (_, all) = of_class
                    .entry(*class)
                    .or_insert_with(|| (subject, PortSet::nothing()));
                all.add(&more);
            }
        }
        of_class
    }

    /// The message of a test whose destinations have no port that it could be about.
    fn without_ports(&self, target: &Target) -> String {
        let names: Vec<String> = self
            .policy
            .selectors(&target.who)
            .iter()
            .map(ToString::to_string)
            .collect();
        let names = names.join(", ");
        match &target.ports {
            Ports::Named(port) => format!("{names} declares no port `{port}`"),
            Ports::Declared | Ports::Fixed(_) => format!(
                "no port of {names} is known, because the mesh does not have it; name a port in the test"
            ),
        }
    }
}

/// What a test asks of a destination: of an instance without a named port its declared ports.
fn asked(selector: &Selector, ports: &Ports, subject: &Subject) -> PortSet {
    let asked = opened(selector, ports, subject);
    match ports {
        Ports::Declared if !asked.is_everything() => asked.numbered(),
        Ports::Declared | Ports::Named(_) | Ports::Fixed(_) => asked,
    }
}

/// A subject that a selector selects. As a destination it declares what the test asks for, so that rules about declared ports apply.
fn made_up(selector: &Selector, ports: Option<&Ports>) -> Subject {
    let name = |wild: &Wild| match wild {
        Wild::Is(name) => name.clone(),
        Wild::Any => Label::from_host_name("any"),
    };
    let mut subject = Subject {
        addresses: Vec::new(),
        node: Label::from_host_name("node"),
        tags: Vec::new(),
        services: Vec::new(),
        is_node: false,
    };
    let service = match selector {
        Selector::Service(service) => Some(ServiceName::from(service.clone())),
        Selector::InProject(project, service) => Some(ServiceName {
            name: name(service),
            project: Some(name(project)),
        }),
        Selector::Project(project) => Some(ServiceName {
            name: Label::from_host_name("any"),
            project: Some(name(project)),
        }),
        Selector::Tag(tag) => {
            subject.tags.push(name(tag));
            None
        }
        Selector::Node(node) => {
            subject.node = name(node);
            None
        }
        Selector::Any | Selector::SameProject | Selector::Unknown => None,
    };
    match service {
        None => subject.is_node = true,
        Some(service) => subject.services.push(Offered {
            service,
            ports: declared(ports),
            allow: Vec::new(),
        }),
    }
    subject
}

fn declared(ports: Option<&Ports>) -> Vec<OfferedPort> {
    let port = |name: Option<&Label>, protocol, port| OfferedPort {
        name: name.cloned(),
        protocol,
        port,
    };
    match ports {
        None | Some(Ports::Declared) => Vec::new(),
        Some(Ports::Named(name)) => vec![port(Some(name), Protocol::Tcp, 1)],
        Some(Ports::Fixed(set)) => [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .flat_map(|protocol| set.ranges(protocol).map(move |range| (protocol, range)))
            .flat_map(|(protocol, range)| range.map(move |number| (protocol, number)))
            .take(MAX_DECLARED)
            .map(|(protocol, number)| port(None, protocol, number))
            .collect(),
    }
}

/// The most ports that a destination which is made up declares; a test may be about all ports there are.
const MAX_DECLARED: usize = 1_024;
