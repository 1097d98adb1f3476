//! The paths to all peers: which of them are due, and how many probes they share.

use std::collections::BTreeMap;
use std::time::Instant;

use super::budget::Budget;
use super::links::Candidate;
use super::peer::{Action, PeerPaths, Report};
use crate::model::{Path, PublicKey};

/// The paths to all peers that are steered. It reads no clock: each call passes the time.
#[derive(Debug, Default)]
pub struct Peers {
    peers: BTreeMap<PublicKey, Entry>,
    budget: Option<Budget>,
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
                    peer: PeerPaths::new(),
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
        let is_relayed = |entry: &Entry| entry.peer.primary().is_some_and(|p| p.relay().is_some());
        let peers = self.peers.iter().filter(|(_, entry)| is_relayed(entry));
        peers.map(|(id, _)| *id).collect()
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

    /// The peer stops or changes its network.
    pub fn handle_bye(&mut self, id: &PublicKey, now: Instant) {
        self.change(id, now, |peer| peer.handle_bye(now));
    }

    /// A peer does not answer probes that somebody else sends.
    pub fn handle_doubt(&mut self, id: &PublicKey, now: Instant) {
        self.change(id, now, |peer| peer.handle_doubt(now));
    }

    /// The network of one peer changed.
    pub fn handle_peer_moved(&mut self, id: &PublicKey, now: Instant) {
        self.change(id, now, |peer| peer.handle_network_changed(now));
    }

    /// The network of this node changed.
    pub fn handle_network_changed(&mut self, now: Instant) {
        for entry in self.peers.values_mut() {
            entry.peer.handle_network_changed(now);
            entry.due = Some(now);
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
                let due = entry.peer.poll(budget, now);
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
