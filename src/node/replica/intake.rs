//! Verifies the records that the coordinator and peers send: holds memberships back, and applies the rest to the ledger.

use std::collections::BTreeSet;

use super::acceptance::Acceptance;
use super::conflicts::Conflicts;
use super::lease::Lease;
use super::naming::Naming;
use super::newcomers::{
    Circumstances, InStep, MAX_MEMBERSHIP_BYTES, Newcomers, Verdict, membership_in,
};
use super::own::Own;
use super::peer_sync::is_member;
use super::refusals::{self, PeerRefusals};
use super::renewal::is_renewal;
use crate::model::PublicKey;
use crate::model::time::{Now, UnixSeconds, next_version};
use crate::protocol::control::{RefusedReason, RefusedRecord};
use crate::protocol::gossip::MAX_ASKED;
use crate::records::envelope::Authentic;
use crate::records::kinds::{Header, Name, Record, RecordKey};
use crate::records::ledger::{Applied, Refused, verified};
use crate::records::{Envelope, Ledger};

/// The ledger, and the state on which decisions about received records depend.
#[derive(Debug)]
pub(super) struct Intake {
    pub(super) ledger: Ledger,
    /// Decides about memberships that are new to this node.
    pub(super) newcomers: Newcomers,
    /// Whether the records of this node are in force elsewhere.
    pub(super) acceptance: Acceptance,
    pub(super) lease: Lease,
    pub(super) refusals: PeerRefusals,
    /// Records of the coordinator that were refused and may be accepted later.
    pub(super) conflicts: Conflicts,
    pub(super) naming: Naming,
}

/// The records of one message that were accepted, in their order.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    pub(super) envelopes: Vec<Envelope>,
    pub(super) keys: Vec<RecordKey>,
}

impl Accepted {
    fn add(&mut self, envelope: Envelope, key: RecordKey) {
        self.envelopes.push(envelope);
        self.keys.push(key);
    }
}

impl Intake {
    /// Applies the valid records of a message of the coordinator.
    pub(super) fn receive_from_coordinator(
        &mut self,
        own: &Own,
        records: Vec<Envelope>,
        now: Now,
    ) -> Accepted {
        let wall = UnixSeconds::from_system(now.wall);
        let id = own.id();
        let mut accepted = Accepted::default();
        for envelope in records {
            // This node's own records are not replaced by those of others.
            if envelope.signer == id {
                self.receive_own(own, &envelope, now);
                continue;
            }
            if self.ledger.holds(&envelope) {
                continue;
            }
            let verdict = self.judge(&id, &envelope, wall);
            // The signature is verified once, whatever becomes of the record.
            let record = match verified(envelope) {
                Ok(record) => record,
                Err(refused) => {
                    tracing::warn!(%refused, "a record of the coordinator is refused");
                    continue;
                }
            };
            // A membership that the ledger refuses is logged as refused, whatever its date.
            if verdict == Some(Verdict::HeldBack) && self.ledger.check_authentic(&record).is_ok() {
                self.hold_back(&record, now);
                continue;
            }
            if let Err(refusal) = self.accept(record, verdict, &mut accepted) {
                let (record, refused) = *refusal;
                self.note_refused(own, record, &refused, verdict);
            }
        }
        accepted
    }

