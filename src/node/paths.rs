//! The paths to the peers: whether each peer answers, how far away it is, and how large packets to it may be. Pure.
//!
//! [`Paths`] joins the state machines of [`crate::path`]. Its input is the state of each peer in the tunnel, its outputs are
//! [`PathAction`]s that the caller carries out on the tunnel. The tunnel does not report by itself, so its state is read and
//! the machines are polled every [`POLL_INTERVAL`], as long as there is a peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::transitions::peers::{PeerTurn, PeerTurns};
use crate::model::PublicKey;
use crate::path::distance::Seen;
use crate::path::mtu::{Sizes, Way};
use crate::path::tried::Tried;
use crate::path::watch::{Action, Reach, Watch};
use crate::path::{Distances, PathMtu};
use crate::tunnel::PeerStatus;

/// The time between two polls.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// A peer, as the paths have to know it.
#[derive(Debug, Clone)]
pub(super) struct PathPeer {
    pub id: PublicKey,
    /// Where it may be reached, the best endpoint first.
    pub endpoints: Vec<SocketAddr>,
    /// Whether it serves a service: then it is watched more closely.
    pub serves: bool,
}

/// Something that the caller does with the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PathAction {
    /// Send a probe.
    Probe(PublicKey),
    /// Send to this endpoint from now on, and start a handshake.
    Try(PublicKey, SocketAddr),
    /// Send probes of these sizes, in bytes of the packet in the tunnel.
    ProbeSizes(PublicKey, Vec<u16>),
    /// Refuse packets of more bytes to this peer.
    Limit(PublicKey, u16),
}

/// What the paths are at a moment.
#[derive(Debug)]
pub(super) struct Paths {
    watch: Watch,
    path_mtu: PathMtu,
    distances: Distances,
    tried: Tried,
    peers: BTreeSet<PublicKey>,
    reach: BTreeMap<PublicKey, Reach>,
    unreachable: BTreeSet<PublicKey>,
    turns: PeerTurns,
    /// The transitions that were not taken yet.
    new_turns: Vec<(PublicKey, PeerTurn)>,
    /// When the machines are polled next, if there is a peer.
    next: Option<Instant>,
}

impl Paths {
    /// No packet is larger than `mtu` bytes, the MTU of the tunnel device.
    pub(super) fn new(mtu: u16) -> Self {
        Self {
            watch: Watch::default(),
            path_mtu: PathMtu::new(mtu),
            distances: Distances::default(),
            tried: Tried::default(),
            peers: BTreeSet::new(),
            reach: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            turns: PeerTurns::default(),
            new_turns: Vec::new(),
            next: None,
        }
    }

    /// Sets the peers. The state of those that stay is kept. A new peer brings the next poll forward: the first handshake
    /// of that peer may have arrived before this node knew it, and was dropped, so this node sends one without delay.
    pub(super) fn set_peers(&mut self, peers: Vec<PathPeer>, now: Instant) {
        let ids: BTreeSet<PublicKey> = peers.iter().map(|peer| peer.id).collect();
        self.path_mtu.retain(|id| ids.contains(id));
        self.distances.retain(|id| ids.contains(id));
        self.tried.retain(|id| ids.contains(id));
        self.turns.retain(&ids);
        let is_new = !ids.is_subset(&self.peers);
        self.next = if is_new { Some(now) } else { self.next };
        self.next = self.next.filter(|_| !ids.is_empty());
        self.peers = ids;
        let peers = peers.into_iter().map(|p| (p.id, p.endpoints, p.serves));
        self.watch.set_peers(peers, now);
    }

