//! The paths to the peers: by which path each peer is reached, whether it answers, how far away it is, and how large packets to it
//! may be. Pure.
//!
//! [`Paths`] joins the state machines of [`crate::path`]. Its input is the state of the peers in the tunnel, its outputs are
//! [`PathAction`]s that the caller carries out on the tunnel. The state is read when a machine has something to do
//! ([`Paths::poll_timeout`]) and when the tunnel reports that the state of a peer has changed. The machines for all peers are polled at
//! most once in [`POLL_INTERVAL`]; the paths of a single peer are polled at once.
//!
//! The paths of a peer that sends messages about paths are chosen here. The path to any other peer is the one of its last packet,
//! and while no packet comes from such a peer, its endpoints are tried in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use steered::{SteerAction, SteeredPeer};

use super::transitions::peers::{PeerTurn, PeerTurns};
use crate::model::{NodeAddress, Path, PublicKey};
use crate::path::distance::Seen;
use crate::path::mtu::{Sizes, Way};
use crate::path::peer::Action as Steer;
use crate::path::watch::{Action, Reach, Watch};
use crate::path::{Distances, PathChanges, PathMtu, Peers, Tried};
use crate::protocol::path_messages::ByeReason;
use crate::tunnel::{PathReport, PeerStatus};

mod relays;
mod steered;

use steered::Steered;

/// The least time between two polls of all peers.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The state of all peers is read at least so often: the machines do not know of every packet.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A peer, as the paths have to know it.
#[derive(Debug, Clone)]
pub struct PathPeer {
    pub id: PublicKey,
    /// Where it may be reached, the best endpoint first.
    pub endpoints: Vec<SocketAddr>,
    /// Whether it serves a service: then it is watched more closely.
    pub serves: bool,
    /// The paths by which it may be reached. None if it does not speak of paths.
    pub steered: Option<SteeredPeer>,
}

/// Something that the caller does with the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathAction {
    /// Send a probe.
    Probe(PublicKey),
    /// Send to this endpoint from now on, and start a handshake.
    Try(PublicKey, SocketAddr),
    /// Send probes of these sizes, in bytes of the packet in the tunnel.
    ProbeSizes(PublicKey, Vec<u16>),
    /// Refuse packets of more bytes to this peer.
    Limit(PublicKey, u16),
    /// Report the next datagram from this peer, the next packet to it, or both.
    Arm(PublicKey, bool, bool),
}

/// What the paths are at a moment.
#[derive(Debug)]
pub struct Paths {
    watch: Watch,
    path_mtu: PathMtu,
    distances: Distances,
    steered: Steered,
    peers: BTreeSet<PublicKey>,
    reach: BTreeMap<PublicKey, Reach>,
    unreachable: BTreeSet<PublicKey>,
    turns: Turns,
    tried: Tried,
    /// The paths that packets take, and how often they took others.
    pub(super) changes: PathChanges,
    /// When the machines that look at all peers are polled next, if there is a peer.
    next: Option<Instant>,
    polled: Option<Instant>,
}

/// Which peers turned out to answer, or not to answer any more.
#[derive(Debug, Default)]
struct Turns {
    peers: PeerTurns,
    /// The transitions that were not taken yet.
    new: Vec<(PublicKey, PeerTurn)>,
}

impl Paths {
    /// No packet is larger than `mtu` bytes, the MTU of the tunnel device. Peers are reached through relays if `uses_relays`.
    pub fn new(mtu: u16, uses_relays: bool) -> Self {
        Self {
            watch: Watch::default(),
            path_mtu: PathMtu::new(mtu),
            distances: Distances::default(),
            steered: Steered::new(uses_relays),
            peers: BTreeSet::new(),
            reach: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            turns: Turns::default(),
            tried: Tried::default(),
            changes: PathChanges::default(),
            next: None,
            polled: None,
        }
    }

