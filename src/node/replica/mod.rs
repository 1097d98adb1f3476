//! The records of a node, kept in step with the coordinator and with peers. Pure: the clock is an argument, and all that is to
//! be done outside is returned as an [`Effect`].
//!
//! A [`Replica`] decides which records this node holds, offers to the coordinator, requests again and sends to its peers. Its
//! life cycle:
//!
//! 1. [`Replica::new`] takes what is on disk.
//! 2. Every event is one call of a `handle_*` method: of the control stream, of a conversation with a peer, the end of a
//!    write. [`Replica::publish`] takes the records that this node wants to have in force. [`Replica::handle_time`] is called
//!    at [`Replica::poll_timeout`] or more often.
//! 3. After each call the shell carries out all effects of [`Replica::poll_effect`], and applies
//!    [`Replica::take_changes`] to the tunnel and to the names.
//!
//! Invariants:
//! - The ledger holds only records that it has verified, and no membership that [`newcomers`] holds back.
//! - The position and the time in step are written to disk only after the records before them.
//! - A record of this node is sent to others only after it is on disk, or after the disk has refused it.
//! - A node that was removed, or that is a duplicate of another machine, sends and accepts nothing in conversations with
//!   peers.
//!
//! | file | what it is |
//! |---|---|
//! | [`link`] | the state of the control stream |
//! | [`intake`] | verifies received records and applies them |
//! | [`newcomers`] | decides about memberships that are new to this node |
//! | [`agreement`] | detects that this node and its coordinator hold different records |
//! | [`conflicts`] | keeps records that were refused because of others, and may be accepted later |
//! | [`naming`] | gives up a name that another node has |
//! | [`acceptance`] | whether the records of this node are in force elsewhere |
//! | [`lease`] | whether this node moves to another address block |
//! | [`uplink`] | the side of the coordinator |
//! | [`offer`] | what is published to the coordinator |
//! | [`departures`] | the departures of peers, and the removals of guests, that this node publishes |
//! | [`progress`] | the position, and requests for all records |
//! | [`peer_sync`], [`schedule`] | which peers are dialled when |
//! | [`renewal`], [`refusals`] | which records of peers are accepted, and what their refusal costs |
//! | [`storage`] | what is written to disk when |

pub(in crate::node) mod acceptance;
mod agreement;
mod conflicts;
pub(in crate::node) mod departures;
mod effect;
mod intake;
mod lease;
mod link;
mod naming;
pub(in crate::node) mod newcomers;
mod offer;
mod own;
mod peer_sync;
mod position;
mod progress;
pub(in crate::node) mod refusals;
mod renewal;
mod request;
mod schedule;
mod storage;
mod uplink;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use self::acceptance::Acceptance;
pub use self::agreement::Summary;
pub use self::effect::{
    Answer, Changes, Effect, Publication, RecordsWrite, WriteOutcome, WriteRequest,
};
pub use self::link::{Link, LinkState, StreamEvent};
pub use self::newcomers::{InStep, NewcomerLists, Newcomers};
pub use self::own::Own;
pub use self::position::Position;
pub use self::refusals::Applied;
pub use self::request::{LedgerReply, LedgerRequest, Opening};
pub use crate::node::unwritten::Part;

use self::conflicts::Conflicts;
use self::intake::{Accepted, Intake};
use self::lease::Lease;
use self::naming::Naming;
use self::peer_sync::PeerSync;
use self::refusals::PeerRefusals;
use self::storage::Storage;
use self::uplink::{AGAIN_AFTER_REFUSAL, Uplink};
use crate::model::PublicKey;
use crate::model::address::Block;
use crate::model::time::{Now, next_version};
use crate::node::transitions::coordinator::LinkChange;
use crate::protocol::control::RefusedReason;
use crate::protocol::local::Problem;
use crate::protocol::url::CoordinatorUrl;
use crate::records::kinds::{Record, RecordKey};
use crate::records::ledger;
use crate::records::{Envelope, Ledger};

