//! The ledger: all records that a node or coordinator holds, each verified up to the mesh key.
//!
//! Records enter a ledger only through [`Ledger::apply`], at nodes and at coordinators, whoever sent them. It enforces these rules:
//!
//! - an envelope's signature is verified before its payload is used;
//! - only one key may sign a record of each kind (see [`crate::records::kinds`]);
//! - of two versions of a record the higher one is kept; of two payloads with one version the ledger keeps the greater one in
//!   byte order, so that all ledgers keep the same one;
//! - of two memberships of a node, the one with the node's proof is kept; if both have a proof, the one with the later date, so
//!   that no node can give itself an earlier date. The later one must not give the node a name that another node has. Memberships
//!   of earlier versions have no proof: of two of them, the later one is kept if the same token signed both, otherwise the first one;
//! - a token admits no more nodes than its certificate allows, and with no other tags than those of its certificate;
//! - a node that was revoked, or that departed, is removed for good, with all its records;
//! - after a token's revocation only memberships that the revocation spares are accepted; if it lists the nodes that stay, the
//!   ledger drops the memberships of all others;
//! - an address block and a name belong to one node, and the node that has it keeps it;
//! - a WireGuard key belongs to the node that proves that it has the private half; without a proof it belongs to the nodes whose
//!   memberships contain it, or to the node that already has it;
//! - the records of each node have bounds ([`usage`]), so that no node uses up the space of others; the mesh key has no bound.
//!
//! Two ledgers that received the same records are in the same state, even if the order was different. The order decides only
//! between nodes that claim one block, one name or the last use of a token, and between tokens that claim one node without its proof:
//! the first one gets it. Of a node that has more records than its bounds permit, the first ones are held.
//!
//! The ledger never reads a clock, and it never drops a revocation. It keeps the memberships of removed nodes, because a token
//! could admit too many nodes if the ledger forgot some of them. It drops a membership only when its token is revoked.
//!
//! | file | what it does |
//! |---|---|
//! | [`table`] | holds the records, and gives typed read access |
//! | `rights` | decides whether a signer may publish a record |
//! | `succession` | decides which of two versions of a record is kept |
//! | `consequences` | stores a record, and drops the records that it makes void |
//! | `addresses`, `names`, [`usage`] | indexes, so that a record is checked without a search through all others |
//! | [`guests`] | finds the guests |
//! | `view` | computes the map of the mesh |

use std::collections::{HashMap, HashSet};
use std::ops::Deref;

use super::envelope::{Authentic, Envelope, MAX_PAYLOAD};
use super::key::RecordKey;
use super::kinds::{Header, Membership, Record};
use crate::model::{Label, PublicKey};

mod addresses;
mod consequences;
pub mod guests;
mod names;
mod refused;
mod rights;
mod succession;
pub mod table;
pub mod usage;
mod view;

use self::addresses::AddressIndex;
use self::names::NameIndex;
pub use self::refused::Refused;
pub use self::table::{Entry, Table};
use self::usage::Usages;

/// The verified records of one mesh. It dereferences to its [`Table`] for reading.
#[derive(Debug, Clone)]
pub struct Ledger {
    mesh_key: PublicKey,
    table: Table,
    /// The nodes that each token has admitted, including removed ones.
    admitted: HashMap<PublicKey, HashSet<PublicKey>>,
    /// The nodes that were revoked or that departed.
    removed: HashSet<PublicKey>,
    addresses: AddressIndex,
    names: NameIndex,
    usages: Usages,
}

impl Deref for Ledger {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

/// What a ledger did with a record that it did not refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// The record is new, or newer than the record that the ledger held.
    Changed(RecordKey),
    /// The ledger already holds this record.
    Unchanged,
}

/// A record that a ledger stored, and the record that it replaced.
#[derive(Debug)]
pub struct Replaced {
    key: RecordKey,
    before: Option<Entry>,
    dropped: Vec<RecordKey>,
}

impl Replaced {
    /// Returns the key of the record.
    #[must_use]
    pub fn key(&self) -> &RecordKey {
        &self.key
    }

