//! The relay that this node is: forwarding frames for other members.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::endpoint::Endpoint;
use super::peer::Peer;
use super::relay::{Destination, Header, Relay, RelayDrop, RelayLimit, Source};
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

    /// Where a frame to this relay goes, and with which header.
    ///
    /// # Errors
    /// The frame is dropped for this reason, which is counted.
    pub(super) fn forward(
        &self,
        table: &Table,
        header: Header,
        from: Source,
        bytes: usize,
        now: Instant,
    ) -> Result<(Endpoint, Header), RelayDrop> {
        let decision = self.lock().decide(
            header,
            from,
            bytes,
            |label, is_present| destination_of(table.allowed.owner(IpAddr::V4(label))?, is_present),
            now,
        );
        let forward = decision.inspect_err(|reason| self.drop(*reason))?;
        self.forwarded.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok((forward.to, forward.header))
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

/// Where frames to `peer` go: by its primary path if that leads to the peer itself, else by the path to the peer itself whose probe was
/// answered last. A path by which the peer was only heard does not count, because the source of a datagram may be forged, and the way
/// there may be closed. Neither does one whose endpoint is not present any more: it has failed.
pub(super) fn destination_of(
    peer: &Peer,
    is_present: impl Fn(SocketAddr) -> bool,
) -> Option<Destination<Endpoint>> {
    let state = peer.lock();
    // A relay does not forward to another relay.
    let entries = state.paths.entries().iter();
    let direct = entries.filter(|entry| entry.endpoint.leads_to_peer());
    let primary = state.paths.endpoint().filter(Endpoint::leads_to_peer);
    if let Some(path) = primary {
        let heard = direct.filter_map(|entry| entry.heard).max();
        return Some(Destination { path, heard });
    }
    let probes = peer.probes();
    let usable = direct.filter(|entry| {
        let endpoint = &entry.endpoint;
        endpoint.stream().is_some() || is_present(endpoint.address)
    });
    let answered = usable.filter_map(|entry| {
        let answered = probes.of(&entry.endpoint.path()).answered?;
        Some((answered.at, entry.endpoint))
    });
    let (at, path) = answered.max_by_key(|(at, _)| *at)?;
    Some(Destination {
        path,
        heard: Some(at),
    })
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

    /// Forgets what is too old. To be called with changes of paths; frames from paths that are too old are dropped in any case.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::endpoint::{Carrier, Via};
    use super::super::paths::Choice;
    use super::super::table::tests::peer;
    use super::*;

    fn direct(n: u8) -> Endpoint {
        SocketAddr::from(([192, 0, 2, n], 51820)).into()
    }

    fn relayed() -> Endpoint {
        let via = Via {
            relay: NodeAddress([10, 210, 9, 1].into()),
            header: Header {
                label: [10, 210, 2, 1].into(),
                tag: None,
            },
            carrier: Carrier::Udp,
        };
        Endpoint {
            via: Some(via),
            ..direct(9)
        }
    }

    #[test]
    fn frames_go_by_a_direct_path_that_answers_and_not_where_a_datagram_came_from() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let peer = peer(2, 1, 7, "10.210.2.1/32");
        let mut state = peer.lock();
        state.paths.set_choice(Choice::Steered);
        state
            .paths
            .offer(&[relayed(), direct(1), direct(2)], &[], now);
        state.paths.use_path(&relayed().path(), None, now);
        for (from, at) in [(relayed(), now), (direct(1), now), (direct(3), later)] {
            state.paths.handle_received(from, at);
        }
        drop(state);
        let destination = || destination_of(&peer, |_| true);
        assert_eq!(destination(), None, "nothing is proven");
        let path = direct(1).path();
        peer.probes().handle_probe(5, now, Some(path));
        peer.probes()
            .handle_answer(5, path, Duration::from_millis(9), now);
        let answered = Destination {
            path: direct(1),
            heard: Some(now),
        };
        assert_eq!(destination(), Some(answered));
        assert_eq!(destination_of(&peer, |_| false), None, "it has failed");
        let moved = peer.lock().paths.use_path(&direct(2).path(), None, now);
        assert!(moved);
        let primary = Destination {
            path: direct(2),
            heard: Some(later),
        };
        assert_eq!(destination(), Some(primary));
    }
}
