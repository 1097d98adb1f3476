//! A peer as the data plane holds it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Instant, SystemTime};

use super::device::PeerConfig;
use super::endpoint::Endpoint;
use super::noise::{Noise, StaticKeys};
use super::probe::Probes;
use super::timer::Live;

/// What is fixed for a peer's life, and the state behind its lock.
pub(super) struct Peer {
    pub(super) public_key: [u8; 32],
    /// A random 24-bit number that no other peer of the device has: receiver indices begin with it.
    pub(super) index: u32,
    /// Who it is, whatever its key: that of the peer it is the heir of.
    pub(super) member: u64,
    /// The key of this node that it speaks to, if that is not the present one.
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
    /// Made on first use: a peer that nobody talks to costs nothing.
    pub(super) noise: Option<Box<Noise>>,
    live: Arc<Live>,
    /// Whether the timers know of the peer.
    pub(super) is_live: bool,
    endpoint: Option<Endpoint>,
    /// The interface by which datagrams to the endpoint leave, once the kernel was asked.
    leaves_by: Option<u32>,
    /// An endpoint whose source was given up because the route from it changed.
    refused: Option<Endpoint>,
    /// Whether an initiation was sent since the last authentic datagram.
    unanswered: bool,
    pub(super) last_receive: Option<Instant>,
    pub(super) last_handshake: Option<SystemTime>,
    /// When a packet of the device was last sent to it, or waited for a session.
    pub(super) last_send: Option<Instant>,
    /// Octets of a packet that fit through the path; the device's own limit holds besides.
    pub(super) path_mtu: u16,
    /// When a handshake was last begun because the peer sent under a session we do not have.
    pub(super) revived: Option<Instant>,
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
                endpoint: config.endpoint.map(Endpoint::from),
                leaves_by: None,
                refused: None,
                unanswered: false,
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

    /// The state. A thread that panicked with it has ended the process.
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

    pub(super) fn count_rx(&self, octets: usize) {
        self.rx_bytes.fetch_add(octets as u64, Ordering::Relaxed);
    }

    pub(super) fn count_tx(&self, octets: usize) {
        self.tx_bytes.fetch_add(octets as u64, Ordering::Relaxed);
    }
}

impl PeerState {
    /// The Noise state, made now if there is none; its timers run from now on.
    pub(super) fn noise(&mut self, identity: &StaticKeys, index: u32, now: Instant) -> &mut Noise {
        if !self.is_live {
            self.is_live = true;
            self.live.add(index);
        }
        let config = &self.config;
        self.noise.get_or_insert_with(|| {
            Box::new(Noise::new(
                identity,
                config.public_key,
                config.preshared_key,
                config.persistent_keepalive,
                index,
                now,
            ))
        })
    }

    /// Ends all sessions; gives how many packets waited for one.
    pub(super) fn forget(&mut self) -> usize {
        self.noise.take().map_or(0, |noise| noise.waiting())
    }

    /// Where the peer is, as far as known.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint
    }

    /// Sends there from now on.
    pub(super) fn set_endpoint(&mut self, endpoint: Option<Endpoint>) {
        self.endpoint = endpoint;
        self.leaves_by = None;
        self.refused = None;
    }

    /// An authentic datagram came from there: the peer is there now (WireGuard section 2.1, roaming), and is sent to
    /// from the address at which it arrived. Gives whether the route from that address is to be asked for.
    pub(super) fn heard(&mut self, from: Endpoint, now: Instant) -> bool {
        self.last_receive = Some(now);
        self.unanswered = false;
        if self.endpoint == Some(from) {
            return false;
        }
        self.leaves_by = None;
        if self.refused == Some(from) {
            self.endpoint = Some(from.without_source());
            return false;
        }
        self.endpoint = Some(from);
        from.source.is_some()
    }

    /// Whether the route from the source is to be asked for.
    pub(super) fn wants_route(&self) -> bool {
        self.leaves_by.is_none()
            && self
                .endpoint
                .is_some_and(|endpoint| endpoint.source.is_some())
    }

    /// The endpoint whose source was given up, if one was.
    pub(super) fn refused(&self) -> Option<Endpoint> {
        self.refused
    }

    /// The kernel's answer for `endpoint`, if that is still in use: the interface by which datagrams to it leave, or
    /// that none leaves from its source. A source is given up when either changes.
    pub(super) fn note_route(&mut self, endpoint: Endpoint, leaves_by: Option<u32>) {
        if self.endpoint != Some(endpoint) {
            return;
        }
        match (leaves_by, self.leaves_by) {
            (None, _) => self.forget_source(),
            (Some(now), Some(before)) if now != before => {
                self.forget_source();
                // The peer may go on to send to the address for a while.
                self.refused = Some(endpoint);
            }
            (now, _) => self.leaves_by = now,
        }
    }

    /// The source that was given up may be used again.
    pub(super) fn accept(&mut self, endpoint: Endpoint) {
        self.refused.take_if(|refused| *refused == endpoint);
    }

    /// The timers send an initiation. If the one before was not answered, the source may be the reason: the kernel
    /// chooses another.
    pub(super) fn note_initiation(&mut self) {
        if std::mem::replace(&mut self.unanswered, true) {
            self.forget_source();
        }
    }

    /// Leaves the source of what is sent to the kernel, until the peer is heard again.
    pub(super) fn forget_source(&mut self) {
        self.endpoint = self.endpoint.map(Endpoint::without_source);
        self.leaves_by = None;
    }
}

