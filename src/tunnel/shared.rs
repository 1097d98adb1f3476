//! The state that all threads of a tunnel share.

use std::io::IoSlice;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::drops::{DropCounters, DropReason};
use super::endpoint::Endpoint;
use super::limiter::{HandshakeLimiter, OpeningLimit, RevivalLimit};
use super::live::Live;
use super::noise::{HANDSHAKE, room_for};
use super::peer::{Peer, PeerState};
use super::relaying::Relaying;
use super::sockets::Sockets;
use super::split::VnetHeader;
use super::table::Table;
use super::tun::Device;
use super::udp::Sender;
use super::wakes::Wakes;

/// The limits of what anybody can make this node do.
pub(super) struct Limits {
    pub(super) handshakes: Mutex<HandshakeLimiter>,
    pub(super) revivals: RevivalLimit,
    pub(super) openings: Mutex<OpeningLimit>,
}

pub(super) struct Shared {
    pub(super) table: ArcSwap<Table>,
    /// The sockets of each pair of data threads, all of them on one port.
    pub(super) sockets: ArcSwap<Vec<Sockets>>,
    pub(super) device: ArcSwap<Device>,
    /// The addresses at which this node answers probes.
    pub(super) local_addresses: ArcSwap<Vec<IpAddr>>,
    pub(super) wakes: Wakes,
    /// The peers whose timers run.
    pub(super) live: std::sync::Arc<Live>,
    /// The firewall mark of outer packets.
    pub(super) mark: AtomicU32,
    pub(super) mtu: AtomicU16,
    pub(super) drops: DropCounters,
    pub(super) limits: Limits,
    pub(super) relaying: Relaying,
    pub(super) stop: AtomicBool,
}

impl Shared {
    /// Whether the threads are to end.
    #[inline]
    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The MTU of the device.
    #[inline]
    pub(super) fn mtu(&self) -> usize {
        usize::from(self.mtu.load(Ordering::Relaxed))
    }

    /// The kernel has removed `device`.
    pub(super) fn note_removed(&self, device: &Device) {
        if device.note_removed() {
            let _ = self.wakes.device_removed.write(1);
        }
    }

    /// Adopts the MTU that another program gave the device.
    pub(super) fn follow_mtu(&self) {
        let device = self.device.load();
        if let Some(mtu) = device.mtu().filter(|_| !device.is_gone()) {
            self.mtu.store(mtu, Ordering::Relaxed);
        }
    }

    /// Passes a packet that this node made to the kernel, as if it came from a peer.
    pub(super) fn inject(&self, packet: &[u8]) {
        let header = VnetHeader::default().to_bytes();
        let parts = [IoSlice::new(&header), IoSlice::new(packet)];
        if self.device.load().pairs[0].write(&parts).is_err() {
            self.drops.add(DropReason::WriteFailed);
        }
    }

    /// Sends an initiation to `to`, and by all paths that may work while none is known to work. A member may list the address of
    /// somebody else as its own, so initiations by paths by which nothing was ever heard are limited.
    pub(super) fn send_initiation(
        &self,
        (peer, state): (&Peer, &mut PeerState),
        initiation: &[u8],
        to: Endpoint,
        sender: &mut Sender,
        now: Instant,
    ) {
        let limit = self.limits.openings.lock();
        let mut limit = limit.unwrap_or_else(PoisonError::into_inner);
        let admit = |address| limit.admit(address, now);
        let endpoints = state.paths.openings(&to, admit, now);
        let sent = endpoints
            .into_iter()
            .map(|endpoint| sender.add(initiation, endpoint));
        peer.count_tx(sent.sum());
    }

    /// Starts a handshake with a peer: sends an initiation to `to`, and by all paths that may work while none is known to work.
    pub(super) fn initiate(
        &self,
        table: &Table,
        (peer, state): (&Peer, &mut PeerState),
        to: Option<Endpoint>,
        sender: &mut Sender,
        now: Instant,
    ) {
        let (Some(keys), Some(endpoint)) = (table.keys_of(peer), to) else {
            return;
        };
        let noise = state.noise(keys, peer.index, now);
        let mut message = [0; room_for(HANDSHAKE)];
        if let Some(length) = noise.initiate(&mut message) {
            self.send_initiation((peer, state), &message[..length], endpoint, sender, now);
        }
    }

    /// Seals a packet that this node made for a peer and sends it to `to`. Returns whether it left at once. Otherwise it waits
    /// for a session, or there is no endpoint.
    pub(super) fn send_own(
        &self,
        table: &Table,
        (peer, state): (&Peer, &mut PeerState),
        to: Option<Endpoint>,
        packet: &[u8],
        sender: &mut Sender,
        now: Instant,
    ) -> bool {
        let (Some(keys), Some(endpoint)) = (table.keys_of(peer), to) else {
            self.drops.add(DropReason::NoEndpoint);
            return false;
        };
        let noise = state.noise(keys, peer.index, now);
        let sealed = noise.seal(packet, sender.space_to(&endpoint), now);
        self.drops.add_many(DropReason::NoAnswer, noise.take_lost());
        match sealed {
            Some((length, true)) => {
                sender.commit(length, endpoint);
                peer.count_tx(length);
                true
            }
            Some((length, false)) => {
                let initiation = sender.space_to(&endpoint)[..length].to_vec();
                self.send_initiation((peer, state), &initiation, endpoint, sender, now);
                false
            }
            None => false,
        }
    }
}
