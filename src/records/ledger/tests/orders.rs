//! Tests that ledgers reach the same state for any order in which honest and hostile records arrive.

use proptest::prelude::*;

use super::*;
use crate::model::KeyProof;
use crate::records::netmap::Netmap;

/// The parts of a ledger's state that the rest of the program uses.
#[derive(Debug, PartialEq)]
struct State {
    envelopes: Vec<Envelope>,
    netmap: Netmap,
    out: Vec<bool>,
}

const NODES: std::ops::Range<u8> = 10..16;
/// The key of a token that leaked to the attackers. It has uses left.
const LEAKED: u8 = 4;

fn state(ledger: &Ledger) -> State {
    check_indexes(ledger);
    State {
        envelopes: ledger.envelopes().cloned().collect(),
        netmap: ledger.netmap(),
        out: NODES.map(|n| ledger.is_revoked(&key(n).public())).collect(),
    }
}

/// Compares the indexes of a ledger with what a search through its records finds.
fn check_indexes(ledger: &Ledger) {
    for n in 0..24 {
        let id = key(n).public();
        let joined = ledger.memberships().filter(|m| !ledger.is_revoked(&m.id));
        let joined = joined.map(|m| (m.id, &m.name));
        let wanted = ledger
            .memberships()
            .filter_map(|m| ledger.wanted_name(&m.id));
        let claims: Vec<_> = joined.chain(wanted.map(|w| (w.id, &w.name))).collect();
        for (_, name) in &claims {
            let found = claims.iter().any(|(node, n)| n == name && *node != id);
            assert_eq!(ledger.is_name_of_another(name, &id), found, "{name} {n}");
        }
        let own = ledger.envelopes().filter(|envelope| {
            let header = envelope.header().expect("it is held");
            let key = ledger.key_of(&header, &envelope.signer);
            let held = ledger.entry(&key).expect("it is held");
            usage::owner(&envelope.signer, &held.record) == Some(id)
        });
        let bytes: Vec<usize> = own.map(|envelope| envelope.payload.len()).collect();
        let usage = ledger.usage_of(&id);
        assert_eq!(usage.records, bytes.len());
        assert_eq!(usage.bytes, bytes.iter().sum::<usize>());
        let admitted = ledger.memberships().filter(|m| m.token == id);
        assert!(ledger.admitted_by(&id) >= admitted.count());
    }
}

/// Offers all records again and again, as nodes do, until nothing changes.
fn settle(ledger: &mut Ledger, records: &[Envelope]) {
    for _ in 0..records.len() {
        let mut changed = false;
        for record in records {
            changed |= matches!(ledger.apply(record.clone()), Ok(Applied::Changed(_)));
        }
        if !changed {
            return;
        }
    }
    panic!("the ledger does not settle");
}

fn secret(n: u8) -> ([u8; 32], WireGuardKey) {
    let secret = x25519_dalek::StaticSecret::from([n; 32]);
    let public = x25519_dalek::PublicKey::from(&secret);
    (secret.to_bytes(), WireGuardKey(public.to_bytes()))
}

fn honest_node(n: u8, version: u64) -> Envelope {
    let (private, public) = secret(n);
    let record = Node {
        wireguard_key: public,
        key_proof: Some(KeyProof::make(&private, &key(n).public(), &[1; 32])),
        services_from: if version > 2 { 2 } else { 0 },
        ..node_record(n, version, u32::from(n) - 9)
    };
    Envelope::seal(&Record::Node(record), &key(n))
}

fn honest_membership(n: u8) -> Envelope {
    let record = Membership {
        wireguard_key: secret(n).1,
        issued_at: UnixSeconds(NOW.0 + u64::from(n)),
        ..membership_record(n, &format!("n{n}"))
    };
    let record = record.proven_by(&key(n));
    Envelope::seal(&Record::Membership(record), &key(TOKEN))
}

