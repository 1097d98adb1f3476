//! Runs the tests in a policy (`[[test]]`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use ipnet::IpNet;

use super::compile::{Kinds, Owners, opened};
use super::explain::explain;
use super::interpret::selects;
use super::ports::PortSet;
use super::rules::{Policy, Ports, Target, Term, Test, Wanted};
use super::selector::{Selector, Wild};
use super::subject::{Network, Offered, OfferedPort, Subject};
use super::table::{Class, Table};
use crate::model::{Label, Protocol, ServiceName};

/// A test that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The line of the test.
    pub line: usize,
    /// How the policy differs from the test, for one source and one destination.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Runs the tests of a policy. A test is about all subjects of the mesh that its source and its destination select. If one of these
/// selects none, subjects are made up for it, so that tests can run without a mesh.
#[must_use]
pub fn run_tests(policy: &Policy, subjects: &[Subject]) -> Vec<Failure> {
    let failures = run(policy, subjects, u64::MAX);
    failures.expect("no mesh has that many pairs")
}

/// Runs the tests as [`run_tests`] does, for a policy whose author may mean harm: with a bound on the time and the memory that they take.
///
/// # Errors
/// They take more.
pub fn run_tests_bounded(
    policy: &Policy,
    subjects: &[Subject],
) -> Result<Vec<Failure>, TestsTooLong> {
    let selectors = |test: &Test| {
        let (from, to) = (
            policy.selectors(&test.from),
            policy.selectors(&test.to.term),
        );
        from.len() + to.len()
    };
    let count: usize = policy.tests.iter().map(selectors).sum();
    if count > MAX_SELECTORS {
        return Err(TestsTooLong);
    }
    run(policy, subjects, MAX_PAIRS)
}

/// Why the tests of a policy were not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the tests of the policy compare too much; write fewer ones, with fewer sources and destinations"
)]
pub struct TestsTooLong;

/// The maximum number of selectors in the tests that [`run_tests_bounded`] runs. A subject may be made up for each one, with
/// [`MAX_DECLARED`] ports.
const MAX_SELECTORS: usize = 2_000;
/// The maximum number of pairs of a source and a destination that [`run_tests_bounded`] compares, which takes seconds.
const MAX_PAIRS: u64 = 20_000_000;

/// Runs the tests, which may compare `pairs` pairs of a source and a destination.
fn run(
    policy: &Policy,
    subjects: &[Subject],
    mut pairs: u64,
) -> Result<Vec<Failure>, TestsTooLong> {
    if policy.tests.is_empty() {
        return Ok(Vec::new());
    }
    let mut all = subjects.to_vec();
    let mut make_up = |term, ports| {
        let selectors = policy.selectors(term);
        let is_there = |subject: &Subject| selectors.iter().any(|s| selects(s, subject));
        let start = all.len();
        if !subjects.iter().any(is_there) {
            all.extend(selectors.iter().map(|selector| made_up(selector, ports)));
        }
        start..all.len()
    };
    let tests = policy.tests.iter().map(|test| Sides {
        test,
        from: make_up(&test.from, None),
        to: make_up(&test.to.term, Some(&test.to.ports)),
    });
    let tests: Vec<Sides<'_>> = tests.collect();
    let owners = Owners::of(&all);
    let kinds = Kinds::of(&all, &owners);
    let world = World {
        policy,
        table: Table::of_kinds(Some(policy), &kinds, &owners),
        subjects: &all,
        classes: &kinds.of_subject,
        live: subjects.len(),
    };
    let mut failures = Vec::new();
    for sides in &tests {
        failures.extend(world.failure(sides, &mut pairs)?);
    }
    Ok(failures)
}

/// A test, and the numbers of the subjects that are made up for its source and for its destination. No other test uses them, because they
/// do not declare the ports of other tests.
struct Sides<'a> {
    test: &'a Test,
    from: Range<usize>,
    to: Range<usize>,
}

