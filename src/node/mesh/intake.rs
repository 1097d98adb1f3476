//! Receives records from the coordinator and from peers: verifies them, holds memberships back, and applies the rest.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{Mesh, coordinators};
use crate::model::PublicKey;
use crate::model::time::UnixSeconds;
use crate::node::gossip::Ask;
use crate::node::replica::newcomers::{Circumstances, MAX_OCTETS, Verdict, membership_in};
use crate::node::replica::refusals;
use crate::node::replica::renewal::is_renewal;
use crate::node::unwritten::Part;
use crate::protocol::gossip::MAX_ASKED;
use crate::records::Envelope;
use crate::records::digest::Holdings;
use crate::records::kinds::{Record, RecordKey};
use crate::records::ledger::{Applied, Refused};

/// The shortest time between two requests for all records that follow because a peer vouched for a node.
const AGAIN_AFTER_VOUCH: Duration = Duration::from_secs(30);

/// The kind of sender from which records were received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Coordinator,
    Peer,
}

/// The records of one message that were accepted, in their order.
#[derive(Debug, Default)]
struct Accepted {
    envelopes: Vec<Envelope>,
    keys: Vec<RecordKey>,
}

impl Accepted {
    fn add(&mut self, envelope: Envelope, key: RecordKey) {
        self.envelopes.push(envelope);
        self.keys.push(key);
    }
}

impl Mesh {
    /// Verifies records of the coordinator, stores the valid ones, and acts on them.
    pub(super) fn take_in_of_coordinator(&mut self, records: Vec<Envelope>) {
        let now = Instant::now();
        let wall = UnixSeconds::from_system(SystemTime::now());
        let id = self.id();
        let mut accepted = Accepted::default();
        for envelope in records {
            // This node's own records are not replaced by those of others.
            if envelope.signer == id {
                self.take_in_own(&envelope, now);
                continue;
            }
            let verdict = self.judge(&envelope, wall);
            if verdict == Some(Verdict::HeldBack) {
                self.hold_back(&envelope, now);
                continue;
            }
            match self.ledger.apply(envelope.clone()) {
                Ok(Applied::Changed(key)) => {
                    if let (Some(verdict), Some(membership)) = (verdict, membership_in(&envelope)) {
                        let witnessed = verdict == Verdict::Witnessed;
                        self.newcomers.handle_accepted(&membership.id, witnessed);
                    }
                    accepted.add(envelope, key);
                }
                Ok(Applied::Unchanged) => {}
                Err(refused) => self.note_refused(&envelope, &refused),
            }
        }
        self.act_on(accepted, Origin::Coordinator);
        if self.own_word.is_due(now) && !self.is_out() {
            self.publish_own();
        }
    }

    /// Decides about a membership that is new to this node. Returns none for other records, and for a membership that would be
    /// held back but that the ledger refuses.
    fn judge(&self, envelope: &Envelope, wall: UnixSeconds) -> Option<Verdict> {
        let header = envelope.header()?;
        let RecordKey::Membership(node) = header.key else {
            return None;
        };
        if node == self.id() || self.ledger.holds(envelope) {
            return None;
        }
        let membership = membership_in(envelope)?;
        let verdict = self.newcomers.judge(&membership, wall, || Circumstances {
            token: self.ledger.token(&membership.token),
            is_revoked: self.ledger.is_token_revoked(&membership.token),
            is_name_taken: self
                .ledger
                .is_name_of_another(&membership.name, &membership.id),
        });
        // A membership that the ledger refuses is logged as refused, whatever its date.
        let is_refused = verdict == Verdict::HeldBack && self.ledger.check(envelope).is_err();
        (!is_refused).then_some(verdict)
    }

    fn hold_back(&mut self, envelope: &Envelope, now: Instant) {
        let Some(membership) = membership_in(envelope) else {
            return;
        };
        if self.newcomers.hold_back(envelope, &membership, now) {
            tracing::warn!(node = %membership.name, id = membership.id.short(), "a membership is dated before this node was last in step with the coordinator; it is held back until a peer vouches for it");
        }
    }

    /// Handles a record of the coordinator that the ledger refused.
    fn note_refused(&mut self, envelope: &Envelope, refused: &Refused) {
        match refused {
            // All records are requested again once a peer has vouched for the signer.
            Refused::NotAMember if self.newcomers.is_held_back(&envelope.signer) => {}
            Refused::BlockTaken(_) => {
                if let Ok((_, Record::Node(node))) = Record::parse(&envelope.payload) {
                    self.lease.handle_rival(&self.identity.block, &node);
                }
                tracing::warn!(%refused, "a record of the coordinator is refused");
            }
            _ => tracing::warn!(%refused, "a record of the coordinator is refused"),
        }
    }