    /// Sets the peers. The state of those that stay is kept. A new peer brings the next poll forward: the first handshake
    /// of that peer may have arrived before this node knew it, and was dropped, so this node sends one without delay.
    pub fn set_peers(&mut self, peers: Vec<PathPeer>, now: Instant) {
        let ids: BTreeSet<PublicKey> = peers.iter().map(|peer| peer.id).collect();
        self.path_mtu.retain(|id| ids.contains(id));
        self.distances.retain(|id| ids.contains(id));
        self.tried.retain(|id| ids.contains(id));
        self.changes.retain(|id| ids.contains(id));
        self.turns.peers.retain(&ids);
        let is_new = !ids.is_subset(&self.peers);
        self.next = if is_new { Some(now) } else { self.next };
        self.next = self.next.filter(|_| !ids.is_empty());
        let steered = peers
            .iter()
            .filter_map(|p| Some((p.id, p.steered.clone()?)));
        let steered = steered.collect();
        self.steered.set(steered, |id| ids.contains(id), now);
        self.peers = ids;
        let peers = peers.into_iter().map(|peer| {
            // The endpoints of a peer whose path is chosen here are among its candidates.
            let is_steered = peer.steered.is_some();
            let endpoints = (!is_steered).then_some(peer.endpoints);
            (peer.id, endpoints.unwrap_or_default(), peer.serves)
        });
        self.watch.set_peers(peers, now);
    }

    /// The addresses of this machine have changed.
    pub fn handle_network_changed(&mut self, now: Instant) {
        self.steered.paths_mut().handle_network_changed(now);
    }

    /// The tunnel reports that the state of peers has changed. The state of all peers is read soon.
    pub fn handle_news(&mut self, now: Instant) {
        let soon = self.polled.map_or(now, |at| now.max(at + POLL_INTERVAL));
        self.next = self.next.map(|next| next.min(soon));
    }

    /// The peers of which [`Paths::poll_steered`] needs a report now.
    pub fn reports_due(&self, now: Instant) -> Vec<PublicKey> {
        self.steered.paths().due(now)
    }

    /// The paths to a peer, as the tunnel has them.
    pub fn handle_report(&mut self, id: &PublicKey, report: &PathReport, now: Instant) {
        self.steered.handle_report(id, report, now);
        if self.steered.contains(id) {
            self.changes.handle_path(*id, report.primary);
            for seen in &report.paths {
                self.tried
                    .handle_report(*id, seen.path, seen.heard, seen.answers);
            }
        }
    }

    /// What is to be done now with the paths of single peers.
    pub fn poll_steered(&mut self, now: Instant) -> Vec<SteerAction> {
        let actions = self.steered.poll(now);
        for action in &actions {
            let SteerAction::Steer(id, action) = action else {
                continue;
            };
            match action {
                Steer::Offer(_, opens) => self.tried.handle_offered(*id, opens.clone()),
                Steer::Open => self.tried.handle_opened(*id, now),
                Steer::Probe(path) => self.tried.handle_sent(*id, Some(*path), now),
                Steer::Use(path, _) => self.tried.handle_used(*id, *path, now),
                Steer::Watch(..) => {}
            }
        }
        actions
    }

