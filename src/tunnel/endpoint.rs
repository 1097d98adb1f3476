//! The endpoint of a peer, and the address of this host from which datagrams to it leave.
//!
//! A datagram to a peer leaves from the address at which the last authentic datagram by the same path arrived: a stateful firewall or
//! an address translator on the way would drop a reply from another address of this host. The kernel chooses the source
//! where none is known yet, when an endpoint is set, and when [`super::routes`] finds that the source is no longer valid.

use std::net::SocketAddr;

use crate::model::Path;
use crate::os::batch::Source;

/// The address and port of a peer, and the source of datagrams to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    /// Without one, the kernel chooses.
    pub(super) source: Option<Source>,
}

impl Endpoint {
    /// The path that leads there.
    pub(super) fn path(&self) -> Path {
        Path::Direct(self.address)
    }

    /// The same endpoint, with the source left to the kernel.
    pub(super) fn without_source(self) -> Self {
        Self::from(self.address)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            source: None,
        }
    }
}
