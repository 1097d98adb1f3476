//! The ledger: every record a node or coordinator holds, verified up to the mesh key.
//!
//! [`Ledger::apply`] is the one gate through which records come in, at nodes and coordinators alike,
//! whoever sent them. It holds these rules:
//!
//! - an envelope's signature is checked before its payload is looked at;
//! - each kind has one rightful signer (see [`crate::records::kinds`]);
//! - of two versions of a record the higher one is kept; of two payloads with one version the ledger keeps the greater one in
//!   byte order, so that all ledgers keep the same one;
//! - of two memberships of a node the one with the later date is kept, so that no node can give itself an earlier date; the
//!   later one must not give the node a name that another node has;
//! - a token admits at most as many nodes as its certificate says, with its tags at most;
//! - a node that was revoked, or says itself that it departs, is out for good, with all it said;
//! - after a token's revocation only memberships that the revocation spares are accepted; if it lists the nodes that stay, the
//!   ledger drops the memberships of all others;
//! - an address block and a name belong to one node, and the node that has it keeps it;
//! - a WireGuard key belongs to the node that proves that it has the private half; without a proof it belongs to the nodes whose
//!   memberships name it, or to the node that already has it;
//! - each node has bounds of its own ([`usage`]), so that no node uses up the space of others; the mesh key has no bound.
//!
//! Two ledgers that received the same records are in the same state, even if the order was different. The order decides only
//! between nodes that claim one block, one name or the last use of a token: the first one gets it.
//!
//! The ledger never reads a clock, and it never drops a revocation. It keeps the memberships of removed nodes, since a forgotten
//! use of a token could be spent again, and drops a membership only when its token is revoked.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

use super::key::{RecordKey, ServiceId};
use super::kinds::{
    Header, Membership, Mesh, Name, Node, Record, RecordError, Revocation, RevokedKind, Service,
    Token,
};
use super::netmap::{Member, Netmap};
use crate::model::{Label, PublicKey};

use super::envelope::{Authentic, Envelope, MAX_PAYLOAD};

mod holders;
mod rights;
pub mod usage;

use self::holders::Holders;
use self::usage::{Usages, owner};

/// A record as held.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What travels.
    pub envelope: Envelope,
    /// What it says.
    pub record: Record,
    /// Its version.
    pub version: u64,
}

/// Verified records by key.
#[derive(Debug, Clone)]
pub struct Ledger {
    mesh_key: PublicKey,
    entries: BTreeMap<RecordKey, Entry>,
    admitted: HashMap<PublicKey, HashSet<PublicKey>>,
    /// Nodes that are out.
    out: HashSet<PublicKey>,
    holders: Holders,
    usages: Usages,
}

/// What became of a record that was not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// It is new, or newer than the one held.
    Changed(RecordKey),
    /// It is the very one held.
    Unchanged,
}

/// A record that was taken in, and what was held in its place.
#[derive(Debug)]
pub struct Replaced {
    key: RecordKey,
    before: Option<Entry>,
    /// Other records that were dropped because of it.
    dropped: Vec<RecordKey>,
}

impl Replaced {
    /// Which record.
    #[must_use]
    pub fn key(&self) -> &RecordKey {
        &self.key
    }

    /// Whether no version of the record was held before.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.before.is_none()
    }

    /// The other records that the ledger dropped because of it.
    #[must_use]
    pub fn dropped(&self) -> &[RecordKey] {
        &self.dropped
    }
}