/// The interval at which the parts compare their deadlines with the clock.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The interval at which memberships are forgotten that are held back without any prospect.
const FORGET_INTERVAL: Duration = Duration::from_secs(15);
/// The shortest time between two requests for all records that follow because a peer vouched for a node.
const AGAIN_AFTER_VOUCH: Duration = Duration::from_secs(30);
/// The state with which a replica starts.
#[derive(Debug)]
pub struct Start {
    /// The identity of this node.
    pub own: Own,
    /// The records on disk.
    pub ledger: Ledger,
    /// The position on disk. The default value requests all records.
    pub position: Position,
    /// The memberships that are held back or were accepted on trust.
    pub newcomers: Newcomers,
    /// The number of lines of `records.jsonl`.
    pub record_lines: usize,
    /// Whether `records.jsonl` contains all records of `ledger`.
    pub records_whole: bool,
}

/// The records of a node, kept in step with the coordinator and with peers.
#[derive(Debug)]
pub struct Replica {
    own: Own,
    intake: Intake,
    uplink: Uplink,
    peers: PeerSync,
    storage: Storage,
    timers: Timers,
    effects: VecDeque<Effect>,
    changes: Changes,
}

/// When the parts are looked at again.
#[derive(Debug)]
struct Timers {
    check: Instant,
    forget: Instant,
}

impl Replica {
    /// Starts with what is on disk.
    #[must_use]
    pub fn new(start: Start, now: Now) -> Self {
        let Start { own, ledger, .. } = start;
        let mut peers = PeerSync::default();
        peers.handle_changed(&ledger, &own.id(), true);
        let mut intake = Intake {
            newcomers: start.newcomers,
            acceptance: Acceptance::new(&own.id(), next_version(0, now.wall)),
            lease: Lease::default(),
            refusals: PeerRefusals::default(),
            conflicts: Conflicts::default(),
            naming: Naming::default(),
            ledger,
        };
        intake.forget_newcomers();
        let mut replica = Self {
            uplink: Uplink::new(&own, start.position, &intake.ledger),
            storage: Storage::new(start.record_lines, start.records_whole),
            timers: Timers {
                check: now.monotonic,
                forget: now.monotonic + FORGET_INTERVAL,
            },
            effects: VecDeque::new(),
            changes: Changes::default(),
            own,
            intake,
            peers,
        };
        replica.flush(now);
        replica
    }

    /// An event of the control stream.
    pub fn handle_stream(&mut self, event: StreamEvent, now: Now) {
        let at = now.monotonic;
        if !matches!(event, StreamEvent::Closed { .. }) {
            self.uplink.link.handle_received(at);
        }
        match event {
            StreamEvent::Opened {
                url,
                store,
                revision,
            } => {
                self.changes.duplicate |= self.uplink.link.handle_opened(&url, at);
                self.intake.newcomers.handle_opened(revision);
                self.intake.acceptance.handle_opened(at);
                self.uplink
                    .handle_opened(&store, &self.own, &mut self.intake, &self.storage);
            }
            StreamEvent::Admitted { revision } => self.intake.newcomers.handle_opened(revision),
            StreamEvent::Changes { records, position } => {
                let intake = &mut self.intake;
                let accepted = intake.receive_from_coordinator(&self.own, records, now);
                self.accept(accepted, false);
                if self.uplink.progress.handle_changes(position) {
                    self.uplink.note_position(&mut self.storage);
                    self.note_in_step(now);
                }
            }
            StreamEvent::Published {
                sequence,
                refused,
                refused_records,
                failed,
            } => {
                let intake = &mut self.intake;
                intake.handle_answer(sequence, &refused, refused_records, now);
                self.note_in_step(now);
                let storage = &mut self.storage;
                if self
                    .uplink
                    .handle_published(sequence, &refused, failed, storage, now)
                {
                    self.peers.handle_confirmed();
                }
            }
            StreamEvent::Summary(summary) => {
                self.uplink.agreement.handle_summary(summary);
                self.note_in_step(now);
            }
            StreamEvent::Seen(address) => self.uplink.link.handle_seen(address, at),
            // A call concerns the paths, and is another sign of life for the records.
            StreamEvent::Called { .. } | StreamEvent::Alive => self.note_in_step(now),
            StreamEvent::Closed {
                url,
                why,
                refusal,
                copied,
            } => {
                let link = &mut self.uplink.link;
                self.changes.duplicate |= link.handle_closed(&url, why, refusal, copied, at);
                let intake = &mut self.intake;
                self.uplink.handle_closed(refusal, &self.own, intake, now);
                self.intake.newcomers.handle_closed();
                self.intake.acceptance.handle_closed();
                if self.peers.is_unconfirmed() {
                    self.peers.dial_all(at);
                }
            }
        }
        self.flush(now);
    }

