//! Digests of the records in a ledger. Two nodes compare them to find the signers of records that only one of them holds.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::Ledger;
pub use super::hash::Digest;
use crate::model::PublicKey;

/// A digest of each signer's records, by signer. It leaves memberships out, because nodes do not accept them from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Digests(pub BTreeMap<PublicKey, Digest>);

impl Digests {
    /// Computes the digests of the records in `ledger`.
    #[must_use]
    pub fn of(ledger: &Ledger) -> Self {
        let mut hashes: BTreeMap<PublicKey, Sha256> = BTreeMap::new();
        for envelope in ledger.envelopes_for_peers() {
            // A signature covers its payload and is shorter.
            let hash = hashes.entry(envelope.signer).or_default();
            hash.update(envelope.signature.0);
        }
        let digests = hashes
            .into_iter()
            .map(|(signer, hash)| (signer, Digest::of(hash)));
        Self(digests.collect())
    }

    /// Computes one digest of all records.
    #[must_use]
    pub fn summary(&self) -> Digest {
        let mut hash = Sha256::new();
        for (signer, digest) in &self.0 {
            hash.update(signer.0);
            hash.update(digest.0);
        }
        Digest::of(hash)
    }

    /// Returns the signers whose records differ.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<PublicKey> {
        let mine = self.0.keys();
        let theirs = other.0.keys().filter(|key| !self.0.contains_key(key));
        mine.chain(theirs)
            .filter(|key| self.0.get(key) != other.0.get(key))
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;
    use crate::records::Envelope;
    use crate::records::kinds::{Record, Token};
    use crate::testbed::records as build;

    fn ledger(versions: &[u64]) -> Ledger {
        let mesh = SigningKey::from_seed(&[1; 32]);
        let mut ledger = Ledger::new(mesh.public());
        for version in versions {
            let token = Token {
                version: *version,
                ..build::token(&build::id(2))
            };
            ledger
                .apply(Envelope::seal(&Record::Token(token), &mesh))
                .expect("newer");
        }
        ledger
    }

    #[test]
    fn digests_are_equal_when_the_records_are_whatever_way_they_came() {
        let direct = Digests::of(&ledger(&[3]));
        assert_eq!(direct, Digests::of(&ledger(&[1, 2, 3])));
        assert_eq!(direct.summary(), Digests::of(&ledger(&[2, 3])).summary());
        let older = Digests::of(&ledger(&[2]));
        assert_ne!(direct.summary(), older.summary());
        let mesh = SigningKey::from_seed(&[1; 32]).public();
        assert_eq!(direct.differing(&older), [mesh]);
        assert_eq!(Digests::default().differing(&older), [mesh]);
        assert!(direct.differing(&direct).is_empty());
    }

    /// Other versions compare these digests, so the order of the signatures under a digest must not change: by the order of
    /// dependency of the kinds, then by the text of the kind, then by the text of the id.
    #[test]
    fn a_digest_is_over_the_signatures_in_the_order_of_kinds_and_of_the_texts_of_ids() {
        let (mesh, token) = (
            SigningKey::from_seed(&[1; 32]),
            SigningKey::from_seed(&[2; 32]),
        );
        let node = SigningKey::from_seed(&[3; 32]);
        let mut ledger = ledger(&[1]);
        let id = node.public();
        let other = SigningKey::from_seed(&[7; 32]).public();
        let payloads = [
            (&mesh, r#"{"kind":"mesh","id":"mesh","version":1,"domain":"mesh","prefix_v4":"10.210.0.0/16","prefix_v6":"fd12:3456:789a::/48","node_block_v4":24,"node_block_v6":64}"#.to_owned()),
            (&token, format!(r#"{{"kind":"membership","id":"{id}","version":1,"token":"{}","name":"n3","wireguard_key":"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=","tags":[],"issued_at":1800000000}}"#, token.public())),
            (&mesh, format!(r#"{{"kind":"revocation","id":"{other}","version":1,"revoked":"node","at":5}}"#)),
            (&mesh, r#"{"kind":"weather","id":"here","version":1}"#.to_owned()),
            (&mesh, r#"{"kind":"policy","id":"mesh","version":1}"#.to_owned()),
            (&node, r#"{"kind":"policy","id":"mesh","version":1}"#.to_owned()),
            (&node, format!(r#"{{"kind":"node","id":"{id}","version":1,"wireguard_key":"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=","v4":"10.210.1.0/24","v6":"fd12:3456:789a:1::/64","endpoints":[]}}"#)),
            (&node, format!(r#"{{"kind":"name","id":"{id}","version":1,"name":"other"}}"#)),
            (&node, format!(r#"{{"kind":"service","id":"{id}/a-b","version":1,"node":"{id}","name":"a-b","instances":[]}}"#)),
            (&node, format!(r#"{{"kind":"service","id":"{id}/a/b","version":1,"node":"{id}","name":"b","project":"a","instances":[]}}"#)),
            (&node, format!(r#"{{"kind":"service","id":"{id}/a0","version":1,"node":"{id}","name":"a0","instances":[]}}"#)),
            (&node, r#"{"kind":"weather","id":"there","version":1}"#.to_owned()),
            (&node, r#"{"kind":"weather","id":"here","version":1}"#.to_owned()),
            (&node, r#"{"kind":"a kind","id":"x","version":1}"#.to_owned()),
        ];
        let mut records = Vec::new();
        for (signer, payload) in payloads {
            let envelope = Envelope::seal_payload(payload, signer);
            ledger.apply(envelope.clone()).expect("it is permitted");
            let header: serde_json::Value =
                serde_json::from_str(&envelope.payload).expect("just made");
            let text = |field: &str| header[field].as_str().expect("a text").to_owned();
            records.push((text("kind"), text("id"), envelope));
        }
        let order = [
            "mesh",
            "token",
            "revocation",
            "departure",
            "node",
            "name",
            "service",
        ];
        let rank = |kind: &str| order.iter().position(|known| *known == kind).unwrap_or(8);
        records.sort_by_key(|(kind, id, _)| (rank(kind), kind.clone(), id.clone()));
        let mut hash = Sha256::new();
        let own = records
            .iter()
            .filter(|(.., envelope)| envelope.signer == id);
        own.for_each(|(.., envelope)| hash.update(envelope.signature.0));
        let digests = Digests::of(&ledger);
        assert_eq!(digests.0.get(&id), Some(&Digest::of(hash)));
        assert_eq!(digests.0.len(), 2, "memberships are left out");
    }

    #[test]
    fn a_digest_survives_its_text_and_nothing_else_is_one() {
        let digest = Digests::of(&ledger(&[1])).summary();
        let text = serde_json::to_string(&digest).expect("plain data");
        assert_eq!(serde_json::from_str::<Digest>(&text).ok(), Some(digest));
        for wrong in [
            "\"\"",
            "\"+0000000000000000000000000000000\"",
            "7",
            "\"zz\"",
        ] {
            assert!(serde_json::from_str::<Digest>(wrong).is_err(), "{wrong}");
        }
    }
}
