//! Tests of conflicts: two nodes or two payloads claim the same thing.

use super::*;
use crate::model::KeyProof;

/// A WireGuard key pair made of `byte`.
fn wireguard(byte: u8) -> ([u8; 32], WireGuardKey) {
    let secret = x25519_dalek::StaticSecret::from([byte; 32]);
    let public = x25519_dalek::PublicKey::from(&secret);
    (secret.to_bytes(), WireGuardKey(public.to_bytes()))
}

/// The record of node `n` with the WireGuard key of `byte`, with a proof.
fn proving(n: u8, version: u64, index: u32, byte: u8) -> Node {
    let (secret, public) = wireguard(byte);
    Node {
        wireguard_key: public,
        key_proof: Some(KeyProof::make(
            &secret,
            &key(n).public(),
            &[version as u8; 32],
        )),
        ..node_record(n, version, index)
    }
}

fn sealed(record: Node, by: u8) -> Envelope {
    Envelope::seal(&Record::Node(record), &key(by))
}

fn joined(record: Membership) -> Envelope {
    Envelope::seal(&Record::Membership(record), &key(TOKEN))
}

#[test]
fn of_two_texts_under_one_version_the_same_one_holds_whichever_came_first() {
    let mut other = node_record(10, 5, 1);
    other.endpoints.clear();
    let texts = [node(10, 5, 1), sealed(other, 10)];
    let held = |order: [usize; 2]| {
        let mut ledger = ledger(2);
        ledger.apply(membership(10)).expect("within the token");
        let results = order.map(|n| ledger.apply(texts[n].clone()));
        (ledger.envelopes().cloned().collect::<Vec<_>>(), results)
    };
    let (one, first) = held([0, 1]);
    let (other, second) = held([1, 0]);
    assert_eq!(one, other);
    // Other versions keep the greater text too.
    let payloads = texts.each_ref().map(|text| text.payload.as_str());
    let greater = payloads.into_iter().max();
    assert!(
        one.iter()
            .any(|held| Some(held.payload.as_str()) == greater)
    );
    let forked = [&first, &second].map(|results| matches!(results[1], Err(Refused::Forked(_))));
    assert_ne!(forked[0], forked[1], "{first:?} {second:?}");
}

#[test]
fn a_member_takes_no_name_by_a_membership_with_an_earlier_date() {
    let mut ledger = ledger(2);
    let victim = membership_record(10, "n1");
    let thief = Membership {
        issued_at: UnixSeconds(NOW.0 + 60),
        ..membership_record(11, "n2")
    };
    ledger.apply(joined(victim)).expect("within the token");
    ledger
        .apply(joined(thief.clone()))
        .expect("within the token");
    for (version, name, issued_at) in [
        (2, "n1", NOW.0 - 10),
        (u64::MAX, "n1", NOW.0 - 10),
        (2, "n1", NOW.0 + 120),
    ] {
        let forged = Membership {
            version,
            name: label(name),
            issued_at: UnixSeconds(issued_at),
            ..thief.clone()
        };
        assert!(
            ledger.apply(joined(forged)).is_err(),
            "{version} {issued_at}"
        );
    }
    let names = ledger.names();
    assert_eq!(names[&key(10).public()], label("n1"));
    assert_eq!(names[&key(11).public()], label("n2"));
}

/// The certificate of a second token with this many uses.
fn other_token(uses: u32) -> Envelope {
    let token = Token {
        id: key(3).public(),
        ..token_record(uses, &["db"])
    };
    Envelope::seal(&Record::Token(token), &key(MESH))
}

/// A membership of node 10 for `token`, dated `later` seconds after the first one.
fn again(token: u8, later: u64) -> Membership {
    Membership {
        token: key(token).public(),
        version: 2,
        issued_at: UnixSeconds(NOW.0 + later),
        ..membership_record(10, "n10")
    }
}

fn by(token: u8, record: Membership) -> Envelope {
    Envelope::seal(&Record::Membership(record), &key(token))
}

#[test]
fn the_membership_of_a_node_is_replaced_by_the_node_alone() {
    let own = by(TOKEN, membership_record(10, "n10").proven_by(&key(10)));
    let renamed = Membership {
        name: label("stolen"),
        ..again(3, 60)
    };
    let mut borrowed = again(3, 60).proven_by(&key(10));
    borrowed.name = label("stolen");
    let forgeries = [
        by(3, renamed.clone()),
        by(3, renamed.proven_by(&key(11))),
        by(3, borrowed),
        // The holder of the node's own token does not replace it either.
        by(TOKEN, again(TOKEN, 60)),
    ];
    for (n, forged) in forgeries.into_iter().enumerate() {
        for own_first in [true, false] {
            let mut ledger = ledger(1);
            ledger
                .apply(other_token(2))
                .expect("signed by the mesh key");
            let order = if own_first {
                [&own, &forged]
            } else {
                [&forged, &own]
            };
            let results = order.map(|record| ledger.apply(record.clone()));
            let expected = if own_first {
                Err(Refused::Unproven)
            } else {
                Ok(Applied::Changed(RecordKey::Membership(key(10).public())))
            };
            assert_eq!(results[1], expected, "{n}");
            assert!(ledger.holds(&own), "{n}");
            let uses = [TOKEN, 3].map(|token| ledger.admitted_by(&key(token).public()));
            assert_eq!(uses, [1, 0], "{n}");
        }
    }
}

