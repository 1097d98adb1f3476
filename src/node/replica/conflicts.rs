//! Keeps records of the coordinator that the ledger refused because of a record that it holds: another node has the block, the
//! name, the key or the last use of a token. The coordinator does not send the refused records again. They are accepted when the
//! other record is replaced or removed. Pure.
//!
//! The records are in memory only. While there are any, the position on disk is revision 0, so that a node that restarts
//! receives all records again.

use std::collections::BTreeMap;

use super::newcomers::Verdict;
use crate::model::{Label, PublicKey};
use crate::records::envelope::Authentic;
use crate::records::kinds::{Record, RecordKey};
use crate::records::ledger::Refused;
use crate::records::{Envelope, Ledger};

/// The maximum number of records that are kept.
const MAX_RECORDS: usize = 256;
/// The maximum number of kept records that one key signed, so that the holder of a token leaves room for others.
const MAX_OF_SIGNER: usize = 32;
/// The maximum size, in bytes, of a record that is kept. Records about nodes are shorter.
const MAX_BYTES: usize = 4096;

/// A record that was refused.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) record: Authentic,
    /// The decision about the date of a membership when it was received. None for other records.
    pub(super) verdict: Option<Verdict>,
}

/// The records that were refused, and that may be accepted when the ledger has changed.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    waiting: BTreeMap<RecordKey, Waiting>,
    /// Whether the ledger changed since the records were last compared with it.
    is_due: bool,
    /// Whether a record was left out because there was no room for it.
    overflowed: bool,
}

impl Conflicts {
    /// Whether no record waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && !self.overflowed
    }

    /// The ledger refused a record of the coordinator. Keeps the record if the ledger may accept it later. Returns whether it is
    /// kept.
    pub(super) fn handle_refused(
        &mut self,
        envelope: &Envelope,
        refused: &Refused,
        verdict: Option<Verdict>,
    ) -> bool {
        let Some(header) = envelope.header().filter(|_| is_conflict(refused)) else {
            return false;
        };
        if envelope.payload.len() > MAX_BYTES {
            return false;
        }
        let is_kept = |waiting: &Waiting| match waiting.record.parsed() {
            Ok((held, _)) => held.version > header.version || *waiting.record == *envelope,
            Err(_) => false,
        };
        let before = self.waiting.get(&header.key);
        if before.is_some_and(is_kept) {
            return true;
        }
        let is_new = before.is_none();
        let of_signer = || {
            let records = self.waiting.values().map(|waiting| waiting.record.signer);
            records.filter(|signer| *signer == envelope.signer).count()
        };
        if is_new && (self.waiting.len() >= MAX_RECORDS || of_signer() >= MAX_OF_SIGNER) {
            self.overflowed = true;
            return false;
        }
        // The ledger verified the signature before it found the conflict. It does not return what it verified.
        let Some(record) = Authentic::verify(envelope.clone()) else {
            return false;
        };
        self.waiting.insert(header.key, Waiting { record, verdict });
        true
    }

    /// The records with these keys changed in the ledger.
    pub(super) fn handle_changed(&mut self, keys: &[RecordKey]) {
        // A service has no block, name, key or token, so a change of one makes nothing free.
        let is_service = |key: &RecordKey| matches!(key, RecordKey::Service(_));
        self.is_due |= !keys.iter().all(is_service);
    }

    /// The records that `ledger` would accept now, in the order of dependency. Records that it will never accept are forgotten.
    pub(super) fn poll(&mut self, ledger: &Ledger) -> Vec<Waiting> {
        if !std::mem::take(&mut self.is_due) {
            return Vec::new();
        }
        let checked = self.waiting.extract_if(.., |_, waiting| {
            let checked = ledger.check_authentic(&waiting.record);
            !checked.is_err_and(|refused| is_conflict(&refused))
        });
        let ended: Vec<Waiting> = checked.map(|(_, waiting)| waiting).collect();
        ended
            .into_iter()
            .filter(|waiting| ledger.check_authentic(&waiting.record).is_ok())
            .collect()
    }

    /// Whether records were left out, and there is room for them now. The caller then requests all records again.
    pub(super) fn take_overflowed(&mut self) -> bool {
        self.waiting.len() < MAX_RECORDS / 2 && std::mem::take(&mut self.overflowed)
    }

    /// Whether a record that waits gives `name` to a node other than `own`.
    pub(super) fn claims_name(&self, name: &Label, own: &PublicKey) -> bool {
        self.waiting
            .values()
            .any(|waiting| match waiting.record.parsed() {
                Ok((_, Record::Name(record))) => record.name == *name && record.id != *own,
                Ok((_, Record::Membership(record))) => record.name == *name && record.id != *own,
                _ => false,
            })
    }
}

/// Whether a record is refused because of another one, which may be replaced or removed.
fn is_conflict(refused: &Refused) -> bool {
    matches!(
        refused,
        Refused::BlockTaken(_)
            | Refused::KeyTaken
            | Refused::NameTaken(_)
            | Refused::TokenSpent(_)
            | Refused::Unproven
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::records as build;
    use crate::testbed::records::{block, key};

    /// The record of a node that claims the block with this index.
    fn node(n: u8, index: u32) -> Envelope {
        let record = build::node(&key(n).public(), block(index));
        build::sealed(&Record::Node(record), n)
    }

    #[test]
    fn the_records_that_are_kept_are_bounded_and_a_lack_of_room_is_remembered() {
        let mut conflicts = Conflicts::default();
        let taken = Refused::BlockTaken(String::new());
        assert!(!conflicts.handle_refused(&node(1, 1), &Refused::NodeRevoked, None));
        assert!(conflicts.is_empty(), "a removed node stays out");
        for n in 0..=255 {
            assert!(conflicts.handle_refused(&node(n, 1), &taken, None));
        }
        assert!(conflicts.handle_refused(&node(7, 2), &taken, None), "newer");
        assert_eq!(conflicts.waiting.len(), MAX_RECORDS);
        assert!(!conflicts.take_overflowed());
        let membership = build::membership(&key(1).public(), &key(9).public(), "n1");
        let membership = build::sealed(&Record::Membership(membership), 9);
        assert!(!conflicts.handle_refused(&membership, &taken, None));
        assert!(!conflicts.take_overflowed(), "there is no room yet");
        conflicts.waiting.clear();
        assert!(!conflicts.is_empty());
        assert!(conflicts.take_overflowed() && conflicts.is_empty());
    }

    #[test]
    fn one_signer_leaves_room_for_others() {
        let mut conflicts = Conflicts::default();
        let kept = (0..=255u8).filter(|n| {
            let membership = build::membership(&key(*n).public(), &key(9).public(), "n1");
            let membership = build::sealed(&Record::Membership(membership), 9);
            conflicts.handle_refused(&membership, &Refused::TokenSpent(1), None)
        });
        assert_eq!(kept.count(), MAX_OF_SIGNER);
        assert!(conflicts.handle_refused(&node(1, 1), &Refused::KeyTaken, None));
    }
}
