//! Choosing the paths of peers from outside the data plane.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::endpoint::{Endpoint, Via};
use super::paths::{Choice, LEAST_PATIENCE};
use super::peer::Peer;
use super::peers::Peers;
use super::probe::{RoundTrip, Said};
use super::probing::Probing;
use super::relaying::OwnRelay;
use super::stream_end::StreamOpener;
use super::stun::StunClient;
use super::used_relays::{self, UsableRelay};
use crate::model::{NodeAddress, Path};
use crate::protocol::path_messages::RelayOffer;

/// The paths of the peers of a running tunnel. A peer is named by its public key; for an unknown one, nothing happens.
pub struct Steering<'a>(pub(super) &'a Peers);

/// The paths to a peer, as the data plane has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathReport {
    /// Whether the paths are chosen from outside.
    pub is_steered: bool,
    /// The path by which datagrams are sent.
    pub primary: Option<Path>,
    /// All paths.
    pub paths: Vec<PathSeen>,
    /// Since when packets are sent without a datagram that arrives by the primary path. Probes of the peer do not count.
    pub waits_since: Option<Instant>,
    /// When a packet of the device was last sent.
    pub last_send: Option<Instant>,
    /// When an authentic datagram last arrived, by whichever path.
    pub last_receive: Option<Instant>,
    /// How many sessions with the member have begun.
    pub sessions: u32,
}

#[cfg(test)]
impl PathReport {
    /// The report about a steered member of which one path is known, by which a probe was answered.
    pub(crate) fn of(path: Path, trip: RoundTrip, offer: Option<RelayOffer>) -> Self {
        Self {
            is_steered: true,
            primary: Some(path),
            paths: vec![PathSeen {
                path,
                heard: Some(trip.at),
                answered: Some(trip),
                sample: Some(trip),
                answers: 1,
                seen: None,
                offer,
            }],
            waits_since: None,
            last_send: None,
            last_receive: Some(trip.at),
            sessions: 1,
        }
    }
}

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathSeen {
    /// The path.
    pub path: Path,
    /// When an authentic datagram last arrived by it.
    pub heard: Option<Instant>,
    /// The last answer to a probe by this path.
    pub answered: Option<RoundTrip>,
    /// The last round trip that measures the path alone.
    pub sample: Option<RoundTrip>,
    /// How many probes by this path were answered.
    pub answers: u32,
    /// The address that the peer saw the last probe come from.
    pub seen: Option<SocketAddr>,
    /// What the peer offers as a relay.
    pub offer: Option<RelayOffer>,
}