    /// A request of a conversation with a peer. Returns none if this node is out, so that the conversation ends.
    pub fn handle_request(&mut self, request: LedgerRequest, now: Now) -> Option<LedgerReply> {
        if self.is_out() && request != LedgerRequest::Digests {
            return None;
        }
        let reply = match request {
            LedgerRequest::Digests => LedgerReply::Digests(self.peers.digests(&self.intake.ledger)),
            LedgerRequest::Apply { peer, records } => {
                let (accepted, result) =
                    self.intake.receive_from_peer(&self.own, peer, records, now);
                if peer == self.own.id() && result.changed {
                    self.peers.handle_published(&accepted.keys, now.monotonic);
                    if self.uplink.link.is_away() {
                        self.peers.dial_all(now.monotonic);
                    }
                }
                self.accept(accepted, true);
                LedgerReply::Applied(result)
            }
            LedgerRequest::Vouched { peer, memberships } => {
                let (accepted, result) = self.intake.release(peer, memberships);
                let is_changed = result.changed;
                self.accept(accepted, false);
                if is_changed {
                    // The records that depend on these memberships were refused before.
                    let storage = &mut self.storage;
                    self.uplink.request_all(AGAIN_AFTER_VOUCH, storage, now);
                }
                LedgerReply::Applied(result)
            }
            LedgerRequest::Memberships(nodes) => {
                LedgerReply::Memberships(self.intake.vouched(&self.own.id(), nodes))
            }
            LedgerRequest::Records(signers) => LedgerReply::Records(self.intake.signed_by(signers)),
        };
        self.flush(now);
        Some(reply)
    }

    /// A conversation ended that [`Effect::Dial`] began. `succeeded` is whether it came to its end.
    pub fn handle_conversation_ended(&mut self, peer: &PublicKey, succeeded: bool, now: Now) {
        self.peers.handle_ended(peer, succeeded, now.monotonic);
    }

    /// Whether `peer` is reached. The value may be the same as before.
    pub fn handle_reach(&mut self, peer: &PublicKey, reachable: bool, now: Now) {
        let away = self.uplink.link.is_away();
        self.peers
            .handle_reach(peer, reachable, away, now.monotonic);
    }

    /// The write of the last [`Effect::Write`] ended.
    pub fn handle_written(&mut self, outcome: &WriteOutcome, now: Now) {
        let newcomers = &mut self.intake.newcomers;
        let ended = self
            .storage
            .handle_written(outcome, newcomers, now.monotonic);
        self.uplink.handle_written(ended);
        self.flush(now);
    }

    /// The coordinator answered which block is leased to this node, or it did not, for a reason. Returns the block if this node
    /// moves to it.
    #[must_use]
    pub fn handle_leased(&mut self, answer: Result<Block, String>) -> Option<Block> {
        let key = RecordKey::Node(self.own.id());
        let acceptance = &self.intake.acceptance;
        let is_refused = acceptance.is_refused_for(&key, RefusedReason::Block);
        let (own, ledger) = (&self.own, &self.intake.ledger);
        self.intake
            .lease
            .handle_answer(own, ledger, is_refused, answer)
    }

