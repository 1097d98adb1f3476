//! Departures at a joined node: its own, when it leaves, and those of peers that no coordinator may have yet.
//!
//! A node that left is not there to offer its departure again when the coordinator is back. So each peer that received one
//! from another node publishes it, now or when its stream opens. After a restart all that are held are published once.

use std::collections::BTreeSet;
use std::time::SystemTime;

use tokio::sync::oneshot;

use super::{Mesh, coordinators};
use crate::model::PublicKey;
use crate::model::time::UnixSeconds;
use crate::node::state::departing::Departing;
use crate::path::watch::Reach;
use crate::protocol::local::DepartureState;
use crate::records::kinds::RecordKey;
use crate::records::{Envelope, Ledger};

/// Peers that a node hands its departure to when it leaves. Each costs a socket; the others receive it from these.
const MAX_HANDED_OVER: usize = 256;

/// Which departures are to be published, and which publication waits for its acknowledgement. Pure.
#[derive(Debug, Default)]
pub(super) struct Departures {
    unpublished: BTreeSet<RecordKey>,
    /// The sequence of the message that carries them.
    offered: Option<u64>,
    own: Option<(u64, oneshot::Sender<bool>)>,
}

impl Departures {
    /// All that `ledger` holds: which of them a coordinator has is not on disk.
    pub(super) fn held_in(ledger: &Ledger) -> Self {
        Self {
            unpublished: ledger.departures().cloned().collect(),
            ..Self::default()
        }
    }

    /// Records that came from a peer.
    pub(super) fn handle_from_peer(&mut self, changed: &[RecordKey]) {
        let new = changed
            .iter()
            .filter(|key| matches!(key, RecordKey::Departure(_)));
        self.unpublished.extend(new.cloned());
    }

    /// What is to be published with `sequence`; none if there is nothing.
    pub(super) fn offer(&mut self, ledger: &Ledger, sequence: u64) -> Vec<Envelope> {
        let held = |key: &RecordKey| ledger.entry(key).map(|entry| entry.envelope.clone());
        let offered: Vec<Envelope> = self.unpublished.iter().filter_map(held).collect();
        self.offered = (!offered.is_empty()).then_some(sequence);
        offered
    }

    /// The coordinator has answered; `settled` is whether nothing of the message is left to do.
    pub(super) fn handle_published(&mut self, sequence: u64, settled: bool) {
        if self.offered.take_if(|at| *at == sequence).is_some() && settled {
            self.unpublished.clear();
        }
        if let Some((_, word)) = self.own.take_if(|(own, _)| *own == sequence) {
            let _ = word.send(settled);
        }
    }

    /// The stream closed: nothing is acknowledged any more.
    pub(super) fn handle_closed(&mut self) {
        self.offered = None;
        self.own = None;
    }
}

impl Mesh {
    /// Publishes the departures that came from peers, if the stream is open.
    pub(super) fn publish_departures(&mut self) {
        if !self.stream.connected {
            return;
        }
        let sequence = self.sequence + 1;
        let departures = self.departures.offer(&self.ledger, sequence);
        if !departures.is_empty() && self.control.publish(sequence, departures) {
            self.sequence = sequence;
        }
    }

    /// This node's departure, for the coordinators that it knows of.
    pub(in crate::node) fn departing(&self) -> Departing {
        let mut departing =
            Departing::of(&self.identity, UnixSeconds::from_system(SystemTime::now()));
        departing.way.urls = coordinators(&self.ledger, &self.identity);
        departing
    }

    /// Why this node signs no departure, if it does not: the machine whose keys it has goes on, or it is out already.
    pub(in crate::node) fn stays_silent(&self) -> Option<DepartureState> {
        if self.stream.cloned || self.stream.called_copy {
            Some(DepartureState::Copy)
        } else if self.stream.revoked || self.ledger.is_revoked(&self.id()) {
            Some(DepartureState::Unneeded)
        } else {
            None
        }
    }

    /// Publishes this node's departure over the open stream. Gives an event for when the coordinator has answered; none, if
    /// the stream takes nothing in.
    pub(in crate::node) fn publish_departure(
        &mut self,
        departure: Envelope,
    ) -> Option<oneshot::Receiver<bool>> {
        self.sequence += 1;
        if !self.control.publish(self.sequence, vec![departure]) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.departures.own = Some((self.sequence, sender));
        Some(receiver)
    }

    /// Hands this node's departure to the peers that are not known to be away. Gives how many received it.
    pub(in crate::node) fn send_departure(
        &self,
        departure: &Envelope,
    ) -> impl Future<Output = usize> + use<> {
        let away = |id: &PublicKey| self.paths.reach().get(id) == Some(&Reach::Unreachable);
        let own = self.id();
        let peers = self.netmap.members.values();
        let peers = peers.filter(|peer| peer.id != own && !away(&peer.id));
        let peers = peers.map(|peer| (peer.id, peer.block.node_v4()));
        let peers = peers.take(MAX_HANDED_OVER).collect();
        self.peers.hand_over(departure, peers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_departures_of_peers_are_published_and_until_they_are_acknowledged() {
        let mut departures = Departures::default();
        let node = PublicKey([1; 32]);
        let departure = RecordKey::Departure(node);
        departures.handle_from_peer(&[departure.clone(), RecordKey::Node(node)]);
        assert_eq!(departures.unpublished, [departure].into());
        departures.offered = Some(7);
        departures.handle_published(6, true);
        departures.handle_closed();
        departures.handle_published(7, true);
        assert_eq!(departures.unpublished.len(), 1, "the answer was lost");
        departures.offered = Some(8);
        departures.handle_published(8, false);
        assert_eq!(departures.unpublished.len(), 1, "the disk was full");
        departures.offered = Some(9);
        departures.handle_published(9, true);
        assert!(departures.unpublished.is_empty());
    }

    #[test]
    fn an_own_departure_waits_for_its_own_acknowledgement() {
        let mut departures = Departures::default();
        let (sender, mut stored) = oneshot::channel();
        departures.own = Some((3, sender));
        departures.handle_published(2, true);
        assert!(stored.try_recv().is_err());
        departures.handle_published(3, false);
        assert_eq!(stored.try_recv(), Ok(false));
        let (sender, mut stored) = oneshot::channel();
        departures.own = Some((4, sender));
        departures.handle_closed();
        assert_eq!(stored.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}
