//! The state of a peer as the tunnel reports it.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use super::config::PeerConfig;
use super::peer::Peer;
use super::probe::RoundTrip;
use super::table::Table;
use crate::model::Path;

/// The state of a peer.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// The configuration as it was set.
    pub config: PeerConfig,
    /// The endpoint in use, unless a relay is: the last one that authentic datagrams came from, the configured one, or the one
    /// that was chosen.
    pub endpoint: Option<SocketAddr>,
    /// The path in use.
    pub path: Option<Path>,
    /// When the last handshake was completed.
    pub last_handshake: Option<SystemTime>,
    /// When the last authentic datagram was received.
    pub last_receive: Option<Instant>,
    /// Bytes received, including the tunnel's headers.
    pub rx_bytes: u64,
    /// Bytes sent, including the tunnel's headers.
    pub tx_bytes: u64,
    /// When a packet of the device was last sent to the peer, or began to wait for a session.
    pub last_send: Option<Instant>,
    /// The last round trip under a session, without the time of a handshake.
    pub round_trip: Option<RoundTrip>,
    /// The size in bytes of the largest packet that fits through the path, as it was set.
    pub path_mtu: u16,
}

/// The status of a current peer, including the traffic of its retired peers. `wall` is the time now.
pub(super) fn status_of(table: &Table, peer: &Peer, wall: SystemTime) -> PeerStatus {
    let retired = table.retired_of(peer).map(|retired| status(retired, wall));
    retired.fold(status(peer, wall), |status, retired| PeerStatus {
        last_handshake: status.last_handshake.max(retired.last_handshake),
        last_receive: status.last_receive.max(retired.last_receive),
        last_send: status.last_send.max(retired.last_send),
        rx_bytes: status.rx_bytes + retired.rx_bytes,
        tx_bytes: status.tx_bytes + retired.tx_bytes,
        ..status
    })
}

/// The status of one peer.
pub(super) fn status(peer: &Peer, wall: SystemTime) -> PeerStatus {
    let state = peer.lock();
    // boringtun reports the age of the session by its own clock.
    let session = state.noise.as_ref().and_then(|noise| noise.session_age());
    PeerStatus {
        config: state.config.clone(),
        endpoint: state.paths.primary().and_then(|path| path.endpoint()),
        path: state.paths.primary(),
        last_handshake: session
            .and_then(|age| wall.checked_sub(age))
            .or(state.last_handshake),
        last_receive: state.last_receive,
        last_send: state.last_send,
        rx_bytes: peer.rx_bytes.load(Ordering::Relaxed),
        tx_bytes: peer.tx_bytes.load(Ordering::Relaxed),
        round_trip: (state.paths.primary()).and_then(|path| peer.probes().of(&path).sample),
        path_mtu: state.paths.mtu(),
    }
}
