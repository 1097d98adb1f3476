//! Changes on a virtual clock.

use std::collections::BTreeSet;

use super::*;
use crate::containers::inspect::{Image, Inspected, Network, Status};
use crate::containers::labels::{Facts, Labels};

fn id(n: u32) -> ContainerId {
    ContainerId::parse(&format!("{n:064x}")).expect("hexadecimal")
}

fn started(n: u32) -> Report {
    Report::Event(id(n), Action::Start)
}

fn described(n: u32) -> Report {
    Report::Inspected(Box::new(Inspected {
        id: id(n),
        name: "web".into(),
        image: Image {
            id: "sha256:1".into(),
            labels: None,
        },
        labels: Labels::new(),
        run: "first".into(),
        status: Status::Running,
        pid: None,
        health: None,
        facts: Facts::default(),
        stop_signal: 15,
        network: Network::Host,
        published: vec![],
    }))
}

/// The stages that were measured, with the milliseconds of each.
fn measured(times: &ChangeTimes) -> Vec<(&'static str, u128)> {
    let stages = times.by_stage();
    let measured = stages.filter(|(_, durations)| durations.counts().iter().any(|c| *c > 0));
    measured
        .map(|(stage, durations)| (stage, durations.sum().as_millis()))
        .collect()
}

#[test]
fn a_start_is_followed_from_the_event_to_the_description_to_the_first_probe_that_passes() {
    let (mut times, begun) = (ChangeTimes::default(), Instant::now());
    let at = |ms| begun + Duration::from_millis(ms);
    times.handle_reports(&[started(1)], at(0));
    times.handle_reports(&[described(1)], at(5));
    times.handle_probes(&[(id(1), Err("refused".into()))], at(6));
    times.handle_probes(&[(id(1), Ok(()))], at(45));
    assert_eq!(measured(&times), [("engine", 5), ("probe", 40)]);
    // Another verdict, and a description that is requested from time to time, are no part of a start.
    times.handle_probes(&[(id(1), Ok(()))], at(90));
    times.handle_reports(&[described(1)], at(95));
    assert_eq!(measured(&times), [("engine", 5), ("probe", 40)]);
}

#[test]
fn containers_that_end_or_are_gone_from_the_list_are_not_followed_any_more() {
    let (mut times, now) = (ChangeTimes::default(), Instant::now());
    times.handle_reports(&[started(1), started(2), started(3), described(3)], now);
    let listed = Report::Listed(BTreeSet::from([id(1)]));
    times.handle_reports(&[Report::Event(id(1), Action::Die), listed], now);
    assert!(times.started.is_empty() && times.described.is_empty());
}

#[test]
fn an_engine_without_end_of_starts_is_followed_up_to_a_bound() {
    let (mut times, now) = (ChangeTimes::default(), Instant::now());
    for n in 0..2 * MAX_FOLLOWED as u32 {
        times.handle_reports(&[started(n)], now);
    }
    assert_eq!(times.started.len(), MAX_FOLLOWED);
}

#[test]
fn the_firewall_is_late_since_the_first_state_that_it_does_not_have() {
    let (mut times, begun) = (ChangeTimes::default(), Instant::now());
    let at = |ms| begun + Duration::from_millis(ms);
    times.handle_wanted(at(0));
    times.handle_wanted(at(10));
    times.handle_applied(at(30));
    // The kernel was looked at, and nothing was to be done.
    times.handle_applied(at(80));
    assert_eq!(measured(&times), [("firewall", 30)]);
}

#[test]
fn a_publication_is_stored_when_its_own_answer_comes() {
    let (mut times, begun) = (ChangeTimes::default(), Instant::now());
    let at = |ms| begun + Duration::from_millis(ms);
    times.handle_offered(7, at(0));
    times.handle_stored(6, at(1));
    assert!(measured(&times).is_empty());
    times.handle_stored(7, at(20));
    assert_eq!(measured(&times), [("store", 20)]);
    // The stream closes before the answer.
    times.handle_offered(8, at(30));
    times.handle_closed();
    times.handle_stored(8, at(90));
    assert_eq!(measured(&times), [("store", 20)]);
}

#[test]
fn each_stage_has_a_place_of_its_own() {
    let mut times = ChangeTimes::default();
    for (n, stage) in Stage::ALL.into_iter().enumerate() {
        times.note(stage, Duration::from_millis(n as u64 + 1));
    }
    let names = Stage::ALL.map(Stage::as_str).into_iter();
    let expected: Vec<(&str, u128)> = names.zip(1u128..).collect();
    assert_eq!(measured(&times), expected);
}
