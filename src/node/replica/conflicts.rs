//! Keeps records of the coordinator that the ledger refused because of a record that it holds: another node has the block, the
//! name, the key or the last use of a token. The coordinator does not send the refused records again. They are accepted when the
//! other record is replaced or removed. Pure.
//!
//! A token whose uses are spent stays spent, and the first nodes keep its uses. So if a coordinator has lost records, or was
//! stolen, this node may hold another node as the last use of a token than the coordinator does. No rule can decide between the
//! two without giving the holder of a spent token, or a coordinator alone, the power to put a member out. Then the administrator
//! decides by a revocation of the token, which names the nodes that stay. [`Conflicts::problem`] asks for that.
//!
//! The records are in memory only. While there are any, the position on disk is revision 0, so that a node that restarts
//! receives all records again.

use std::collections::{BTreeMap, BTreeSet};

use super::newcomers::Verdict;
use crate::model::text::listed;
use crate::model::{Label, PublicKey};
use crate::protocol::local::Problem;
use crate::records::Ledger;
use crate::records::envelope::Authentic;
use crate::records::kinds::{Record, RecordKey};
use crate::records::ledger::Refused;

/// The bounds of all records that are kept, and of those that one key signed, so that the holder of a token leaves room for others.
const ALL: Room = Room {
    records: 256,
    bytes: 1024 * 1024,
};
const OF_SIGNER: Room = Room {
    records: 32,
    // The largest record fits twice.
    bytes: 128 * 1024,
};

/// The maximum number of nodes, and of tokens, that a problem names.
const MAX_NAMED: usize = 8;

/// A number of records and of the bytes in their payloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Room {
    records: usize,
    bytes: usize,
}

impl Room {
    fn of<'a>(waiting: impl Iterator<Item = &'a Waiting>) -> Self {
        waiting.fold(Self::default(), |sum, waiting| sum.with(&waiting.record))
    }

    fn with(self, record: &Authentic) -> Self {
        Self {
            records: self.records + 1,
            bytes: self.bytes + record.payload.len(),
        }
    }

    fn without(self, record: &Authentic) -> Self {
        Self {
            records: self.records.saturating_sub(1),
            bytes: self.bytes.saturating_sub(record.payload.len()),
        }
    }

    fn fits(self, bound: Self) -> bool {
        self.records <= bound.records && self.bytes <= bound.bytes
    }

    /// Whether more than half of `bound` is free.
    fn fits_into_half(self, bound: Self) -> bool {
        self.records < bound.records / 2 && self.bytes < bound.bytes / 2
    }
}

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
    /// The signers of records that were left out because there was no room for them. A signer whose own records leave no room stays
    /// here, and causes no requests.
    overflowed: BTreeSet<PublicKey>,
}

