//! A peer as the data plane has it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Instant, SystemTime};

use super::config::PeerConfig;
use super::endpoint::Endpoint;
use super::keys::StaticKeys;
use super::live::Live;
use super::noise::Noise;
use super::paths::{PathTable, Received};
use super::probe::Probes;
use super::replies::Replied;

/// The properties of a peer that never change, and the state behind its lock.
pub(super) struct Peer {
    pub(super) public_key: [u8; 32],
    /// A random 24-bit number that no other peer of the device has: receiver indices begin with it.
    pub(super) index: u32,
    /// The number of the member that the peer belongs to. The current and the retired peers of a member share it.
    pub(super) member: u64,
    /// Whether it is a device that reaches the mesh through this node.
    pub(super) is_guest: bool,
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
    pub(super) paths: PathTable,
    pub(super) last_receive: Option<Instant>,
    pub(super) last_handshake: Option<SystemTime>,
    /// When a packet of the device was last sent to the peer, or began to wait for a session.
    pub(super) last_send: Option<Instant>,
    /// The reply to the last initiation of a peer whose paths are chosen.
    pub(super) replied: Option<Box<Replied>>,
    /// When a handshake was last started because the peer used a session that this node does not have.
    pub(super) revived: Option<Instant>,
}

impl Peer {
    pub(super) fn new(config: PeerConfig, index: u32, member: u64, live: Arc<Live>) -> Self {
        Self {
            public_key: config.public_key,
            index,
            member,
            is_guest: false,
            bound: OnceLock::new(),
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
            probes: Arc::default(),
            state: Mutex::new(PeerState {
                paths: PathTable::new(config.endpoint.map(Endpoint::from)),
                config,
                noise: None,
                live,
                is_live: false,
                last_receive: None,
                last_handshake: None,
                last_send: None,
                replied: None,
                revived: None,
            }),
        }
    }

    /// A guest, which reaches the mesh through this node.
    pub(super) fn guest(config: PeerConfig, index: u32, member: u64, live: Arc<Live>) -> Self {
        Self {
            is_guest: true,
            ..Self::new(config, index, member, live)
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
        successor.is_guest = self.is_guest;
        let mut state = successor.lock();
        state.paths = before.paths.for_successor();
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

    /// Where datagrams to the peer are sent, if that is known.
    #[inline]
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        self.paths.endpoint()
    }

    /// An authentic datagram was received from there.
    #[inline]
    pub(super) fn handle_received(&mut self, from: Endpoint, now: Instant) -> Received {
        self.last_receive = Some(now);
        self.paths.handle_received(from, now)
    }
}

#[cfg(test)]
pub(in crate::tunnel) mod tests {
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
}