/// The policy, and the subjects that its tests run against.
struct World<'a> {
    policy: &'a Policy,
    table: Table,
    subjects: &'a [Subject],
    classes: &'a [Class],
    /// How many of the subjects are in the mesh. Those after them are made up.
    live: usize,
}

impl World<'_> {
    /// How the policy differs from a test. The pairs that are compared are taken from `pairs`.
    fn failure(
        &self,
        Sides { test, from, to }: &Sides<'_>,
        pairs: &mut u64,
    ) -> Result<Option<Failure>, TestsTooLong> {
        let failed = |message| {
            Ok(Some(Failure {
                line: test.line,
                message,
            }))
        };
        let sources = self.selected(&test.from, from, |_, _| Some(PortSet::nothing()));
        let destinations = self.selected(&test.to.term, to, |selector, subject| {
            let asked = asked(selector, &test.to.ports, subject);
            (!asked.is_empty()).then_some(asked)
        });
        if destinations.is_empty() {
            return failed(self.without_ports(&test.to));
        }
        let compared = sources.len().saturating_mul(destinations.len());
        let left = pairs.checked_sub(u64::try_from(compared).unwrap_or(u64::MAX));
        *pairs = left.ok_or(TestsTooLong)?;
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
        Ok(None)
    }

    /// One subject of each class that a term selects, with the ports that `ports` returns for it. They are those that were made up for the
    /// term, if any were, and those of the mesh otherwise.
    fn selected(
        &self,
        term: &Term,
        made_up: &Range<usize>,
        ports: impl Fn(&Selector, &Subject) -> Option<PortSet>,
    ) -> BTreeMap<Class, (&Subject, PortSet)> {
        let selectors = self.policy.selectors(term);
        let places = if made_up.is_empty() {
            0..self.live
        } else {
            made_up.clone()
        };
        let subjects = self.subjects.get(places.clone()).unwrap_or_default();
        let classes = self.classes.get(places).unwrap_or_default();
        let mut of_class: BTreeMap<Class, (&Subject, PortSet)> = BTreeMap::new();
        for (subject, class) in subjects.iter().zip(classes) {
            if *class == Class::NOBODY || of_class.contains_key(class) {
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

    /// The message of a test that asks for no port, because none of its destinations declares one.
    fn without_ports(&self, target: &Target) -> String {
        let names: Vec<String> = self
            .policy
            .selectors(&target.term)
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

/// The ports that a test asks for at a destination. A test without a port asks an instance for its declared ports.
fn asked(selector: &Selector, ports: &Ports, subject: &Subject) -> PortSet {
    let asked = opened(selector, ports, subject);
    match ports {
        Ports::Declared if !asked.is_everything() => asked.numbered(),
        Ports::Declared | Ports::Named(_) | Ports::Fixed(_) => asked,
    }
}

/// Makes up a subject that a selector selects. As a destination it declares the ports that the test asks for, so that rules about declared
/// ports apply.
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
        guest: None,
        network: None,
    };
    let service = match selector {
        Selector::Service(service) => Some(ServiceName::from(service.clone())),
        Selector::InProject(project, service) => Some(ServiceName {
            name: name(service),
            project: Some(name(project)),
        }),
        Selector::Project(project) => Some(ServiceName {
            name: name(&Wild::Any),
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
        Selector::Guest(guest) => {
            subject.guest = Some(name(guest));
            None
        }
        Selector::Route(node) => {
            subject.network = Some(Network {
                prefix: IpNet::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                gateways: vec![name(node)],
            });
            None
        }
        Selector::Any | Selector::SameProject | Selector::Unknown => None,
    };
    match service {
        None => subject.is_node = subject.guest.is_none() && subject.network.is_none(),
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

/// The maximum number of ports that a destination declares if it is made up. A test can ask for all 65,535 ports.
const MAX_DECLARED: usize = 1_024;