    /// Signs records of this node, applies them to the own ledger, and offers them to the coordinator, or to the peers if the
    /// coordinator is away.
    pub fn publish(&mut self, records: Vec<Record>, now: Now) -> Publication {
        let mut publication = Publication::default();
        let mut envelopes = Vec::new();
        for record in records {
            self.intake.note_wanted(&self.own, &record);
            let envelope = Envelope::seal(&record, &self.own.key);
            match self.intake.ledger.apply(envelope.clone()) {
                Ok(applied) => {
                    envelopes.push(envelope);
                    if let ledger::Applied::Changed(key) = applied {
                        let entry = self.intake.ledger.entry(&key);
                        let version = entry.map_or(0, |entry| entry.version);
                        let acceptance = &mut self.intake.acceptance;
                        acceptance.handle_published(&key, version, now.monotonic);
                        publication.accepted.push(key);
                    }
                }
                Err(refused) => {
                    self.intake.acceptance.handle_unpublished(now.monotonic);
                    publication.refused.push((envelope, refused));
                }
            }
        }
        if envelopes.is_empty() {
            return publication;
        }
        let keys = &publication.accepted;
        self.intake.conflicts.handle_changed(keys);
        self.storage.add(&envelopes, true, &self.intake.ledger);
        self.peers
            .handle_changed(&self.intake.ledger, &self.own.id(), false);
        self.peers.handle_published(keys, now.monotonic);
        self.changes.records.extend(keys.iter().cloned());
        let (intake, storage) = (&mut self.intake, &self.storage);
        publication.sequence = self.uplink.publish_own(envelopes, intake, storage);
        // At the start it is not known yet whether a coordinator answers.
        if self.uplink.link.is_away() {
            self.peers.dial_all(now.monotonic);
        }
        self.flush(now);
        publication
    }

    /// Publishes the departure of this node. Returns the number of the publication, or none if no stream is open.
    pub fn publish_departure(&mut self, departure: Envelope) -> Option<u64> {
        self.uplink.publish_departure(departure)
    }

    /// Time has passed.
    pub fn handle_time(&mut self, now: Now) {
        self.timers.check = now.monotonic + CHECK_INTERVAL;
        for (peer, count, why) in self.intake.refusals.poll(now.monotonic) {
            tracing::warn!(peer = peer.short(), count, %why, "records that a peer sent were refused; `why` is the reason of the first refusal");
        }
        if now.monotonic >= self.timers.forget {
            self.timers.forget = now.monotonic + FORGET_INTERVAL;
            self.intake.forget_newcomers();
        }
        self.peers
            .handle_time(self.uplink.link.is_away(), now.monotonic);
        if self.is_out() {
            self.peers.set_asks(Vec::new());
        } else {
            self.peers
                .set_asks(self.intake.newcomers.asks(now.monotonic));
            let storage = &mut self.storage;
            let conflicts = &mut self.intake.conflicts;
            if self.intake.newcomers.take_overflowed() || conflicts.take_overflowed() {
                self.uplink.request_all(AGAIN_AFTER_REFUSAL, storage, now);
            }
            self.uplink
                .offer_refused(&self.own, &mut self.intake, storage, now);
            self.uplink.offer_departures_again(&self.intake.ledger, now);
            self.uplink
                .offer_everything_again(&self.own, &mut self.intake, storage, now);
            self.uplink.poll_difference(storage, now);
            self.uplink.poll_request(storage, now);
            if let Some(name) = self.intake.give_up_name(&self.own, now) {
                let label = name.name.clone();
                let published = self.publish(vec![Record::Name(name)], now);
                self.changes.name = published.refused.is_empty().then_some(label);
            }
        }
        self.flush(now);
    }