    /// Whether the ledger held no version of the record before.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.before.is_none()
    }

    /// Returns the keys of the other records that the ledger dropped because of this one.
    #[must_use]
    pub fn dropped(&self) -> &[RecordKey] {
        &self.dropped
    }
}

impl Ledger {
    /// Creates an empty ledger of the mesh whose key is `mesh_key`.
    #[must_use]
    pub fn new(mesh_key: PublicKey) -> Self {
        Self {
            mesh_key,
            table: Table::default(),
            admitted: HashMap::new(),
            removed: HashSet::new(),
            addresses: AddressIndex::default(),
            names: NameIndex::default(),
            usages: Usages::default(),
        }
    }

    /// Returns the key up to which everything is verified.
    #[must_use]
    pub fn mesh_key(&self) -> PublicKey {
        self.mesh_key
    }

    /// Stores a record if it is authentic, if it is newer than the record held, and if its signer may publish it.
    ///
    /// # Errors
    /// Says which rule the record breaks. The ledger does not change then.
    pub fn apply(&mut self, envelope: Envelope) -> Result<Applied, Refused> {
        Ok(match self.replace(envelope)? {
            Some(replaced) => Applied::Changed(replaced.key),
            None => Applied::Unchanged,
        })
    }

    /// Does what [`Ledger::apply`] does. Returns what the record replaced; none, if the ledger already holds the record.
    ///
    /// # Errors
    /// The errors are those of [`Ledger::apply`].
    pub fn replace(&mut self, envelope: Envelope) -> Result<Option<Replaced>, Refused> {
        if self.holds(&envelope) {
            return Ok(None);
        }
        self.replace_authentic(verified(envelope)?)
    }

    /// Does what [`Ledger::replace`] does, for a record whose signature was verified before.
    ///
    /// # Errors
    /// The errors are those of [`Ledger::replace`], except for the signature.
    pub fn replace_authentic(&mut self, envelope: Authentic) -> Result<Option<Replaced>, Refused> {
        let Some(key) = self.examine(&envelope)? else {
            return Ok(None);
        };
        let is_proven = envelope.is_proven();
        let (envelope, header, record) = envelope.into_parts()?;
        let record = match self.as_held(&record, &envelope.signer) {
            Record::Unknown => Record::Unknown,
            _ => record,
        };
        let entry = Entry {
            envelope,
            record,
            version: header.version,
            is_proven,
        };
        Ok(Some(consequences::store(self, key, entry)))
    }

    /// Undoes the last [`Ledger::replace`]. Returns false and changes nothing if other records depend on records of this kind, or
    /// if the ledger dropped other records with it.
    pub fn put_back(&mut self, replaced: Replaced) -> bool {
        consequences::put_back(self, replaced)
    }

    /// Whether the ledger holds exactly this envelope, whose signature it has therefore verified. Many senders offer the same
    /// records, and this is much cheaper than a verification.
    #[must_use]
    pub fn holds(&self, envelope: &Envelope) -> bool {
        let header = envelope.header();
        header.is_some_and(|header| self.holds_with(&header, envelope))
    }

    /// Does what [`Ledger::holds`] does, for an envelope whose header was parsed before.
    #[must_use]
    pub fn holds_with(&self, header: &Header, envelope: &Envelope) -> bool {
        self.entry(&self.key_of(header, &envelope.signer))
            .is_some_and(|held| held.envelope == *envelope)
    }

    /// Returns the key under which the ledger holds a record. Any member may sign records of a kind that this version does not
    /// know. Each signer has records of its own of such a kind, so that no member replaces a record of the mesh key or of another
    /// node. The signer becomes a part of the kind and not of the id, because an id may be any text, while no kind is as long as
    /// one with a signer in it.
    #[must_use]
    pub fn key_of(&self, header: &Header, signer: &PublicKey) -> RecordKey {
        let key = header.key.clone();
        if *signer == self.mesh_key {
            key
        } else {
            key.of_member(signer)
        }
    }

