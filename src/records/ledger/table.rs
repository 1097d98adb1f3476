//! The records of a ledger, and typed access to them.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::model::{Label, PublicKey};
use crate::records::envelope::Envelope;
use crate::records::fingerprint::{Fingerprint, RecordSum};
use crate::records::key::{RecordKey, ServiceId};
use crate::records::kinds::{
    Membership, Mesh, Name, Node, Record, Revocation, RevokedKind, Service, Token,
};

/// A record that a ledger holds.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The signed form, which is sent to others.
    pub envelope: Envelope,
    /// The parsed payload.
    pub record: Record,
    pub version: u64,
    /// Whether the record is a membership with a valid proof of its node.
    pub is_proven: bool,
}

/// The records of a ledger by their keys. [`super::Ledger`] gives read access to its table; only the ledger changes it.
#[derive(Debug, Clone, Default)]
pub struct Table {
    entries: BTreeMap<RecordKey, Entry>,
    sum: RecordSum,
}

/// No key is lower than this one.
const LOWEST: PublicKey = PublicKey([0; 32]);

/// Returns the records of one kind. `$lowest` is a key that is not above any of them.
macro_rules! records_of_kind {
    ($table:expr, $kind:ident, $lowest:expr) => {
        $table
            .entries
            .range($lowest..)
            .map_while(|(_, entry)| match &entry.record {
                Record::$kind(record) => Some(record),
                _ => None,
            })
    };
}

/// Returns the record with a key if it is held.
macro_rules! record {
    ($table:expr, $kind:ident, $key:expr) => {
        match $table.entry(&$key).map(|entry| &entry.record) {
            Some(Record::$kind(record)) => Some(record),
            _ => None,
        }
    };
}

impl Table {
    /// Returns the record with the key `key`, with its envelope.
    #[must_use]
    pub fn entry(&self, key: &RecordKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Returns the fingerprint of all records.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.sum.fingerprint()
    }

    /// Returns the number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns all records, in an order in which another ledger accepts them.
    pub fn envelopes(&self) -> impl Iterator<Item = &Envelope> {
        self.entries.values().map(|entry| &entry.envelope)
    }

    /// Returns the records of [`Table::envelopes`] that follow the key `after`. The table need not contain `after`.
    pub fn envelopes_after<'a>(
        &'a self,
        after: Option<&RecordKey>,
    ) -> impl Iterator<Item = (&'a RecordKey, &'a Envelope)> + use<'a> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries
            .range((from, Bound::Unbounded))
            .map(|(key, entry)| (key, &entry.envelope))
    }

    /// Returns the records that nodes accept from each other, in an order in which another ledger accepts them: all but
    /// memberships. A ledger has no clock, so the holder of an expired token could date a membership back, and only a coordinator
    /// would detect that.
    pub fn envelopes_for_peers(&self) -> impl Iterator<Item = &Envelope> {
        self.envelopes_after(None)
            .filter(|(key, _)| !matches!(key, RecordKey::Membership(_)))
            .map(|(_, envelope)| envelope)
    }

    /// Returns the mesh record.
    #[must_use]
    pub fn mesh(&self) -> Option<&Mesh> {
        record!(self, Mesh, RecordKey::Mesh)
    }

    /// Returns a token's certificate.
    #[must_use]
    pub fn token(&self, id: &PublicKey) -> Option<&Token> {
        record!(self, Token, RecordKey::Token(*id))
    }

    /// Returns all token certificates.
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        records_of_kind!(self, Token, RecordKey::Token(LOWEST))
    }

    /// Returns the membership certificate of a node, which may have been removed.
    #[must_use]
    pub fn membership(&self, id: &PublicKey) -> Option<&Membership> {
        record!(self, Membership, RecordKey::Membership(*id))
    }

    /// Returns all memberships, including those of removed nodes.
    pub fn memberships(&self) -> impl Iterator<Item = &Membership> {
        records_of_kind!(self, Membership, RecordKey::Membership(LOWEST))
    }

    /// Returns the tags of a member: those that its certificate asks for, or all tags of its token if it asks for none. A token
    /// that later grants fewer tags takes them from its nodes.
    #[must_use]
    pub fn tags_of(&self, member: &Membership) -> Vec<Label> {
        let granted = self.token(&member.token).map_or(&[][..], |t| &t.tags);
        granted
            .iter()
            .filter(|tag| member.tags.is_empty() || member.tags.contains(tag))
            .cloned()
            .collect()
    }

    /// Returns the revocation of a token or node.
    #[must_use]
    pub fn revocation(&self, id: &PublicKey) -> Option<&Revocation> {
        record!(self, Revocation, RecordKey::Revocation(*id))
    }

    /// Whether the administrator revoked the token.
    #[must_use]
    pub fn is_token_revoked(&self, token: &PublicKey) -> bool {
        self.revocation(token)
            .is_some_and(|revocation| revocation.revoked == RevokedKind::Token)
    }

    /// Returns the keys of the departures of all nodes that the administrator did not also revoke.
    pub fn departures(&self) -> impl Iterator<Item = &RecordKey> {
        self.entries
            .range(RecordKey::Departure(LOWEST)..)
            .map_while(|(key, _)| match key {
                RecordKey::Departure(node) => Some((key, *node)),
                _ => None,
            })
            .filter(|(_, node)| self.revocation(node).is_none())
            .map(|(key, _)| key)
    }

    /// Returns a node's record.
    #[must_use]
    pub fn node(&self, id: &PublicKey) -> Option<&Node> {
        record!(self, Node, RecordKey::Node(*id))
    }

    /// Returns all node records.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        records_of_kind!(self, Node, RecordKey::Node(LOWEST))
    }

    /// Returns the name record of a node: the name that it wants instead of the name it joined with.
    #[must_use]
    pub fn wanted_name(&self, id: &PublicKey) -> Option<&Name> {
        record!(self, Name, RecordKey::Name(*id))
    }

    /// Returns the service record with this id.
    #[must_use]
    pub fn service(&self, id: &str) -> Option<&Service> {
        record!(self, Service, RecordKey::Service(ServiceId::parse(id)?))
    }

    /// Returns all service records.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        let lowest = RecordKey::Service(ServiceId::before_all_of(LOWEST));
        records_of_kind!(self, Service, lowest)
    }

    /// Returns the service records of one node.
    pub fn services_of(&self, node: &PublicKey) -> impl Iterator<Item = &Service> {
        let node = *node;
        let lowest = RecordKey::Service(ServiceId::before_all_of(node));
        records_of_kind!(self, Service, lowest).take_while(move |service| service.node == node)
    }

    /// Stores a record. Returns the record that it replaces.
    pub(super) fn insert(&mut self, key: RecordKey, entry: Entry) -> Option<Entry> {
        self.sum.add(&entry.envelope);
        let before = self.entries.insert(key, entry);
        if let Some(before) = &before {
            self.sum.remove(&before.envelope);
        }
        before
    }

    /// Removes a record.
    pub(super) fn remove(&mut self, key: &RecordKey) -> Option<Entry> {
        let removed = self.entries.remove(key)?;
        self.sum.remove(&removed.envelope);
        Some(removed)
    }

    /// Returns the keys of all records that fulfil `condition`.
    pub(super) fn keys_of(&self, condition: impl Fn(&Entry) -> bool) -> Vec<RecordKey> {
        let held = self.entries.iter().filter(|(_, entry)| condition(entry));
        held.map(|(key, _)| key.clone()).collect()
    }
}
