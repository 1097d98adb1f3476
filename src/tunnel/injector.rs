//! Packets for the kernel or for a guest that come from another part of this program.

use std::net::SocketAddr;
use std::sync::Weak;
use std::time::Instant;

use super::forward;
use super::local_service::write_datagram;
use super::shared::Shared;

/// Passes packets to the kernel as if they came from a peer, and those for a guest to the guest. Does nothing once the tunnel is gone.
#[derive(Clone)]
pub struct Injector(pub(super) Weak<Shared>);

impl Injector {
    /// Passes a whole packet with its checksums.
    pub fn packet(&self, packet: &[u8]) {
        if let Some(shared) = self.0.upgrade()
            && !forward::to_guest(&shared, packet, Instant::now())
        {
            shared.inject(packet);
        }
    }

    /// Passes a UDP datagram. If it is too long for a packet, or its addresses are of two families, it is discarded.
    pub fn datagram(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        let mut packet = Vec::with_capacity(48 + payload.len());
        if write_datagram(source, destination, payload, &mut packet).is_some() {
            self.packet(&packet);
        }
    }
}

impl std::fmt::Debug for Injector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Injector").finish_non_exhaustive()
    }
}
