//! Where a peer is, and from which of this host's addresses datagrams to it leave.
//!
//! A datagram to a peer leaves from the address at which the last authentic one of the peer arrived: a reply from
//! another address of this host would be dropped by a stateful firewall or an address translator on the way. The kernel
//! chooses the source where none is known yet, when an endpoint is set, and when [`super::routes`] finds that the
//! source does not hold any more.

use std::net::{IpAddr, SocketAddr};

/// A peer's address and port, and the source of what is sent there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    /// Nothing: the kernel chooses.
    pub(super) source: Option<Source>,
}

/// An address of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) address: IpAddr,
    /// The index of the interface at which the datagram arrived.
    pub(super) interface: u32,
}

impl Endpoint {
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

impl Source {
    /// The interface that a datagram has to leave by. An address is bound to its interface if it is link-local
    /// (RFC 4007 section 6); any other leaves by whatever interface the route names.
    pub(super) fn bound_interface(&self) -> u32 {
        match self.address {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => self.interface,
            _ => 0,
        }
    }
}
