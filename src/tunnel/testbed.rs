//! The paths of a tunnel without sockets, threads, clocks and sessions, for the simulation of paths.
//!
//! The simulation replaces the shells of the data plane and WireGuard's sessions, whose implementation reads the system's clock. What
//! decides about paths is the product's: the table of paths, the probes, the messages, and the relay.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::config::PeerConfig;
use super::endpoint::Endpoint;
use super::incoming;
use super::limiter::OpeningLimit;
use super::paths::{Choice, LEAST_PATIENCE};
use super::peer::Peer;
use super::probe::Said;
use super::relay::{Header, RelayDrop, RelayLimit};
use super::relaying::{Relaying, destination_of};
use super::status::{PeerStatus, status};
use super::steering::{PathReport, report_of};
use super::used_relays::{self, UsableRelay, UsedRelays};
use crate::model::{NodeAddress, Path};
use crate::protocol::path_messages::{Message, PathMessage};

/// The paths of one node's tunnel. A peer is named by its mesh address; for an unknown one, nothing happens.
pub struct BareTunnel {
    peers: BTreeMap<NodeAddress, Peer>,
    relays: UsedRelays,
    relaying: Relaying,
    openings: OpeningLimit,
    news: Vec<NodeAddress>,
}

/// Where a datagram is sent, and the header of the frame around it if a relay forwards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The endpoint of the peer or of the relay.
    pub to: SocketAddr,
    /// The header of the frame.
    pub header: Option<Header>,
    /// The path that begins there.
    pub path: Path,
}

/// Where a datagram came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin(Endpoint);

impl Origin {
    /// The path by which it came.
    #[must_use]
    pub fn path(&self) -> Path {
        self.0.path()
    }

    /// Where an answer goes.
    #[must_use]
    pub fn hop(&self) -> Hop {
        Hop::of(self.0)
    }
}

impl Hop {
    fn of(endpoint: Endpoint) -> Self {
        Self {
            to: endpoint.address,
            header: endpoint.via.map(|via| via.header),
            path: endpoint.path(),
        }
    }
}

/// What becomes of a received datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It is for another node, and goes there.
    Forward(SocketAddr, Header),
    /// It is for this node.
    Own(Origin),
    /// It is a frame that this relay refuses, from an endpoint of this peer, which needs another tag.
    Refused(NodeAddress),
    /// It is dropped.
    Dropped,
}

/// What a datagram is that tests a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeTest {
    /// A probe of the peer, by the session with this number.
    Probe(u8),
    /// The answer to the probe with this number.
    Answer(u64),
}

impl BareTunnel {
    /// A tunnel without peers. It relays for the others within the limit, if there is one. `seed` is that of the relay's tags.
    #[must_use]
    pub fn new(seed: [u8; 32], limit: Option<RelayLimit>, now: Instant) -> Self {
        let relaying = Relaying::new(seed, now);
        relaying.lock().set_limit(limit, now);
        Self {
            peers: BTreeMap::new(),
            relays: HashMap::new(),
            relaying,
            openings: OpeningLimit::new(now),
            news: Vec::new(),
        }
    }

    /// Adds a peer of which no path is known.
    pub fn add_peer(&mut self, address: NodeAddress) {
        let number = u32::from(address.0);
        let config = PeerConfig {
            public_key: [0; 32],
            preshared_key: None,
            endpoint: None,
            allowed_ips: Vec::new(),
            persistent_keepalive: None,
        };
        let peer = Peer::new(config, number, u64::from(number), Arc::default());
        self.peers.entry(address).or_insert(peer);
    }

    /// The peers of whose paths there is news since the last call.
    pub fn take_news(&mut self) -> Vec<NodeAddress> {
        std::mem::take(&mut self.news)
    }

    fn add_news(&mut self, peer: NodeAddress, is_news: bool) {
        if is_news && !self.news.contains(&peer) {
            self.news.push(peer);
        }
    }

    /// See [`super::Steering::offer`].
    pub fn offer(&self, to: NodeAddress, paths: &[Path], opens: &[Path], now: Instant) {
        let endpoint_of = |path: &Path| match path {
            Path::Direct(endpoint) => Some(Endpoint::from(*endpoint)),
            Path::Relay(relay) => used_relays::through(&self.relays, *relay, to),
            Path::Stream(_) => None,
        };
        let of =
            |paths: &[Path]| -> Vec<Endpoint> { paths.iter().filter_map(endpoint_of).collect() };
        if let Some(peer) = self.peers.get(&to) {
            let mut state = peer.lock();
            state.paths.set_choice(Choice::Steered);
            state.paths.offer(&of(paths), &of(opens), now);
        }
    }