/// The administrator's records, all of which are always accepted.
fn administration() -> Vec<Envelope> {
    let spare = Token {
        id: key(3).public(),
        ..token_record(2, &[])
    };
    let leaked = Token {
        id: key(LEAKED).public(),
        ..token_record(9, &["db"])
    };
    let take_back = Revocation {
        id: key(3).public(),
        version: 1,
        revoked: RevokedKind::Token,
        at: LATER,
        stays: Some(vec![key(14).public()]),
    };
    vec![
        mesh(),
        Envelope::seal(&Record::Token(token_record(4, &["db"])), &key(MESH)),
        Envelope::seal(&Record::Token(spare), &key(MESH)),
        Envelope::seal(&Record::Token(leaked), &key(MESH)),
        Envelope::seal(&Record::Revocation(take_back), &key(MESH)),
        revocation(12, RevokedKind::Node, NOW),
        Envelope::seal_payload(
            r#"{"kind":"policy","id":"mesh","version":3,"text":"language = 1"}"#.into(),
            &key(MESH),
        ),
    ]
}

/// Nodes 10 to 13 joined with one token; 12 was removed, 13 departs. Nodes 14 and 15 joined with another token, whose revocation
/// spares 14.
fn honest() -> Vec<Envelope> {
    let mut records: Vec<Envelope> = (10..14).map(honest_membership).collect();
    for n in [14, 15] {
        let record = Membership {
            token: key(3).public(),
            wireguard_key: secret(n).1,
            ..membership_record(n, &format!("n{n}"))
        };
        let record = record.proven_by(&key(n));
        records.push(Envelope::seal(&Record::Membership(record), &key(3)));
    }
    for n in NODES {
        records.extend([1, 3].map(|version| honest_node(n, version)));
        let own = format!("10.210.{}.1", n - 9);
        records.extend([1, 2, 4].map(|version| service(n, version, &own)));
    }
    records.push(name(10, 1, "web"));
    records.push(departure(13, 13));
    records
}