impl Steering<'_> {
    /// Readable, and counts, when there is news about the paths of a peer: reading resets it. [`Steering::take_news`] returns
    /// the peers.
    #[must_use]
    pub fn news_event(&self) -> BorrowedFd<'_> {
        self.0.shared.wakes.news.event()
    }

    /// The public keys of the peers about whose paths there is news since the last call.
    #[must_use]
    pub fn take_news(&self) -> Vec<[u8; 32]> {
        let members = self.0.shared.wakes.news.take();
        if members.is_empty() {
            return Vec::new();
        }
        let table = self.0.shared.table.load();
        let peers = table.by_key.iter();
        peers
            .filter(|(_, peer)| members.contains(&peer.member))
            .map(|(key, _)| *key)
            .collect()
    }

    /// Chooses the paths of `peer`, which has this address, from now on. It may be reached by `paths`; initiations are sent by
    /// all of `opens` while none is known to work. Paths through relays that are not in use are left out.
    pub fn offer(&self, peer: &[u8; 32], address: NodeAddress, paths: &[Path], opens: &[Path]) {
        let relays = Arc::clone(&self.0.shared.table.load().relays);
        let endpoint_of = |path: &Path| match path {
            Path::Direct(endpoint) => Some(Endpoint::from(*endpoint)),
            Path::Relay(relay) => used_relays::through(&relays, *relay, address),
            Path::Stream(node) => Some(Endpoint::streamed(Via::streamed(*node, address.0))),
        };
        let endpoints =
            |paths: &[Path]| -> Vec<Endpoint> { paths.iter().filter_map(endpoint_of).collect() };
        let (paths, opens) = (endpoints(paths), endpoints(opens));
        let now = Instant::now();
        self.0.for_each_of(peer, |peer| {
            let mut state = peer.lock();
            state.paths.set_choice(Choice::Steered);
            state.paths.offer(&paths, &opens, now);
        });
    }

    /// Lets the path of `peer` follow the datagrams that arrive from it, as in any WireGuard.
    pub fn release(&self, peer: &[u8; 32]) {
        let roam = |peer: &Peer| peer.lock().paths.set_choice(Choice::Roaming);
        self.0.for_each_of(peer, roam);
    }

    /// Sends by `path` from now on: at once, or from the first gap of this length between packets.
    pub fn use_path(&self, peer: &[u8; 32], path: &Path, gap: Option<Duration>) {
        let now = Instant::now();
        self.0.for_each_of(peer, |peer| {
            peer.lock().paths.use_path(path, gap, now);
        });
    }

    /// Sends an initiation by all paths of `peer` that were offered for it.
    pub fn open(&self, peer: &[u8; 32]) {
        let table = self.0.shared.table.load();
        if let Some(peer) = table.sending_peer_of(peer) {
            let mut state = peer.lock();
            state.paths.open();
            state.noise.iter_mut().for_each(|noise| noise.begin_again());
        }
        drop(table);
        Probing(&self.0.shared).initiate(peer);
    }

    /// Reports the silence of the primary path of `peer` after so long, while packets are sent.
    pub fn set_patience(&self, peer: &[u8; 32], patience: Duration) {
        self.0.for_each_of(peer, |peer| {
            peer.lock().paths.reports.patience = patience.max(LEAST_PATIENCE)
        });
    }

    /// Reports the next datagram that arrives from `peer`, the next packet that is sent to it, or both.
    pub fn arm(&self, peer: &[u8; 32], heard: bool, sent: bool) {
        self.0.for_each_of(peer, |peer| {
            let reports = &mut peer.lock().paths.reports;
            reports.heard |= heard;
            reports.sent |= sent;
        });
    }

    /// Uses these relays from now on, and accepts datagrams through them. Paths through a relay follow it to another endpoint.
    pub fn set_relays(&self, relays: &[UsableRelay]) {
        let relays = Arc::new(used_relays::by_endpoint(relays));
        let peers = self.0;
        peers.change_settings(|table| table.relays = Arc::clone(&relays));
        for peer in peers.table().by_index.values() {
            for entry in peer.lock().paths.entries_mut() {
                if let Some(endpoint) = used_relays::followed(&relays, &entry.endpoint) {
                    entry.renew(&endpoint);
                }
            }
        }
    }

    /// Sends an empty datagram to `to` that passes so many routers: it opens the first ones for datagrams from there.
    pub fn open_routers(&self, to: SocketAddr, hops: u8) {
        if let Some(sockets) = self.0.shared.sockets.load().first() {
            sockets.send_short(to, hops);
        }
    }

    /// What `peer` said about paths since the last call.
    #[must_use]
    pub fn take_said(&self, peer: &[u8; 32]) -> Said {
        let table = self.0.shared.table.load();
        let peer = table.by_key.get(peer);
        peer.map_or_else(Said::default, |peer| peer.probes().take_said())
    }

    /// Refuses packets to `peer` of more than `bytes` by the path in use from now on. The device's MTU applies as well.
    pub fn set_path_mtu(&self, peer: &[u8; 32], bytes: u16) {
        self.0
            .for_each_of(peer, |peer| peer.lock().paths.set_mtu(bytes));
    }

    /// The paths of the member whose current peer has this public key.
    #[must_use]
    pub fn report(&self, key: &[u8; 32]) -> Option<PathReport> {
        let table = self.0.shared.table.load();
        let current = table.by_key.get(key)?;
        let sending = table.sending_peer(current);
        let mut report = report_of(sending);
        // While a key is replaced, datagrams may arrive for the other peers of the member.
        let all = std::iter::once(current).chain(table.retired_of(current));
        for other in all.filter(|other| other.index != sending.index) {
            let state = other.lock();
            report.last_receive = report.last_receive.max(state.last_receive);
            for entry in state.paths.entries() {
                let path = entry.endpoint.path();
                let mut seen = report.paths.iter_mut();
                if let Some(seen) = seen.find(|seen| seen.path == path) {
                    seen.heard = seen.heard.max(entry.heard);
                }
            }
        }
        Some(report)
    }
}

/// The paths of one peer, without those of other peers of the same member.
pub(super) fn report_of(peer: &Peer) -> PathReport {
    let state = peer.lock();
    let probes = peer.probes();
    let mut report = PathReport {
        is_steered: state.paths.choice == Choice::Steered,
        primary: state.paths.primary(),
        paths: Vec::with_capacity(state.paths.entries().len()),
        waits_since: state.paths.wait.since(),
        last_send: state.last_send,
        last_receive: state.last_receive,
        sessions: probes.sessions(),
    };
    for entry in state.paths.entries() {
        let path = entry.endpoint.path();
        let trips = probes.of(&path);
        report.paths.push(PathSeen {
            path,
            heard: entry.heard,
            answered: trips.answered,
            sample: trips.sample,
            answers: trips.answers,
            seen: trips.seen,
            offer: trips.offer,
        });
    }
    report
}

impl<'a> Steering<'a> {
    /// The relay that this node is.
    #[must_use]
    pub fn own_relay(&self) -> OwnRelay<'a> {
        let peers: &'a Peers = self.0;
        OwnRelay(&peers.shared.relaying)
    }

    /// Asks STUN servers.
    #[must_use]
    pub fn stun(&self) -> StunClient<'a> {
        let peers: &'a Peers = self.0;
        StunClient(&peers.shared)
    }
}

impl Steering<'_> {
    /// Opens streams to relays and to members.
    #[must_use]
    pub fn stream_opener(&self) -> StreamOpener {
        StreamOpener(Arc::clone(&self.0.shared))
    }
}

impl std::fmt::Debug for Steering<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steering").finish_non_exhaustive()
    }
}
