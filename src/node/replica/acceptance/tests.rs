use super::*;
use crate::model::time::next_version;
use crate::model::{SigningKey, address::Block};
use crate::records::kinds::{Node, RecordKey};
use std::time::{SystemTime, UNIX_EPOCH};

/// The start of this program, in seconds since 1970.
const START: u64 = 1_800_000_000;
const OWN: WireGuardKey = WireGuardKey([7; 32]);

fn id() -> PublicKey {
    SigningKey::from_seed(&[1; 32]).public()
}

fn word() -> Acceptance {
    Acceptance::new(&id(), START * 1000)
}

fn key(kind: &str, name: &str) -> RecordKey {
    let id = match kind {
        "service" => format!("{}/{name}", id()),
        _ => id().to_string(),
    };
    RecordKey::parse(kind, &id)
}

fn node(wireguard_key: WireGuardKey) -> Record {
    Record::Node(Node {
        id: id(),
        version: 1,
        wireguard_key,
        block: Block {
            v4: "10.210.1.0/24".parse().expect("a literal"),
            v6: "fd00:1:2:1::/64".parse().expect("a literal"),
        },
        endpoints: vec![],
        without_ipv6: false,
        key_proof: None,
        services_from: 0,
        program_version: None,
        speaks: vec![],
        relays: vec![],
        observed: vec![],
        mapped: vec![],
        stream: None,
        guest_key: None,
        guests: vec![],
        routes: vec![],
    })
}

fn service(name: &str) -> Record {
    Record::Service(Service {
        id: key("service", name).id().into_owned(),
        version: 1,
        node: id(),
        name: Label::parse(name).expect("a literal"),
        project: None,
        service_address: None,
        instances: vec![],
    })
}

fn millis(seconds_after_start: i64) -> u64 {
    START.saturating_add_signed(seconds_after_start) * 1000
}

fn whats(word: &Acceptance, now: Instant) -> Vec<String> {
    word.problems(now).into_iter().map(|p| p.what).collect()
}

#[test]
fn a_record_of_another_machine_is_a_problem_and_is_overtaken() {
    let now = Instant::now();
    let mut word = word();
    let foreign = millis(50);
    let line = word.handle_foreign(
        key("node", ""),
        &node(WireGuardKey([9; 32])),
        foreign,
        Some(OWN),
        now,
    );
    assert!(line.is_some_and(|line| line.contains(&foreign.to_string())));
    assert!(word.is_overruled(&key("node", ""), now));
    assert!(!word.is_overruled(&key("name", ""), now));
    let clock = UNIX_EPOCH + Duration::from_secs(START);
    let version = next_version(word.last_version(&key("node", ""), 5), clock);
    assert!(version > foreign);
    word.handle_published(&key("node", ""), version, now);
    assert!(!word.is_due(now + QUIET));

    let [problem] = &word.problems(now)[..] else {
        panic!("one problem")
    };
    assert_eq!(problem.what, "another machine speaks with this node's keys");
    assert!(
        problem.why.contains(&WireGuardKey([9; 32]).to_string()),
        "{}",
        problem.why
    );
    assert!(problem.fix.contains("meshctl leave"));
    assert_eq!(whats(&word, now + SHOWN), Vec::<String>::new());
    // A late refusal of the record that this node published before is no longer a problem.
    word.handle_offered(1, vec![key("node", "")]);
    let stale = refused(
        key("node", ""),
        "a newer one is known",
        RefusedReason::Stale,
    );
    assert!(
        word.handle_answer(1, &["a newer one is known".into()], vec![stale], now)
            .is_empty()
    );
    assert_eq!(whats(&word, now + SHOWN), Vec::<String>::new());
    // The same record is known when the coordinator sends it again.
    assert_eq!(
        word.handle_foreign(key("node", ""), &node(OWN), foreign, Some(OWN), now + SHOWN),
        None
    );
    assert_eq!(whats(&word, now + SHOWN), Vec::<String>::new());
}