    /// Nothing answers by the path in use. The next initiation leaves by all paths that were offered for it.
    pub fn open(&self, peer: NodeAddress) {
        if let Some(peer) = self.peers.get(&peer) {
            peer.lock().paths.open();
        }
    }

    /// See [`super::Steering::use_path`].
    pub fn use_path(&self, peer: NodeAddress, path: &Path, gap: Option<Duration>, now: Instant) {
        if let Some(peer) = self.peers.get(&peer) {
            peer.lock().paths.use_path(path, gap, now);
        }
    }

    /// See [`super::Steering::set_patience`] and [`super::Steering::arm`].
    pub fn watch(&self, peer: NodeAddress, patience: Option<Duration>, heard: bool, sent: bool) {
        if let Some(peer) = self.peers.get(&peer) {
            let reports = &mut peer.lock().paths.reports;
            reports.patience = patience.map_or(reports.patience, |least| least.max(LEAST_PATIENCE));
            reports.heard |= heard;
            reports.sent |= sent;
        }
    }

    /// See [`super::Steering::set_relays`].
    pub fn set_relays(&mut self, relays: &[UsableRelay]) {
        self.relays = used_relays::by_endpoint(relays);
        for peer in self.peers.values() {
            for entry in peer.lock().paths.entries_mut() {
                if let Some(endpoint) = used_relays::followed(&self.relays, &entry.endpoint) {
                    entry.renew(&endpoint);
                }
            }
        }
    }

    /// See [`super::OwnRelay::handle_paths`].
    pub fn relay_for(&self, member: NodeAddress, endpoints: &[SocketAddr], now: Instant) {
        let mut relay = self.relaying.lock();
        relay.handle_paths(member.0, endpoints, now);
        relay.handle_timeout(now);
    }

    /// See [`super::Steering::report`].
    #[must_use]
    pub fn report(&self, peer: NodeAddress) -> Option<PathReport> {
        self.peers.get(&peer).map(report_of)
    }

    /// The state of a peer.
    #[must_use]
    pub fn status(&self, peer: NodeAddress, wall: SystemTime) -> Option<PeerStatus> {
        let peer = self.peers.get(&peer)?;
        Some(status(peer, wall))
    }

    /// A datagram of so many bytes arrived from there, in a frame with this header if it has one.
    pub fn accept(
        &self,
        from: SocketAddr,
        header: Option<Header>,
        bytes: usize,
        now: Instant,
    ) -> Arrival {
        let Some(header) = header else {
            return Arrival::Own(Origin(from.into()));
        };
        if header.tag.is_none() {
            let origin = used_relays::sender_of(&self.relays, header, from.into());
            return origin.map_or(Arrival::Dropped, |origin| Arrival::Own(Origin(origin)));
        }
        let decided = self.relaying.lock().decide(
            header,
            from,
            bytes,
            |label, is_present| destination_of(self.peers.get(&NodeAddress(label))?, is_present),
            now,
        );
        match decided {
            Ok(forward) => Arrival::Forward(forward.to.address, forward.header),
            Err(RelayDrop::UnknownSource | RelayDrop::BadTag) => {
                let path = Path::Direct(from);
                let is_there = |peer: &Peer| peer.lock().paths.endpoint_of(&path).is_some();
                let mut peers = self.peers.iter().filter(|(_, peer)| is_there(peer));
                let found = peers.next().map(|(address, _)| *address);
                found.map_or(Arrival::Dropped, Arrival::Refused)
            }
            Err(_) => Arrival::Dropped,
        }
    }

    /// An authentic datagram of a peer arrived from there.
    pub fn handle_received(&mut self, peer: NodeAddress, origin: Origin, now: Instant) {
        let Some(state) = self.peers.get(&peer) else {
            return;
        };
        let received = state.lock().handle_received(origin.0, now);
        self.add_news(peer, received.is_news);
    }

    /// A handshake message of a peer arrived from there. `established` says at which time a session began with it.
    pub fn handle_handshake(
        &mut self,
        peer: NodeAddress,
        origin: Origin,
        established: Option<SystemTime>,
    ) {
        if let Some(peer) = self.peers.get(&peer) {
            let mut state = peer.lock();
            state.last_handshake = established.or(state.last_handshake);
            peer.probes().handle_handshake();
            // The session is used once the peer has sent by it.
            state.paths.reports.heard |= established.is_none();
            if state.endpoint().is_none() {
                state.paths.set_endpoint(Some(origin.0));
            }
        }
        self.add_news(peer, established.is_some());
    }

