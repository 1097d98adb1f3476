//! The side of the coordinator: the state of the stream, what is offered over it, and the position in what it brings.

use std::collections::VecDeque;
use std::time::Duration;

use super::agreement::Agreement;
use super::departures::{Departures, is_settled};
use super::effect::{Answer, Effect};
use super::intake::Intake;
use super::link::LinkState;
use super::offer::Offer;
use super::own::Own;
use super::position::Position;
use super::progress::Progress;
use super::storage::Storage;
use crate::model::time::Now;
use crate::protocol::control::{FromNode, Refusal, RefusedReason};
use crate::protocol::join::JoinRequest;
use crate::records::fingerprint::Fingerprint;
use crate::records::kinds::{Departure, Record, RecordKey};
use crate::records::{Envelope, Ledger};

/// The shortest time between two requests for all records that follow because a record of this node was refused. Such a
/// request transfers all records of the mesh.
pub(super) const AGAIN_AFTER_REFUSAL: Duration = Duration::from_secs(600);
/// All records are requested again once one record was refused this often.
const MAX_REFUSALS: u32 = 2;

/// The side of the coordinator.
#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) link: LinkState,
    pub(super) progress: Progress,
    pub(super) agreement: Agreement,
    /// Whether all records are to be offered when the next stream opens.
    offers_everything: bool,
    /// Whether this node has begun to leave the mesh.
    is_leaving: bool,
    offer: Offer,
    departures: Departures,
    effects: VecDeque<Effect>,
}

impl Uplink {
    /// Starts at `position` with the records in `ledger`.
    pub(super) fn new(own: &Own, position: Position, ledger: &Ledger) -> Self {
        let url = own.urls.first().map(ToString::to_string);
        Self {
            link: LinkState::new(url.unwrap_or_default()),
            progress: Progress::new(position),
            agreement: Agreement::default(),
            offers_everything: false,
            is_leaving: false,
            offer: Offer::default(),
            departures: Departures::held_in(ledger),
            effects: VecDeque::new(),
        }
    }

    /// The stream opened to a coordinator whose store is called `store`: offers what the coordinator may not have.
    pub(super) fn handle_opened(
        &mut self,
        store: &str,
        own: &Own,
        intake: &mut Intake,
        storage: &Storage,
    ) {
        let id = own.id();
        let everything = std::mem::take(&mut self.offers_everything)
            || self.offer.is_pending()
            || self.progress.is_of_another(store);
        let (ledger, acceptance) = (&intake.ledger, &mut intake.acceptance);
        self.offer
            .offer(ledger, &id, everything, acceptance, storage.own_write());
        // A node that may be removed when it stays away signs its departure in advance, since no other node can.
        let token = ledger.membership(&id).and_then(|m| ledger.token(&m.token));
        if token.is_some_and(|token| token.ephemeral) {
            let departure = Record::Departure(Departure::of(id));
            let departure = Envelope::seal(&departure, &own.key);
            self.offer.send(FromNode::Farewell { departure }, None);
        }
        self.publish_departures(ledger);
    }

    /// The coordinator answered the publication with the number `sequence`. Returns whether it has stored all records of this
    /// node.
    pub(super) fn handle_published(
        &mut self,
        sequence: u64,
        refused: &[String],
        failed: bool,
        storage: &mut Storage,
        now: Now,
    ) -> bool {
        let is_stored = refused.is_empty();
        let settled = is_settled(refused);
        self.departures
            .handle_published(sequence, settled, now.monotonic);
        let answer = match (is_stored, settled) {
            (true, _) => Answer::Stored,
            (false, true) => Answer::Settled,
            (false, false) => Answer::Refused,
        };
        self.effects
            .push_back(Effect::Answered { sequence, answer });
        if self.offer.handle_published(sequence, failed, now.monotonic) {
            self.note_position(storage);
        }
        is_stored && sequence == self.offer.sequence()
    }

    /// The stream closed. `refusal` is the kind of refusal, if the coordinator refused this node.
    pub(super) fn handle_closed(
        &mut self,
        refusal: Option<Refusal>,
        own: &Own,
        intake: &mut Intake,
        now: Now,
    ) {
        self.progress.handle_closed();
        self.agreement.handle_closed();
        self.departures.handle_closed();
        self.offer.handle_closed();
        self.effects.push_back(Effect::Unanswered);
        // If a coordinator's disk lost the join before any other node received the membership, the coordinator accepts the
        // membership only in a request to join.
        let is_out =
            self.is_leaving || self.link.is_duplicate() || intake.ledger.is_revoked(&own.id());
        if refusal == Some(Refusal::NotAMember) && !is_out {
            self.request_lease(own, intake, now);
        }
    }

    /// A write ended. See [`Storage::handle_written`].
    pub(super) fn handle_written(&mut self, ended: u64) {
        self.offer.handle_written(ended);
    }

    /// Publishes new records of this node. Returns the number of the last publication, or none if no stream is open.
    pub(super) fn publish_own(
        &mut self,
        records: Vec<Envelope>,
        intake: &mut Intake,
        storage: &Storage,
    ) -> Option<u64> {
        if !self.link.is_connected() {
            return None;
        }
        self.offer
            .publish_own(records, &mut intake.acceptance, storage.own_write());
        Some(self.offer.sequence())
    }

    /// Publishes the departure of this node. Returns the number of the publication, or none if no stream is open.
    pub(super) fn publish_departure(&mut self, departure: Envelope) -> Option<u64> {
        self.is_leaving = true;
        let is_connected = self.link.is_connected();
        is_connected.then(|| self.offer.publish(vec![departure], None))
    }