#[test]
fn two_machines_with_the_same_keys_answer_each_other_more_and_more_slowly() {
    let start = Instant::now();
    let mut word = word();
    let (mut version, mut published) = (millis(0), 0);
    for tick in 0..2 * 3600 {
        let now = start + Duration::from_millis(500) * tick;
        // The other machine always publishes first.
        version += 1;
        word.handle_foreign(key("node", ""), &node(OWN), version, Some(OWN), now);
        if word.is_due(now) {
            version = next_version(
                word.last_version(&key("node", ""), 0),
                SystemTime::UNIX_EPOCH,
            );
            word.handle_published(&key("node", ""), version, now);
            published += 1;
        }
    }
    assert!((60..75).contains(&published), "{published} in an hour");
    // After a quiet time this node answers at once, and answers the next record after the shortest pause.
    let later = start + Duration::from_secs(2 * 3600);
    word.handle_foreign(key("node", ""), &node(OWN), version + 1, Some(OWN), later);
    assert!(word.is_due(later));
    word.handle_published(&key("node", ""), version + 2, later);
    word.handle_foreign(key("node", ""), &node(OWN), version + 3, Some(OWN), later);
    assert!(word.is_due(later + MIN_PAUSE));
}

#[test]
fn a_state_directory_that_was_restored_is_told_from_a_copy_that_speaks_now() {
    let now = Instant::now();
    let mut word = word();
    word.handle_foreign(
        key("node", ""),
        &node(WireGuardKey([9; 32])),
        millis(-3600),
        Some(OWN),
        now,
    );
    assert_eq!(
        whats(&word, now),
        ["this node's state directory is older than what it published"]
    );
    assert!(word.problems(now)[0].why.contains("WireGuard key"));
    assert!(whats(&word, now + SHOWN_OLDER).is_empty());
    let line = word.handle_foreign(key("name", ""), &node(OWN), millis(1), Some(OWN), now);
    assert!(line.is_some());
    assert_eq!(
        whats(&word, now),
        ["another machine speaks with this node's keys"]
    );
}

#[test]
fn services_that_another_machine_made_up_are_withdrawn() {
    let now = Instant::now();
    let mut word = word();
    for name in ["db", "web"] {
        word.handle_foreign(
            key("service", name),
            &service(name),
            millis(5),
            Some(OWN),
            now,
        );
    }
    let known = BTreeSet::from([key("service", "web").id().into_owned()]);
    let withdrawn = word.foreign_services(&id(), &known, now);
    assert_eq!(withdrawn.len(), 1);
    assert_eq!(
        (withdrawn[0].name.as_str(), withdrawn[0].instances.len()),
        ("db", 0)
    );
    // This node publishes both records in one round.
    word.handle_published(&key("service", "db"), millis(6), now);
    assert!(!word.is_overruled(&key("service", "db"), now));
    word.handle_published(&key("service", "web"), millis(6), now);
    assert!(!word.is_due(now + QUIET));
    assert_eq!(word.pause, MIN_PAUSE);
}

#[test]
fn of_the_records_of_another_machine_the_first_is_a_line_and_the_newest_is_shown() {
    let now = Instant::now();
    let mut word = word();
    let late = now + Duration::from_secs(60);
    for (name, seconds, at, is_line) in [
        ("db", 5, now, true),
        ("web", 7, now, false),
        ("api", 6, now, false),
        // This one was made before this program started.
        ("old", -3600, late, false),
    ] {
        let (key, record) = (key("service", name), service(name));
        let line = word.handle_foreign(key, &record, millis(seconds), Some(OWN), at);
        assert_eq!(line.is_some(), is_line, "{name}");
    }
    // What is shown is shown until a time after the last of them.
    let [problem] = &word.problems(now + SHOWN)[..] else {
        panic!("one problem")
    };
    assert_eq!(problem.what, "another machine speaks with this node's keys");
    assert!(problem.why.contains("the service web"), "{}", problem.why);
    assert!(word.problems(late + SHOWN).is_empty());
}

#[test]
fn only_a_newer_record_of_another_machine_replaces_one_that_is_known() {
    let now = Instant::now();
    let mut word = word();
    let node_key = key("node", "");
    let mut receive = |seconds, at| {
        let record = node(OWN);
        word.handle_foreign(node_key.clone(), &record, millis(seconds), Some(OWN), at);
        word.last_version(&node_key, 0)
    };
    assert_eq!(receive(5, now), millis(5));
    assert_eq!(receive(4, now), millis(5));
    // The same one shows that the other machine still speaks.
    let later = now + Duration::from_secs(60);
    assert_eq!(receive(5, later), millis(5));
    assert_eq!(word.problems(now + SHOWN).len(), 1);
    assert!(word.problems(later + SHOWN).is_empty());
}

