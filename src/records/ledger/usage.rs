//! Counts the records of each node in a ledger, and limits them. A node that reaches a limit leaves the space of others untouched.

use std::collections::HashMap;
use std::fmt;

use super::table::Entry;
use crate::model::PublicKey;
use crate::records::kinds::Record;

/// The maximum number of records of one node, its membership included. A withdrawn service counts until the node record's
/// `services_from` clears it.
pub const MAX_RECORDS: usize = 4096;
/// The maximum payload of all records of one node, in octets.
pub const MAX_OCTETS: usize = 512 * 1024;
/// The maximum number of records of one node whose kinds this version does not know.
pub const MAX_UNKNOWN_RECORDS: usize = 16;
/// The maximum payload of all records of one node whose kinds this version does not know, in octets.
pub const MAX_UNKNOWN_OCTETS: usize = 64 * 1024;

/// The bound that a record would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The bound is [`MAX_RECORDS`].
    Records,
    /// The bound is [`MAX_OCTETS`].
    Octets,
    /// The bound is [`MAX_UNKNOWN_RECORDS`].
    UnknownRecords,
    /// The bound is [`MAX_UNKNOWN_OCTETS`].
    UnknownOctets,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Records => write!(f, "{MAX_RECORDS} records"),
            Self::Octets => write!(f, "{MAX_OCTETS} octets"),
            Self::UnknownRecords => {
                write!(
                    f,
                    "{MAX_UNKNOWN_RECORDS} records of kinds that are not known"
                )
            }
            Self::UnknownOctets => {
                write!(f, "{MAX_UNKNOWN_OCTETS} octets of kinds that are not known")
            }
        }
    }
}

/// How much a ledger holds of one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// The number of records.
    pub records: usize,
    /// The size of their payloads, in octets.
    pub octets: usize,
    /// The number of those whose kinds this version does not know.
    pub unknown_records: usize,
    /// The size of the payloads of these, in octets.
    pub unknown_octets: usize,
}

impl Usage {
    fn of_entry(octets: usize, record: &Record) -> Self {
        let unknown = usize::from(*record == Record::Unknown);
        Self {
            records: 1,
            octets,
            unknown_records: unknown,
            unknown_octets: unknown * octets,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_add(other.records),
            octets: self.octets.saturating_add(other.octets),
            unknown_records: self.unknown_records.saturating_add(other.unknown_records),
            unknown_octets: self.unknown_octets.saturating_add(other.unknown_octets),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_sub(other.records),
            octets: self.octets.saturating_sub(other.octets),
            unknown_records: self.unknown_records.saturating_sub(other.unknown_records),
            unknown_octets: self.unknown_octets.saturating_sub(other.unknown_octets),
        }
    }

    fn exceeded(self) -> Option<Bound> {
        [
            (self.records > MAX_RECORDS, Bound::Records),
            (self.octets > MAX_OCTETS, Bound::Octets),
            (
                self.unknown_records > MAX_UNKNOWN_RECORDS,
                Bound::UnknownRecords,
            ),
            (
                self.unknown_octets > MAX_UNKNOWN_OCTETS,
                Bound::UnknownOctets,
            ),
        ]
        .into_iter()
        .find_map(|(is_over, bound)| is_over.then_some(bound))
    }
}

/// The node that a record counts for. A membership is signed by a token and counts for its node. Records of the kinds that only
/// the mesh key may sign count for nobody, since the mesh key has no bound.
pub(super) fn owner(signer: &PublicKey, record: &Record) -> Option<PublicKey> {
    match record {
        Record::Mesh(_) | Record::Token(_) | Record::Revocation(_) => None,
        Record::Membership(membership) => Some(membership.id),
        Record::Departure(departure) => Some(departure.id),
        Record::Node(node) => Some(node.id),
        Record::Name(name) => Some(name.id),
        Record::Service(service) => Some(service.node),
        Record::Unknown => Some(*signer),
    }
}

/// How much a ledger holds of each node.
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

    /// The bound that the ledger would exceed with a record in the place of `before`, if there is one.
    pub(super) fn exceeded_with(
        &self,
        signer: &PublicKey,
        octets: usize,
        record: &Record,
        before: Option<&Entry>,
    ) -> Option<Bound> {
        let owner = owner(signer, record)?;
        let before = before.map_or_else(Usage::default, |entry| {
            Usage::of_entry(entry.envelope.payload.len(), &entry.record)
        });
        let added = Usage::of_entry(octets, record);
        self.of(&owner).minus(before).plus(added).exceeded()
    }
}
