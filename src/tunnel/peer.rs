//! A peer as the data plane holds it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use super::device::PeerConfig;
use super::noise::{Identity, Noise};
use super::timer::Live;

/// What is fixed for a peer's life, and the state behind its lock.
pub(super) struct Peer {
    pub(super) public_key: [u8; 32],
    /// A random 24-bit number that no other peer of the device has: receiver indices begin with it.
    pub(super) index: u32,
    /// Who it is, whatever its key: that of the peer it is the heir of.
    pub(super) member: u64,
    /// The key of this node that it speaks to, if that is not the present one.
    pub(super) bound: OnceLock<Arc<Identity>>,
    pub(super) rx_bytes: AtomicU64,
    pub(super) tx_bytes: AtomicU64,
    state: Mutex<PeerState>,
}

pub(super) struct PeerState {
    pub(super) config: PeerConfig,
    /// Made on first use: a peer that nobody talks to costs nothing.
    pub(super) noise: Option<Box<Noise>>,
    live: Arc<Live>,
    /// Whether the timers know of the peer.
    pub(super) is_live: bool,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) last_receive: Option<Instant>,
    pub(super) last_handshake: Option<SystemTime>,
    pub(super) rtt: Option<Duration>,
    /// Octets of a packet that fit through the path; the device's own limit holds besides.
    pub(super) path_mtu: u16,
    /// The largest probe answered since somebody last asked.
    pub(super) answered_size: Option<u16>,
    /// When the last probe was answered.
    pub(super) answered: Option<Instant>,
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
            state: Mutex::new(PeerState {
                endpoint: config.endpoint,
                config,
                noise: None,
                live,
                is_live: false,
                last_receive: None,
                last_handshake: None,
                rtt: None,
                path_mtu: u16::MAX,
                answered_size: None,
                answered: None,
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

    pub(super) fn count_rx(&self, octets: usize) {
        self.rx_bytes.fetch_add(octets as u64, Ordering::Relaxed);
    }

    pub(super) fn count_tx(&self, octets: usize) {
        self.tx_bytes.fetch_add(octets as u64, Ordering::Relaxed);
    }
}

impl PeerState {
    /// The Noise state, made now if there is none; its timers run from now on.
    pub(super) fn noise(&mut self, identity: &Identity, index: u32, now: Instant) -> &mut Noise {
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

    /// An authentic datagram came from `source`: the peer is there now (WireGuard section 2.1, roaming).
    pub(super) fn heard(&mut self, source: SocketAddr, now: Instant) {
        self.endpoint = Some(source);
        self.last_receive = Some(now);
    }
}