#[cfg(test)]
pub(in crate::tunnel) mod tests {
    use super::super::endpoint::Source;
    use super::*;

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
    fn the_source_is_given_up_when_an_initiation_is_sent_again_without_an_answer() {
        let (peer, now) = (peer(), Instant::now());
        let mut state = peer.lock();
        state.heard(from(7), now);
        state.note_initiation();
        assert_eq!(state.endpoint(), Some(from(7)), "the first of its kind");
        state.heard(from(7), now);
        state.note_initiation();
        assert_eq!(state.endpoint(), Some(from(7)), "the last one was answered");
        state.note_initiation();
        assert_eq!(state.endpoint(), Some(from(7).without_source()));
    }

    #[test]
    fn the_route_is_asked_for_once_when_another_source_is_learnt() {
        let (peer, now) = (peer(), Instant::now());
        let mut state = peer.lock();
        assert!(state.heard(from(7), now) && state.wants_route());
        assert!(!state.heard(from(7), now));
        state.note_route(from(7), Some(2));
        assert!(!state.wants_route());
        assert!(state.heard(from(8), now) && state.wants_route());
        assert!(!state.heard(from(8).without_source(), now) && !state.wants_route());
    }

    #[test]
    fn a_source_whose_route_changed_is_not_learnt_again_from_what_the_peer_still_sends_there() {
        let (peer, now) = (peer(), Instant::now());
        let mut state = peer.lock();
        state.heard(from(7), now);
        // It arrived by another interface than it leaves by: that alone changes nothing.
        state.note_route(from(7), Some(3));
        state.note_route(from(7), Some(3));
        assert_eq!(state.endpoint(), Some(from(7)));
        state.note_route(from(7), Some(4));
        assert_eq!(state.endpoint(), Some(from(7).without_source()));
        assert!(!state.heard(from(7), now));
        assert_eq!(state.endpoint(), Some(from(7).without_source()));
        assert!(state.heard(from(8), now), "another is");
        state.accept(from(7));
        assert!(state.heard(from(7), now), "and this one once it may be");
    }

    #[test]
    fn a_source_without_a_route_is_given_up_until_it_is_heard_again() {
        let (peer, now) = (peer(), Instant::now());
        let mut state = peer.lock();
        state.heard(from(7), now);
        state.note_route(from(8), None);
        assert_eq!(state.endpoint(), Some(from(7)), "that was another's");
        state.note_route(from(7), None);
        assert_eq!(state.endpoint(), Some(from(7).without_source()));
        assert!(state.heard(from(7), now));
        assert_eq!(state.endpoint(), Some(from(7)));
    }

    #[test]
    fn setting_an_endpoint_leaves_the_source_to_the_kernel() {
        let (peer, now) = (peer(), Instant::now());
        let mut state = peer.lock();
        state.heard(from(7), now);
        state.set_endpoint(Some(from(7).address.into()));
        assert_eq!(state.endpoint(), Some(from(7).without_source()));
    }
}