#[test]
fn a_node_that_proves_a_further_membership_takes_no_name_of_another_node() {
    let mut ledger = ledger(2);
    ledger.apply(membership(11)).expect("within the token");
    let own = membership_record(10, "n10").proven_by(&key(10));
    ledger.apply(joined(own)).expect("within the token");
    let renamed = Membership {
        name: label("n11"),
        ..again(TOKEN, 60)
    };
    assert_eq!(
        ledger.apply(joined(renamed.proven_by(&key(10)))),
        Err(Refused::NameTaken("n11".into()))
    );
}

#[test]
fn a_node_that_joins_again_with_another_token_gives_back_the_use_of_the_first_one() {
    let mut ledger = ledger(1);
    ledger
        .apply(other_token(1))
        .expect("signed by the mesh key");
    // The membership is of a node of an earlier version, which has no proof.
    ledger.apply(membership(10)).expect("the first");
    let proven = by(3, again(3, 60).proven_by(&key(10)));
    ledger.apply(proven.clone()).expect("it is the node's own");
    assert_eq!(ledger.apply(membership(10)), Err(Refused::Unproven));
    assert_eq!(ledger.admitted_by(&key(TOKEN).public()), 0);
    ledger.apply(membership(11)).expect("a use is left");
    assert_eq!(
        ledger.apply(by(TOKEN, again(TOKEN, 120).proven_by(&key(10)))),
        Err(Refused::TokenSpent(1))
    );
    assert!(ledger.holds(&proven));
}

#[test]
fn of_two_memberships_without_proof_the_later_one_of_the_same_token_is_kept() {
    let mut ledger = ledger(2);
    ledger
        .apply(other_token(2))
        .expect("signed by the mesh key");
    ledger.apply(membership(10)).expect("the first");
    assert_eq!(
        ledger.apply(by(3, again(3, 60))),
        Err(Refused::Unproven),
        "another token"
    );
    let later = by(TOKEN, again(TOKEN, 60));
    ledger.apply(later.clone()).expect("the same token");
    assert!(matches!(
        ledger.apply(membership(10)),
        Err(Refused::Stale { .. })
    ));
    assert!(ledger.holds(&later));
}

#[test]
fn a_membership_is_not_dated_before_its_token() {
    let mut ledger = ledger(3);
    for (issued_at, permitted) in [
        (0, false),
        (NOW.0 - 24 * 3600 - 1, false),
        (NOW.0 - 24 * 3600, true),
        // The clocks of two machines may differ by this much.
        (NOW.0 - 600, true),
    ] {
        let dated = Membership {
            issued_at: UnixSeconds(issued_at),
            ..membership_record(10, "n10")
        };
        let applied = ledger.apply(joined(dated));
        assert_eq!(applied.is_ok(), permitted, "{issued_at} {applied:?}");
    }
}

#[test]
fn a_wireguard_key_named_in_a_membership_is_that_nodes() {
    let mut ledger = two_nodes();
    let mut record = token_record(3, &["db"]);
    record.version = 2;
    ledger
        .apply(Envelope::seal(&Record::Token(record), &key(MESH)))
        .expect("signed by the mesh key");
    ledger.apply(membership(12)).expect("within the token");
    let claim = Node {
        wireguard_key: WireGuardKey([12; 32]),
        ..node_record(11, 6, 2)
    };
    assert_eq!(ledger.apply(sealed(claim, 11)), Err(Refused::KeyTaken));
    ledger.apply(node(12, 1, 3)).expect("its own key");
}

#[test]
fn a_proof_takes_a_key_back_from_a_node_that_claims_it_without_one() {
    let claim = Node {
        wireguard_key: wireguard(12).1,
        ..node_record(11, 6, 2)
    };
    let (claim, proving) = (sealed(claim, 11), sealed(proving(10, 6, 1, 12), 10));
    for order in [[&claim, &proving], [&proving, &claim]] {
        let mut ledger = two_nodes();
        for envelope in order {
            let _ = ledger.apply(envelope.clone());
        }
        let netmap = ledger.netmap();
        let key_of = |n: u8| {
            netmap
                .members
                .get(&key(n).public())
                .map(|m| m.wireguard_key)
        };
        assert_eq!(key_of(10), Some(wireguard(12).1));
        assert_ne!(key_of(11), Some(wireguard(12).1));
        // The node that lost the key is a peer again once it publishes a key of its own.
        ledger.apply(node(11, 7, 2)).expect("its own key");
    }
}