    /// Handles a received record that is signed with this node's key. If it would replace the record that this node holds,
    /// another machine made it, or this node made it before its state directory was restored. Returns whether a signature
    /// was verified.
    fn take_in_own(&mut self, envelope: &Envelope, now: Instant) -> bool {
        let id = self.id();
        let Some(header) = envelope.header() else {
            return false;
        };
        let key = self.ledger.key_of(&header, &id);
        let held = self.ledger.entry(&key);
        if held.is_some_and(|held| {
            held.version > header.version || held.envelope.payload == envelope.payload
        }) {
            return false;
        }
        let floor = self.ledger.node(&id).map_or(0, |node| node.services_from);
        if matches!(key, RecordKey::Service(_)) && header.version < floor {
            return false;
        }
        if !envelope.is_authentic() {
            return true;
        }
        let Ok((_, record)) = Record::parse(&envelope.payload) else {
            return true;
        };
        let is_of_this_node = match &record {
            Record::Node(node) => node.id == id,
            Record::Name(name) => name.id == id,
            Record::Service(service) => service.node == id,
            // A departure cannot be overtaken, and this version does not know the kinds of records of later versions.
            _ => false,
        };
        if is_of_this_node {
            let own = self.identity.keys.wireguard_public();
            let line = self
                .own_word
                .handle_foreign(key, &record, header.version, own, now);
            if let Some(record) = line {
                tracing::warn!(%record, "a record that this node did not make is signed with its key; this node publishes its own record again");
            }
        }
        true
    }

    /// Verifies records of a peer, stores the valid ones that claim nothing new, and acts on them.
    fn take_in_of_peer(&mut self, peer: PublicKey, records: Vec<Envelope>) -> refusals::Verdict {
        let now = Instant::now();
        let id = self.id();
        let mut accepted = Accepted::default();
        let mut verdict = refusals::Verdict::default();
        for envelope in records {
            if envelope.signer == id {
                verdict.verified += u64::from(self.take_in_own(&envelope, now));
                continue;
            }
            match self.look_at(&envelope) {
                Look::PassOver => continue,
                Look::NotAMember => {
                    self.peer_refusals.note(peer, &Refused::NotAMember);
                    continue;
                }
                Look::Verify => {}
            }
            verdict.verified += 1;
            match self.ledger.apply(envelope.clone()) {
                Ok(Applied::Changed(key)) => accepted.add(envelope, key),
                // Peers compare records by signer, and therefore send older ones as well.
                Ok(Applied::Unchanged) | Err(Refused::Stale { .. } | Refused::Forked(_)) => {}
                Err(refused) => {
                    verdict.add(&peer, &envelope.signer, &refused);
                    self.peer_refusals.note(peer, &refused);
                    if verdict.forged {
                        break;
                    }
                }
            }
        }
        verdict.changed = !accepted.keys.is_empty();
        self.act_on(accepted, Origin::Peer);
        if self.own_word.is_due(now) && !self.is_out() {
            self.publish_own();
        }
        verdict
    }

    /// Decides about a record of a peer before any signature is verified.
    fn look_at(&self, envelope: &Envelope) -> Look {
        let Some(header) = envelope.header() else {
            return Look::Verify;
        };
        match header.key {
            RecordKey::Membership(_) => return Look::PassOver,
            RecordKey::Node(_) | RecordKey::Name(_) => match Record::parse(&envelope.payload) {
                Ok((_, record)) if !is_renewal(&self.ledger, &record) => return Look::PassOver,
                _ => {}
            },
            RecordKey::Service(_) => {}
            // The signer of a record of another kind need not be a member.
            _ => return Look::Verify,
        }
        let held = self
            .ledger
            .entry(&self.ledger.key_of(&header, &envelope.signer));
        if held.is_some_and(|held| {
            held.version > header.version || held.envelope.payload == envelope.payload
        }) {
            return Look::PassOver;
        }
        if self.ledger.membership(&envelope.signer).is_none() {
            if self.newcomers.is_held_back(&envelope.signer) {
                return Look::PassOver;
            }
            return Look::NotAMember;
        }
        // The peer may not know yet that the signer was removed.
        if self.ledger.is_revoked(&envelope.signer) {
            return Look::PassOver;
        }
        Look::Verify
    }

    /// A peer vouches for memberships. Those that are held back are accepted. Then all records are requested again, since those
    /// that depend on these memberships were refused.
    fn release(&mut self, peer: PublicKey, memberships: Vec<Envelope>) {
        if !self.netmap.members.contains_key(&peer) {
            return;
        }
        let mut accepted = Accepted::default();
        for envelope in memberships.into_iter().take(MAX_ASKED) {
            if !self.newcomers.may_release(&envelope, &peer) {
                continue;
            }
            let Some(membership) = membership_in(&envelope) else {
                continue;
            };
            match self.ledger.apply(envelope.clone()) {
                Ok(Applied::Changed(key)) => {
                    tracing::info!(node = %membership.name, peer = peer.short(), "a peer vouches for a node that was held back");
                    self.newcomers.handle_accepted(&membership.id, false);
                    accepted.add(envelope, key);
                }
                Ok(Applied::Unchanged) => {}
                Err(refused) => self.peer_refusals.note(peer, &refused),
            }
        }
        if accepted.keys.is_empty() {
            return;
        }
        self.act_on(accepted, Origin::Coordinator);
        self.keep_newcomers();
        self.ask_again(AGAIN_AFTER_VOUCH);
    }