    /// A message about paths arrived from there, by the session with this number. Returns its answer, and where that goes.
    pub fn handle_message(
        &mut self,
        peer: NodeAddress,
        origin: Origin,
        (payload, session): (&[u8], u8),
        now: Instant,
    ) -> Option<(PathMessage, Hop)> {
        let state = self.peers.get(&peer)?;
        let PathMessage { nonce, message } = PathMessage::parse(payload).ok()?;
        if let Message::Probe(probe) = message {
            let asked = (IpAddr::V4(peer.0), probe);
            let echo = incoming::echo_of(&self.relaying, asked, origin.0, now);
            let mut state = state.lock();
            state.paths.wait.handle_probe(session);
            let to = state.paths.endpoint_of(&origin.path())?;
            let message = Message::Echo(echo);
            let answer = PathMessage { nonce, message };
            return probe.pays_for_its_echo().then_some((answer, Hop::of(to)));
        }
        let is_news = incoming::note(&mut state.probes(), nonce, message, origin.0, now);
        self.add_news(peer, is_news);
        None
    }

    /// A datagram that tests a size arrived from there.
    pub fn handle_size_test(
        &mut self,
        peer: NodeAddress,
        origin: Origin,
        test: SizeTest,
        now: Instant,
    ) {
        let Some(state) = self.peers.get(&peer) else {
            return;
        };
        let nonce = match test {
            SizeTest::Probe(session) => return state.lock().paths.wait.handle_probe(session),
            SizeTest::Answer(nonce) => nonce,
        };
        let mut probes = state.probes();
        let rtt = probes.round_trip(nonce, now);
        if let Some(rtt) = rtt {
            probes.handle_answer(nonce, origin.path(), rtt, now);
        }
        drop(probes);
        self.add_news(peer, rtt.is_some());
    }

    /// What a peer said about paths since the last call.
    #[must_use]
    pub fn take_said(&self, peer: NodeAddress) -> Said {
        let peer = self.peers.get(&peer);
        peer.map_or_else(Said::default, |peer| peer.probes().take_said())
    }

    /// The largest size that was answered since the last call.
    #[must_use]
    pub fn take_answered_size(&self, peer: NodeAddress) -> Option<u16> {
        self.peers.get(&peer)?.probes().take_answered_size()
    }

    /// Refuses packets to a peer of more than `bytes` by the path in use.
    pub fn set_path_mtu(&self, peer: NodeAddress, bytes: u16) {
        if let Some(peer) = self.peers.get(&peer) {
            peer.lock().paths.set_mtu(bytes);
        }
    }

    /// Where datagrams to a peer are sent: by `path` if it is given, else by the path in use.
    #[must_use]
    pub fn hop(&self, peer: NodeAddress, path: Option<&Path>) -> Option<Hop> {
        let state = self.peers.get(&peer)?.lock();
        let endpoint = match path {
            None => state.endpoint(),
            Some(path) => state.paths.endpoint_of(path),
        };
        endpoint.map(Hop::of)
    }

    /// An initiation is made for the path in use. Returns where it is sent. `is_repeated` says whether a timer made it.
    #[must_use]
    pub fn initiate(&mut self, peer: NodeAddress, is_repeated: bool, now: Instant) -> Vec<Hop> {
        let Some(peer) = self.peers.get(&peer) else {
            return Vec::new();
        };
        let mut state = peer.lock();
        if is_repeated {
            state.paths.handle_initiation();
        }
        let Some(to) = state.endpoint() else {
            return Vec::new();
        };
        let admit = |address| self.openings.admit(address, now);
        let endpoints = state.paths.openings(&to, admit, now);
        endpoints.into_iter().map(Hop::of).collect()
    }

    /// A packet of the device is about to be sent to a peer.
    pub fn handle_sent(&mut self, peer: NodeAddress, now: Instant) {
        let Some(state) = self.peers.get(&peer) else {
            return;
        };
        let mut state = state.lock();
        let last = state.last_send.replace(now);
        let is_news = state.paths.handle_sent(last, now);
        drop(state);
        self.add_news(peer, is_news);
    }

    /// A probe with this number was made. It left by `path`, or waits for a session. One with a size tests whether that fits.
    pub fn handle_probe(
        &self,
        peer: NodeAddress,
        nonce: u64,
        path: Option<Path>,
        size: Option<u16>,
        now: Instant,
    ) {
        if let Some(peer) = self.peers.get(&peer) {
            match size {
                None => peer.probes().handle_probe(nonce, now, path),
                Some(size) => peer.probes().handle_sized_probe(nonce, now, size),
            }
        }
    }

    /// The timers of the paths run. Returns when they are due again at the latest.
    pub fn handle_time(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut news = Vec::new();
        for (address, peer) in &self.peers {
            let (is_due, deadline) = peer.lock().paths.handle_time(now);
            news.extend(is_due.then_some(*address));
            next = deadline.into_iter().chain(next).min();
        }
        for address in news {
            self.add_news(address, true);
        }
        next
    }
}

impl std::fmt::Debug for BareTunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BareTunnel").finish_non_exhaustive()
    }
}
