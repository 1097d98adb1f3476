//! A fingerprint of all records in a ledger, with which a node finds out whether it holds what its coordinator holds.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::envelope::Envelope;
use super::hash::Digest;

/// The sum of the hashes of all records, written as 32 hexadecimal digits. It does not depend on the order of the records, and
/// adding or removing a record does not need the other ones.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Fingerprint(u128);

impl Fingerprint {
    pub(super) fn add(&mut self, envelope: &Envelope) {
        self.0 = self.0.wrapping_add(number_of(envelope));
    }

    pub(super) fn remove(&mut self, envelope: &Envelope) {
        self.0 = self.0.wrapping_sub(number_of(envelope));
    }
}

/// The hash of a record. It does not cover the signature: a signer can make several valid signatures of one payload, and a ledger
/// keeps the one that it received first.
fn number_of(envelope: &Envelope) -> u128 {
    let hash = Sha256::new()
        .chain_update(envelope.signer.0)
        .chain_update(&envelope.payload);
    u128::from_be_bytes(Digest::of(hash).0)
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Digest(self.0.to_be_bytes()).fmt(f)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Digest(self.0.to_be_bytes()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Digest::deserialize(deserializer).map(|sum| Self(u128::from_be_bytes(sum.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;

    fn record(n: u8) -> Envelope {
        Envelope::seal_payload(format!("{n}"), &SigningKey::from_seed(&[n; 32]))
    }

    fn of(records: &[u8]) -> Fingerprint {
        let mut fingerprint = Fingerprint::default();
        for n in records {
            fingerprint.add(&record(*n));
        }
        fingerprint
    }

    #[test]
    fn a_fingerprint_depends_on_the_records_and_not_on_their_order() {
        assert_eq!(of(&[1, 2, 3]), of(&[3, 1, 2]));
        assert_ne!(of(&[1, 2, 3]), of(&[1, 2]));
        let mut fingerprint = of(&[1, 2, 3]);
        fingerprint.remove(&record(3));
        assert_eq!(fingerprint, of(&[1, 2]));
        let mut other_signature = record(1);
        other_signature.signature.0[0] ^= 1;
        fingerprint.remove(&other_signature);
        assert_eq!(fingerprint, of(&[2]));
    }

    #[test]
    fn a_fingerprint_survives_its_text_form() {
        let text = serde_json::to_string(&of(&[1])).expect("plain data");
        assert_eq!(text.len(), 34, "{text}");
        assert_eq!(
            serde_json::from_str::<Fingerprint>(&text).ok(),
            Some(of(&[1]))
        );
        for wrong in ["", "1", "+0000000000000000000000000000001"] {
            assert!(serde_json::from_str::<Fingerprint>(&format!("{wrong:?}")).is_err());
        }
    }
}
