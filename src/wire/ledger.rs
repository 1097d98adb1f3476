//! The ledger: every record a node or coordinator holds, verified up to the mesh key.
//!
//! [`Ledger::apply`] is the one gate through which records come in, at nodes and coordinators alike,
//! whoever sent them. It holds these rules:
//!
//! - an envelope's signature is checked before its payload is looked at;
//! - each kind has one rightful signer (see [`crate::model::record`]);
//! - versions only grow; of two texts under one version the greater holds, so that ledgers agree whichever came first;
//! - of two memberships of a node the one with the later date holds, so that no node signs itself an earlier one, and the
//!   later one brings the node no name that another has;
//! - a token admits at most as many nodes as its certificate says, with its tags at most;
//! - a node that was revoked, or says itself that it departs, is out for good, with all it said;
//! - a revoked token admits no node that the revocation does not spare, and those it admitted before are out as well;
//! - an address block and a name belong to one node: the node that holds it keeps it;
//! - a WireGuard key belongs to the node that proves that it has the private half, or else to the one that holds it;
//! - each node has bounds of its own ([`usage`]): no node fills the ledger for others, and the mesh key has no bound.
//!
//! Two ledgers that hold the same records are in the same state, whatever the order in which the records came. The order
//! decides only between nodes that claim one block, one name or the last use of a token: the first one holds it.
//!
//! What it never does: read a clock, or forget a revocation or a membership (a forgotten one could be spent again).

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

use crate::model::netmap::{Member, Netmap};
use crate::model::record::{
    Header, Membership, Mesh, Name, Node, Record, RecordError, RecordKey, Revocation, RevokedKind,
    Service, Token,
};
use crate::model::{Label, PublicKey};

use super::envelope::{Authentic, Envelope, MAX_PAYLOAD};

mod holders;
mod rights;
pub mod usage;

use self::holders::Holders;
use self::usage::Usages;

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
    /// Other records that went with it.
    dropped: Vec<RecordKey>,
}

impl Replaced {
    /// Which record.
    #[must_use]
    pub fn key(&self) -> &RecordKey {
        &self.key
    }

