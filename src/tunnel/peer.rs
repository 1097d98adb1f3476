//! A peer as the data plane has it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Instant, SystemTime};

use super::config::PeerConfig;
use super::endpoint::Endpoint;
use super::keys::StaticKeys;
use super::live::Live;
use super::noise::Noise;
use super::probe::Probes;

/// The properties of a peer that never change, and the state behind its lock.
pub(super) struct Peer {
    pub(super) public_key: [u8; 32],
    /// A random 24-bit number that no other peer of the device has: receiver indices begin with it.
    pub(super) index: u32,
    /// The number of the member that the peer belongs to. The current and the retired peers of a member share it.
    pub(super) member: u64,
    /// The keys of this node that it has its sessions with, if they are not the present ones.
    pub(super) bound: OnceLock<Arc<StaticKeys>>,
    pub(super) rx_bytes: AtomicU64,
    pub(super) tx_bytes: AtomicU64,
    /// The probes of the member, which its current and its retired peers share. A thread that needs both locks takes the
    /// lock of the state first.
    pub(super) probes: Arc<Mutex<Probes>>,
    state: Mutex<PeerState>,
}

pub(super) struct PeerState {
    pub(super) config: PeerConfig,
    /// Made on first use, so that an idle peer costs nothing.
    pub(super) noise: Option<Box<Noise>>,
    live: Arc<Live>,
    /// Whether the peer's timers run.
    pub(super) is_live: bool,
    route: Route,
    pub(super) last_receive: Option<Instant>,
    pub(super) last_handshake: Option<SystemTime>,
    /// When a packet of the device was last sent to the peer, or began to wait for a session.
    pub(super) last_send: Option<Instant>,
    /// The size in bytes of the largest packet that fits through the path. The device's MTU applies as well.
    pub(super) path_mtu: u16,
    /// When a handshake was last started because the peer used a session that this node does not have.
    pub(super) revived: Option<Instant>,
}

/// The endpoint and the route of datagrams to the peer.
#[derive(Default)]
struct Route {
    endpoint: Option<Endpoint>,
    /// The interface by which datagrams to the endpoint leave, once it was looked up.
    leaves_by: Option<u32>,
    /// An endpoint whose source was given up because the route from it changed.
    refused: Option<Endpoint>,
    /// Whether an initiation was sent since the last authentic datagram.
    unanswered: bool,
}

impl Peer {
    pub(super) fn new(config: PeerConfig, index: u32, member: u64, live: Arc<Live>) -> Self {
        Self {
            public_key: config.public_key,
            index,
            member,
            bound: OnceLock::new(),
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
            probes: Arc::default(),
            state: Mutex::new(PeerState {
                route: Route {
                    endpoint: config.endpoint.map(Endpoint::from),
                    ..Route::default()
                },
                config,
                noise: None,
                live,
                is_live: false,
                last_receive: None,
                last_handshake: None,
                last_send: None,
                path_mtu: u16::MAX,
                revived: None,
            }),
        }
    }

    /// The peer that takes the place of this one, with another public key: the same member, the same path, no session.
    pub(super) fn successor(&self, public_key: [u8; 32], index: u32) -> Self {
        let before = self.lock();
        let config = PeerConfig {
            public_key,
            ..before.config.clone()
        };
        let live = Arc::clone(&before.live);
        let mut successor = Self::new(config, index, self.member, live);
        successor.probes = Arc::clone(&self.probes);
        let mut state = successor.lock();
        state.set_endpoint(before.endpoint());
        state.path_mtu = before.path_mtu;
        drop(state);
        successor
    }

