//! Sequences of signed records. Two ledgers that receive the same records in opposite orders reach the same state, they always
//! hold the records of the mesh key, and no node has more than its share.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use meshd::model::{PublicKey, SigningKey};
use meshd::records::ledger::usage::{MAX_BYTES, MAX_RECORDS, MAX_UNKNOWN_RECORDS};
use meshd::records::{Envelope, Ledger};
use serde_json::{Value, json};

/// Key 0 is the mesh key, 1 and 2 are tokens, the others are nodes.
static KEYS: LazyLock<Vec<SigningKey>> = LazyLock::new(|| {
    (0..8u8)
        .map(|n| SigningKey::from_seed(&[n + 1; 32]))
        .collect()
});

fn key(n: u8) -> &'static SigningKey {
    &KEYS[usize::from(n) % KEYS.len()]
}

fn wireguard(n: u8) -> String {
    meshd::model::WireGuardKey([n % 8; 32]).to_string()
}

fn sealed(value: &Value, by: u8) -> Envelope {
    Envelope::seal_payload(value.to_string(), key(by))
}

/// The records of the administrator. Each token has a use for every node, so that no use is claimed twice.
fn administration() -> Vec<Envelope> {
    let mut records = vec![sealed(
        &json!({"kind": "mesh", "id": "mesh", "version": 1, "domain": "mesh", "prefix_v4": "10.210.0.0/16",
            "prefix_v6": "fd00:1:2::/48", "node_block_v4": 24, "node_block_v6": 64}),
        0,
    )];
    for n in [1, 2] {
        records.push(sealed(
            &json!({"kind": "token", "id": key(n).public(), "version": 1, "tags": ["db"], "uses": 8,
                "created_at": 1_000_000, "expires_at": 2_000_000, "ephemeral": false}),
            0,
        ));
    }
    records
}

/// A record made from five bytes. One of them selects the signer, who often has no right to sign it, so most records are refused.
fn record(bytes: [u8; 5]) -> Envelope {
    let [what, by, about, version, detail] = bytes;
    let id = key(about).public();
    let date = 1_000_000 + u64::from(detail) * 100;
    let value = match what % 8 {
        0 => {
            json!({"kind": "membership", "id": id, "version": version, "token": key(1 + about % 2).public(),
            "name": format!("n{}", about % 8), "wireguard_key": wireguard(about), "tags": [], "issued_at": date})
        }
        1 => {
            json!({"kind": "node", "id": id, "version": version, "wireguard_key": wireguard(about),
            "v4": format!("10.210.{}.0/24", about % 8 + 1), "v6": format!("fd00:1:2:{}::/64", about % 8 + 1),
            "endpoints": [], "services_from": detail % 4})
        }
        2 => {
            json!({"kind": "service", "id": format!("{id}/s{}", detail % 4), "version": version, "node": id,
            "name": format!("s{}", detail % 4), "instances": []})
        }
        // It never names a token's key: the administrator revokes a key either as a node's or as a token's.
        3 => {
            json!({"kind": "revocation", "id": key(3 + about % 5).public(), "version": 1, "revoked": "node", "at": date})
        }
        4 => json!({"kind": "departure", "id": id, "version": 1}),
        5 => json!({"kind": "weather", "id": format!("{}", detail % 20), "version": version}),
        6 => {
            json!({"kind": "revocation", "id": key(2).public(), "version": version, "revoked": "token", "at": date,
            "stays": [key(detail).public()]})
        }
        _ => json!({"kind": "policy", "id": "mesh", "version": version, "detail": detail}),
    };
    sealed(&value, by)
}

/// Applies all records repeatedly until nothing changes.
fn settle<'a>(records: impl Iterator<Item = &'a Envelope> + Clone) -> Ledger {
    let mut ledger = Ledger::new(key(0).public());
    let mut turns = 0;
    loop {
        let before: Vec<Envelope> = ledger.envelopes().cloned().collect();
        for record in records.clone() {
            let _ = ledger.apply(record.clone());
        }
        if ledger.envelopes().eq(&before) {
            return ledger;
        }
        turns += 1;
        assert!(turns < 64, "the ledger does not settle");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut records = administration();
    records.extend(
        bytes
            .as_chunks::<5>()
            .0
            .iter()
            .take(48)
            .copied()
            .map(record),
    );
    // Both ledgers hold the same envelopes. All memberships of a node are by one token: of those by two tokens that have no proof by the
    // node, a ledger holds the first one.
    let one = settle(records.iter());
    let other = settle(records.iter().rev());
    assert_eq!(one.netmap(), other.netmap());
    let nodes: Vec<PublicKey> = KEYS.iter().map(SigningKey::public).collect();
    // Of a node that has more records than it may have, each ledger holds those that came first.
    let is_full = |ledger: &Ledger| {
        let mut usages = nodes.iter().map(|node| ledger.usage_of(node));
        usages.any(|usage| usage.unknown_records == MAX_UNKNOWN_RECORDS)
    };
    assert!(is_full(&one) || is_full(&other) || one.envelopes().eq(other.envelopes()));
    for record in administration() {
        assert!(one.holds(&record));
    }
    for node in nodes {
        let usage = one.usage_of(&node);
        assert!(usage.records <= MAX_RECORDS && usage.bytes <= MAX_BYTES);
    }
});
