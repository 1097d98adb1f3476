//! Tests of the bounds of one node, which do not affect other nodes.

use super::*;
use crate::records::ledger::usage::{
    Bound, MAX_BYTES, MAX_RECORDS, MAX_UNKNOWN_BYTES, MAX_UNKNOWN_RECORDS, Usage,
};

fn named_service(node: u8, version: u64, name: &str) -> Service {
    let record = service_record(node, version, "10.210.1.1");
    Service {
        id: Service::id_of(&record.node, None, &label(name)),
        name: label(name),
        ..record
    }
}

fn withdrawn(node: u8, n: usize) -> Envelope {
    let record = Service {
        instances: vec![],
        ..named_service(node, 1, &format!("s{n}"))
    };
    Envelope::seal(&Record::Service(record), &key(node))
}

fn large(node: u8, n: usize, bytes: usize) -> Envelope {
    let text = format!(
        r#"{{"kind":"service","id":"{id}/s{n}","version":1,"node":"{id}","name":"s{n}","instances":[],"x":"{fill}"}}"#,
        id = key(node).public(),
        fill = "x".repeat(bytes)
    );
    Envelope::seal_payload(text, &key(node))
}

fn unknown(node: u8, n: usize, bytes: usize) -> Envelope {
    let fill = "x".repeat(bytes);
    let text = format!(r#"{{"kind":"weather","id":"{n}","version":1,"x":"{fill}"}}"#);
    Envelope::seal_payload(text, &key(node))
}

/// The number of records that are accepted before one is refused, and the reason for the refusal.
fn taken(ledger: &mut Ledger, records: impl Iterator<Item = Envelope>) -> (usize, Refused) {
    let mut count = 0;
    for record in records.take(2 * MAX_RECORDS) {
        match ledger.apply(record) {
            Ok(_) => count += 1,
            Err(why) => return (count, why),
        }
    }
    panic!("nothing was refused");
}

/// Checks that records of the administrator and of the other node are still accepted.
fn others_go_on(mut ledger: Ledger) {
    let mut record = token_record(9, &["db"]);
    record.id = key(50).public();
    ledger
        .apply(Envelope::seal(&Record::Token(record), &key(MESH)))
        .expect("the mesh key has no bound");
    ledger
        .apply(service(11, 1, "10.210.2.1"))
        .expect("another node");
    ledger
        .apply(revocation(10, RevokedKind::Node, NOW))
        .expect("the mesh key has no bound");
    assert_eq!(
        ledger.usage_of(&key(10).public()).records,
        1,
        "its membership"
    );
    assert!(ledger.envelopes().all(|e| e.signer != key(10).public()));
}

#[test]
fn a_node_has_so_many_records_and_no_more() {
    let mut ledger = two_nodes();
    let (count, why) = taken(&mut ledger, (0..).map(|n| withdrawn(10, n)));
    assert!(
        matches!(why, Refused::Full(Bound::Records | Bound::Bytes)),
        "{why}"
    );
    assert!(count > 1000, "{count}");
    let usage = ledger.usage_of(&key(10).public());
    assert!(usage.records <= MAX_RECORDS && usage.bytes <= MAX_BYTES);
    others_go_on(ledger);
}

#[test]
fn a_node_has_so_many_octets_and_no_more() {
    let mut ledger = two_nodes();
    let (count, why) = taken(&mut ledger, (0..).map(|n| large(10, n, 60_000)));
    assert_eq!(why, Refused::Full(Bound::Bytes));
    assert_eq!(count, 8);
    // The bound applies to a new version that is larger as well, and a smaller version makes room.
    let grown = large(10, 0, 64_000)
        .payload
        .replace("\"version\":1", "\"version\":2");
    let grown = Envelope::seal_payload(grown, &key(10));
    let applied = ledger.apply(grown);
    assert!(
        matches!(applied, Ok(_) | Err(Refused::Full(_))),
        "{applied:?}"
    );
    let small = Service {
        version: 3,
        ..named_service(10, 3, "s1")
    };
    ledger
        .apply(Envelope::seal(&Record::Service(small), &key(10)))
        .expect("it is smaller");
    ledger
        .apply(large(10, 99, 50_000))
        .expect("there is room again");
    others_go_on(ledger);
}

#[test]
fn a_node_has_few_records_of_kinds_that_are_not_known() {
    let mut ledger = two_nodes();
    let (count, why) = taken(&mut ledger, (0..).map(|n| unknown(10, n, 10)));
    assert_eq!(
        (count, why),
        (MAX_UNKNOWN_RECORDS, Refused::Full(Bound::UnknownRecords))
    );
    let (count, why) = taken(&mut ledger, (0..).map(|n| unknown(11, n, 20_000)));
    assert_eq!(
        (count, why),
        (
            MAX_UNKNOWN_BYTES / 20_000,
            Refused::Full(Bound::UnknownBytes)
        )
    );
    // The bounds of unknown kinds do not apply to known kinds.
    ledger.apply(service(10, 1, "10.210.1.1")).expect("its own");
    others_go_on(ledger);
}

#[test]
fn the_usage_of_a_node_is_that_of_the_records_held() {
    let mut ledger = two_nodes();
    for n in 0..20 {
        ledger.apply(withdrawn(10, n)).expect("within its bounds");
        ledger.apply(unknown(10, n, 5)).ok();
    }
    let again = ledger
        .replace(service(10, 1, "10.210.1.1"))
        .expect("its own")
        .expect("new");
    let before = ledger.usage_of(&key(10).public());
    assert!(ledger.put_back(again));
    assert_eq!(
        ledger.usage_of(&key(10).public()).records + 1,
        before.records
    );
    let counted = |ledger: &Ledger, n: u8| {
        let id = key(n).public();
        let own = ledger.envelopes().filter(|e| {
            e.signer == id
                || e.payload
                    .contains(&format!(r#""kind":"membership","id":"{id}""#))
        });
        own.fold(Usage::default(), |sum, e| {
            let is_unknown = usize::from(e.payload.contains("weather"));
            Usage {
                records: sum.records + 1,
                bytes: sum.bytes + e.payload.len(),
                unknown_records: sum.unknown_records + is_unknown,
                unknown_bytes: sum.unknown_bytes + is_unknown * e.payload.len(),
            }
        })
    };
    for n in [10, 11] {
        assert_eq!(ledger.usage_of(&key(n).public()), counted(&ledger, n));
    }
}

#[test]
fn a_node_clears_away_the_services_it_has_withdrawn() {
    let mut ledger = two_nodes();
    for n in 0..50 {
        ledger.apply(withdrawn(10, n)).expect("within its bounds");
    }
    let live = Envelope::seal(&Record::Service(named_service(10, 9, "live")), &key(10));
    ledger.apply(live).expect("its own");
    let cleared = Node {
        services_from: 9,
        ..node_record(10, 6, 1)
    };
    ledger
        .apply(Envelope::seal(&Record::Node(cleared), &key(10)))
        .expect("its own");
    assert_eq!(ledger.services_of(&key(10).public()).count(), 1);
    assert_eq!(ledger.usage_of(&key(10).public()).records, 3);
    assert!(matches!(
        ledger.apply(withdrawn(10, 3)),
        Err(Refused::Stale { held: 9, .. })
    ));
    let at_the_floor = Envelope::seal(&Record::Service(named_service(10, 9, "again")), &key(10));
    ledger.apply(at_the_floor).expect("its own");
}
