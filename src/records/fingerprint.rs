//! A fingerprint of all records in a ledger, with which a node finds out whether it holds what its coordinator holds.
//!
//! The ledger keeps a [`RecordSum`]: each record is hashed to a point of the Ristretto group, and the points are added. The sum does not
//! depend on the order of the records, and adding or removing a record does not need the other ones. Members choose the text of their
//! records, so the sum must be hard to steer. In a sum of numbers it would be easy to find different sets of records with one sum
//! (Wagner, "A Generalized Birthday Problem", 2002). With such sets, a member could hide that a coordinator lacks records of others. In a
//! group in which discrete logarithms are hard, that is as hard as a discrete logarithm (Bellare and Micciancio, "A New Paradigm for
//! Collision-Free Hashing", 1997).

use std::fmt;

use curve25519_dalek::ristretto::RistrettoPoint;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

use super::envelope::Envelope;
use super::hash::Digest;

/// The sum of all records of a ledger.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::records) struct RecordSum(RistrettoPoint);

impl RecordSum {
    pub(in crate::records) fn add(&mut self, envelope: &Envelope) {
        self.0 += point_of(envelope);
    }

    pub(in crate::records) fn remove(&mut self, envelope: &Envelope) {
        self.0 -= point_of(envelope);
    }

    pub(in crate::records) fn fingerprint(&self) -> Fingerprint {
        let hash = Sha256::new().chain_update(self.0.compress().as_bytes());
        Fingerprint(Digest::of(hash))
    }
}

impl fmt::Debug for RecordSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fingerprint().fmt(f)
    }
}

/// The hash of a record. It does not cover the signature: a signer can make several valid signatures of one payload, and a ledger
/// keeps the one that it received first.
fn point_of(envelope: &Envelope) -> RistrettoPoint {
    let hash = Sha512::new()
        .chain_update(b"meshd fingerprint v1\0")
        .chain_update(envelope.signer.0)
        .chain_update(&envelope.payload);
    RistrettoPoint::from_uniform_bytes(&hash.finalize().into())
}

/// The hash of a [`RecordSum`], written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(Digest);

impl Default for Fingerprint {
    /// The fingerprint of a ledger without records.
    fn default() -> Self {
        RecordSum::default().fingerprint()
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;

    fn record(n: u8) -> Envelope {
        Envelope::seal_payload(format!("{n}"), &SigningKey::from_seed(&[n; 32]))
    }

    fn sum_of(records: &[u8]) -> RecordSum {
        let mut sum = RecordSum::default();
        for n in records {
            sum.add(&record(*n));
        }
        sum
    }

    fn of(records: &[u8]) -> Fingerprint {
        sum_of(records).fingerprint()
    }

    #[test]
    fn a_fingerprint_depends_on_the_records_and_not_on_their_order() {
        assert_eq!(of(&[1, 2, 3]), of(&[3, 1, 2]));
        assert_ne!(of(&[1, 2, 3]), of(&[1, 2]));
        assert_ne!(of(&[]), of(&[1]));
        let mut sum = sum_of(&[1, 2, 3]);
        sum.remove(&record(3));
        assert_eq!(sum.fingerprint(), of(&[1, 2]));
        let mut other_signature = record(1);
        other_signature.signature.0[0] ^= 1;
        sum.remove(&other_signature);
        assert_eq!(sum.fingerprint(), of(&[2]));
        sum.remove(&record(2));
        assert_eq!(sum.fingerprint(), Fingerprint::default());
    }

    #[test]
    fn a_fingerprint_survives_its_text_form() {
        let text = serde_json::to_string(&of(&[1])).expect("plain data");
        assert_eq!(text.len(), 34, "{text}");
        // Logs show the same digits.
        let shown = text.trim_matches('"');
        assert_eq!(format!("{:?}", of(&[1])), shown);
        assert_eq!(format!("{:?}", sum_of(&[1])), shown);
        assert_eq!(
            serde_json::from_str::<Fingerprint>(&text).ok(),
            Some(of(&[1]))
        );
        for wrong in ["", "1", "+0000000000000000000000000000001"] {
            assert!(serde_json::from_str::<Fingerprint>(&format!("{wrong:?}")).is_err());
        }
    }
}