    /// Whether no version of it was held before.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.before.is_none()
    }

    /// The other records that the ledger dropped for it.
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
    /// Another text under the version held, which holds.
    #[error("the record {0} exists in two forms with one version")]
    Forked(RecordKey),
    /// A membership that was made before its token.
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
    /// The node has said as much as is kept of one node.
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

    /// As [`Ledger::replace`], for a record whose signature was verified before.
    ///
    /// # Errors
    /// As there.
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

    /// Undoes the last [`Ledger::replace`]. False, and nothing changes, for kinds of records on which others rest, and where
    /// others went with it.
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
        if envelope.payload.len() > MAX_PAYLOAD {
            return false;
        }
        let Ok(header) = serde_json::from_str::<Header>(&envelope.payload) else {
            return false;
        };
        self.entries
            .get(&self.key_of(&header, &envelope.signer))
            .is_some_and(|held| held.envelope == *envelope)
    }

    /// Under which key a record is held. A kind that this version does not know may be anybody's: each signer has its own
    /// records of that kind, so that no member takes the place of a record of the mesh key or of another node. No kind is as
    /// long as one with a signer's name, and ids may be any text: so the name stands in the kind.
    #[must_use]
    pub fn key_of(&self, header: &Header, signer: &PublicKey) -> RecordKey {
        let is_known = ORDER.contains(&header.kind.as_str());
        let kind = if is_known || *signer == self.mesh_key {
            header.kind.clone()
        } else {
            format!("{} of {signer}", header.kind)
        };
        RecordKey {
            kind,
            id: header.id.clone(),
        }
    }

    /// Whether [`Ledger::apply`] would take `envelope` in.
    ///
    /// # Errors
    /// Says which rule it breaks.
    pub fn check(&self, envelope: &Envelope) -> Result<(), Refused> {
        self.check_authentic(&verified(envelope.clone())?)
    }

    /// As [`Ledger::check`], for a record whose signature was verified before.
    ///
    /// # Errors
    /// As there.
    pub fn check_authentic(&self, envelope: &Authentic) -> Result<(), Refused> {
        let (key, header, record) = self.parse(envelope)?;
        if self.is_held(&key, &header, &record, envelope)? {
            Ok(())
        } else {
            self.permit(envelope, &key, &record)
        }
    }

    /// Whether this very record is held; an error if what is held stays in force.
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

    /// Parses an envelope; looks at no other record.
    fn parse(&self, envelope: &Authentic) -> Result<(RecordKey, Header, Record), Refused> {
        let (header, record) = Record::parse(&envelope.payload)?;
        let key = self.key_of(&header, &envelope.signer);
        Ok((key, header, record))
    }

    /// Stores a permitted record. Gives the one it replaces, and the others that were dropped.
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
                // The key of a node that is out is free.
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

    /// Drops what a new node record voids: the record of a node that holds the WireGuard key without a proof, and the services
    /// that its node has cleared away.
    fn make_way_for(&mut self, node: &Node) -> Vec<RecordKey> {
        let mut dropped = Vec::new();
        let holder = self.holders.holder_of_key(&node.wireguard_key);
        if let Some(other) = holder.filter(|holder| *holder != node.id) {
            dropped = self
                .drop_records(|entry| matches!(&entry.record, Record::Node(n) if n.id == other));
        }
        let floor = self.node(&node.id).map_or(0, |held| held.services_from);
        if node.services_from > floor {
            dropped.extend(self.drop_records(|entry| {
                matches!(&entry.record, Record::Service(s) if s.node == node.id && s.version < node.services_from)
            }));
        }
        dropped
    }

    /// Puts a node out, and drops what it said but for its departure.
    fn expel(&mut self, node: PublicKey) -> Vec<RecordKey> {
        self.out.insert(node);
        if let Some(key) = self.membership(&node).map(|m| m.wireguard_key) {
            self.holders.unname(&key, &node);
        }
        self.forget_words_of(node)
    }

    /// Drops the memberships that the revocation of their token does not spare, with all that their nodes said.
    fn withdraw_memberships(&mut self, revocation: &Revocation) -> Vec<RecordKey> {
        // A revocation of an earlier version names no nodes. Its date alone puts out nobody who is in: the date of a
        // membership is by the clock of its node.
        if revocation.stays.is_none() {
            return Vec::new();
        }
        let withdrawn: Vec<Membership> = self
            .memberships()
            .filter(|m| m.token == revocation.id && !revocation.spares(m))
            .cloned()
            .collect();
        let mut dropped = Vec::new();
        for membership in withdrawn {
            dropped.extend(self.forget_words_of(membership.id));
            self.forget_admission(&membership);
            let id = membership.id;
            dropped.extend(self.drop_records(|entry| match &entry.record {
                Record::Membership(m) => m.id == id,
                Record::Departure(d) => d.id == id,
                _ => false,
            }));
            if !self.is_revoked_by_administrator(&id) {
                self.out.remove(&id);
            }
        }
        dropped
    }

    fn forget_admission(&mut self, membership: &Membership) {
        self.holders
            .unname(&membership.wireguard_key, &membership.id);
        if let Some(nodes) = self.admitted.get_mut(&membership.token) {
            nodes.remove(&membership.id);
        }
    }

    fn forget_words_of(&mut self, node: PublicKey) -> Vec<RecordKey> {
        self.drop_records(|held| match &held.record {
            Record::Node(record) => record.id == node,
            Record::Name(record) => record.id == node,
            Record::Service(record) => record.node == node,
            Record::Unknown => held.envelope.signer == node,
            _ => false,
        })
    }

    /// Drops all records that `is_void`, with what is kept of them. Gives their keys.
    fn drop_records(&mut self, is_void: impl Fn(&Entry) -> bool) -> Vec<RecordKey> {
        let Self {
            entries,
            holders,
            usages,
            ..
        } = self;
        let mut dropped = Vec::new();
        entries.retain(|key, held| {
            if !is_void(held) {
                return true;
            }
            if let Record::Node(node) = &held.record {
                holders.remove(node);
            }
            usages.remove(held);
            dropped.push(key.clone());
            false
        });
        dropped
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
        matches!(self.record("revocation", &node.to_string()), Some(Record::Revocation(r)) if r.revoked == RevokedKind::Node)
    }

    /// What the node `id` has said, in records and octets.
    #[must_use]
    pub fn usage_of(&self, id: &PublicKey) -> usage::Usage {
        self.usages.of(id)
    }

    /// Whether the administrator took the token back.
    #[must_use]
    pub fn is_token_revoked(&self, token: &PublicKey) -> bool {
        matches!(self.record("revocation", &token.to_string()), Some(Record::Revocation(r)) if r.revoked == RevokedKind::Token)
    }

    /// The mesh record.
    #[must_use]
    pub fn mesh(&self) -> Option<&Mesh> {
        match self.record("mesh", crate::model::record::MESH_ID) {
            Some(Record::Mesh(mesh)) => Some(mesh),
            _ => None,
        }
    }

    /// A token's certificate.
    #[must_use]
    pub fn token(&self, id: &PublicKey) -> Option<&Token> {
        match self.record("token", &id.to_string()) {
            Some(Record::Token(token)) => Some(token),
            _ => None,
        }
    }

    /// A node's membership certificate; also of a removed node.
    #[must_use]
    pub fn membership(&self, id: &PublicKey) -> Option<&Membership> {
        match self.record("membership", &id.to_string()) {
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
        match self.record("node", &id.to_string()) {
            Some(Record::Node(node)) => Some(node),
            _ => None,
        }
    }

    /// All token certificates.
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.of_kind("token").filter_map(|e| {
            if let Record::Token(token) = &e.record {
                Some(token)
            } else {
                None
            }
        })
    }

    /// All memberships, removed nodes included.
    pub fn memberships(&self) -> impl Iterator<Item = &Membership> {
        self.of_kind("membership").filter_map(|e| {
            if let Record::Membership(m) = &e.record {
                Some(m)
            } else {
                None
            }
        })
    }

    /// The memberships by `token` of nodes that are in.
    pub fn members_by(&self, token: &PublicKey) -> impl Iterator<Item = &Membership> {
        let token = *token;
        self.memberships()
            .filter(move |m| m.token == token && !self.is_revoked(&m.id))
    }

    /// All node records.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.of_kind("node").filter_map(|e| {
            if let Record::Node(node) = &e.record {
                Some(node)
            } else {
                None
            }
        })
    }

    /// The departures of nodes that the administrator did not remove besides.
    pub fn departures(&self) -> impl Iterator<Item = &RecordKey> {
        self.of_kind("departure")
            .filter_map(|entry| match &entry.record {
                Record::Departure(departure) => Some(departure.id.to_string()),
                _ => None,
            })
            .filter(|id| self.record("revocation", id).is_none())
            .filter_map(|id| self.entries.get_key_value(&key_of_departure(id)))
            .map(|(key, _)| key)
    }

    /// All service records.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.of_kind("service").filter_map(|e| {
            if let Record::Service(service) = &e.record {
                Some(service)
            } else {
                None
            }
        })
    }

    /// A service record.
    #[must_use]
    pub fn service(&self, id: &str) -> Option<&Service> {
        match self.record("service", id) {
            Some(Record::Service(service)) => Some(service),
            _ => None,
        }
    }

    /// The service records of one node.
    pub fn services_of(&self, node: &PublicKey) -> impl Iterator<Item = &Service> {
        let prefix = Service::ids_of(node);
        let first = RecordKey {
            kind: "service".to_owned(),
            id: prefix.clone(),
        };
        self.entries
            .range(first..)
            .take_while(move |(key, _)| key.kind == "service" && key.id.starts_with(&prefix))
            .filter_map(|(_, entry)| match &entry.record {
                Record::Service(service) => Some(service),
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
        ORDER
            .iter()
            .flat_map(|kind| self.of_kind(kind))
            .chain(
                self.entries
                    .values()
                    .filter(|e| e.record == Record::Unknown),
            )
            .map(|e| &e.envelope)
    }

    /// What [`Ledger::envelopes`] gives, from behind `after`; that need not be held any more.
    pub fn envelopes_after<'a>(
        &'a self,
        after: Option<&'a RecordKey>,
    ) -> impl Iterator<Item = (&'a RecordKey, &'a Envelope)> {
        let rank = |kind: &str| ORDER.iter().position(|known| *known == kind);
        let reached = after.map(|key| rank(&key.kind).unwrap_or(ORDER.len()));
        let ahead = ORDER
            .iter()
            .enumerate()
            .skip(reached.unwrap_or(0))
            .flat_map(move |(at, kind)| {
                let first = || RecordKey {
                    kind: (*kind).to_owned(),
                    id: String::new(),
                };
                let from = match after {
                    Some(key) if reached == Some(at) => Bound::Excluded(key.clone()),
                    _ => Bound::Included(first()),
                };
                self.entries
                    .range((from, Bound::Unbounded))
                    .take_while(move |(key, _)| key.kind == *kind)
            });
        let unknown = match after {
            Some(key) if reached == Some(ORDER.len()) => Bound::Excluded(key.clone()),
            _ => Bound::Unbounded,
        };
        let unknown = self
            .entries
            .range((unknown, Bound::Unbounded))
            .filter(|(_, entry)| entry.record == Record::Unknown);
        ahead
            .chain(unknown)
            .map(|(key, entry)| (key, &entry.envelope))
    }

    /// What nodes take from each other, in an order in which another ledger can take it in: all but memberships. A ledger
    /// has no clock; whoever holds an old token could date one back, and only a coordinator would notice.
    pub fn envelopes_for_peers(&self) -> impl Iterator<Item = &Envelope> {
        self.envelopes_after(None)
            .filter(|(key, _)| key.kind != MEMBERSHIP)
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
        match self.record("name", &id.to_string()) {
            Some(Record::Name(name)) => Some(name),
            _ => None,
        }
    }

    /// Whether another node than `id` joined as `name` or wants to be called so.
    #[must_use]
    pub fn is_name_of_another(&self, name: &Label, id: &PublicKey) -> bool {
        let wanted = self.of_kind("name").any(
            |entry| matches!(&entry.record, Record::Name(w) if w.name == *name && w.id != *id),
        );
        wanted
            || self
                .memberships()
                .any(|m| m.name == *name && m.id != *id && !self.is_revoked(&m.id))
    }

    fn record(&self, kind: &str, id: &str) -> Option<&Record> {
        self.entries
            .get(&RecordKey {
                kind: kind.to_owned(),
                id: id.to_owned(),
            })
            .map(|e| &e.record)
    }

    fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Entry> + 'a {
        let first = RecordKey {
            kind: kind.to_owned(),
            id: String::new(),
        };
        self.entries
            .range(first..)
            .take_while(move |(key, _)| key.kind == kind)
            .map(|(_, entry)| entry)
    }
}

/// Verifies a signature.
///
/// # Errors
/// Says what is wrong with the envelope.
pub fn verified(envelope: Envelope) -> Result<Authentic, Refused> {
    match envelope.payload.len() {
        ..=MAX_PAYLOAD => Authentic::verify(envelope).ok_or(Refused::Signature),
        length => Err(Refused::TooLong(length)),
    }
}

fn key_of_departure(id: String) -> RecordKey {
    RecordKey {
        kind: "departure".to_owned(),
        id,
    }
}

const MEMBERSHIP: &str = "membership";

/// Each kind after those it rests on. Memberships come before revocations: a removed node's membership
/// must be held (its token's use counts) and would be refused after the removal.
const ORDER: [&str; 8] = [
    "mesh",
    "token",
    MEMBERSHIP,
    "revocation",
    "departure",
    "node",
    "name",
    "service",
];

#[cfg(test)]
mod tests;
