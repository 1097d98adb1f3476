//! What this node publishes to the coordinator, and what becomes of it.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Mesh;
use crate::model::record::{Membership, Record};
use crate::node::own_word::Taken;
use crate::wire::Envelope;
use crate::wire::control::{RefusedReason, RefusedRecord, parts};

/// All records are asked for again no more often, where one of this node's is refused: that is as much as the mesh has.
const AGAIN_AFTER_REFUSAL: Duration = Duration::from_secs(600);
/// Refusals of one record before all are asked for again.
const REFUSALS: u32 = 2;

impl Mesh {
    /// Offers the coordinator this node's own records, or all that it holds if the coordinator has another store than
    /// the one known: a restored or emptied one is filled up again.
    pub(super) fn offer(&mut self, everything: bool) {
        let id = self.id();
        let (own, others): (Vec<&Envelope>, Vec<&Envelope>) =
            self.ledger.envelopes().partition(|e| e.signer == id);
        let own: Vec<Envelope> = own.into_iter().cloned().collect();
        let mut handed_over = true;
        if everything {
            let mut others: Vec<Envelope> = others.into_iter().cloned().collect();
            // First what makes this node a member there: then it vouches for the other members.
            let member = self.ledger.membership(&id);
            others.sort_by_cached_key(|e| !member.is_some_and(|own| is_of_membership(e, own)));
            for part in parts(others) {
                self.sequence += 1;
                handed_over &= self.control.publish(self.sequence, part);
            }
        }
        // After those of others, on which they rest; and apart from them, so that each answer is about this node's.
        handed_over &= self.offer_own(own);
        if everything {
            self.owes = Some(self.sequence);
            if handed_over {
                self.control.told();
            }
        }
    }

    /// Publishes records of this node. False, if the stream does not take all of them.
    pub(super) fn offer_own(&mut self, records: Vec<Envelope>) -> bool {
        let mut handed_over = true;
        for part in parts(records) {
            self.sequence += 1;
            let keys = part.iter().filter_map(Envelope::key).collect();
            self.own_word.handle_offered(self.sequence, keys);
            handed_over &= self.control.publish(self.sequence, part);
        }
        handed_over
    }

    /// The coordinator has answered a publication.
    pub(super) fn handle_answer(
        &mut self,
        sequence: u64,
        texts: &[String],
        records: Vec<RefusedRecord>,
    ) {
        for why in texts {
            tracing::debug!(%why, "the coordinator refused a record");
        }
        let now = Instant::now();
        for refused in self.own_word.handle_answer(sequence, texts, records, now) {
            tracing::warn!(%refused, "the coordinator does not accept a record of this node; it is offered again");
        }
        self.tell_first_word(now);
    }

    /// Follows up what this node said: overtakes another machine that speaks with its keys, offers again what was refused,
    /// and has peers asked for memberships that are held back. To be called twice a second.
    pub(super) fn follow_word(&mut self, now: Instant) {
        for (peer, count, why) in self.peer_refusals.poll(now) {
            tracing::warn!(peer = peer.short(), count, %why, "records that a peer sent were refused; this is the first reason");
        }
        self.tell_first_word(now);
        if self.is_out() {
            self.peers.ask_about(Vec::new());
            return;
        }
        self.peers.ask_about(self.newcomers.asks(now));
        if self.newcomers.take_overflowed() {
            self.ask_again(AGAIN_AFTER_REFUSAL);
        }
        if self.own_word.is_due(now) {
            self.publish_own();
        }
        let ledger = &self.ledger;
        self.own_word.retain(|key| ledger.entry(key).is_some());
        if !self.stream.connected {
            return;
        }
        let due = self.own_word.poll_again(now);
        if due.is_empty() {
            return;
        }
        let entries = due.iter().filter_map(|due| self.ledger.entry(&due.key));
        let records = entries.map(|entry| entry.envelope.clone()).collect();
        self.offer_own(records);
        if due
            .iter()
            .any(|due| due.reason == RefusedReason::Block && due.key.kind == "node")
        {
            self.ask_for_lease(now);
        }
        // The newer record may have come before this node noticed such records, and is not sent a second time.
        if due.iter().any(|due| due.failures >= REFUSALS) {
            self.ask_again(AGAIN_AFTER_REFUSAL);
        }
    }

    /// Has the coordinator send all records again, unless that was less than `pause` ago.
    pub(super) fn ask_again(&mut self, pause: Duration) {
        let now = Instant::now();
        let is_recent = |at: Instant| now.saturating_duration_since(at) < pause;
        if self.asked_again.is_some_and(is_recent) || self.owes.is_some() {
            return;
        }
        self.asked_again = Some(now);
        self.position.revision = 0;
        self.note_position();
        self.control.reopen();
    }

    /// Gives an event for when the coordinator has this node's record, or refuses it, or `limit` is over; the latter two
    /// with a reason.
    pub(in crate::node) fn when_taken(
        &mut self,
        limit: Duration,
    ) -> oneshot::Receiver<Result<(), String>> {
        let (sender, receiver) = oneshot::channel();
        let now = Instant::now();
        self.first_word = Some((now + limit, sender));
        self.tell_first_word(now);
        receiver
    }

    fn tell_first_word(&mut self, now: Instant) {
        let Some((until, sender)) = self.first_word.take() else {
            return;
        };
        let outcome = match self.own_word.taken() {
            Taken::Yes => Ok(()),
            Taken::Refused(why) => Err(format!("the coordinator refuses it: {why}")),
            Taken::NotYet if now >= until => Err(self
                .stream
                .refusal
                .clone()
                .unwrap_or_else(|| "the coordinator does not answer".to_owned())),
            Taken::NotYet => {
                self.first_word = Some((until, sender));
                return;
            }
        };
        let _ = sender.send(outcome);
    }
}

/// Whether it is this membership, or the token certificate it rests on.
fn is_of_membership(envelope: &Envelope, membership: &Membership) -> bool {
    match Record::parse(&envelope.payload) {
        Ok((_, Record::Token(token))) => token.id == membership.token,
        Ok((_, Record::Membership(found))) => found.id == membership.id,
        _ => false,
    }
}
