//! Offers records to the coordinator.
//!
//! When a stream opens, this node offers its own records. If the coordinator has another store than before, this node offers
//! all records that it holds: a store that was restored or lost is filled again from the nodes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::acceptance::Acceptance;
use super::effect::Effect;
use crate::model::PublicKey;
use crate::model::time::retry_pause;
use crate::protocol::control::{FromNode, parts};
use crate::records::kinds::{Membership, Record};
use crate::records::{Envelope, Ledger};

/// The publications of this node, and the messages that wait for the disk.
#[derive(Debug, Default)]
pub(super) struct Offer {
    /// The number of the last publication.
    sequence: u64,
    /// The offer of all records, until the coordinator has answered all its publications and has stored what it accepts.
    full: Option<FullOffer>,
    /// Messages that wait for the end of a write, with the number of the write, in the order in which they are sent.
    deferred: VecDeque<(u64, FromNode)>,
    /// Messages that are to be sent.
    ready: VecDeque<FromNode>,
}

/// The pause before all records are offered again, after the coordinator could not store some. It doubles with each further
/// failure, up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(15);
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// An offer of all records.
#[derive(Debug)]
struct FullOffer {
    /// The number of the last publication before the offer.
    before: u64,
    /// The number of the last publication of the offer.
    last: u64,
    /// Whether the coordinator could not store a publication of the offer.
    has_failed: bool,
    /// How many offers of all records in a row the coordinator could not store.
    failures: u32,
    /// When all records are offered again.
    again: Option<Instant>,
}

impl Offer {
    /// The number of the last publication.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether an offer of all records was not answered yet.
    pub(super) fn is_pending(&self) -> bool {
        self.full.is_some()
    }

    /// Offers this node's own records, and with `everything` all other records before them.
    pub(super) fn offer(
        &mut self,
        ledger: &Ledger,
        id: &PublicKey,
        everything: bool,
        acceptance: &mut Acceptance,
        write: Option<u64>,
    ) {
        let before = self.sequence;
        let (own, mut others): (Vec<&Envelope>, Vec<&Envelope>) =
            ledger.envelopes().partition(|e| e.signer == *id);
        if everything {
            // The records that make this node a member come first: only a member vouches for other members.
            let member = ledger.membership(id);
            others.sort_by_cached_key(|e| !member.is_some_and(|own| is_of_membership(e, own)));
            for part in parts(others.into_iter().cloned().collect()) {
                self.publish(part, write);
            }
        }
        // This node's records come after those of others on which they depend.
        self.publish_own(own.into_iter().cloned().collect(), acceptance, write);
        if everything {
            self.full = Some(FullOffer {
                before,
                last: self.sequence,
                has_failed: false,
                failures: self.full.as_ref().map_or(0, |full| full.failures),
                again: None,
            });
        }
    }

    /// Publishes records of this node. They are in messages of their own, so that the answers to these messages are about them
    /// alone.
    pub(super) fn publish_own(
        &mut self,
        records: Vec<Envelope>,
        acceptance: &mut Acceptance,
        write: Option<u64>,
    ) {
        for part in parts(records) {
            let keys = part.iter().filter_map(Envelope::key).collect();
            let sequence = self.publish(part, write);
            acceptance.handle_offered(sequence, keys);
        }
    }

    /// Publishes the records of one message. Returns the number of the publication.
    pub(super) fn publish(&mut self, records: Vec<Envelope>, write: Option<u64>) -> u64 {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(FromNode::Publish { sequence, records }, write);
        sequence
    }

    /// Sends `message` once the write with the number `write` has ended, and after all messages that were sent before.
    pub(super) fn send(&mut self, message: FromNode, write: Option<u64>) {
        match write.or_else(|| self.deferred.back().map(|(write, _)| *write)) {
            Some(write) => self.deferred.push_back((write, message)),
            None => self.ready.push_back(message),
        }
    }

    /// The write with the number `ended` and all before it have ended.
    pub(super) fn handle_written(&mut self, ended: u64) {
        while let Some((_, message)) = self.deferred.pop_front_if(|(write, _)| *write <= ended) {
            self.ready.push_back(message);
        }
    }

    /// The coordinator answered a publication; with `failed` it could not write its store. Returns whether this answer completes an
    /// offer of all records.
    pub(super) fn handle_published(&mut self, sequence: u64, failed: bool, now: Instant) -> bool {
        let Some(full) = &mut self.full else {
            return false;
        };
        full.has_failed |= failed && (full.before + 1..=full.last).contains(&sequence);
        if sequence != full.last {
            return false;
        }
        if full.has_failed {
            full.again = Some(now + retry_pause(MIN_PAUSE, full.failures, MAX_PAUSE));
            full.failures = full.failures.saturating_add(1);
            return false;
        }
        self.full = None;
        // A coordinator that has lost records admits nodes again once it has what its members hold.
        self.send(FromNode::Told, None);
        true
    }

    /// Whether all records are to be offered again now.
    pub(super) fn poll_again(&mut self, now: Instant) -> bool {
        let full = self.full.as_mut();
        full.is_some_and(|full| full.again.take_if(|again| *again <= now).is_some())
    }

    /// The stream closed. All that was not sent is offered again when it opens.
    pub(super) fn handle_closed(&mut self) {
        self.deferred.clear();
        self.ready.clear();
        if let Some(full) = &mut self.full {
            full.again = None;
        }
    }

    /// The next message to send.
    pub(super) fn poll(&mut self) -> Option<Effect> {
        self.ready.pop_front().map(Effect::Send)
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
