use super::*;

fn web(version: u64) -> Record {
    service_record(OWN, "web", version)
}

#[test]
fn a_record_of_this_node_is_sent_when_it_is_on_disk_and_not_before() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    kit.sent.clear();
    kit.disk = Disk::Hangs;
    kit.writes.clear();
    let publication = kit.publish(vec![web(1)]);
    assert_eq!(publication.sequence, Some(2));
    assert_eq!(publication.accepted.len(), 1);
    assert!(kit.sent.is_empty());
    let second = kit.publish(vec![web(2)]);
    assert_eq!(second.sequence, Some(3));
    kit.answer(true);
    assert_eq!(kit.publications(), [(2, vec![service(OWN, "web", 1)])]);
    assert_eq!(kit.writes.len(), 2, "one write is outstanding at a time");
    kit.answer(true);
    assert_eq!(kit.publications(), [(3, vec![service(OWN, "web", 2)])]);
}

#[test]
fn messages_keep_their_order_while_they_wait_for_the_disk() {
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    kit.sent.clear();
    kit.disk = Disk::Hangs;
    kit.publish(vec![web(1)]);
    kit.replica.publish_departure(departure(OWN));
    kit.drain();
    assert!(kit.sent.is_empty());
    kit.answer(true);
    let sequences: Vec<u64> = kit.publications().iter().map(|(n, _)| *n).collect();
    assert_eq!(sequences, [2, 3]);
    // A stream that opens meanwhile waits as well, and what was not sent on the old one is not sent twice.
    kit.publish(vec![web(2)]);
    kit.close(None, false);
    kit.open(STORE, 5);
    assert!(kit.sent.is_empty());
    kit.answer(true);
    let publications = kit.publications();
    assert_eq!(publications.len(), 1);
    assert!(publications[0].1.contains(&service(OWN, "web", 2)));
}

#[test]
fn a_full_disk_silences_no_node_and_all_is_written_when_there_is_room() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    kit.sent.clear();
    kit.writes.clear();
    kit.disk = Disk::Full;
    kit.publish(vec![web(1)]);
    assert_eq!(kit.publications().len(), 1, "the disk refused the record");
    kit.publish(vec![web(2)]);
    assert_eq!(kit.publications().len(), 1, "the disk is known to be full");
    kit.changes(vec![], 9);
    kit.pass(Duration::from_millis(4500));
    assert_eq!(kit.writes.len(), 1, "there is a pause between two attempts");
    kit.pass(Duration::from_millis(500));
    assert_eq!(kit.writes.len(), 2);
    kit.disk = Disk::Writes;
    kit.pass(Duration::from_secs(6));
    let write = kit.writes.back().expect("a write");
    let Some(RecordsWrite::All(records)) = &write.records else {
        panic!("{write:?}")
    };
    assert!(records.contains(&service(OWN, "web", 2)));
    assert_eq!(records.len(), kit.replica.ledger().len());
    assert_eq!(write.position, Some(position(9)));
    kit.publish(vec![web(3)]);
    let write = kit.writes.back().expect("a write");
    let appended = vec![service(OWN, "web", 3)];
    assert_eq!(write.records, Some(RecordsWrite::Append(appended)));
}

#[test]
fn what_comes_while_a_write_is_outstanding_is_one_write() {
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    kit.writes.clear();
    kit.disk = Disk::Hangs;
    for version in 1..6 {
        kit.changes(vec![service(11, "web", version)], 5 + version);
    }
    assert_eq!(kit.writes.len(), 1);
    kit.answer(true);
    let write = kit.writes.back().expect("a write");
    let Some(RecordsWrite::Append(records)) = &write.records else {
        panic!("{write:?}")
    };
    assert_eq!((kit.writes.len(), records.len()), (2, 4));
    assert_eq!(write.position, Some(position(10)));
}

