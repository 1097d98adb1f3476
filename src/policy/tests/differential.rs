//! The plain reading against the table, and differences against a comparison of each pair. `MESHD_POLICY_CASES=5000000` sets the number
//! of packets.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::super::compile::{Kinds, Owners};
use super::worlds::{asked_for, everything_asked, mesh, policy, run_until};
use super::*;

/// The packets that are tried when nothing else is asked for.
const PACKETS: u64 = 200_000;

/// The packets of a world of which half the subjects are there.
const PACKETS_OF_WORLD: u64 = 49 * 20;

/// Runs `test` on random inputs until it has seen enough packets; it returns how many it saw.
fn run<S: Strategy>(strategy: &S, test: impl Fn(S::Value) -> Result<u64, TestCaseError>) {
    let wanted = asked_for("MESHD_POLICY_CASES", PACKETS);
    run_until(wanted, PACKETS_OF_WORLD, strategy, test);
}

#[test]
fn the_table_and_the_plain_reading_have_the_same_verdicts() {
    let most_pairs = prop_oneof![Just(1_usize), Just(3), Just(10), Just(1 << 17)];
    let world = (prop::option::weighted(0.9, policy()), mesh(), most_pairs);
    let passed = std::cell::Cell::new(0);
    let seen_of_all = std::cell::Cell::new(0);
    run(&world, |(text, subjects, most_pairs)| {
        let policy = text
            .as_deref()
            .map(|text| Policy::parse(text).expect("a policy"));
        let owners = Owners::of(&subjects);
        let kinds = Kinds::of(&subjects, &owners);
        let table = Table::with_pairs(policy.as_ref(), &kinds, &owners, most_pairs);
        let asked = everything_asked();
        let mut seen = 0;
        for (from, source) in subjects.iter().enumerate() {
            for (to, destination) in subjects.iter().enumerate() {
                // By one address of each: the first of both, or the second.
                let place = (from + to) % 2;
                let classes = [source, destination].map(|s| table.class(s.addresses[place]));
                let ports = table.ports(classes[0], classes[1]);
                for asked in &asked {
                    let plain = interpret(policy.as_ref(), source, destination, *asked);
                    let compiled = table.allows(classes[0], classes[1], *asked);
                    passed.set(passed.get() + u64::from(compiled));
                    prop_assert_eq!(
                        compiled,
                        plain == Verdict::Allow,
                        "{} from {} to {}",
                        asked,
                        source,
                        destination
                    );
                    prop_assert_eq!(
                        ports.contains(*asked),
                        compiled,
                        "{} from {} to {}",
                        asked,
                        source,
                        destination
                    );
                    seen += 1;
                }
            }
        }
        seen_of_all.set(seen_of_all.get() + seen);
        Ok(seen)
    });
    // Rules and packets meet often enough.
    let share = passed.get() * 100 / seen_of_all.get();
    assert!((15..=85).contains(&share), "{share} % pass");
}

#[test]
fn a_difference_has_exactly_the_pairs_that_a_comparison_of_all_finds() {
    let maybe = || prop::option::weighted(0.9, policy());
    run(&(maybe(), maybe(), mesh()), |(old, new, subjects)| {
        let [old, new] =
            [old, new].map(|text| text.map(|text| Policy::parse(&text).expect("a policy")));
        let changes = diff(old.as_ref(), new.as_ref(), &subjects);
        let mut of_pair: BTreeMap<(usize, usize), &Change> = BTreeMap::new();
        for change in &changes {
            for from in &change.from {
                for to in &change.to {
                    prop_assert!(
                        of_pair.insert((*from, *to), change).is_none(),
                        "a pair in two changes"
                    );
                }
            }
        }
        let mut seen = 0;
        for (from, source) in subjects.iter().enumerate() {
            for (to, destination) in subjects.iter().enumerate() {
                let change = of_pair.get(&(from, to));
                for asked in everything_asked() {
                    let passes = |policy: &Option<Policy>| {
                        interpret(policy.as_ref(), source, destination, asked) == Verdict::Allow
                    };
                    let (before, after) = (passes(&old), passes(&new));
                    let added = change.is_some_and(|change| change.added.contains(asked));
                    let removed = change.is_some_and(|change| change.removed.contains(asked));
                    prop_assert_eq!(
                        (added, removed),
                        (!before && after, before && !after),
                        "{} from {} to {}",
                        asked,
                        source,
                        destination
                    );
                    seen += 1;
                }
            }
        }
        Ok(seen)
    });
}

#[test]
fn an_explanation_has_the_verdict_and_the_line_of_a_rule_that_allows() {
    let world = (policy(), mesh());
    let config = Config {
        cases: 64,
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&world, |(text, subjects)| {
        let policy = Policy::parse(&text).expect("a policy");
        for source in &subjects {
            for destination in &subjects {
                for asked in [tcp(80), udp(81), Asked::Icmp] {
                    let said = explain(Some(&policy), source, destination, asked);
                    prop_assert_eq!(
                        said.verdict,
                        interpret(Some(&policy), source, destination, asked)
                    );
                    let is_rule = |line: &usize| policy.rules.iter().any(|rule| rule.line == *line);
                    prop_assert!(said.line.iter().all(is_rule));
                    if said.verdict == Verdict::Allow {
                        let by_default = policy.default_allow && said.line.is_none();
                        prop_assert!(by_default || said.line.is_some());
                    }
                }
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