    /// Applies a record of the coordinator. `verdict` is the decision about it if it is a membership.
    ///
    /// # Errors
    /// The record, and why the ledger refuses it.
    fn accept(
        &mut self,
        record: Authentic,
        verdict: Option<Verdict>,
        accepted: &mut Accepted,
    ) -> Result<(), Box<(Authentic, Refused)>> {
        match self.ledger.replace_authentic(record.clone()) {
            Ok(Some(replaced)) => {
                let key = replaced.key().clone();
                self.note_admitted(&key, verdict);
                accepted.add(record.into_envelope(), key);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(refused) => Err(Box::new((record, refused))),
        }
    }

    /// Applies the records that were refused because of others, and that the ledger accepts now.
    pub(super) fn retry_conflicts(&mut self, now: Now) -> Accepted {
        let mut accepted = Accepted::default();
        for waiting in self.conflicts.poll(&self.ledger) {
            let (record, verdict) = (waiting.record, waiting.verdict);
            if verdict == Some(Verdict::HeldBack) {
                self.hold_back(&record, now);
                continue;
            }
            // Another one of these records may have been accepted first.
            if let Err(refusal) = self.accept(record, verdict, &mut accepted) {
                let (record, refused) = *refusal;
                self.conflicts.handle_refused(record, &refused, verdict);
            }
        }
        accepted
    }

    /// A record of the coordinator was accepted. `verdict` is the decision about it if it is a membership.
    fn note_admitted(&mut self, key: &RecordKey, verdict: Option<Verdict>) {
        if let (RecordKey::Membership(node), Some(verdict)) = (key, verdict) {
            let witnessed = verdict == Verdict::Witnessed;
            self.newcomers.handle_accepted(node, witnessed);
        }
    }

    /// Whether records of the coordinator were refused that the ledger may accept later. The coordinator may then have to send
    /// records again.
    pub(super) fn is_incomplete(&self) -> bool {
        !self.conflicts.is_empty() || self.newcomers.is_holding()
    }

    /// The name record that this node is to publish because another node has the name that this node wants.
    pub(super) fn give_up_name(&mut self, own: &Own, now: Now) -> Option<Name> {
        let id = own.id();
        let key = RecordKey::Name(id);
        if !self.acceptance.is_refused_for(&key, RefusedReason::Name) {
            return None;
        }
        let held = self.ledger.wanted_name(&id)?.version;
        let name = self
            .naming
            .give_up(&id, &self.ledger, &self.conflicts, now.monotonic)?;
        let last = self.acceptance.last_version(&key, held);
        Some(Name {
            id,
            version: next_version(last, now.wall),
            name,
        })
    }

    /// This node is about to publish `record`.
    pub(super) fn note_wanted(&mut self, own: &Own, record: &Record) {
        if let Record::Name(wanted) = record {
            let (id, ledger) = (own.id(), &self.ledger);
            let held = ledger.wanted_name(&id).map(|held| &held.name);
            let former = held.or(ledger.membership(&id).map(|joined| &joined.name));
            self.naming.handle_wanted(&wanted.name, former.cloned());
        }
    }

    /// Decides about a membership that is new to this node. Returns none for other records.
    fn judge(&self, own: &PublicKey, envelope: &Envelope, wall: UnixSeconds) -> Option<Verdict> {
        let RecordKey::Membership(id) = envelope.key()? else {
            return None;
        };
        if id == *own {
            return None;
        }
        let membership = membership_in(envelope)?;
        let ledger = &self.ledger;
        Some(self.newcomers.judge(&membership, wall, || Circumstances {
            token: ledger.token(&membership.token),
            is_revoked: ledger.is_token_revoked(&membership.token),
            is_name_taken: ledger.is_name_of_another(&membership.name, &membership.id),
        }))
    }

    fn hold_back(&mut self, envelope: &Envelope, now: Now) {
        let Some(membership) = membership_in(envelope) else {
            return;
        };
        if self
            .newcomers
            .hold_back(envelope, &membership, now.monotonic)
        {
            tracing::warn!(node = %membership.name, id = membership.id.short(), "a membership is dated before this node was last in step with the coordinator; it is held back until a peer vouches for it");
        }
    }

    /// The ledger refused a record of the coordinator.
    fn note_refused(
        &mut self,
        own: &Own,
        record: Authentic,
        refused: &Refused,
        verdict: Option<Verdict>,
    ) {
        match refused {
            // All records are requested again once a peer has vouched for the signer.
            Refused::NotAMember if self.newcomers.is_held_back(&record.signer) => {}
            Refused::BlockTaken(_) => {
                if let Ok((_, Record::Node(node))) = record.parsed() {
                    self.lease.handle_rival(&own.block, node);
                }
                tracing::warn!(%refused, "a record of the coordinator is refused");
            }
            _ => tracing::warn!(%refused, "a record of the coordinator is refused"),
        }
        self.conflicts.handle_refused(record, refused, verdict);
    }

    /// Whether the ledger holds this record or a newer one under `key`.
    fn holds_or_newer(&self, key: &RecordKey, header: &Header, envelope: &Envelope) -> bool {
        self.ledger.entry(key).is_some_and(|held| {
            held.version > header.version || held.envelope.payload == envelope.payload
        })
    }

    /// Handles a received record that is signed with this node's key. If it would replace the record that this node holds,
    /// another machine made it, or this node made it before its state directory was restored. Returns whether a signature
    /// was verified.
    fn receive_own(&mut self, own: &Own, envelope: &Envelope, now: Now) -> bool {
        let id = own.id();
        let Some(header) = envelope.header() else {
            return false;
        };
        let key = self.ledger.key_of(&header, &id);
        if self.holds_or_newer(&key, &header, envelope) {
            return false;
        }
        let node = self.ledger.node(&id);
        let floor = node.map_or(0, |node| node.services_from);
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
            let wireguard = node.map(|node| node.wireguard_key);
            let line = self.acceptance.handle_foreign(
                key,
                &record,
                header.version,
                wireguard,
                now.monotonic,
            );
            if let Some(record) = line {
                tracing::warn!(%record, "a record that this node did not make is signed with its key; this node publishes its own record again");
            }
        }
        true
    }

