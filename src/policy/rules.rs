//! A policy as rules.

use ipnet::IpNet;

use super::ports::PortSet;
use super::selector::Selector;
use super::subject::NodeFacts;
use crate::model::{Label, ServiceName};

/// A policy that was parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub(super) text: String,
    /// Whether everything passes, with or without a rule.
    pub(super) default_allow: bool,
    /// Whether no node may serve a name that no `[[serve]]` has.
    pub(super) strict: bool,
    pub(super) groups: Vec<Group>,
    pub(super) serve: Vec<Serve>,
    pub(super) rules: Vec<Rule>,
    /// The nodes that may relay, one list for each `[[relay]]`.
    pub(super) relay: Vec<Vec<Term>>,
    /// The networks to which nodes may route.
    pub(super) routes: Vec<Route>,
    pub(super) tests: Vec<Test>,
}

/// `[[route]]`: a node may route to a network outside the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) node: Label,
    pub(super) prefix: IpNet,
}

/// A group. Its members are selectors only: groups in it were replaced by their own members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) line: usize,
    pub(super) name: Label,
    pub(super) members: Vec<Selector>,
}

/// A selector, or the number of a group of selectors.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Term {
    One(Selector),
    Group(usize),
}

impl Term {
    /// The selectors that the term stands for.
    pub(super) fn selectors<'a>(&'a self, groups: &'a [Group]) -> &'a [Selector] {
        match self {
            Self::One(selector) => std::slice::from_ref(selector),
            Self::Group(group) => groups.get(*group).map_or(&[], |group| &group.members),
        }
    }
}

/// Which nodes may serve which names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Serve {
    pub(super) names: Vec<Selector>,
    pub(super) by: Vec<Term>,
}

/// `[[allow]]`: each source may reach each destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) line: usize,
    pub(super) from: Vec<Term>,
    pub(super) to: Vec<Target>,
}

/// A destination, and the ports that are opened there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) term: Term,
    pub(super) ports: Ports,
}

/// The ports behind a selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Ports {
    /// No port is named: the declared ports of an instance, and everything of a node.
    Declared,
    /// The declared ports with this name.
    Named(Label),
    /// These ports, whether they are declared or not.
    Fixed(PortSet),
}

/// `[[test]]`: a statement about the policy that must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) line: usize,
    pub(super) from: Term,
    pub(super) to: Target,
    pub(super) wanted: Wanted,
}

/// The verdict that a test expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Each source reaches each destination.
    Allow,
    /// No source reaches any destination.
    Deny,
}

impl Policy {
    /// The text that was parsed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The number of its tests.
    #[must_use]
    pub fn test_count(&self) -> usize {
        self.tests.len()
    }

    /// Whether a node may serve a name: if a `[[serve]]` has the name, its `by` must have the node.
    #[must_use]
    pub fn may_serve(&self, name: &ServiceName, node: &NodeFacts<'_>) -> bool {
        let has_name = |serve: &&Serve| {
            let mut names = serve.names.iter();
            names.any(|selector| *selector == Selector::Any || selector.names(name))
        };
        let mut with_name = self.serve.iter().filter(has_name).peekable();
        if with_name.peek().is_none() {
            return !self.strict;
        }
        with_name.any(|serve| self.has_node(&serve.by, node))
    }

    /// Whether a node may offer to relay for others: each may if there is no `[[relay]]`.
    #[must_use]
    pub fn may_offer_relay(&self, node: &NodeFacts<'_>) -> bool {
        self.relay.is_empty() || self.relay.iter().any(|offer| self.has_node(offer, node))
    }

    /// The networks to which the node with this name may route.
    pub fn routes_of(&self, node: &Label) -> impl Iterator<Item = IpNet> {
        let routes = self.routes.iter().filter(move |route| route.node == *node);
        routes.map(|route| route.prefix)
    }

    /// Whether the policy has words about routes, which the first versions of the language did not have.
    #[must_use]
    pub fn has_routes(&self) -> bool {
        let is_route = |term: &Term| {
            let mut selectors = self.selectors(term).iter();
            selectors.any(|selector| matches!(selector, Selector::Route(_)))
        };
        let targets = |rule: &Rule| rule.to.iter().any(|target| is_route(&target.term));
        let mut rules = self.rules.iter();
        let mut members = self.groups.iter().flat_map(|group| &group.members);
        !self.routes.is_empty()
            || rules.any(|rule| rule.from.iter().any(is_route) || targets(rule))
            || members.any(|member| matches!(member, Selector::Route(_)))
            || (self.tests.iter()).any(|test| is_route(&test.from) || is_route(&test.to.term))
    }

    /// The selectors that a term stands for.
    pub(super) fn selectors<'a>(&'a self, term: &'a Term) -> &'a [Selector] {
        term.selectors(&self.groups)
    }

    fn has_node(&self, terms: &[Term], node: &NodeFacts<'_>) -> bool {
        let mut selectors = terms.iter().flat_map(|term| self.selectors(term));
        selectors.any(|selector| match selector {
            Selector::Any => true,
            Selector::Tag(tag) => node.tags.iter().any(|own| tag.is(own)),
            Selector::Node(name) => name.is(node.name),
            Selector::Service(_)
            | Selector::InProject(..)
            | Selector::Project(_)
            | Selector::Guest(_)
            | Selector::Route(_)
            | Selector::SameProject
            | Selector::Unknown => false,
        })
    }
}