#[test]
fn only_a_publication_above_the_record_of_the_other_machine_overtakes_it_and_only_once() {
    let now = Instant::now();
    let mut word = word();
    let node_key = key("node", "");
    word.handle_foreign(node_key.clone(), &node(OWN), millis(5), Some(OWN), now);
    word.handle_published(&node_key, millis(5), now);
    assert!(word.is_due(now));
    word.handle_published(&node_key, millis(6), now);
    assert!(!word.is_due(now + QUIET));
    word.handle_published(&node_key, millis(7), now + MIN_PAUSE);
    assert_eq!((word.pause, word.overtaken_at), (MIN_PAUSE, Some(now)));
}

#[test]
fn the_pause_doubles_until_a_quiet_time_has_passed() {
    let start = Instant::now();
    let mut word = word();
    let node_key = key("node", "");
    let second = start + MIN_PAUSE;
    let third = second + QUIET - Duration::from_nanos(1);
    let times = [start, second, third, third + QUIET];
    let pauses = [1, 2, 4, 1].map(|times| MIN_PAUSE * times);
    for (n, (at, pause)) in (0..).zip(times.into_iter().zip(pauses)) {
        word.handle_foreign(node_key.clone(), &node(OWN), millis(2 * n), Some(OWN), at);
        word.handle_published(&node_key, millis(2 * n + 1), at);
        assert_eq!(word.pause, pause, "{n}");
    }
}

#[test]
fn a_record_that_the_own_ledger_refuses_is_tried_again_after_a_pause() {
    let now = Instant::now();
    let mut word = word();
    word.handle_foreign(key("node", ""), &node(OWN), millis(5), Some(OWN), now);
    word.handle_unpublished(now);
    assert!(!word.is_due(now));
    assert!(word.is_due(now + MIN_PAUSE));
}

#[test]
fn nothing_is_above_the_largest_version_and_that_is_said() {
    let now = Instant::now();
    let mut word = word();
    word.handle_foreign(key("node", ""), &node(OWN), u64::MAX, Some(OWN), now);
    assert!(!word.is_due(now));
    let problems = word.problems(now + SHOWN);
    assert!(
        problems[0].why.contains("no version is above"),
        "{problems:?}"
    );
}

#[test]
fn what_another_machine_says_takes_bounded_memory() {
    let now = Instant::now();
    let mut word = word();
    for n in 0..3 * MAX_FOREIGN as u64 {
        let name = format!("s{n}");
        word.handle_foreign(
            key("service", &name),
            &service(&name),
            millis(5) + n,
            Some(OWN),
            now,
        );
    }
    assert_eq!(word.foreign.len(), MAX_FOREIGN);
    assert_eq!(word.problems(now).len(), 1);
}

fn refused(key: RecordKey, message: &str, reason: RefusedReason) -> RefusedRecord {
    RefusedRecord::new(key, message.into(), reason).expect("short")
}

#[test]
fn a_record_that_the_coordinator_refuses_is_a_problem_in_its_words_and_is_offered_again() {
    let now = Instant::now();
    let mut word = word();
    let (node, db) = (key("node", ""), key("service", "db"));
    word.handle_opened(now);
    word.handle_offered(1, vec![node.clone(), db.clone()]);
    let answer = || {
        vec![
            refused(db.clone(), "the moon is full", RefusedReason::Other),
            refused(key("service", "other"), "not ours", RefusedReason::Other),
        ]
    };
    let lines = word.handle_answer(1, &["the moon is full".into()], answer(), now);
    assert_eq!(lines, ["the service db of this node: the moon is full"]);
    assert_eq!(word.node_record(), &NodeRecord::Accepted);
    let problems = word.problems(now);
    assert_eq!(problems.len(), 1);
    assert_eq!(
        (problems[0].what.as_str(), problems[0].why.as_str()),
        (
            "the coordinator does not accept the service db of this node",
            "the moon is full"
        )
    );
    // The record is offered again, at growing intervals.
    assert!(word.poll_again(now).is_empty());
    let mut at = now;
    let mut pauses = Vec::new();
    for sequence in 2..12 {
        let since = at;
        while word.poll_again(at).is_empty() {
            at += Duration::from_secs(1);
        }
        pauses.push((at - since).as_secs());
        word.handle_offered(sequence, vec![db.clone()]);
        assert!(
            word.handle_answer(sequence, &["x".into()], answer(), at)
                .is_empty()
        );
    }
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]);
    word.handle_offered(20, vec![db.clone()]);
    word.handle_answer(20, &[], vec![], at);
    assert!(word.problems(at).is_empty());
}