    /// Applies the valid records of a peer that claim nothing new.
    pub(super) fn receive_from_peer(
        &mut self,
        own: &Own,
        peer: PublicKey,
        records: Vec<Envelope>,
        now: Now,
    ) -> (Accepted, refusals::Applied) {
        let id = own.id();
        let mut accepted = Accepted::default();
        let mut result = refusals::Applied::default();
        for envelope in records {
            if envelope.signer == id {
                result.verified += u64::from(self.receive_own(own, &envelope, now));
                continue;
            }
            match self.preview(&envelope) {
                Preview::Ignore => continue,
                Preview::NotAMember => {
                    self.refusals.note(peer, &Refused::NotAMember);
                    continue;
                }
                Preview::Verify => {}
            }
            result.verified += 1;
            match self.ledger.apply(envelope.clone()) {
                Ok(Applied::Changed(key)) => accepted.add(envelope, key),
                // Peers compare records by signer, and therefore send older ones as well.
                Ok(Applied::Unchanged) | Err(Refused::Stale { .. } | Refused::Forked(_)) => {}
                Err(refused) => {
                    result.add(&peer, &envelope.signer, &refused);
                    self.refusals.note(peer, &refused);
                    if result.forged {
                        break;
                    }
                }
            }
        }
        result.changed = !accepted.keys.is_empty();
        (accepted, result)
    }

    /// Decides about a record of a peer before any signature is verified.
    fn preview(&self, envelope: &Envelope) -> Preview {
        let Some(header) = envelope.header() else {
            return Preview::Verify;
        };
        match &header.key {
            RecordKey::Membership(_) => return Preview::Ignore,
            RecordKey::Node(_) | RecordKey::Name(_) => match Record::parse(&envelope.payload) {
                Ok((_, record)) if !is_renewal(&self.ledger, &record) => return Preview::Ignore,
                _ => {}
            },
            RecordKey::Service(_) => {}
            // The signer of a record of another kind need not be a member.
            _ => return Preview::Verify,
        }
        let key = self.ledger.key_of(&header, &envelope.signer);
        if self.holds_or_newer(&key, &header, envelope) {
            return Preview::Ignore;
        }
        if self.ledger.membership(&envelope.signer).is_none() {
            if self.newcomers.is_held_back(&envelope.signer) {
                return Preview::Ignore;
            }
            return Preview::NotAMember;
        }
        // The peer may not know yet that the signer was removed.
        if self.ledger.is_revoked(&envelope.signer) {
            return Preview::Ignore;
        }
        Preview::Verify
    }