    /// Whether [`Paths::poll`] is due, before which the state of all peers is read.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|at| at <= now)
    }

    /// The state of a peer in the tunnel. `answered` is the largest sized probe that it answered since the last call, which is
    /// of use only while [`Paths::is_searching`].
    pub fn handle_peer_status(
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
        self.changes.handle_path(id, status.path);
        if let Some(path) = status.path {
            self.tried.handle_used(id, path, now);
        }
        if let Some(at) = status.last_receive.filter(|_| !self.steered.contains(&id)) {
            self.tried.handle_followed(id, at);
        }
        self.distances.handle_seen(
            id,
            Seen {
                path: status.path,
                heard: status.last_receive,
                sent: status.last_send,
                serves,
                round_trip: status.round_trip.map(|trip| (trip.at, trip.took)),
            },
        );
        self.path_mtu.handle_way(
            id,
            Way {
                path: status.path,
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
    pub fn is_searching(&self, id: &PublicKey) -> bool {
        self.path_mtu.is_searching(id)
    }

    /// Returns what is to be done now, and whether the names have to be computed again, since other peers are reachable or
    /// other peers are near.
    pub fn poll(&mut self, now: Instant) -> (Vec<PathAction>, bool) {
        self.polled = Some(now);
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
                PathAction::Probe(id) => {
                    self.steered.paths_mut().handle_probed(id, now);
                    self.tried.handle_sent(*id, None, now);
                }
                PathAction::Try(id, endpoint) => {
                    self.tried.handle_used(*id, Path::Direct(*endpoint), now);
                    self.tried.handle_sent(*id, None, now);
                }
                PathAction::ProbeSizes(..) | PathAction::Limit(..) | PathAction::Arm(..) => {}
            }
        }
        // No packet shows that the path to an idle peer has failed, so its probes do.
        for id in self.peers.iter().filter(|id| self.watch.is_silent(id, now)) {
            self.steered.paths_mut().handle_doubt(id, now);
        }
        let sized = self.path_mtu.poll(now).into_iter();
        actions.extend(sized.map(|Sizes(id, sizes)| PathAction::ProbeSizes(id, sizes)));
        let reach = self.peers.iter().map(|id| (*id, self.watch.reach(id, now)));
        self.reach = reach.collect();
        for (id, reach) in &self.reach {
            let turn = self
                .turns
                .peers
                .handle_reach(*id, *reach, self.watch.heard(id), now);
            self.turns.new.extend(turn.map(|turn| (*id, turn)));
        }
        let lost = self.reach.iter().filter(|(_, r)| **r == Reach::Unreachable);
        let lost = lost.map(|(id, _)| *id).collect();
        let is_other = lost != self.unreachable;
        self.unreachable = lost;
        let is_regrouped = self.distances.publish(now);
        actions.extend(arms(&self.reach, &self.watch));
        self.next = self.next.map(|_| self.next_poll(now));
        (actions, is_other || is_regrouped)
    }

    /// When all peers are polled again, after a poll at `now`.
    fn next_poll(&self, now: Instant) -> Instant {
        let machines = [
            self.watch.poll_timeout(now),
            self.distances.poll_timeout(now),
            self.path_mtu.poll_timeout(now),
        ];
        let next = machines.into_iter().flatten().min();
        let latest = now + LONGEST_PAUSE;
        next.map_or(latest, |at| at.clamp(now + POLL_INTERVAL, latest))
    }

    /// The peers that turned out to answer, or not to answer any more, since the last call.
    pub(super) fn take_turns(&mut self) -> Vec<(PublicKey, PeerTurn)> {
        std::mem::take(&mut self.turns.new)
    }

    /// When [`Paths::poll`] or [`Paths::poll_steered`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let steered = self.steered.poll_timeout();
        self.next.into_iter().chain(steered).min()
    }

    /// Streams to these nodes are open.
    pub(super) fn set_streams(&mut self, streams: BTreeSet<NodeAddress>, now: Instant) {
        self.steered.set_streams(streams, now);
    }

    /// A peer expects probes by these paths.
    pub fn handle_consent(&mut self, id: &PublicKey, paths: &[Path], now: Instant) {
        self.steered.paths_mut().handle_consent(id, paths, now);
    }

    /// A peer has sent the round trips to the relays that it can use.
    pub fn handle_relays(
        &mut self,
        id: &PublicKey,
        trips: Vec<(NodeAddress, Duration)>,
        now: Instant,
    ) {
        self.steered.handle_relays(id, trips, now);
    }

    /// The peer stops, or changes its network.
    pub fn handle_bye(&mut self, id: &PublicKey, reason: ByeReason, now: Instant) {
        self.steered.handle_bye(id, reason, now);
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

    /// What was tried by the paths to the peers.
    pub(super) fn tried(&self) -> &Tried {
        &self.tried
    }

    /// The peers whose paths are chosen here.
    pub fn steered(&self) -> &Peers {
        self.steered.paths()
    }

    pub(super) fn distances(&self) -> &Distances {
        &self.distances
    }

    /// The number of bytes of a packet to this peer that the path carries, as far as it is known.
    pub(super) fn limit(&self, id: &PublicKey) -> u16 {
        self.path_mtu.limit(id)
    }
}

/// What the tunnel is to report because it changes when a peer is probed, or whether it is reachable.
fn arms(reach: &BTreeMap<PublicKey, Reach>, watch: &Watch) -> impl Iterator<Item = PathAction> {
    reach.iter().filter_map(|(id, reach)| {
        let heard = *reach != Reach::Reachable;
        let sent = watch.is_idle(id);
        (heard || sent).then_some(PathAction::Arm(*id, heard, sent))
    })
}

#[cfg(test)]
mod tests;