    /// The state of a peer in the tunnel. `answered` is the largest sized probe that it answered since the last call, which is
    /// of use only while [`Paths::is_searching`].
    pub(super) fn handle_peer_status(
        &mut self,
        id: PublicKey,
        serves: bool,
        status: &PeerStatus,
        answered: Option<u16>,
        now: Instant,
    ) -> Option<PathAction> {
        if let Some(at) = status.last_receive {
            self.watch.handle_heard(&id, at);
        }
        if let Some(at) = status.last_send {
            self.watch.handle_sent(&id, at);
        }
        if let Some(endpoint) = status.endpoint {
            self.tried
                .handle_status(id, endpoint, status.last_receive, now);
        }
        self.distances.handle_seen(
            id,
            Seen {
                endpoint: status.endpoint,
                heard: status.last_receive,
                sent: status.last_send,
                serves,
                round_trip: status.round_trip.map(|trip| (trip.at, trip.took)),
            },
        );
        self.path_mtu.handle_way(
            id,
            Way {
                endpoint: status.endpoint,
                reachable: status.last_handshake.is_some()
                    && self.watch.reach(&id, now) == Reach::Reachable,
                sent: status.tx_bytes,
            },
        );
        if let Some(size) = answered.filter(|_| self.path_mtu.is_searching(&id)) {
            self.path_mtu.handle_answer(&id, size);
        }
        let limit = self.path_mtu.limit(&id);
        (limit != status.path_mtu).then_some(PathAction::Limit(id, limit))
    }

    /// Whether answers to sized probes are expected from this peer.
    pub(super) fn is_searching(&self, id: &PublicKey) -> bool {
        self.path_mtu.is_searching(id)
    }

    /// Returns what is to be done now, and whether the names have to be computed again, since other peers are reachable or
    /// other peers are near.
    pub(super) fn poll(&mut self, now: Instant) -> (Vec<PathAction>, bool) {
        self.next = self.next.map(|_| now + POLL_INTERVAL);
        let measured = self.distances.poll(now).into_iter().map(Action::Probe);
        let watched = self.watch.poll(now).into_iter().chain(measured);
        let mut actions: Vec<PathAction> = watched
            .map(|action| match action {
                Action::Probe(id) => PathAction::Probe(id),
                Action::Try(id, endpoint) => PathAction::Try(id, endpoint),
            })
            .collect();
        for action in &actions {
            match action {
                PathAction::Probe(id) => self.tried.handle_sent(*id, None, now),
                PathAction::Try(id, endpoint) => self.tried.handle_sent(*id, Some(*endpoint), now),
                PathAction::ProbeSizes(..) | PathAction::Limit(..) => {}
            }
        }
        let sized = self.path_mtu.poll(now).into_iter();
        actions.extend(sized.map(|Sizes(id, sizes)| PathAction::ProbeSizes(id, sizes)));
        let reach = self.peers.iter().map(|id| (*id, self.watch.reach(id, now)));
        self.reach = reach.collect();
        for (id, reach) in &self.reach {
            let turn = self
                .turns
                .handle_reach(*id, *reach, self.watch.heard(id), now);
            self.new_turns.extend(turn.map(|turn| (*id, turn)));
        }
        let lost = self.reach.iter().filter(|(_, r)| **r == Reach::Unreachable);
        let lost = lost.map(|(id, _)| *id).collect();
        let is_other = lost != self.unreachable;
        self.unreachable = lost;
        let is_regrouped = self.distances.publish(now);
        (actions, is_other || is_regrouped)
    }

    /// The peers that turned out to answer, or not to answer any more, since the last call.
    pub(super) fn take_turns(&mut self) -> Vec<(PublicKey, PeerTurn)> {
        std::mem::take(&mut self.new_turns)
    }

    /// When [`Paths::poll`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// The endpoint in use for a peer.
    pub(super) fn endpoint(&self, id: &PublicKey) -> Option<SocketAddr> {
        self.watch.endpoint(id)
    }

    /// What was known of each peer at the last poll.
    pub(super) fn reach(&self) -> &BTreeMap<PublicKey, Reach> {
        &self.reach
    }

    /// The peers that did not answer at the last poll.
    pub(super) fn unreachable(&self) -> &BTreeSet<PublicKey> {
        &self.unreachable
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// What was tried at the endpoints of the peers.
    pub(super) fn tried(&self) -> &Tried {
        &self.tried
    }

    pub(super) fn distances(&self) -> &Distances {
        &self.distances
    }

    /// The number of bytes of a packet to this peer that the path carries, as far as it is known.
    pub(super) fn limit(&self, id: &PublicKey) -> u16 {
        self.path_mtu.limit(id)
    }
}

#[cfg(test)]
mod tests;