    /// Records of a peer were accepted. The departures among them are published.
    pub(super) fn handle_from_peer(&mut self, changed: &[RecordKey], ledger: &Ledger) {
        self.departures.handle_from_peer(changed);
        if self.link.is_connected() {
            self.publish_departures(ledger);
        }
    }

    /// Publishes the departures again that the coordinator could not store, when their pause is over.
    pub(super) fn offer_departures_again(&mut self, ledger: &Ledger, now: Now) {
        if self.departures.poll_again(now.monotonic) {
            self.publish_departures(ledger);
        }
    }

    fn publish_departures(&mut self, ledger: &Ledger) {
        let departures = self.departures.unpublished(ledger);
        if !departures.is_empty() {
            let sequence = self.offer.publish(departures, None);
            self.departures.handle_offered(sequence);
        }
    }

    /// Notes the position for the next stream and for the next start. A position in a store says that the store has all that
    /// this node held when the stream opened, so it is not noted before that is true.
    pub(super) fn note_position(&mut self, storage: &mut Storage) {
        if self.offer.is_pending() {
            return;
        }
        let position = self.progress.position().clone();
        self.effects.push_back(Effect::SetPosition(position));
        storage.set_position(self.progress.stored_position());
    }

    /// Makes the coordinator send all records again, as soon as the last such request was made at least `pause` ago.
    pub(super) fn request_all(&mut self, pause: Duration, storage: &mut Storage, now: Now) {
        self.progress.request_all(pause);
        self.poll_request(storage, now);
    }

    /// Requests all records, if such a request is due now.
    pub(super) fn poll_request(&mut self, storage: &mut Storage, now: Now) {
        let is_connected = self.link.is_connected();
        if !self.offer.is_pending() && self.progress.poll_request(is_connected, now.monotonic) {
            self.note_position(storage);
            self.effects.push_back(Effect::Reopen);
        }
    }

    /// Compares the fingerprint of all records that this node holds with the last one of the coordinator, if this node has reached
    /// the revision of that one.
    pub(super) fn compare(&mut self, held: impl FnOnce() -> Fingerprint, now: Now) {
        if let Some(revision) = self.progress.reached()
            && self.agreement.awaits(revision)
        {
            self.agreement.compare(revision, held(), now.monotonic);
        }
    }

    /// Requests and offers all records, if this node and the coordinator hold different ones. See [`Agreement`].
    pub(super) fn poll_difference(&mut self, storage: &mut Storage, now: Now) {
        if !self.link.is_connected() || self.offer.is_pending() {
            return;
        }
        if self.agreement.poll(now.monotonic) {
            tracing::warn!(
                "this node and the coordinator hold different records; this node requests all records and offers all that it holds"
            );
            self.offers_everything = true;
            self.request_all(Duration::ZERO, storage, now);
        }
    }

    /// Offers all records again when the pause is over, if the coordinator could not store some.
    pub(super) fn offer_everything_again(
        &mut self,
        own: &Own,
        intake: &mut Intake,
        storage: &Storage,
        now: Now,
    ) {
        if self.link.is_connected() && self.offer.poll_again(now.monotonic) {
            let (ledger, acceptance) = (&intake.ledger, &mut intake.acceptance);
            let write = storage.own_write();
            self.offer.offer(ledger, &own.id(), true, acceptance, write);
        }
    }

    /// Offers those records of this node again that the coordinator refused some time ago.
    pub(super) fn offer_refused(
        &mut self,
        own: &Own,
        intake: &mut Intake,
        storage: &mut Storage,
        now: Now,
    ) {
        let (ledger, acceptance) = (&intake.ledger, &mut intake.acceptance);
        acceptance.retain(|key| ledger.entry(key).is_some());
        if !self.link.is_connected() {
            return;
        }
        let due = acceptance.poll_again(now.monotonic);
        if due.is_empty() {
            return;
        }
        let entries = due.iter().filter_map(|due| ledger.entry(&due.key));
        let records = entries.map(|entry| entry.envelope.clone()).collect();
        self.offer
            .publish_own(records, acceptance, storage.own_write());
        if due
            .iter()
            .any(|due| due.reason == RefusedReason::Block && matches!(due.key, RecordKey::Node(_)))
        {
            self.request_lease(own, intake, now);
        }
        // A newer record with this node's key may have come in an earlier revision, which the coordinator does not send again.
        if due.iter().any(|due| due.failures >= MAX_REFUSALS) {
            self.request_all(AGAIN_AFTER_REFUSAL, storage, now);
        }
    }

    /// Asks a coordinator which block is leased to this node. The request is that of the join, so a coordinator that does not know
    /// this node admits it, if its rules for a join still allow that. See [`super::lease`].
    fn request_lease(&mut self, own: &Own, intake: &mut Intake, now: Now) {
        let Some(membership) = intake.ledger.entry(&RecordKey::Membership(own.id())) else {
            return;
        };
        if intake.lease.may_request(now.monotonic) {
            self.effects.push_back(Effect::AskLease {
                urls: own.coordinators(&intake.ledger),
                request: JoinRequest::make(membership.envelope.clone(), &own.key),
            });
        }
    }

    /// The mesh record changed, which names the coordinators.
    pub(super) fn set_urls(&mut self, own: &Own, ledger: &Ledger) {
        let urls = own.coordinators(ledger);
        self.effects.push_back(Effect::SetUrls(urls));
    }

    /// The next action for the shell.
    pub(super) fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front().or_else(|| self.offer.poll())
    }
}
