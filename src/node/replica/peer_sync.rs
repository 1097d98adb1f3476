//! Decides what this node sends to its peers by itself, and to which peers when.
//!
//! While the coordinator confirms what this node publishes, the coordinator sends it to all nodes, and peers need no
//! conversations. If the coordinator does not confirm it within [`CONFIRM_TIMEOUT`], or is away, this node dials its peers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::effect::Effect;
use super::request::Opening;
use super::schedule::SyncSchedule;
use crate::model::PublicKey;
use crate::records::digest::Digests;
use crate::records::kinds::RecordKey;
use crate::records::{Envelope, Ledger};

/// How long the coordinator may take to confirm what this node publishes, before this node sends it to its peers itself.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(500);
/// The maximum number of records that are sent before the comparison. The comparison finds the rest.
const MAX_NEWS: usize = 64;

/// The state of the conversations with peers.
#[derive(Debug, Default)]
pub(super) struct PeerSync {
    schedule: SyncSchedule,
    /// Own records that the coordinator has not confirmed.
    unpublished: BTreeSet<RecordKey>,
    /// Since when there are own records that the coordinator has not confirmed. None once they are sent to peers.
    unconfirmed_since: Option<Instant>,
    /// The digests of the ledger as it is. None if the ledger has changed since.
    digests: Option<Arc<Digests>>,
    /// Nodes about whose memberships peers are asked.
    asks: Vec<PublicKey>,
}

impl PeerSync {
    /// The ledger changed. With `members` being true the members may have changed as well.
    pub(super) fn handle_changed(&mut self, ledger: &Ledger, own: &PublicKey, members: bool) {
        self.digests = None;
        if members {
            let peers = ledger.memberships().map(|membership| membership.id);
            let peers = peers.filter(|id| id != own && is_member(ledger, id));
            self.schedule.set_peers(peers);
        }
    }

    /// The digests of what `ledger` holds.
    pub(super) fn digests(&mut self, ledger: &Ledger) -> Arc<Digests> {
        let digests = self
            .digests
            .get_or_insert_with(|| Arc::new(Digests::of(ledger)));
        Arc::clone(digests)
    }

    /// This node published new records with these keys.
    pub(super) fn handle_published(&mut self, keys: &[RecordKey], now: Instant) {
        self.unpublished.extend(keys.iter().cloned());
        self.unconfirmed_since.get_or_insert(now);
    }

    /// The coordinator has stored all records of this node.
    pub(super) fn handle_confirmed(&mut self) {
        self.unpublished.clear();
        self.unconfirmed_since = None;
        self.schedule.handle_confirmed();
    }

    /// The coordinator does not send the records of this node to the peers, so all peers are dialled.
    pub(super) fn dial_all(&mut self, now: Instant) {
        self.unconfirmed_since = None;
        self.schedule.handle_news(now);
    }

    /// Whether there are records that no peer was dialled for yet.
    pub(super) fn is_unconfirmed(&self) -> bool {
        self.unconfirmed_since.is_some()
    }

    /// `path` knows whether `peer` is reached. `away` is whether the coordinator is away.
    pub(super) fn handle_reach(
        &mut self,
        peer: &PublicKey,
        reachable: bool,
        away: bool,
        now: Instant,
    ) {
        self.schedule.handle_reach(peer, reachable, away, now);
    }

    /// A conversation ended that this node began.
    pub(super) fn handle_ended(&mut self, peer: &PublicKey, succeeded: bool, now: Instant) {
        self.schedule.handle_ended(peer, succeeded, now);
    }

    /// Sets the nodes whose memberships this node holds back. Peers are dialled in turn to be asked about them.
    pub(super) fn set_asks(&mut self, nodes: Vec<PublicKey>) {
        self.asks = nodes;
    }

    /// Time has passed. `away` is whether the coordinator is away.
    pub(super) fn handle_time(&mut self, away: bool, now: Instant) {
        let is_late =
            |since: Instant| away || now.saturating_duration_since(since) >= CONFIRM_TIMEOUT;
        if self.unconfirmed_since.is_some_and(is_late) {
            self.dial_all(now);
        }
    }

    /// The peers that are to be dialled now.
    pub(super) fn poll(&mut self, ledger: &Ledger, away: bool, now: Instant) -> Vec<Effect> {
        let due = self.schedule.poll(away || !self.asks.is_empty(), now);
        if due.is_empty() {
            return Vec::new();
        }
        let entries = self.unpublished.iter().take(MAX_NEWS);
        let entries = entries.filter_map(|key| ledger.entry(key));
        let news: Vec<Envelope> = entries.map(|entry| entry.envelope.clone()).collect();
        let dial = |peer: PublicKey| Effect::Dial {
            peer,
            opening: Opening {
                news: news.clone(),
                // No node vouches for itself.
                asks: self.asks.iter().filter(|n| **n != peer).copied().collect(),
            },
        };
        due.into_iter().map(dial).collect()
    }
}

/// Whether `id` is a member that has published where it is reached.
pub(super) fn is_member(ledger: &Ledger, id: &PublicKey) -> bool {
    ledger.membership(id).is_some() && !ledger.is_revoked(id) && ledger.node(id).is_some()
}