/// Records with which node 11 and strangers attack. Claims to a block, a name or a use of a token that nobody holds yet are not
/// among them, because the first such claim is accepted.
fn hostile() -> impl Strategy<Value = Vec<Envelope>> {
    let one = prop_oneof![
        (any::<u64>(), any::<u8>(), 0u64..9).prop_map(|(version, id, fill)| {
            let kinds = ["policy", "weather"];
            let kind = kinds[usize::from(id) % 2];
            let id = ["mesh", "x", "y"][usize::from(id) % 3];
            let text = format!(r#"{{"kind":"{kind}","id":"{id}","version":{version},"x":{fill}}}"#);
            Envelope::seal_payload(text, &key(11))
        }),
        (1u64..9, NODES).prop_map(|(version, victim)| {
            let record = Node {
                wireguard_key: secret(victim).1,
                ..node_record(11, version, 2)
            };
            Envelope::seal(&Record::Node(record), &key(11))
        }),
        (1u64..9, 1u8..9, any::<bool>()).prop_map(|(version, third, drained)| {
            let mut record = service_record(11, version, &format!("10.210.{third}.7"));
            if drained {
                record.instances.clear();
            }
            Envelope::seal(&Record::Service(record), &key(11))
        }),
        (1u64..4, 0u64..100_000, any::<[bool; 3]>()).prop_map(|(version, age, choices)| {
            let [tagged, proven, leaked] = choices;
            let by = if leaked { LEAKED } else { TOKEN };
            let record = Membership {
                version,
                token: key(by).public(),
                wireguard_key: secret(11).1,
                tags: if tagged { vec![label("db")] } else { vec![] },
                issued_at: UnixSeconds((NOW.0 + 11).saturating_sub(age)),
                ..membership_record(11, "n11")
            };
            membership_of_11(record, proven, by)
        }),
        (1u64..4, 10u8..15, 0u64..100_000, any::<bool>()).prop_map(foreign_membership),
        (NODES, any::<bool>()).prop_map(|(n, forged)| {
            let by = if forged { 11 } else { 99 };
            revoked_by(n, by)
        }),
        (NODES, 0u8..4).prop_map(|(n, what)| match what {
            0 => departure(n, 11),
            1 => Envelope::seal(
                &Record::Service(service_record(n, 9, "10.210.2.9")),
                &key(11)
            ),
            2 => Envelope::seal(&Record::Token(token_record(99, &["admin"])), &key(11)),
            _ => {
                let mut envelope = honest_node(n, 3);
                envelope.payload = envelope.payload.replace("\"version\":3", "\"version\":9");
                envelope
            }
        }),
    ];
    // The node is permitted to publish its own departure.
    proptest::collection::vec(one, 0..24).prop_map(|records| {
        let own = departure(11, 11);
        records.into_iter().filter(|e| *e != own).collect()
    })
}

/// A membership of another node that the leaked token signed, without a proof or with a proof by node 11.
fn foreign_membership((version, n, later, proven): (u64, u8, u64, bool)) -> Envelope {
    let record = Membership {
        version,
        token: key(LEAKED).public(),
        wireguard_key: secret(11).1,
        tags: vec![label("db")],
        issued_at: UnixSeconds(NOW.0 + later),
        ..membership_record(n, &format!("m{n}"))
    };
    membership_of_11(record, proven, LEAKED)
}

/// A membership that node 11 offers, signed by a token, with or without a proof by node 11.
fn membership_of_11(record: Membership, proven: bool, token: u8) -> Envelope {
    let record = if proven {
        record.proven_by(&key(11))
    } else {
        record
    };
    Envelope::seal(&Record::Membership(record), &key(token))
}

fn revoked_by(n: u8, by: u8) -> Envelope {
    let record = Revocation {
        id: key(n).public(),
        version: 1,
        revoked: RevokedKind::Node,
        at: NOW,
        stays: None,
    };
    Envelope::seal(&Record::Revocation(record), &key(by))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_arrival_leads_to_the_same_state(
        hostile in hostile(),
        keys in proptest::collection::vec(any::<u64>(), 128),
    ) {
        let administration = administration();
        let honest = honest();
        let mut all: Vec<Envelope> = administration.iter().chain(&honest).cloned().collect();
        all.extend(hostile);
        let mut one = Ledger::new(key(MESH).public());
        settle(&mut one, &all);
        let mut shuffled: Vec<(u64, Envelope)> = all
            .iter()
            .enumerate()
            .map(|(n, e)| (keys.get(n).copied().unwrap_or(n as u64), e.clone()))
            .collect();
        shuffled.sort_by_key(|(rank, _)| *rank);
        let shuffled: Vec<Envelope> = shuffled.into_iter().map(|(_, e)| e).collect();
        let mut other = Ledger::new(key(MESH).public());
        settle(&mut other, &shuffled);
        prop_assert_eq!(state(&one), state(&other));

        // The administrator's records are held, and no honest node has lost a record.
        for envelope in &administration {
            prop_assert!(one.holds(envelope), "{}", envelope.payload);
        }
        for n in [10u8, 14] {
            let is_held = one.holds(&honest_node(n, 3));
            prop_assert!(is_held);
            let membership = one.membership(&key(n).public()).expect("it has joined");
            prop_assert_eq!(&membership.name, &label(&format!("n{n}")));
            let own = format!("10.210.{}.1", n - 9);
            let is_held = one.holds(&service(n, 4, &own));
            prop_assert!(is_held);
        }
        let netmap = one.netmap();
        prop_assert_eq!(&netmap.members[&key(10).public()].name, &label("web"));
        prop_assert!(one.is_revoked(&key(12).public()) && one.is_revoked(&key(13).public()));
        prop_assert_eq!(one.membership(&key(15).public()), None);

        // A ledger that receives all records of another one reaches the same state.
        let held: Vec<Envelope> = one.envelopes().cloned().collect();
        let mut third = Ledger::new(key(MESH).public());
        for envelope in &held {
            prop_assert!(third.apply(envelope.clone()).is_ok(), "{}", envelope.payload);
        }
        prop_assert_eq!(state(&third), state(&one));
    }
}
