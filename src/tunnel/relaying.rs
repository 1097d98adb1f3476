//! The relay that this node is: forwarding frames for other members.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::endpoint::Endpoint;
use super::relay::{Destination, Header, Relay, RelayDrop, RelayLimit};
use super::table::Table;
use crate::model::NodeAddress;
use crate::protocol::path_messages::RelayOffer;

/// The relay that this node is.
pub(super) struct Relaying {
    /// A thread that holds this lock may take the lock of a peer. The reverse is not allowed.
    relay: Mutex<Relay>,
    forwarded: AtomicU64,
    dropped: [AtomicU64; RelayDrop::ALL.len()],
}

impl Relaying {
    /// Forwards nothing until it has a limit. `seed` is secret, random and used for nothing else.
    pub(super) fn new(seed: [u8; 32], now: Instant) -> Self {
        Self {
            relay: Mutex::new(Relay::new(seed, None, now)),
            forwarded: AtomicU64::new(0),
            dropped: Default::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Relay> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this node offers to the member with this address, which was seen there.
    pub(super) fn offer(
        &self,
        member: Ipv4Addr,
        seen: SocketAddr,
        now: Instant,
    ) -> Option<RelayOffer> {
        let relay = self.lock();
        let tag = relay.tag(member, seen, now)?;
        Some(RelayOffer {
            load: relay.load(now),
            tag: tag.to_bits(),
        })
    }

    /// Where a frame to this relay goes, and with which header. None if it is dropped, which is counted.
    pub(super) fn forward(
        &self,
        table: &Table,
        header: Header,
        from: SocketAddr,
        bytes: usize,
        now: Instant,
    ) -> Option<(Endpoint, Header)> {
        let destination = |label: Ipv4Addr| {
            let peer = table.allowed.owner(IpAddr::V4(label))?;
            let state = peer.lock();
            // A relay does not forward to another relay.
            let entries = state.paths.entries().iter();
            let direct = entries.filter(|entry| entry.endpoint.via.is_none());
            let best = direct.max_by_key(|entry| entry.heard)?;
            Some(Destination {
                path: best.endpoint,
                heard: best.heard,
            })
        };
        match self.lock().decide(header, from, bytes, destination, now) {
            Ok(forward) => {
                self.forwarded.fetch_add(bytes as u64, Ordering::Relaxed);
                Some((forward.to, forward.header))
            }
            Err(reason) => {
                self.drop(reason);
                None
            }
        }
    }

    /// Counts a frame that was dropped.
    pub(super) fn drop(&self, reason: RelayDrop) {
        if let Some(counter) = self.dropped.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many bytes were forwarded, and how many frames were dropped for each reason.
    pub(super) fn counts(&self) -> (u64, Vec<(RelayDrop, u64)>) {
        let dropped = RelayDrop::ALL.iter().zip(&self.dropped);
        let dropped = dropped.map(|(reason, count)| (*reason, count.load(Ordering::Relaxed)));
        (self.forwarded.load(Ordering::Relaxed), dropped.collect())
    }
}

/// The relay that this node is for others.
pub struct OwnRelay<'a>(pub(super) &'a Relaying);

impl OwnRelay<'_> {
    /// Sets how much each member may send through this node. Without a limit it forwards nothing.
    pub fn set_limit(&self, limit: Option<RelayLimit>, now: Instant) {
        self.0.lock().set_limit(limit, now);
    }

    /// The direct paths by which a member is heard are those from `endpoints`. There are none if it is no member any more.
    pub fn handle_paths(&self, member: NodeAddress, endpoints: &[SocketAddr], now: Instant) {
        self.0.lock().handle_paths(member.0, endpoints, now);
    }

    /// Forgets what is too old. To be called about once a second.
    pub fn handle_timeout(&self, now: Instant) {
        self.0.lock().handle_timeout(now);
    }

    /// How many bytes were forwarded, and how many frames were dropped for each reason.
    #[must_use]
    pub fn counts(&self) -> (u64, Vec<(RelayDrop, u64)>) {
        self.0.counts()
    }
}

impl std::fmt::Debug for OwnRelay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnRelay").finish_non_exhaustive()
    }
}
