//! Publishes records to the coordinator, and handles its answers.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Mesh;
use crate::node::replica::acceptance::Taken;
use crate::protocol::control::{RefusedReason, RefusedRecord, parts};
use crate::records::kinds::{Membership, Record};
use crate::records::{Envelope, RecordKey};

/// The shortest time between two requests for all records that follow because a record of this node was refused. Such a
/// request transfers all records of the mesh.
const AGAIN_AFTER_REFUSAL: Duration = Duration::from_secs(600);
/// All records are requested again once one record was refused this often.
const REFUSALS: u32 = 2;

impl Mesh {
    /// Offers the coordinator this node's own records. With `everything` it offers all records that this node holds, since the
    /// coordinator has another store than before: a restored or emptied store is filled up again.
    pub(super) fn offer(&mut self, everything: bool) {
        let id = self.id();
        let (own, others): (Vec<&Envelope>, Vec<&Envelope>) =
            self.ledger.envelopes().partition(|e| e.signer == id);
        let own: Vec<Envelope> = own.into_iter().cloned().collect();
        let mut handed_over = true;
        if everything {
            let mut others: Vec<Envelope> = others.into_iter().cloned().collect();
            // The records that make this node a member come first: only a member vouches for other members.
            let member = self.ledger.membership(&id);
            others.sort_by_cached_key(|e| !member.is_some_and(|own| is_of_membership(e, own)));
            for part in parts(others) {
                self.sequence += 1;
                handed_over &= self.control.publish(self.sequence, part);
            }
        }
        // This node's records come after those of others on which they depend. They are in messages of their own, so that the
        // answers to these messages are about them alone.
        handed_over &= self.offer_own(own);
        if everything {
            self.owes = Some(self.sequence);
            if handed_over {
                self.control.told();
            }
        }
    }

    /// Publishes records of this node. Returns false if the queue of the stream had no room for all of them.
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

    /// The coordinator answered the publication with the number `sequence`.
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
            tracing::warn!(%refused, "the coordinator does not accept a record of this node; this node offers the record again");
        }
        self.tell_first_word(now);
    }

    /// Publishes above the records of another machine that has this node's keys, offers refused records again, and sets about
    /// which memberships peers are asked. It is called twice a second.
    pub(super) fn follow_word(&mut self, now: Instant) {
        for (peer, count, why) in self.peer_refusals.poll(now) {
            tracing::warn!(peer = peer.short(), count, %why, "records that a peer sent were refused; `why` is the reason of the first refusal");
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
            .any(|due| due.reason == RefusedReason::Block && matches!(due.key, RecordKey::Node(_)))
        {
            self.ask_for_lease(now);
        }
        // A newer record with this node's key may have come in an earlier revision, which the coordinator does not send again.
        if due.iter().any(|due| due.failures >= REFUSALS) {
            self.ask_again(AGAIN_AFTER_REFUSAL);
        }
    }

    /// Makes the coordinator send all records again, unless the last such request was less than `pause` ago.
    pub(super) fn ask_again(&mut self, pause: Duration) {
        let now = Instant::now();
        let is_recent = |at: Instant| now.saturating_duration_since(at) < pause;
        if self.asked_again.is_some_and(is_recent) || self.owes.is_some() {
            return;
        }
        self.asked_again = Some(now);
        self.resync = self.stream.connected;
        self.position.revision = 0;
        self.note_position();
        self.control.reopen();
    }

    /// Returns an event that fires when the coordinator has accepted or refused this node's record, or when `limit` is over.
    /// In the last two cases it carries the reason.
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
            Taken::Refused(why) => Err(format!("the coordinator refuses the record: {why}")),
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

/// Whether `envelope` is a membership of the same node as `membership`, or the certificate of its token.
fn is_of_membership(envelope: &Envelope, membership: &Membership) -> bool {
    match Record::parse(&envelope.payload) {
        Ok((_, Record::Token(token))) => token.id == membership.token,
        Ok((_, Record::Membership(found))) => found.id == membership.id,
        _ => false,
    }
}