    /// When [`Replica::handle_time`] is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        Some(self.timers.check)
    }

    /// The next action for the shell.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.uplink.poll().or_else(|| self.effects.pop_front())
    }

    /// What changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// All records that this node holds.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.intake.ledger
    }

    /// The state of the control stream.
    #[must_use]
    pub fn link(&self) -> &LinkState {
        &self.uplink.link
    }

    /// The position in the changes of the coordinator's store.
    #[must_use]
    pub fn position(&self) -> &Position {
        self.uplink.progress.position()
    }

    /// Whether the records of this node are in force elsewhere.
    #[must_use]
    pub fn acceptance(&self) -> &Acceptance {
        &self.intake.acceptance
    }

    /// Whether an [`Effect::Write`] was not answered yet.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.storage.is_writing()
    }

    /// The coordinators that the mesh record and the token of this node name.
    #[must_use]
    pub fn coordinators(&self) -> Vec<CoordinatorUrl> {
        self.own.coordinators(&self.intake.ledger)
    }

    /// Whether this node was removed or is a duplicate, by what is signed. The answer of a coordinator alone silences no node.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.uplink.link.is_duplicate() || self.intake.ledger.is_revoked(&self.own.id())
    }

    /// Whether this node was removed from the mesh, by its records or by the answer of a coordinator.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.uplink.link.is_revoked() || self.intake.ledger.is_revoked(&self.own.id())
    }

    /// The problems with the records of this node and with memberships that are held back.
    #[must_use]
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        let mut problems = self.intake.acceptance.problems(now);
        if !problems.is_empty() || !self.link().is_connected() {
            problems.extend(self.intake.lease.problem());
        }
        problems.extend(self.intake.newcomers.problem(now));
        problems.extend(self.intake.conflicts.problem(&self.intake.ledger));
        problems.extend(self.intake.naming.problem(now));
        problems
    }

    /// Records were accepted from the coordinator, or from a peer.
    fn accept(&mut self, accepted: Accepted, from_peer: bool) {
        let Accepted { envelopes, keys } = accepted;
        if keys.is_empty() {
            return;
        }
        self.intake.conflicts.handle_changed(&keys);
        let ledger = &self.intake.ledger;
        self.storage.add(&envelopes, false, ledger);
        if keys.contains(&RecordKey::Mesh) {
            self.uplink.set_urls(&self.own, ledger);
        }
        if from_peer {
            self.uplink.handle_from_peer(&keys, ledger);
        }
        let is_service = |key: &RecordKey| matches!(key, RecordKey::Service(_));
        let members = !keys.iter().all(is_service);
        self.peers.handle_changed(ledger, &self.own.id(), members);
        self.changes.records.extend(keys);
    }

    /// A message of the coordinator was received, so this node may be in step with it.
    fn note_in_step(&mut self, now: Now) {
        let revision = self.uplink.progress.position().revision;
        if let Some(in_step) = self.intake.note_in_step(revision, now) {
            self.storage.set_in_step(in_step);
        }
    }

    /// Collects what is due after an event: records that were refused and are accepted now, a write, conversations with peers, and
    /// own records to be published again.
    fn flush(&mut self, now: Now) {
        loop {
            let freed = self.intake.retry_conflicts(now);
            if freed.keys.is_empty() {
                break;
            }
            let is_membership = |key: &RecordKey| matches!(key, RecordKey::Membership(_));
            let admits = freed.keys.iter().any(is_membership);
            self.accept(freed, false);
            if admits {
                // The records that depend on these memberships were refused before.
                let storage = &mut self.storage;
                self.uplink.request_all(AGAIN_AFTER_VOUCH, storage, now);
            }
        }
        let (is_incomplete, ledger) = (self.intake.is_incomplete(), &self.intake.ledger);
        if self.uplink.progress.set_incomplete(is_incomplete) {
            self.uplink.note_position(&mut self.storage);
        }
        if !is_incomplete {
            self.uplink.compare(|| ledger.fingerprint(), now);
        }
        let (intake, at) = (&self.intake, now.monotonic);
        let write = self.storage.poll(&intake.ledger, &intake.newcomers, at);
        self.effects.extend(write.map(Effect::Write));
        if self.is_out() {
            return;
        }
        self.changes.own |= self.intake.acceptance.is_due(at);
        // Peers are not sent what is not on disk yet.
        if self.storage.own_write().is_none() {
            let away = self.uplink.link.is_away();
            let dials = self.peers.poll(&self.intake.ledger, away, at);
            self.effects.extend(dials);
        }
    }
}

/// The transitions of the control stream since the last call.
pub(in crate::node) fn take_link_turns(replica: &mut Replica) -> Vec<LinkChange> {
    replica.uplink.link.take_turns()
}

#[cfg(test)]
mod tests;
