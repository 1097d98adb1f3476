//! Counts the records of each node in a ledger, and limits them. A node that reaches a limit uses no space of others.

use std::collections::HashMap;
use std::fmt;

use super::table::Entry;
use crate::model::PublicKey;
use crate::records::kinds::Record;

/// The maximum number of records of one node, its membership included. A withdrawn service counts until the node record's
/// `services_from` clears it.
pub const MAX_RECORDS: usize = 4096;
/// The maximum payload of all records of one node, in bytes.
pub const MAX_BYTES: usize = 512 * 1024;
/// The maximum number of records of one node whose kinds this version does not know.
pub const MAX_UNKNOWN_RECORDS: usize = 16;
/// The maximum payload of all records of one node whose kinds this version does not know, in bytes.
pub const MAX_UNKNOWN_BYTES: usize = 64 * 1024;

/// The bound that a record would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The bound is [`MAX_RECORDS`].
    Records,
    /// The bound is [`MAX_BYTES`].
    Bytes,
    /// The bound is [`MAX_UNKNOWN_RECORDS`].
    UnknownRecords,
    /// The bound is [`MAX_UNKNOWN_BYTES`].
    UnknownBytes,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Records => write!(f, "{MAX_RECORDS} records"),
            Self::Bytes => write!(f, "{MAX_BYTES} bytes"),
            Self::UnknownRecords => {
                write!(
                    f,
                    "{MAX_UNKNOWN_RECORDS} records of kinds that are not known"
                )
            }
            Self::UnknownBytes => {
                write!(f, "{MAX_UNKNOWN_BYTES} bytes of kinds that are not known")
            }
        }
    }
}

/// The number and size of the records of one node in a ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// The number of records.
    pub records: usize,
    /// The size of their payloads, in bytes.
    pub bytes: usize,
    /// The number of those whose kinds this version does not know.
    pub unknown_records: usize,
    /// The size of the payloads of these, in bytes.
    pub unknown_bytes: usize,
}

impl Usage {
    fn of_entry(bytes: usize, record: &Record) -> Self {
        let unknown = usize::from(*record == Record::Unknown);
        Self {
            records: 1,
            bytes,
            unknown_records: unknown,
            unknown_bytes: unknown * bytes,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_add(other.records),
            bytes: self.bytes.saturating_add(other.bytes),
            unknown_records: self.unknown_records.saturating_add(other.unknown_records),
            unknown_bytes: self.unknown_bytes.saturating_add(other.unknown_bytes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_sub(other.records),
            bytes: self.bytes.saturating_sub(other.bytes),
            unknown_records: self.unknown_records.saturating_sub(other.unknown_records),
            unknown_bytes: self.unknown_bytes.saturating_sub(other.unknown_bytes),
        }
    }

    fn exceeded(self) -> Option<Bound> {
        [
            (self.records > MAX_RECORDS, Bound::Records),
            (self.bytes > MAX_BYTES, Bound::Bytes),
            (
                self.unknown_records > MAX_UNKNOWN_RECORDS,
                Bound::UnknownRecords,
            ),
            (self.unknown_bytes > MAX_UNKNOWN_BYTES, Bound::UnknownBytes),
        ]
        .into_iter()
        .find_map(|(is_over, bound)| is_over.then_some(bound))
    }
}

/// The node that a record counts for. A membership is signed by a token and counts for its node. Records of the kinds that only
/// the mesh key may sign count for no node, since the mesh key has no bound.
pub(super) fn owner(signer: &PublicKey, record: &Record) -> Option<PublicKey> {
    match record {
        Record::Mesh(_) | Record::Token(_) | Record::Revocation(_) | Record::Policy(_) => None,
        Record::Membership(membership) => Some(membership.id),
        Record::Departure(departure) => Some(departure.id),
        Record::Node(node) => Some(node.id),
        Record::Name(name) => Some(name.id),
        Record::Service(service) => Some(service.node),
        Record::Unknown => Some(*signer),
    }
}

/// The usage of each node.
#[derive(Debug, Clone, Default)]
pub(super) struct Usages(HashMap<PublicKey, Usage>);

impl Usages {
    pub(super) fn of(&self, node: &PublicKey) -> Usage {
        self.0.get(node).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, entry: &Entry) {
        if let Some(owner) = owner(&entry.envelope.signer, &entry.record) {
            let usage = self.0.entry(owner).or_default();
            *usage = usage.plus(Usage::of_entry(entry.envelope.payload.len(), &entry.record));
        }
    }

    pub(super) fn remove(&mut self, entry: &Entry) {
        let Some(owner) = owner(&entry.envelope.signer, &entry.record) else {
            return;
        };
        if let Some(usage) = self.0.get_mut(&owner) {
            *usage = usage.minus(Usage::of_entry(entry.envelope.payload.len(), &entry.record));
            if *usage == Usage::default() {
                self.0.remove(&owner);
            }
        }
    }

    /// Returns the bound that the records of a node would exceed if a record replaced `before`.
    pub(super) fn exceeded_with(
        &self,
        signer: &PublicKey,
        bytes: usize,
        record: &Record,
        before: Option<&Entry>,
    ) -> Option<Bound> {
        let owner = owner(signer, record)?;
        let before = before.map_or_else(Usage::default, |entry| {
            Usage::of_entry(entry.envelope.payload.len(), &entry.record)
        });
        let added = Usage::of_entry(bytes, record);
        self.of(&owner).minus(before).plus(added).exceeded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_is_exceeded_by_one_more_than_it_and_named() {
        let full = Usage {
            records: MAX_RECORDS,
            bytes: MAX_BYTES,
            unknown_records: MAX_UNKNOWN_RECORDS,
            unknown_bytes: MAX_UNKNOWN_BYTES,
        };
        assert_eq!(full.exceeded(), None);
        for (more, bound, named) in [
            (
                Usage {
                    records: 1,
                    ..Usage::default()
                },
                Bound::Records,
                "4096 records",
            ),
            (
                Usage {
                    bytes: 1,
                    ..Usage::default()
                },
                Bound::Bytes,
                "524288 bytes",
            ),
            (
                Usage {
                    unknown_records: 1,
                    ..Usage::default()
                },
                Bound::UnknownRecords,
                "16 records of kinds that are not known",
            ),
            (
                Usage {
                    unknown_bytes: 1,
                    ..Usage::default()
                },
                Bound::UnknownBytes,
                "65536 bytes of kinds that are not known",
            ),
        ] {
            assert_eq!(full.plus(more).exceeded(), Some(bound));
            assert_eq!(bound.to_string(), named);
        }
    }
}