/// Why a record was refused. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The signature does not hold.
    #[error("the signature does not hold")]
    Signature,
    /// The payload is over its bound.
    #[error("the record has {0} octets; {MAX_PAYLOAD} are the most")]
    TooLong(usize),
    /// The payload breaks the rules of its kind.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Signed by somebody who may not say this.
    #[error("the record {0} is not signed by who may say it")]
    Signer(RecordKey),
    /// Older than the one held.
    #[error("the record {key} has version {offered}; version {held} is known")]
    Stale {
        /// Which.
        key: RecordKey,
        /// The version refused.
        offered: u64,
        /// The version held.
        held: u64,
    },
    /// Another payload with the version held. The one held is kept.
    #[error("the record {0} exists in two forms with one version")]
    Forked(RecordKey),
    /// A membership that is dated before its token was made.
    #[error("the membership is dated before its token was made")]
    BeforeToken,
    /// A name that another node has.
    #[error("the name {0} belongs to another node")]
    NameTaken(String),
    /// The proof of a WireGuard key does not hold.
    #[error("the node does not prove that it holds its WireGuard key")]
    KeyProof,
    /// A WireGuard key that another node has.
    #[error("the WireGuard key belongs to another node")]
    KeyTaken,
    /// The token of a membership is not known.
    #[error("the membership's token is not known")]
    UnknownToken,
    /// The token was revoked before the membership was made.
    #[error("the token is revoked")]
    TokenRevoked,
    /// The token has admitted as many nodes as it may.
    #[error("the token has admitted {0} node(s), all it may")]
    TokenSpent(u32),
    /// The membership was made after the token's end.
    #[error("the token is expired")]
    TokenExpired,
    /// The membership has a tag that the token has not.
    #[error("the token does not grant the tag {0}")]
    Tag(String),
    /// The node was removed by the administrator.
    #[error("the node is removed from the mesh")]
    NodeRevoked,
    /// Said by a node that is no member.
    #[error("the node is not a member")]
    NotAMember,
    /// The address plan is not known yet.
    #[error("the mesh record is not known")]
    NoMesh,
    /// A block outside the plan.
    #[error("the address block {0} is none of this mesh")]
    ForeignBlock(String),
    /// A block that another node holds.
    #[error("the address block {0} belongs to another node")]
    BlockTaken(String),
    /// An instance or endpoint address inside the mesh that is not the node's own.
    #[error("the address {0} belongs to another node")]
    ForeignAddress(std::net::IpAddr),
    /// The record would exceed a bound on the records of its node.
    #[error("the node's records are over their bound: {0}")]
    Full(usage::Bound),
}

impl Ledger {
    /// An empty ledger of the mesh whose key is `mesh_key`.
    #[must_use]
    pub fn new(mesh_key: PublicKey) -> Self {
        Self {
            mesh_key,
            entries: BTreeMap::new(),
            admitted: HashMap::new(),
            out: HashSet::new(),
            holders: Holders::default(),
            usages: Usages::default(),
        }
    }

    /// The key everything is verified up to.
    #[must_use]
    pub fn mesh_key(&self) -> PublicKey {
        self.mesh_key
    }

    /// Takes a record in, if it is authentic, newer and within its signer's rights.
    ///
    /// # Errors
    /// Says which rule it breaks; the ledger is then as before.
    pub fn apply(&mut self, envelope: Envelope) -> Result<Applied, Refused> {
        Ok(match self.replace(envelope)? {
            Some(replaced) => Applied::Changed(replaced.key),
            None => Applied::Unchanged,
        })
    }