#[test]
fn a_proof_of_another_node_or_key_proves_nothing() {
    let mut ledger = two_nodes();
    let others = proving(10, 6, 1, 12);
    let copied = Node {
        id: key(11).public(),
        block: block(2),
        ..others.clone()
    };
    assert_eq!(ledger.apply(sealed(copied, 11)), Err(Refused::KeyProof));
    let swapped = Node {
        wireguard_key: wireguard(13).1,
        ..others
    };
    assert_eq!(ledger.apply(sealed(swapped, 10)), Err(Refused::KeyProof));
}

fn revoked_token(stays: &[u8]) -> Envelope {
    let revocation = Revocation {
        id: key(TOKEN).public(),
        version: 1,
        revoked: RevokedKind::Token,
        at: LATER,
        stays: Some(stays.iter().map(|n| key(*n).public()).collect()),
    };
    Envelope::seal(&Record::Revocation(revocation), &key(MESH))
}

#[test]
fn a_revocation_that_names_the_nodes_that_stay_puts_all_others_out_in_any_order() {
    let all = [
        membership(10),
        node(10, 1, 1),
        membership(11),
        node(11, 1, 2),
        departure(11, 11),
        revoked_token(&[10]),
    ];
    let mut states = Vec::new();
    for turn in 0..all.len() {
        let mut ledger = ledger(9);
        for _ in 0..3 {
            for n in 0..all.len() {
                let _ = ledger.apply(all[(n + turn) % all.len()].clone());
            }
        }
        assert!(ledger.membership(&key(10).public()).is_some());
        assert_eq!(ledger.membership(&key(11).public()), None);
        assert_eq!(ledger.apply(membership(11)), Err(Refused::TokenRevoked));
        // A membership that is dated back is refused as well.
        let dated_back = Membership {
            issued_at: UnixSeconds(NOW.0 - 3600),
            ..membership_record(12, "n12")
        };
        assert_eq!(ledger.apply(joined(dated_back)), Err(Refused::TokenRevoked));
        states.push(ledger.envelopes().cloned().collect::<Vec<_>>());
    }
    assert!(states.iter().all(|state| *state == states[0]));
}

#[test]
fn a_node_that_the_administrator_removed_stays_removed_if_its_token_is_revoked() {
    let mut ledger = two_nodes();
    for removal in [revocation(11, RevokedKind::Node, NOW), revoked_token(&[10])] {
        ledger.apply(removal).expect("signed by the mesh key");
    }
    assert_eq!(ledger.membership(&key(11).public()), None);
    assert!(ledger.is_revoked(&key(11).public()));
    assert!(!ledger.is_revoked(&key(10).public()));
}

#[test]
fn nobody_takes_the_place_of_a_record_whose_kind_is_not_known_yet() {
    let mut ledger = two_nodes();
    let text = |version: u64, by: u8| {
        let text = format!(r#"{{"kind":"policy","id":"mesh","version":{version}}}"#);
        Envelope::seal_payload(text, &key(by))
    };
    ledger.apply(text(u64::MAX, 10)).expect("a kind of its own");
    ledger.apply(text(1, MESH)).expect("the mesh key's own");
    ledger.apply(text(7, 11)).expect("another node's own");
    let held: Vec<&Envelope> = ledger
        .envelopes()
        .filter(|e| e.payload.contains("policy"))
        .collect();
    assert_eq!(held.len(), 3);
    let mut other = Ledger::new(key(MESH).public());
    for envelope in ledger.envelopes() {
        other.apply(envelope.clone()).expect("in order");
    }
    assert!(other.envelopes().eq(ledger.envelopes()));
    ledger
        .apply(revocation(10, RevokedKind::Node, NOW))
        .expect("signed by the mesh key");
    assert_eq!(
        ledger
            .envelopes()
            .filter(|e| e.payload.contains("policy"))
            .count(),
        2
    );
}

#[test]
fn the_wireguard_key_of_a_node_that_is_out_is_free_whichever_came_first() {
    let claim = Node {
        wireguard_key: WireGuardKey([11; 32]),
        ..node_record(10, 6, 1)
    };
    let (claim, removal) = (sealed(claim, 10), revocation(11, RevokedKind::Node, NOW));
    for order in [
        [membership(11), removal.clone(), claim.clone()],
        [removal.clone(), membership(11), claim.clone()],
        [membership(11), claim.clone(), removal.clone()],
    ] {
        let mut ledger = ledger(2);
        for envelope in [membership(10), node(10, 1, 1)].into_iter().chain(order) {
            let _ = ledger.apply(envelope);
        }
        let _ = ledger.apply(claim.clone());
        assert!(ledger.holds(&claim));
    }
}
