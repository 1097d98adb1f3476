//! The paths to all peers: which of them are due, and how many probes they share.

use std::collections::BTreeMap;
use std::time::Instant;

use super::budget::Budget;
use super::links::Candidate;
use super::peer::{Action, PeerPaths, Report, State};
use crate::model::{NodeAddress, Path, PublicKey};
use crate::protocol::path_messages::ByeReason;

/// The paths to all peers that are steered. It reads no clock: each call passes the time.
#[derive(Debug, Default)]
pub struct Peers {
    peers: BTreeMap<PublicKey, Entry>,
    budget: Option<Budget<PublicKey>>,
}

#[derive(Debug)]
struct Entry {
    peer: PeerPaths,
    /// When it is polled next.
    due: Option<Instant>,
}

impl Peers {
    /// Sets the peers, each with the paths by which it may be reached. The state of those that stay is kept. Returns those
    /// that are new.
    pub fn set(
        &mut self,
        peers: impl IntoIterator<Item = (PublicKey, Vec<Candidate>)>,
        now: Instant,
    ) -> Vec<PublicKey> {
        let mut before = std::mem::take(&mut self.peers);
        let mut added = Vec::new();
        for (id, candidates) in peers {
            let mut entry = before.remove(&id).unwrap_or_else(|| {
                added.push(id);
                Entry {
                    peer: PeerPaths::default(),
                    due: None,
                }
            });
            entry.peer.set_candidates(candidates, now);
            entry.due = Some(now);
            self.peers.insert(id, entry);
        }
        added
    }

    /// Whether the paths of this peer are chosen here.
    #[must_use]
    pub fn contains(&self, id: &PublicKey) -> bool {
        self.peers.contains_key(id)
    }

    /// The paths to a peer.
    #[must_use]
    pub fn get(&self, id: &PublicKey) -> Option<&PeerPaths> {
        self.peers.get(id).map(|entry| &entry.peer)
    }

    /// The peers to whom packets are sent through a relay.
    #[must_use]
    pub fn relayed(&self) -> Vec<PublicKey> {
        let is_relayed = |entry: &Entry| {
            entry
                .peer
                .links()
                .primary()
                .is_some_and(|p| p.relay().is_some())
        };
        let peers = self.peers.iter().filter(|(_, entry)| is_relayed(entry));
        peers.map(|(id, _)| *id).collect()
    }

    /// Whether the path to this peer works.
    #[must_use]
    pub fn is_open(&self, id: &PublicKey) -> bool {
        self.get(id).is_some_and(|peer| peer.state() == State::Open)
    }

    /// Whether packets are sent to this peer without a relay.
    #[must_use]
    pub fn is_direct(&self, id: &PublicKey) -> bool {
        self.get(id).is_some_and(|peer| peer.links().is_direct())
    }

    /// The path by which this peer was last heard.
    #[must_use]
    pub fn last_heard(&self, id: &PublicKey) -> Option<Path> {
        let links = self.get(id)?.links().all().iter();
        let heard = links.filter(|link| link.heard.is_some());
        heard.max_by_key(|link| link.heard).map(|link| link.path)
    }

    /// The peers of which [`Peers::poll`] needs a report now.
    #[must_use]
    pub fn due(&self, now: Instant) -> Vec<PublicKey> {
        let peers = self.peers.iter();
        peers
            .filter(|(_, entry)| entry.due.is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The data plane reports what it knows about a peer.
    pub fn handle_report(&mut self, id: &PublicKey, report: &Report, now: Instant) {
        self.change(id, now, |peer| peer.handle_report(report, now));
    }

    /// A probe was sent by the path in use.
    pub fn handle_probed(&mut self, id: &PublicKey, now: Instant) {
        if let Some(entry) = self.peers.get_mut(id) {
            entry.peer.handle_probed(now);
        }
    }

    /// A peer is to be reached.
    pub fn handle_wanted(&mut self, id: &PublicKey, now: Instant) {
        self.change(id, now, |peer| peer.handle_wanted(now));
    }

    /// The peer waits for probes by these paths.
    pub fn handle_consent(&mut self, id: &PublicKey, paths: &[Path], now: Instant) {
        self.change(id, now, |peer| peer.handle_consent(paths, now));
    }

    /// Sets the paths by which one peer may be reached.
    pub fn set_candidates(&mut self, id: &PublicKey, candidates: Vec<Candidate>, now: Instant) {
        self.change(id, now, |peer| peer.set_candidates(candidates, now));
    }

    /// The peer stops or changes its network. Returns whether that counts.
    pub fn handle_bye(&mut self, id: &PublicKey, reason: ByeReason, now: Instant) -> bool {
        let mut counts = false;
        self.change(id, now, |peer| counts = peer.handle_bye(reason, now));
        counts
    }

    /// A new session with a peer has begun: perhaps it was started again.
    pub fn handle_session(&mut self, id: &PublicKey, now: Instant) {
        self.change(id, now, |peer| peer.handle_session(now));
    }

    /// It is doubtful whether a peer still answers.
    pub fn handle_doubt(&mut self, id: &PublicKey, now: Instant) {
        self.change(id, now, |peer| peer.handle_doubt(now));
    }

    /// The relay with this address forwards nothing any more.
    pub fn handle_relay_gone(&mut self, relay: NodeAddress, now: Instant) {
        self.change_all(now, |peer| peer.handle_relay_gone(relay, now));
    }

    /// The relay with this address has given another tag, or is reached elsewhere.
    pub fn handle_relay_renewed(&mut self, relay: NodeAddress, now: Instant) {
        self.change_all(now, |peer| peer.handle_relay_renewed(relay, now));
    }

    /// The network of this node changed.
    pub fn handle_network_changed(&mut self, now: Instant) {
        self.change_all(now, |peer| {
            peer.handle_network_changed(now);
            true
        });
    }

    /// Changes the peers to which it applies.
    fn change_all(&mut self, now: Instant, change: impl Fn(&mut PeerPaths) -> bool) {
        for entry in self.peers.values_mut() {
            if change(&mut entry.peer) {
                entry.due = Some(now);
            }
        }
    }

    fn change(&mut self, id: &PublicKey, now: Instant, change: impl FnOnce(&mut PeerPaths)) {
        if let Some(entry) = self.peers.get_mut(id) {
            change(&mut entry.peer);
            entry.due = Some(now);
        }
    }

    /// What the data plane is to do now.
    pub fn poll(&mut self, now: Instant) -> Vec<(PublicKey, Action)> {
        let budget = self.budget.get_or_insert_with(|| Budget::new(now));
        let mut actions = Vec::new();
        for (id, entry) in &mut self.peers {
            if entry.due.is_some_and(|at| at <= now) {
                let due = entry.peer.poll(|path| budget.take(*id, path, now), now);
                actions.extend(due.into_iter().map(|action| (*id, action)));
                entry.due = entry.peer.poll_timeout();
            }
        }
        actions
    }

    /// When [`Peers::poll`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.peers.values().filter_map(|entry| entry.due).min()
    }
}