impl Conflicts {
    /// Whether no record waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.overflowed.is_empty()
    }

    /// The ledger refused a record of the coordinator. Keeps the record if the ledger may accept it later. Returns whether it is
    /// kept.
    pub(super) fn handle_refused(
        &mut self,
        record: Authentic,
        refused: &Refused,
        verdict: Option<Verdict>,
    ) -> bool {
        if !is_conflict(refused) {
            return false;
        }
        let Ok((header, _)) = record.parsed() else {
            return false;
        };
        let key = header.key.clone();
        let before = self.waiting.get(&key);
        let is_kept = before.is_some_and(|waiting| match waiting.record.parsed() {
            Ok((held, _)) => held.version > header.version || waiting.record == record,
            Err(_) => false,
        });
        if is_kept {
            return true;
        }
        let room = |signer: Option<&PublicKey>, bound| {
            let is_of = |waiting: &&Waiting| signer.is_none_or(|s| waiting.record.signer == *s);
            let held = Room::of(self.waiting.values().filter(is_of));
            let replaced = before.filter(is_of);
            let held = replaced.map_or(held, |waiting| held.without(&waiting.record));
            held.with(&record).fits(bound)
        };
        if !room(None, ALL) || !room(Some(&record.signer), OF_SIGNER) {
            // A request for the records of any of these signers brings those of the others too.
            if self.overflowed.len() < ALL.records {
                self.overflowed.insert(record.signer);
            }
            return false;
        }
        self.waiting.insert(key, Waiting { record, verdict });
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
        if self.overflowed.is_empty() || !Room::of(self.waiting.values()).fits_into_half(ALL) {
            return false;
        }
        let before = self.overflowed.len();
        let waiting = &self.waiting;
        self.overflowed.retain(|signer| {
            let own = waiting.values().filter(|w| w.record.signer == *signer);
            !Room::of(own).fits_into_half(OF_SIGNER)
        });
        self.overflowed.len() < before
    }

    /// The problem of nodes that wait because their token is spent.
    pub(super) fn problem(&self, ledger: &Ledger) -> Option<Problem> {
        let spent = |waiting: &&Waiting| {
            matches!(
                ledger.check_authentic(&waiting.record),
                Err(Refused::TokenSpent(_))
            )
        };
        let (mut names, mut tokens) = (Vec::new(), BTreeSet::new());
        for waiting in self.waiting.values().filter(spent) {
            if let Ok((_, Record::Membership(membership))) = waiting.record.parsed() {
                names.push(&membership.name);
                tokens.insert(membership.token);
            }
        }
        let first = tokens.first()?;
        let named = listed(names, MAX_NAMED);
        let short = listed(tokens.iter().map(PublicKey::short), MAX_NAMED);
        Some(Problem {
            what: format!("this node refuses nodes that its coordinator has admitted: {named}"),
            why: format!(
                "as far as this node knows, other nodes have all uses of the token ({short}); a coordinator whose store was put back or stolen may have admitted more"
            ),
            fix: format!(
                "run `meshctl token revoke {}` on the machine of mesh-coordinator: the nodes that it lists stay, and every other node of the token has to join again with a new one",
                first.short()
            ),
        })
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
    use crate::records::Envelope;
    use crate::records::kinds::{Name, ServiceId};
    use crate::testbed::records as build;
    use crate::testbed::records::{block, key, label};

    fn authentic(record: &Record, n: u8) -> Authentic {
        Authentic::verify(build::sealed(record, n)).expect("just signed")
    }

    /// The record of a node that claims the block with this index.
    fn node(n: u8, index: u32) -> Authentic {
        authentic(
            &Record::Node(build::node(&key(n).public(), block(index))),
            n,
        )
    }

    /// The membership of node `n` by the token 9.
    fn membership(n: u8) -> Authentic {
        let record = build::membership(&key(n).public(), &key(9).public(), "n1");
        authentic(&Record::Membership(record), 9)
    }

    fn name(n: u8, name: &str) -> Authentic {
        let record = Name {
            id: key(n).public(),
            version: 1,
            name: label(name),
        };
        authentic(&Record::Name(record), n)
    }

    /// A node record with a field of a later version, so that it has more than so many bytes.
    fn long(n: u8, bytes: usize) -> Authentic {
        let short = node(n, 1);
        let rest = short.payload.strip_suffix('}').expect("an object");
        let payload = format!("{rest},\"later\":\"{}\"}}", "x".repeat(bytes));
        Authentic::verify(Envelope::seal_payload(payload, &key(n))).expect("just signed")
    }

    #[test]
    fn the_records_that_are_kept_are_bounded_and_a_lack_of_room_is_remembered() {
        let mut conflicts = Conflicts::default();
        let taken = Refused::BlockTaken(String::new());
        assert!(!conflicts.handle_refused(node(1, 1), &Refused::NodeRevoked, None));
        assert!(conflicts.is_empty(), "a removed node stays out");
        for n in 0..=255 {
            assert!(conflicts.handle_refused(node(n, 1), &taken, None));
        }
        assert!(conflicts.handle_refused(node(7, 2), &taken, None), "newer");
        assert_eq!(conflicts.waiting.len(), ALL.records);
        assert!(!conflicts.take_overflowed());
        assert!(!conflicts.handle_refused(membership(1), &taken, None));
        assert!(!conflicts.take_overflowed(), "there is no room yet");
        // The signers that are remembered are bounded as well.
        let others = (1..=255).map(|n| PublicKey([n; 32]));
        conflicts.overflowed.extend(others);
        assert_eq!(conflicts.overflowed.len(), ALL.records);
        assert!(!conflicts.handle_refused(name(1, "web"), &taken, None));
        assert_eq!(conflicts.overflowed.len(), ALL.records);
        conflicts
            .overflowed
            .retain(|signer| *signer == key(9).public());
        conflicts.waiting.clear();
        assert!(!conflicts.is_empty());
        assert!(conflicts.take_overflowed() && conflicts.is_empty());
    }

    #[test]
    fn a_record_that_is_replaced_takes_no_room_and_half_a_bound_is_too_much_for_half() {
        let (one, other) = (node(1, 1), long(2, 100));
        let only_other = Room::default().with(&other);
        assert_eq!(only_other.with(&one).without(&one), only_other);
        let bound = Room {
            records: 4,
            bytes: 100,
        };
        let is_half = |records, bytes| Room { records, bytes }.fits_into_half(bound);
        assert!(is_half(1, 49) && !is_half(2, 49) && !is_half(1, 50));
    }

    #[test]
    fn of_two_records_with_one_key_the_older_one_is_not_kept() {
        let versioned = |version: u64, index: u32| {
            let record = crate::records::kinds::Node {
                version,
                ..build::node(&key(1).public(), block(index))
            };
            authentic(&Record::Node(record), 1)
        };
        let taken = Refused::BlockTaken(String::new());
        let mut conflicts = Conflicts::default();
        for (record, kept) in [
            (versioned(5, 1), versioned(5, 1)),
            (versioned(4, 1), versioned(5, 1)),
            (versioned(5, 2), versioned(5, 2)),
            (versioned(6, 1), versioned(6, 1)),
        ] {
            assert!(conflicts.handle_refused(record, &taken, None));
            let waiting = conflicts.waiting.values().map(|waiting| &waiting.record);
            assert_eq!(waiting.collect::<Vec<_>>(), [&kept]);
        }
    }

    #[test]
    fn one_signer_leaves_room_for_others_and_causes_no_requests_while_it_has_none() {
        let mut conflicts = Conflicts::default();
        let spent = Refused::TokenSpent(1);
        let kept = (0..=255u8).filter(|n| conflicts.handle_refused(membership(*n), &spent, None));
        assert_eq!(kept.count(), OF_SIGNER.records);
        assert!(conflicts.handle_refused(node(1, 1), &Refused::KeyTaken, None));
        assert!(!conflicts.is_empty() && !conflicts.take_overflowed());
        // The conflicts of this signer end, and only then is a request worth its cost.
        while conflicts.waiting.len() > OF_SIGNER.records / 2 {
            conflicts.waiting.pop_first();
        }
        assert!(conflicts.take_overflowed());
        assert!(!conflicts.take_overflowed());
    }

    #[test]
    fn a_record_that_waits_claims_its_name_for_its_own_node() {
        let joined = build::membership(&key(1).public(), &key(9).public(), "web");
        let joined = authentic(&Record::Membership(joined), 9);
        let taken = Refused::NameTaken("web".into());
        for record in [name(1, "web"), joined] {
            let mut conflicts = Conflicts::default();
            assert!(conflicts.handle_refused(record, &taken, None));
            let claims = |name, own: u8| conflicts.claims_name(&label(name), &key(own).public());
            assert!(claims("web", 2));
            assert!(!claims("web", 1) && !claims("db", 2) && !claims("db", 1));
        }
    }

    #[test]
    fn a_change_of_a_service_frees_nothing_and_every_other_change_may() {
        let service = ServiceId::new(key(1).public(), None, &label("web"));
        let changes = [RecordKey::Service(service), RecordKey::Mesh];
        let mut conflicts = Conflicts::default();
        conflicts.handle_changed(&changes[..1]);
        assert!(!conflicts.is_due);
        // Both calls come before the records are compared.
        for _ in 0..2 {
            conflicts.handle_changed(&changes);
            assert!(conflicts.is_due);
        }
        conflicts.handle_changed(&changes[..1]);
        assert!(conflicts.is_due);
    }

    #[test]
    fn a_long_record_is_kept_as_well_and_counts_by_its_size() {
        let mut conflicts = Conflicts::default();
        let taken = Refused::BlockTaken(String::new());
        for n in 0..18 {
            let is_kept = conflicts.handle_refused(long(n, 60_000), &taken, None);
            assert_eq!(is_kept, n < 17, "{n}");
        }
        assert!(conflicts.overflowed.contains(&key(17).public()));
        assert!(
            conflicts.handle_refused(node(18, 1), &taken, None),
            "a short one fits"
        );
    }
}