    /// Writes the accepted records to disk, and updates everything that depends on them.
    fn act_on(&mut self, accepted: Accepted, from: Origin) {
        let Accepted { envelopes, keys } = accepted;
        if keys.is_empty() {
            return;
        }
        self.keep(&envelopes);
        if keys.contains(&RecordKey::Mesh) {
            self.control
                .set_urls(coordinators(&self.ledger, &self.identity));
        }
        if from == Origin::Peer {
            self.departures.handle_from_peer(&keys);
            self.publish_departures();
        }
        self.refresh_after(&keys);
    }

    /// Answers a request of a conversation with a peer.
    pub(in crate::node) fn handle_ask(&mut self, ask: Ask) {
        match ask {
            Ask::Holdings(reply) => {
                let ledger = &self.ledger;
                let held = self
                    .peers
                    .holdings
                    .get_or_insert_with(|| Arc::new(Holdings::of(ledger)));
                let _ = reply.send(Arc::clone(held));
            }
            Ask::Apply(..) | Ask::Records(..) | Ask::Vouched(..) | Ask::Memberships(..)
                if self.is_out() => {}
            Ask::Apply(peer, records, reply) => {
                let _ = reply.send(self.take_in_of_peer(peer, records));
            }
            Ask::Vouched(peer, memberships, reply) => {
                self.release(peer, memberships);
                let _ = reply.send(());
            }
            Ask::Memberships(nodes, reply) => {
                let _ = reply.send(self.vouched(nodes));
            }
            Ask::Records(signers, reply) => {
                let signers: BTreeSet<PublicKey> = signers.into_iter().collect();
                let held = self.ledger.envelopes_for_peers();
                let held = held.filter(|e| signers.contains(&e.signer));
                let _ = reply.send(held.cloned().collect());
            }
            Ask::Ended(peer, well) => self.peers.handle_ended(&peer, well, Instant::now()),
        }
    }

    /// Those memberships of `nodes` for which this node vouches.
    fn vouched(&self, nodes: Vec<PublicKey>) -> Vec<Envelope> {
        let own = self.id();
        let nodes = nodes.into_iter().take(MAX_ASKED);
        nodes
            .filter(|node| *node != own && self.newcomers.vouches_for(node))
            .filter(|node| !self.ledger.is_revoked(node))
            .filter_map(|node| self.ledger.entry(&RecordKey::Membership(node)))
            .map(|entry| entry.envelope.clone())
            .filter(|envelope| envelope.payload.len() <= MAX_OCTETS)
            .collect()
    }

    /// A message of the coordinator was received, so this node may be in step with it.
    pub(super) fn note_in_step(&mut self) {
        let wall = UnixSeconds::from_system(SystemTime::now());
        let ledger = &self.ledger;
        let newest = || {
            let dates = ledger.memberships().map(|membership| membership.issued_at);
            dates.max().unwrap_or(UnixSeconds(0))
        };
        let revision = self.position.revision;
        if let Some(stored) = self.newcomers.handle_heard(revision, wall, newest) {
            let written = self.dir.set_in_step(&stored);
            self.unwritten.note(Part::Newcomers, written);
        }
        self.keep_newcomers();
    }

    /// Forgets memberships that are held back and that the ledger would refuse even if a peer vouched for them.
    pub(super) fn forget_newcomers(&mut self) {
        let ledger = &self.ledger;
        self.newcomers.retain(|envelope, node| {
            !ledger.is_revoked(node)
                && !ledger.holds(envelope)
                && membership_in(envelope).is_some_and(|m| {
                    !ledger.is_token_revoked(&m.token) || ledger.check(envelope).is_ok()
                })
        });
        self.newcomers
            .retain_members(|node| ledger.membership(node).is_some());
    }

    /// Writes to disk which memberships are held back or accepted on trust, if that changed.
    pub(super) fn keep_newcomers(&mut self) {
        if let Some(lists) = self.newcomers.unwritten() {
            let written = self.dir.set_newcomers(&lists);
            if written.is_ok() {
                self.newcomers.handle_written();
            }
            self.unwritten.note(Part::Newcomers, written);
        }
    }
}

/// The decision about a record of a peer.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Verify,
    /// It is known, or claims something for which only a coordinator's record counts.
    PassOver,
    NotAMember,
}