    /// As [`Ledger::apply`]; gives what was held before, if the record is new.
    ///
    /// # Errors
    /// As there.
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
        let (key, header, record) = self.parse(&envelope)?;
        if self.is_held(&key, &header, &record, &envelope)? {
            return Ok(None);
        }
        self.permit(&envelope, &key, &record)?;
        let entry = Entry {
            envelope: envelope.into_envelope(),
            record,
            version: header.version,
        };
        let (before, dropped) = self.insert(key.clone(), entry);
        Ok(Some(Replaced {
            key,
            before,
            dropped,
        }))
    }

    /// Undoes the last [`Ledger::replace`]. Returns false and changes nothing if other records depend on records of this kind, or if
    /// other records were dropped with it.
    pub fn put_back(&mut self, replaced: Replaced) -> bool {
        let Replaced {
            key,
            before,
            dropped,
        } = replaced;
        if !dropped.is_empty() {
            return false;
        }
        let Some(held) = self.entries.remove(&key) else {
            return false;
        };
        match (&held.record, before.as_ref().map(|entry| &entry.record)) {
            (Record::Service(_), _) => {}
            (Record::Node(node), Some(Record::Node(before))) => {
                self.holders.replace(Some(node), before);
            }
            (Record::Node(node), _) => self.holders.remove(node),
            _ => {
                self.entries.insert(key, held);
                return false;
            }
        }
        self.usages.remove(&held);
        if let Some(before) = before {
            self.usages.add(&before);
            self.entries.insert(key, before);
        }
        true
    }

    /// Whether this very envelope is held: its signature was checked when it came. Many nodes offer the same.
    #[must_use]
    pub fn holds(&self, envelope: &Envelope) -> bool {
        let Some(header) = envelope.header() else {
            return false;
        };
        self.entries
            .get(&self.key_of(&header, &envelope.signer))
            .is_some_and(|held| held.envelope == *envelope)
    }

    /// The key under which a record is held. Any member may sign records of a kind that this version does not know. Each signer
    /// has records of its own of such a kind, so that no member replaces a record of the mesh key or of another node. The signer is
    /// a part of the kind and not of the id, because an id may be any text, while no kind is as long as one with a signer in it.
    #[must_use]
    pub fn key_of(&self, header: &Header, signer: &PublicKey) -> RecordKey {
        let key = header.key.clone();
        if *signer == self.mesh_key {
            key
        } else {
            key.of_member(signer)
        }
    }

    /// Whether [`Ledger::apply`] would take `envelope` in.
    ///
    /// # Errors
    /// Says which rule it breaks.
    pub fn check(&self, envelope: &Envelope) -> Result<(), Refused> {
        self.check_authentic(&verified(envelope.clone())?)
    }

    /// Does what [`Ledger::check`] does, for a record whose signature was verified before.
    ///
    /// # Errors
    /// The errors are those of [`Ledger::check`], except for the signature.
    pub fn check_authentic(&self, envelope: &Authentic) -> Result<(), Refused> {
        let (key, header, record) = self.parse(envelope)?;
        if self.is_held(&key, &header, &record, envelope)? {
            Ok(())
        } else {
            self.permit(envelope, &key, &record)
        }
    }

    /// Whether this record is held already. An error says that the record held is newer or greater, and is kept.
    fn is_held(
        &self,
        key: &RecordKey,
        header: &Header,
        record: &Record,
        envelope: &Envelope,
    ) -> Result<bool, Refused> {
        let Some(held) = self.entries.get(key) else {
            return Ok(false);
        };
        if held.envelope.payload == envelope.payload {
            return Ok(true);
        }
        let date = |record: &Record| match record {
            Record::Membership(membership) => Some(membership.issued_at),
            _ => None,
        };
        let offered = (date(record), header.version);
        match offered.cmp(&(date(&held.record), held.version)) {
            Ordering::Less => Err(Refused::Stale {
                key: key.clone(),
                offered: header.version,
                held: held.version,
            }),
            Ordering::Equal if envelope.payload < held.envelope.payload => {
                Err(Refused::Forked(key.clone()))
            }
            Ordering::Equal | Ordering::Greater => Ok(false),
        }
    }

    /// Parses an envelope, and reads no other record.
    fn parse(&self, envelope: &Authentic) -> Result<(RecordKey, Header, Record), Refused> {
        let (header, record) = Record::parse(&envelope.payload)?;
        let key = self.key_of(&header, &envelope.signer);
        Ok((key, header, record))
    }

    /// Stores a permitted record. Returns the record that it replaces, and the keys of others that were dropped.
    fn insert(&mut self, key: RecordKey, entry: Entry) -> (Option<Entry>, Vec<RecordKey>) {
        let mut dropped = Vec::new();
        match &entry.record {
            Record::Membership(membership) => {
                let before = self.membership(&membership.id).cloned();
                if let Some(before) = before {
                    self.holders.unname(&before.wireguard_key, &before.id);
                }
                self.admitted
                    .entry(membership.token)
                    .or_default()
                    .insert(membership.id);
                // The WireGuard key of a removed node is free.
                if !self.out.contains(&membership.id) {
                    self.holders.name(membership.wireguard_key, membership.id);
                }
            }
            Record::Revocation(revocation) => {
                dropped = match revocation.revoked {
                    RevokedKind::Node => self.expel(revocation.id),
                    RevokedKind::Token => self.withdraw_memberships(revocation),
                };
            }
            Record::Departure(departure) => {
                dropped = self.expel(departure.id);
            }
            Record::Node(node) => {
                dropped = self.make_way_for(node);
                let before = self.node(&node.id).cloned();
                self.holders.replace(before.as_ref(), node);
            }
            _ => {}
        }
        self.usages.add(&entry);
        let before = self.entries.insert(key, entry);
        if let Some(before) = &before {
            self.usages.remove(before);
        }
        (before, dropped)
    }

    /// Drops the records that a new node record makes void: the record of another node that has the WireGuard key without a proof,
    /// and the node's own services with versions below `services_from`.
    fn make_way_for(&mut self, node: &Node) -> Vec<RecordKey> {
        let mut dropped = Vec::new();
        let holder = self.holders.holder_of_key(&node.wireguard_key);
        if let Some(other) = holder.filter(|holder| *holder != node.id) {
            dropped.extend(self.drop_record(RecordKey::Node(other)));
        }
        let floor = self.node(&node.id).map_or(0, |held| held.services_from);
        if node.services_from > floor {
            let cleared: Vec<RecordKey> = self
                .services_of(&node.id)
                .filter(|service| service.version < node.services_from)
                .map(|service| RecordKey::Service(service.service_id()))
                .collect();
            dropped.extend(cleared.into_iter().filter_map(|key| self.drop_record(key)));
        }
        dropped
    }

    /// Removes a node, and drops its records except for its membership and its departure.
    fn expel(&mut self, node: PublicKey) -> Vec<RecordKey> {
        self.out.insert(node);
        if let Some(key) = self.membership(&node).map(|m| m.wireguard_key) {
            self.holders.unname(&key, &node);
        }
        self.drop_records(|held| {
            let stays = matches!(held.record, Record::Membership(_) | Record::Departure(_));
            !stays && owner(&held.envelope.signer, &held.record) == Some(node)
        })
    }

    /// Drops the memberships that the revocation of their token does not spare, with all other records of their nodes.
    fn withdraw_memberships(&mut self, revocation: &Revocation) -> Vec<RecordKey> {
        // A revocation of an earlier version lists no nodes. Such a revocation removes no member: its date would have to be
        // compared with the date of a membership, which comes from the clock of a node.
        if revocation.stays.is_none() {
            return Vec::new();
        }
        let withdrawn: Vec<Membership> = self
            .memberships()
            .filter(|m| m.token == revocation.id && !revocation.spares(m))
            .cloned()
            .collect();
        for membership in &withdrawn {
            self.forget_admission(membership);
            if !self.is_revoked_by_administrator(&membership.id) {
                self.out.remove(&membership.id);
            }
        }
        let nodes: HashSet<PublicKey> = withdrawn.iter().map(|m| m.id).collect();
        self.drop_records(|held| {
            owner(&held.envelope.signer, &held.record).is_some_and(|node| nodes.contains(&node))
        })
    }

    fn forget_admission(&mut self, membership: &Membership) {
        self.holders
            .unname(&membership.wireguard_key, &membership.id);
        if let Some(nodes) = self.admitted.get_mut(&membership.token) {
            nodes.remove(&membership.id);
        }
    }

    /// Drops all records that are void. Returns their keys.
    fn drop_records(&mut self, is_void: impl Fn(&Entry) -> bool) -> Vec<RecordKey> {
        let held = self.entries.iter();
        let void = held.filter(|(_, held)| is_void(held));
        let void: Vec<RecordKey> = void.map(|(key, _)| key.clone()).collect();
        void.into_iter()
            .filter_map(|key| self.drop_record(key))
            .collect()
    }

    /// Drops a record from the ledger and its indexes. Returns its key if it was held.
    fn drop_record(&mut self, key: RecordKey) -> Option<RecordKey> {
        let held = self.entries.remove(&key)?;
        if let Record::Node(node) = &held.record {
            self.holders.remove(node);
        }
        self.usages.remove(&held);
        Some(key)
    }

    /// How many nodes `token` has admitted, removed ones included.
    #[must_use]
    pub fn admitted_by(&self, token: &PublicKey) -> usize {
        self.admitted.get(token).map_or(0, HashSet::len)
    }

    /// Whether `key`, a node, is out: the administrator took it back, or it departed.
    #[must_use]
    pub fn is_revoked(&self, key: &PublicKey) -> bool {
        self.out.contains(key)
    }

    fn is_revoked_by_administrator(&self, node: &PublicKey) -> bool {
        matches!(self.record(&RecordKey::Revocation(*node)), Some(Record::Revocation(r)) if r.revoked == RevokedKind::Node)
    }

    /// How many records and octets are held of the node `id`.
    #[must_use]
    pub fn usage_of(&self, id: &PublicKey) -> usage::Usage {
        self.usages.of(id)
    }

    /// Whether the administrator took the token back.
    #[must_use]
    pub fn is_token_revoked(&self, token: &PublicKey) -> bool {
        matches!(self.record(&RecordKey::Revocation(*token)), Some(Record::Revocation(r)) if r.revoked == RevokedKind::Token)
    }

    /// The mesh record.
    #[must_use]
    pub fn mesh(&self) -> Option<&Mesh> {
        match self.record(&RecordKey::Mesh) {
            Some(Record::Mesh(mesh)) => Some(mesh),
            _ => None,
        }
    }

    /// A token's certificate.
    #[must_use]
    pub fn token(&self, id: &PublicKey) -> Option<&Token> {
        match self.record(&RecordKey::Token(*id)) {
            Some(Record::Token(token)) => Some(token),
            _ => None,
        }
    }

    /// A node's membership certificate; also of a removed node.
    #[must_use]
    pub fn membership(&self, id: &PublicKey) -> Option<&Membership> {
        match self.record(&RecordKey::Membership(*id)) {
            Some(Record::Membership(membership)) => Some(membership),
            _ => None,
        }
    }

    /// The tags a member has: those its certificate asks for, or all of its token's if it asks for none. A token
    /// narrowed later narrows its nodes.
    #[must_use]
    pub fn tags_of(&self, member: &Membership) -> Vec<Label> {
        let granted = self.token(&member.token).map_or(&[][..], |t| &t.tags);
        granted
            .iter()
            .filter(|tag| member.tags.is_empty() || member.tags.contains(tag))
            .cloned()
            .collect()
    }

    /// A node's own record.
    #[must_use]
    pub fn node(&self, id: &PublicKey) -> Option<&Node> {
        match self.record(&RecordKey::Node(*id)) {
            Some(Record::Node(node)) => Some(node),
            _ => None,
        }
    }

    /// All token certificates.
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.of_kind(RecordKey::Token(LOWEST))
            .map_while(|record| match record {
                Record::Token(token) => Some(token),
                _ => None,
            })
    }

    /// All memberships, removed nodes included.
    pub fn memberships(&self) -> impl Iterator<Item = &Membership> {
        self.of_kind(RecordKey::Membership(LOWEST))
            .map_while(|record| match record {
                Record::Membership(membership) => Some(membership),
                _ => None,
            })
    }

    /// The memberships of the nodes that `token` admitted and that were not removed.
    pub fn members_by(&self, token: &PublicKey) -> impl Iterator<Item = &Membership> {
        let token = *token;
        self.memberships()
            .filter(move |m| m.token == token && !self.is_revoked(&m.id))
    }

    /// All node records.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.of_kind(RecordKey::Node(LOWEST))
            .map_while(|record| match record {
                Record::Node(node) => Some(node),
                _ => None,
            })
    }

    /// The departures of nodes that the administrator did not remove besides.
    pub fn departures(&self) -> impl Iterator<Item = &RecordKey> {
        self.entries
            .range(RecordKey::Departure(LOWEST)..)
            .map_while(|(key, _)| match key {
                RecordKey::Departure(node) => Some((key, *node)),
                _ => None,
            })
            .filter(|(_, node)| self.record(&RecordKey::Revocation(*node)).is_none())
            .map(|(key, _)| key)
    }

    /// All service records.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.of_kind(RecordKey::Service(ServiceId::before_all_of(LOWEST)))
            .map_while(|record| match record {
                Record::Service(service) => Some(service),
                _ => None,
            })
    }

    /// A service record.
    #[must_use]
    pub fn service(&self, id: &str) -> Option<&Service> {
        match self.record(&RecordKey::Service(ServiceId::parse(id)?)) {
            Some(Record::Service(service)) => Some(service),
            _ => None,
        }
    }

    /// The service records of one node.
    pub fn services_of(&self, node: &PublicKey) -> impl Iterator<Item = &Service> {
        let node = *node;
        self.of_kind(RecordKey::Service(ServiceId::before_all_of(node)))
            .map_while(move |record| match record {
                Record::Service(service) if service.node == node => Some(service),
                _ => None,
            })
    }

    /// What is held under `key`.
    #[must_use]
    pub fn entry(&self, key: &RecordKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// All that is held, in an order in which another ledger can take it in.
    pub fn envelopes(&self) -> impl Iterator<Item = &Envelope> {
        self.entries.values().map(|entry| &entry.envelope)
    }

    /// The records of [`Ledger::envelopes`] that follow the key `after`, which need not be held any more.
    pub fn envelopes_after<'a>(
        &'a self,
        after: Option<&RecordKey>,
    ) -> impl Iterator<Item = (&'a RecordKey, &'a Envelope)> + use<'a> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries
            .range((from, Bound::Unbounded))
            .map(|(key, entry)| (key, &entry.envelope))
    }

    /// What nodes take from each other, in an order in which another ledger can take it in: all but memberships. A ledger
    /// has no clock; whoever holds an old token could date one back, and only a coordinator would notice.
    pub fn envelopes_for_peers(&self) -> impl Iterator<Item = &Envelope> {
        self.envelopes_after(None)
            .filter(|(key, _)| !matches!(key, RecordKey::Membership(_)))
            .map(|(_, envelope)| envelope)
    }

    /// How many records are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The members and what they serve.
    #[must_use]
    pub fn netmap(&self) -> Netmap {
        let mut netmap = Netmap {
            mesh: self.mesh().cloned(),
            ..Netmap::default()
        };
        let mut names = self.names();
        for membership in self.memberships() {
            let (Some(name), Some(node)) =
                (names.remove(&membership.id), self.node(&membership.id))
            else {
                continue;
            };
            netmap.members.insert(
                membership.id,
                Member {
                    id: membership.id,
                    name,
                    issued_at: membership.issued_at,
                    tags: self.tags_of(membership),
                    wireguard_key: node.wireguard_key,
                    block: node.block,
                    endpoints: node.routable_endpoints(),
                    without_ipv6: node.without_ipv6,
                },
            );
        }
        for service in self.services() {
            if let Some(service) = netmap.admit(service) {
                netmap.services.insert(service.id.clone(), service);
            }
        }
        netmap
    }

    /// Brings one service in `netmap` in step with its record; gives it as it was there. For when nothing else changed.
    pub fn renew(&self, netmap: &mut Netmap, id: &str) -> Option<Service> {
        match self.service(id).and_then(|service| netmap.admit(service)) {
            Some(service) => netmap.services.insert(id.to_owned(), service),
            None => netmap.services.remove(id),
        }
    }

    /// What members are called: of two that joined with one name the earlier has it. A member that wants another name
    /// has it, unless somebody joined with it or an earlier member wants it too.
    #[must_use]
    pub fn names(&self) -> HashMap<PublicKey, Label> {
        let mut by_age: Vec<&Membership> = self
            .memberships()
            .filter(|m| !self.is_revoked(&m.id))
            .collect();
        by_age.sort_by_key(|m| (m.issued_at, m.id));
        let mut taken = HashSet::new();
        let mut names = HashMap::new();
        for membership in &by_age {
            let name = if taken.insert(membership.name.clone()) {
                membership.name.clone()
            } else {
                membership.name.with_suffix(&membership.id.short())
            };
            names.insert(membership.id, name);
        }
        for membership in by_age {
            if let Some(wanted) = self.wanted_name(&membership.id)
                && taken.insert(wanted.name.clone())
            {
                names.insert(membership.id, wanted.name.clone());
            }
        }
        names
    }

    /// What a member wants to be called instead of the name it joined with.
    #[must_use]
    pub fn wanted_name(&self, id: &PublicKey) -> Option<&Name> {
        match self.record(&RecordKey::Name(*id)) {
            Some(Record::Name(name)) => Some(name),
            _ => None,
        }
    }

    /// Whether another node than `id` joined as `name` or wants to be called so.
    #[must_use]
    pub fn is_name_of_another(&self, name: &Label, id: &PublicKey) -> bool {
        let names = self.of_kind(RecordKey::Name(LOWEST));
        let wanted = names
            .map_while(|record| match record {
                Record::Name(wanted) => Some(wanted),
                _ => None,
            })
            .any(|wanted| wanted.name == *name && wanted.id != *id);
        wanted
            || self
                .memberships()
                .any(|m| m.name == *name && m.id != *id && !self.is_revoked(&m.id))
    }

    fn record(&self, key: &RecordKey) -> Option<&Record> {
        self.entries.get(key).map(|entry| &entry.record)
    }

    /// The records from `first` on, which is the lowest key of its kind, up to the end of the ledger.
    fn of_kind(&self, first: RecordKey) -> impl Iterator<Item = &Record> {
        self.entries.range(first..).map(|(_, entry)| &entry.record)
    }
}

/// No key is lower.
const LOWEST: PublicKey = PublicKey([0; 32]);

/// Verifies the length and the signature of an envelope.
///
/// # Errors
/// The payload is too long, or the signature does not hold.
pub fn verified(envelope: Envelope) -> Result<Authentic, Refused> {
    match envelope.payload.len() {
        ..=MAX_PAYLOAD => Authentic::verify(envelope).ok_or(Refused::Signature),
        length => Err(Refused::TooLong(length)),
    }
}

#[cfg(test)]
mod tests;