    /// Locks the state. A thread that panicked while it held the lock has ended the process.
    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Locks the probes of the member.
    pub(super) fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[inline]
    pub(super) fn count_rx(&self, bytes: usize) {
        self.rx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn count_tx(&self, bytes: usize) {
        self.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl PeerState {
    /// The Noise state, which is made now if there is none. Its timers run from now on.
    #[inline]
    pub(super) fn noise(&mut self, keys: &StaticKeys, index: u32, now: Instant) -> &mut Noise {
        if !self.is_live {
            self.is_live = true;
            self.live.add(index);
        }
        let config = &self.config;
        self.noise.get_or_insert_with(|| {
            Box::new(Noise::new(
                keys,
                config.public_key,
                config.preshared_key,
                config.persistent_keepalive,
                index,
                now,
            ))
        })
    }

    /// Whether there is a session to send under.
    pub(super) fn has_session(&self) -> bool {
        let noise = self.noise.as_ref();
        noise.is_some_and(|noise| noise.session_age().is_some())
    }

    /// Ends all sessions and returns how many packets waited for one.
    pub(super) fn forget(&mut self) -> usize {
        self.noise.take().map_or(0, |noise| noise.waiting())
    }

    /// The endpoint, if one is known.
    #[inline]
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        self.route.endpoint
    }

    /// Sends to another endpoint from now on.
    pub(super) fn set_endpoint(&mut self, endpoint: Option<Endpoint>) {
        self.route.endpoint = endpoint;
        self.route.leaves_by = None;
        self.route.refused = None;
    }

    /// An authentic datagram was received from there. It becomes the endpoint (WireGuard section 2.1, roaming), and datagrams
    /// to the peer leave from the address at which this one arrived. Returns whether the route from that address is to be
    /// looked up.
    #[inline]
    pub(super) fn handle_received(&mut self, from: Endpoint, now: Instant) -> bool {
        self.last_receive = Some(now);
        self.route.unanswered = false;
        if self.route.endpoint == Some(from) {
            return false;
        }
        self.route.leaves_by = None;
        if self.route.refused == Some(from) {
            self.route.endpoint = Some(from.without_source());
            return false;
        }
        self.route.endpoint = Some(from);
        from.source.is_some()
    }

    /// Whether the route from the source is to be looked up.
    pub(super) fn wants_route(&self) -> bool {
        self.route.leaves_by.is_none()
            && self
                .route
                .endpoint
                .is_some_and(|endpoint| endpoint.source.is_some())
    }

    /// The endpoint whose source was given up, if one was.
    pub(super) fn refused(&self) -> Option<Endpoint> {
        self.route.refused
    }

    /// The route to `endpoint` was looked up: the interface by which datagrams leave, or none if there is no route from its
    /// source. The source is given up if there is no route, or if the interface has changed.
    pub(super) fn handle_route(&mut self, endpoint: Endpoint, leaves_by: Option<u32>) {
        if self.route.endpoint != Some(endpoint) {
            return;
        }
        match (leaves_by, self.route.leaves_by) {
            (None, _) => self.forget_source(),
            (Some(now), Some(before)) if now != before => {
                self.forget_source();
                // The peer may still send to the old address for a while.
                self.route.refused = Some(endpoint);
            }
            (now, _) => self.route.leaves_by = now,
        }
    }

    /// Lets the source of `endpoint` be used again if it was given up.
    pub(super) fn accept(&mut self, endpoint: Endpoint) {
        self.route.refused.take_if(|refused| *refused == endpoint);
    }

    /// The timers send an initiation. If the one before was not answered, the source may be the reason, so the kernel
    /// chooses another one.
    pub(super) fn handle_initiation(&mut self) {
        if std::mem::replace(&mut self.route.unanswered, true) {
            self.forget_source();
        }
    }

    /// Lets the kernel choose the source, until the next authentic datagram of the peer.
    pub(super) fn forget_source(&mut self) {
        self.route.endpoint = self.route.endpoint.map(Endpoint::without_source);
        self.route.leaves_by = None;
    }
}

#[cfg(test)]
pub(in crate::tunnel) mod tests {
    use super::*;
    use crate::os::batch::Source;

    /// A peer without an endpoint.
    pub(in crate::tunnel) fn peer() -> Peer {
        let config = PeerConfig {
            public_key: [1; 32],
            preshared_key: None,
            endpoint: None,
            allowed_ips: Vec::new(),
            persistent_keepalive: None,
        };
        Peer::new(config, 1, 1, Arc::default())
    }

    fn from(last: u8) -> Endpoint {
        Endpoint {
            address: ([192, 0, 2, 1], 51820).into(),
            source: Some(Source {
                address: [192, 0, 2, last].into(),
                interface: 2,
            }),
        }
    }

    #[test]
    fn the_source_is_given_up_when_an_initiation_is_repeated_without_an_answer() {
        let (peer, now) = (peer(), Instant::now());
        let mut state = peer.lock();
        state.handle_received(from(7), now);
        state.handle_initiation();
        assert_eq!(state.endpoint(), Some(from(7)), "the first initiation");
        state.handle_received(from(7), now);
        state.handle_initiation();
        assert_eq!(state.endpoint(), Some(from(7)), "the last one was answered");
        state.handle_initiation();
        assert_eq!(state.endpoint(), Some(from(7).without_source()));
    }

    #[test]
    fn the_route_is_looked_up_once_for_each_new_source() {
        let (peer, now) = (peer(), Instant::now());
        let mut state = peer.lock();
        assert!(state.handle_received(from(7), now) && state.wants_route());
        assert!(!state.handle_received(from(7), now));
        state.handle_route(from(7), Some(2));
        assert!(!state.wants_route());
        assert!(state.handle_received(from(8), now) && state.wants_route());
        assert!(!state.handle_received(from(8).without_source(), now) && !state.wants_route());
    }

    #[test]
    fn a_source_whose_route_changed_is_not_learnt_again_from_datagrams_that_still_arrive_there() {
        let (peer, now) = (peer(), Instant::now());
        let mut state = peer.lock();
        state.handle_received(from(7), now);
        // Datagrams arrive at one interface and leave by another: that alone changes nothing.
        state.handle_route(from(7), Some(3));
        state.handle_route(from(7), Some(3));
        assert_eq!(state.endpoint(), Some(from(7)));
        state.handle_route(from(7), Some(4));
        assert_eq!(state.endpoint(), Some(from(7).without_source()));
        assert!(!state.handle_received(from(7), now));
        assert_eq!(state.endpoint(), Some(from(7).without_source()));
        assert!(
            state.handle_received(from(8), now),
            "another source is learnt"
        );
        state.accept(from(7));
        assert!(
            state.handle_received(from(7), now),
            "and this one once it is accepted"
        );
    }

    #[test]
    fn a_source_without_a_route_is_given_up_until_the_next_datagram_arrives_there() {
        let (peer, now) = (peer(), Instant::now());
        let mut state = peer.lock();
        state.handle_received(from(7), now);
        state.handle_route(from(8), None);
        assert_eq!(
            state.endpoint(),
            Some(from(7)),
            "the answer is about another source"
        );
        state.handle_route(from(7), None);
        assert_eq!(state.endpoint(), Some(from(7).without_source()));
        assert!(state.handle_received(from(7), now));
        assert_eq!(state.endpoint(), Some(from(7)));
    }

    #[test]
    fn setting_an_endpoint_leaves_the_source_to_the_kernel() {
        let (peer, now) = (peer(), Instant::now());
        let mut state = peer.lock();
        state.handle_received(from(7), now);
        state.set_endpoint(Some(from(7).address.into()));
        assert_eq!(state.endpoint(), Some(from(7).without_source()));
    }
}