    /// Checks whether [`Ledger::apply`] would accept `envelope`.
    ///
    /// # Errors
    /// Says which rule the record breaks.
    pub fn check(&self, envelope: &Envelope) -> Result<(), Refused> {
        self.check_authentic(&verified(envelope.clone())?)
    }

    /// Does what [`Ledger::check`] does, for a record whose signature was verified before.
    ///
    /// # Errors
    /// The errors are those of [`Ledger::check`], except for the signature.
    pub fn check_authentic(&self, envelope: &Authentic) -> Result<(), Refused> {
        self.examine(envelope).map(drop)
    }

    /// Returns `record` as the ledger holds it. A policy that the mesh key did not sign is a record of a kind that is not known, as it
    /// is in earlier versions: ledgers of all versions hold the same records, and count them in the same way.
    fn as_held<'a>(&self, record: &'a Record, signer: &PublicKey) -> &'a Record {
        match record {
            Record::Policy(_) if *signer != self.mesh_key => &Record::Unknown,
            record => record,
        }
    }

    /// Returns the number of nodes that `token` has admitted, including removed ones.
    #[must_use]
    pub fn admitted_by(&self, token: &PublicKey) -> usize {
        self.admitted.get(token).map_or(0, HashSet::len)
    }

    /// Returns the memberships of the nodes that `token` admitted and that were not removed.
    pub fn members_by(&self, token: &PublicKey) -> impl Iterator<Item = &Membership> {
        let token = *token;
        self.memberships()
            .filter(move |m| m.token == token && !self.is_revoked(&m.id))
    }

    /// Whether the node was removed: the administrator revoked it, or it departed.
    #[must_use]
    pub fn is_revoked(&self, node: &PublicKey) -> bool {
        self.removed.contains(node)
    }

    /// Whether the membership of a node is held, with a valid proof of the node.
    #[must_use]
    pub fn is_membership_proven(&self, id: &PublicKey) -> bool {
        self.entry(&RecordKey::Membership(*id))
            .is_some_and(|entry| entry.is_proven)
    }

    /// Whether a node other than `id` joined as `name` or wants that name.
    #[must_use]
    pub fn is_name_of_another(&self, name: &Label, id: &PublicKey) -> bool {
        self.names.is_of_another(name, id)
    }

    /// Returns how many records of the node `id` the ledger holds, and how large they are.
    #[must_use]
    pub fn usage_of(&self, id: &PublicKey) -> usage::Usage {
        self.usages.of(id)
    }

    /// Checks a verified record against all records held. Returns the key under which to store it; none, if the ledger already
    /// holds the record.
    fn examine(&self, envelope: &Authentic) -> Result<Option<RecordKey>, Refused> {
        let (header, record) = envelope.parsed()?;
        let record = self.as_held(record, &envelope.signer);
        let key = self.key_of(header, &envelope.signer);
        if self.is_held(&key, header, record, envelope)? {
            return Ok(None);
        }
        rights::permit(self, envelope, &key, record)?;
        Ok(Some(key))
    }

    /// Whether the ledger already holds this record. The error says that the ledger holds a newer or greater one, and keeps it.
    fn is_held(
        &self,
        key: &RecordKey,
        header: &Header,
        record: &Record,
        envelope: &Authentic,
    ) -> Result<bool, Refused> {
        let Some(held) = self.entry(key) else {
            return Ok(false);
        };
        if held.envelope.payload == envelope.payload {
            return Ok(true);
        }
        succession::permit(held, key, header, record, envelope).map(|()| false)
    }
}

/// Verifies the length and the signature of an envelope.
///
/// # Errors
/// The payload is too long, or the signature does not verify.
pub fn verified(envelope: Envelope) -> Result<Authentic, Refused> {
    match envelope.payload.len() {
        ..=MAX_PAYLOAD => Authentic::verify(envelope).ok_or(Refused::Signature),
        length => Err(Refused::TooLong(length)),
    }
}

#[cfg(test)]
mod tests;