#[test]
fn each_reason_of_a_refusal_has_a_remedy_of_its_own() {
    let now = Instant::now();
    for (reason, remedy) in [
        (RefusedReason::Block, "for its lease again"),
        (RefusedReason::Stale, "asks for the newer record"),
        (RefusedReason::Name, "takes another name"),
        (RefusedReason::Other, "offers the record again by itself"),
    ] {
        let (mut word, node) = (word(), key("node", ""));
        word.handle_offered(1, vec![node.clone()]);
        let records = vec![refused(node, "no", reason)];
        word.handle_answer(1, &["no".into()], records, now);
        let [problem] = &word.problems(now)[..] else {
            panic!("one problem")
        };
        assert!(problem.fix.contains(remedy), "{}", problem.fix);
    }
}

#[test]
fn a_few_refused_records_are_problems_and_the_others_are_counted() {
    let now = Instant::now();
    let named = |count: usize| {
        let mut word = word();
        let keys = (0..count).map(|n| key("service", &format!("s{n}")));
        word.handle_offered(1, keys.collect());
        word.handle_answer(1, &["no".into()], vec![], now);
        whats(&word, now)
    };
    assert_eq!(named(MAX_NAMED).len(), MAX_NAMED);
    let whats = named(MAX_NAMED + 2);
    assert_eq!(whats.len(), MAX_NAMED + 1);
    assert!(whats[MAX_NAMED].contains("2 more records"), "{whats:?}");
}

#[test]
fn a_coordinator_that_names_no_record_is_quoted_for_all_that_were_offered() {
    let now = Instant::now();
    let mut word = word();
    let node = key("node", "");
    word.handle_offered(1, vec![node.clone()]);
    word.handle_answer(1, &["the disk is full".into()], vec![], now);
    assert_eq!(
        word.node_record(),
        &NodeRecord::Refused("the disk is full".into())
    );
    assert_eq!(word.problems(now)[0].why, "the disk is full");
    let due = Due {
        key: node.clone(),
        reason: RefusedReason::Other,
        failures: 1,
    };
    assert_eq!(word.poll_again(now + MIN_AGAIN), [due]);
    // An answer to a publication that this node did not make changes nothing.
    word.handle_answer(7, &["nonsense".into()], vec![], now);
    assert_eq!(word.problems(now).len(), 1);
    word.retain(|_| false);
    assert!(word.problems(now).is_empty());
}

#[test]
fn a_coordinator_that_never_answers_is_a_problem() {
    let now = Instant::now();
    let mut word = word();
    assert!(
        word.problems(now + ANSWER_LIMIT).is_empty(),
        "not connected"
    );
    word.handle_opened(now);
    word.handle_offered(1, vec![key("node", "")]);
    word.handle_closed();
    assert!(word.problems(now + ANSWER_LIMIT).is_empty(), "it is closed");
    let late = word.handle_answer(1, &["no".into()], vec![], now);
    assert!(late.is_empty(), "the answer is one to another stream");
    word.handle_opened(now);
    word.handle_offered(1, vec![key("node", "")]);
    assert!(word.problems(now).is_empty());
    assert_eq!(word.problems(now + ANSWER_LIMIT).len(), 1);
    word.handle_answer(1, &[], vec![], now);
    assert!(word.problems(now + ANSWER_LIMIT).is_empty());
    for sequence in 0..10_000 {
        word.handle_offered(sequence, vec![key("node", "")]);
    }
    assert_eq!(word.offered.len(), MAX_OFFERED);
}