    /// A peer vouches for memberships. Those that are held back are accepted.
    pub(super) fn release(
        &mut self,
        peer: PublicKey,
        memberships: Vec<Envelope>,
    ) -> (Accepted, refusals::Applied) {
        let mut accepted = Accepted::default();
        let mut result = refusals::Applied::default();
        if !is_member(&self.ledger, &peer) {
            return (accepted, result);
        }
        for envelope in memberships.into_iter().take(MAX_ASKED) {
            if !self.newcomers.may_release(&envelope, &peer) {
                continue;
            }
            let Some(membership) = membership_in(&envelope) else {
                continue;
            };
            result.verified += 1;
            match self.ledger.apply(envelope.clone()) {
                Ok(Applied::Changed(key)) => {
                    tracing::info!(node = %membership.name, peer = peer.short(), "a peer vouches for a node that was held back");
                    self.newcomers.handle_accepted(&membership.id, false);
                    accepted.add(envelope, key);
                }
                Ok(Applied::Unchanged) => {}
                Err(refused) => self.refusals.note(peer, &refused),
            }
        }
        result.changed = !accepted.keys.is_empty();
        (accepted, result)
    }

    /// Those memberships of `nodes` for which this node vouches.
    pub(super) fn vouched(&self, own: &PublicKey, nodes: Vec<PublicKey>) -> Vec<Envelope> {
        let nodes = nodes.into_iter().take(MAX_ASKED);
        nodes
            .filter(|node| node != own && self.newcomers.vouches_for(node))
            .filter(|node| !self.ledger.is_revoked(node))
            .filter_map(|node| self.ledger.entry(&RecordKey::Membership(node)))
            .map(|entry| entry.envelope.clone())
            .filter(|envelope| envelope.payload.len() <= MAX_MEMBERSHIP_BYTES)
            .collect()
    }

    /// The records that these nodes and tokens signed.
    pub(super) fn signed_by(&self, signers: Vec<PublicKey>) -> Vec<Envelope> {
        let signers: BTreeSet<PublicKey> = signers.into_iter().collect();
        let held = self.ledger.envelopes_for_peers();
        held.filter(|envelope| signers.contains(&envelope.signer))
            .cloned()
            .collect()
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

    /// The coordinator answered the publication with the number `sequence`.
    pub(super) fn handle_answer(
        &mut self,
        sequence: u64,
        texts: &[String],
        records: Vec<RefusedRecord>,
        now: Now,
    ) {
        for why in texts {
            tracing::debug!(%why, "the coordinator refused a record");
        }
        let acceptance = &mut self.acceptance;
        for refused in acceptance.handle_answer(sequence, texts, records, now.monotonic) {
            tracing::warn!(%refused, "the coordinator does not accept a record of this node; this node offers the record again");
        }
    }

    /// A message of the coordinator was received when this node had reached `revision`. Returns the time in step that is to be
    /// written to disk, if the time on disk is too old.
    pub(super) fn note_in_step(&mut self, revision: u64, now: Now) -> Option<InStep> {
        let wall = UnixSeconds::from_system(now.wall);
        let ledger = &self.ledger;
        let newest = || {
            let dates = ledger.memberships().map(|m| m.issued_at);
            dates.max().unwrap_or(UnixSeconds(0))
        };
        self.newcomers.handle_heard(revision, wall, newest)
    }
}

/// The decision about a record of a peer before its signature is verified.
#[derive(Debug, PartialEq, Eq)]
enum Preview {
    Verify,
    /// It is known, or it claims something for which only a coordinator's record counts.
    Ignore,
    NotAMember,
}
