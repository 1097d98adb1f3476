//! Tests of the policy record: who may sign it, and that ledgers of earlier versions, which do not know it, hold the same records.

use super::*;
use crate::policy::OPEN;
use crate::records::digest::Digests;
use crate::records::kinds::MeshPolicy;

const CLOSED: &str = "language = 1\ndefault = \"deny\"\n";

fn policy(version: u64, text: &str) -> Envelope {
    let record = Record::Policy(MeshPolicy::new(version, text));
    Envelope::seal(&record, &key(MESH))
}

fn text(ledger: &Ledger) -> Option<&str> {
    ledger.policy()?.text.as_deref()
}

/// A record of a kind that no version knows, with the same fields as a policy.
fn unknown(kind: &str, id: &str, version: u64, signer: u8) -> Envelope {
    let payload = format!(r#"{{"kind":"{kind}","id":"{id}","version":{version},"text":"a"}}"#);
    Envelope::seal_payload(payload, &key(signer))
}

#[test]
fn the_policy_of_the_mesh_key_with_the_highest_version_is_held() {
    let mut ledger = two_nodes();
    assert_eq!(text(&ledger), None);
    ledger.apply(policy(2, OPEN)).expect("the mesh key signs");
    ledger.apply(policy(3, CLOSED)).expect("it is newer");
    let stale = Refused::Stale {
        key: RecordKey::Policy,
        offered: 2,
        held: 3,
    };
    assert_eq!(ledger.apply(policy(2, OPEN)), Err(stale));
    assert_eq!(text(&ledger), Some(CLOSED));
}

#[test]
fn of_two_policies_with_one_version_all_ledgers_keep_the_same() {
    let mut kept = Vec::new();
    for order in [[OPEN, CLOSED], [CLOSED, OPEN]] {
        let mut ledger = two_nodes();
        let offered = order.map(|text| ledger.apply(policy(2, text)));
        assert!(offered[0].is_ok(), "{offered:?}");
        kept.push(text(&ledger).map(str::to_owned));
    }
    assert_eq!(kept[0], kept[1]);
}

#[test]
fn a_policy_that_a_member_signs_is_not_in_force_and_keeps_none_of_the_mesh_key_out() {
    for first in [10, MESH] {
        let mut ledger = two_nodes();
        let by_member = unknown("policy", "mesh", u64::MAX, 10);
        let (first, second) = if first == MESH {
            (policy(1, CLOSED), by_member)
        } else {
            (by_member, policy(1, CLOSED))
        };
        ledger.apply(first).expect("both are held");
        ledger.apply(second).expect("both are held");
        assert_eq!(text(&ledger), Some(CLOSED));
        ledger.apply(policy(2, OPEN)).expect("it is newer");
        assert_eq!(text(&ledger), Some(OPEN));
    }
    let stranger = unknown("policy", "mesh", 1, 30);
    assert_eq!(two_nodes().apply(stranger), Err(Refused::NotAMember));
}

/// A version before this kind treats it like any kind that it does not know. The kind `weather` shows what it does.
#[test]
fn a_ledger_holds_of_policies_what_one_of_an_earlier_version_holds() {
    let mut ledger = two_nodes();
    for kind in ["weather", "policy"] {
        for (id, signer) in [("mesh", MESH), ("mesh", 10), ("other", 10), ("other", MESH)] {
            let envelope = unknown(kind, id, 4, signer);
            let header = envelope.header().expect("just made");
            let key = ledger.key_of(&header, &envelope.signer);
            let expected = if signer == MESH {
                (kind.to_owned(), id)
            } else {
                (format!("{kind} of {}", key_of(signer)), id)
            };
            assert_eq!(
                (key.kind().to_owned(), &*key.id()),
                (expected.0, expected.1)
            );
            let applied = ledger.apply(envelope.clone());
            assert_eq!(applied, Ok(Applied::Changed(key.clone())));
            // The store of a coordinator and the messages have the key as two texts.
            assert_eq!(RecordKey::parse(key.kind(), &key.id()), key);
            let again = ledger.apply(envelope);
            assert_eq!(again, Ok(Applied::Unchanged));
        }
        let usage = ledger.usage_of(&key_of(10));
        let kinds = if kind == "policy" { 2 } else { 1 };
        assert_eq!(usage.unknown_records, 2 * kinds);
    }
    // The removal of the member drops what it signed as a policy too.
    ledger
        .apply(revocation(10, RevokedKind::Node, NOW))
        .expect("the mesh key signs");
    assert_eq!(ledger.usage_of(&key_of(10)).unknown_records, 0);
    assert_eq!(text(&ledger), Some("a"));
}

#[test]
fn a_peer_receives_the_policy_and_has_the_same_digests_then() {
    let mut ledger = two_nodes();
    let mut peer = ledger.clone();
    ledger.apply(policy(1, CLOSED)).expect("the mesh key signs");
    let mesh_key = key_of(MESH);
    assert_eq!(
        Digests::of(&ledger).differing(&Digests::of(&peer)),
        [mesh_key]
    );
    for envelope in ledger.envelopes_for_peers() {
        peer.apply(envelope.clone()).expect("it was held there");
    }
    assert_eq!(Digests::of(&ledger), Digests::of(&peer));
    assert_eq!(ledger.fingerprint(), peer.fingerprint());
}

#[test]
fn a_policy_that_this_version_does_not_understand_is_held_and_replaced_like_any() {
    let mut ledger = two_nodes();
    for (version, text_then) in [(1, "language = 99"), (2, "no policy at all"), (3, OPEN)] {
        ledger
            .apply(policy(version, text_then))
            .expect("its text does not matter");
        assert_eq!(text(&ledger), Some(text_then));
    }
}

#[test]
fn a_relay_that_may_not_be_offered_is_in_nobodys_netmap() {
    let mut ledger = two_nodes();
    let stream = crate::records::kinds::StreamOffer {
        url: "wss://a.example".into(),
        pin: None,
    };
    for (n, index) in [(10, 1), (11, 2)] {
        let record = Node {
            relays: vec![key_of(10), key_of(11)],
            stream: Some(stream.clone()),
            ..node_record(n, 6, index)
        };
        let envelope = Envelope::seal(&Record::Node(record), &key(n));
        ledger.apply(envelope).expect("it is newer");
    }
    let relay = "language = 1\n[[relay]]\noffer = [\"node:n10\"]\n";
    let before = ledger.netmap();
    ledger.apply(policy(1, relay)).expect("the mesh key signs");
    let after = ledger.netmap();
    for member in before.members.values() {
        assert_eq!((member.relays.len(), member.stream.is_some()), (2, true));
    }
    for member in after.members.values() {
        assert_eq!(member.relays, [key_of(10)]);
        assert_eq!(member.stream.is_some(), member.id == key_of(10));
    }
}

#[test]
fn under_a_policy_in_a_form_of_a_later_version_nobody_serves_a_name() {
    for fields in [r#","text":{}"#, "", r#","text":"a","text":"b""#] {
        let mut ledger = two_nodes();
        ledger
            .apply(service(10, 1, "10.210.1.1"))
            .expect("in its block");
        assert_eq!(ledger.netmap().services.len(), 1);
        let payload = format!(r#"{{"kind":"policy","id":"mesh","version":1{fields}}}"#);
        let later = Envelope::seal_payload(payload, &key(MESH));
        ledger.apply(later).expect("the mesh key signs");
        let netmap = ledger.netmap();
        assert_eq!((netmap.services.len(), netmap.unlawful.len()), (0, 1));
    }
}

fn key_of(n: u8) -> PublicKey {
    key(n).public()
}
