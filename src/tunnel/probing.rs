//! Probes and handshakes that another part of the program asks for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::peer::{Peer, PeerState};
use super::ping::Waiting;
use super::probe;
use super::shared::Shared;
use super::table::Table;
use super::udp::Sender;
use crate::model::Path;
use crate::os::random;

/// The probes of a running tunnel. A peer is named by its public key; for an unknown one, nothing happens.
pub struct Probing<'a>(pub(super) &'a Arc<Shared>);

impl Probing<'_> {
    /// Starts a handshake.
    pub fn initiate(&self, peer: &[u8; 32]) {
        self.with_sending_peer(peer, |table, peer, state, sender, now| {
            let to = state.endpoint();
            self.0.initiate(table, (peer, state), to, sender, now);
        });
    }

    /// Sends a probe from `source`, an address of this node, to `destination`, an address of the peer, by the path in use.
    pub fn probe(&self, peer: &[u8; 32], source: IpAddr, destination: IpAddr) {
        self.probe_path(peer, source, destination, None);
    }

    /// Sends a probe as [`Probing::probe`] does, by `path` if it is given and known.
    pub fn probe_path(
        &self,
        peer: &[u8; 32],
        source: IpAddr,
        destination: IpAddr,
        path: Option<&Path>,
    ) {
        self.with_sending_peer(peer, |table, peer, state, sender, now| {
            let to = match path {
                None => state.endpoint(),
                Some(path) => state.paths.endpoint_of(path),
            };
            let mut packet = [0; probe::MAX_PROBE];
            // A path is tested under a session only: the handshake decides by itself which path it takes.
            if path.is_some() && !state.has_session() {
                return;
            }
            if let Ok(nonce) = random::u64()
                && let Some(length) = probe::write(source, destination, nonce, None, &mut packet)
            {
                let packet = &packet[..length];
                let left = (self.0).send_own(table, (peer, state), to, packet, sender, now);
                let path = to.filter(|_| left).map(|to| to.path());
                peer.probes().handle_probe(nonce, now, path);
            }
        });
    }

    /// Sends probes of these sizes, in bytes of the packet in the tunnel, in datagrams that are not fragmented. Without a
    /// session nothing is sent: a packet that waits for a session may be fragmented later.
    pub fn probe_sizes(&self, peer: &[u8; 32], source: IpAddr, destination: IpAddr, sizes: &[u16]) {
        let shared = self.0;
        let table = shared.table.load();
        let Some(peer) = table.sending_peer_of(peer) else {
            return;
        };
        let (mut packet, mut sender) = (vec![0; usize::from(u16::MAX)], Sender::new());
        let now = Instant::now();
        for size in sizes {
            let mut state = peer.lock();
            if state.has_session()
                && let Ok(nonce) = random::u64()
                && let Some(length) =
                    probe::write(source, destination, nonce, Some(*size), &mut packet)
            {
                peer.probes().handle_sized_probe(nonce, now, *size);
                let (packet, to) = (&packet[..length], state.endpoint());
                shared.send_own(&table, (peer, &mut state), to, packet, &mut sender, now);
            }
            drop(state);
            sender.flush_unfragmented(&shared.sockets.load()[0], &shared.drops);
        }
    }

    /// The largest size of [`Probing::probe_sizes`] that was answered since the last call.
    #[must_use]
    pub fn take_answered_size(&self, peer: &[u8; 32]) -> Option<u16> {
        let table = self.0.table.load();
        table.by_key.get(peer)?.probes().take_answered_size()
    }

    /// Sends a probe as [`Probing::probe`] does, and returns the answer to wait for.
    #[must_use]
    pub fn ping(&self, peer: [u8; 32], source: IpAddr, destination: IpAddr) -> Waiting {
        let since = Instant::now();
        self.probe(&peer, source, destination);
        Waiting {
            shared: Arc::clone(self.0),
            peer,
            since,
        }
    }

    fn with_sending_peer(
        &self,
        peer: &[u8; 32],
        act: impl FnOnce(&Table, &Peer, &mut PeerState, &mut Sender, Instant),
    ) {
        let shared = self.0;
        let table = shared.table.load();
        if let Some(peer) = table.sending_peer_of(peer) {
            let mut sender = Sender::new_small();
            act(&table, peer, &mut peer.lock(), &mut sender, Instant::now());
            sender.flush(&shared.sockets.load()[0], &shared.drops);
        }
    }
}

impl std::fmt::Debug for Probing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probing").finish_non_exhaustive()
    }
}