#[test]
fn a_part_that_was_not_written_is_written_later_and_a_newer_value_replaces_it() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    kit.writes.clear();
    kit.disk = Disk::Full;
    kit.changes(vec![], 6);
    kit.disk = Disk::Writes;
    kit.changes(vec![], 7);
    kit.pass(Duration::from_secs(6));
    let positions: Vec<u64> = kit
        .writes
        .iter()
        .filter_map(|w| w.position.as_ref())
        .map(|p| p.revision)
        .collect();
    assert_eq!(positions, [6, 7]);
    let count = kit.writes.len();
    kit.pass(Duration::from_secs(60));
    assert_eq!(kit.writes.len(), count, "there is nothing left to write");
}

#[test]
fn the_file_of_records_is_replaced_when_most_of_its_lines_are_out_of_date() {
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    let held = kit.replica.ledger().len() + 1;
    kit.lines = held * 3 + 1024 - 1;
    for (version, is_replaced) in [(1, false), (2, false), (3, true)] {
        kit.changes(vec![service(11, "web", version)], 6);
        let write = kit.writes.iter().rev().find_map(|w| w.records.as_ref());
        assert_eq!(
            matches!(write, Some(RecordsWrite::All(_))),
            is_replaced,
            "{version}"
        );
        kit.lines += usize::from(version == 1);
    }
    // While a write is outstanding, what waits is bounded as well.
    kit.lines = 0;
    kit.changes(vec![service(11, "web", 4)], 6);
    kit.disk = Disk::Hangs;
    kit.changes(vec![service(11, "web", 5)], 6);
    for version in 6..2000 {
        kit.changes(vec![service(11, "web", version)], 6);
    }
    kit.answer(true);
    let write = kit.writes.back().and_then(|w| w.records.as_ref());
    assert_eq!(
        write,
        Some(&RecordsWrite::All(
            kit.replica.ledger().envelopes().cloned().collect()
        ))
    );
}

#[test]
fn the_lists_of_newcomers_are_written_once_a_second_and_before_the_position() {
    let mut records = records_of(&[]);
    records.push(token_of(3, UnixSeconds(START.0 - 30 * DAY), false));
    let mut kit = Kit::with(&records, position(5), Some(60));
    kit.open(STORE, 9);
    kit.writes.clear();
    for n in 0..20 {
        let late = membership_by(20 + n, 3, UnixSeconds(START.0 - 60 * DAY));
        kit.changes(vec![late], 10 + u64::from(n));
    }
    let lists = |kit: &Kit| {
        let lists = kit.writes.iter().filter_map(|w| w.newcomers.as_ref());
        lists.map(|lists| lists.held_back.len()).collect::<Vec<_>>()
    };
    let positions = |kit: &Kit| {
        let positions = kit.writes.iter().filter_map(|w| w.position.as_ref());
        positions.map(|p| p.revision).collect::<Vec<_>>()
    };
    // A membership that is held back may need records that are before the position, so the one on disk requests all.
    assert_eq!((lists(&kit), positions(&kit)), (vec![1], vec![0]));
    kit.pass(Duration::from_secs(1));
    assert_eq!((lists(&kit), positions(&kit)), (vec![1, 20], vec![0, 0]));
    kit.pass(Duration::from_secs(10));
    assert_eq!(lists(&kit).len(), 2);
}

#[test]
fn a_file_that_lacks_records_is_written_at_the_start() {
    let kit = Kit::new(&[]);
    assert!(kit.writes.is_empty());
    let now = kit.now;
    let start = Start {
        own: Own {
            key: key(OWN),
            block: block(OWN.into()),
            urls: vec![url()],
        },
        ledger: ledger_of(&records_of(&[])),
        position: Position::default(),
        newcomers: Newcomers::new(InStep::default(), NewcomerLists::default(), now.monotonic),
        record_lines: 0,
        records_whole: false,
    };
    let mut replica = Replica::new(start, now);
    let Some(Effect::Write(write)) = replica.poll_effect() else {
        panic!("a write")
    };
    assert!(matches!(write.records, Some(RecordsWrite::All(_))));
    assert!(replica.is_writing());
    // An answer that belongs to no write changes nothing.
    replica.handle_written(&outcome_of(&write, true, 8), now);
    assert!(!replica.is_writing());
    replica.handle_written(&WriteOutcome::default(), now);
    assert!(replica.poll_effect().is_none());
}
