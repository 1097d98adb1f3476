//! The endpoint of a peer, and the address of this host from which datagrams to it leave.
//!
//! A datagram to a peer leaves from the address at which the last authentic datagram by the same path arrived: a stateful firewall or
//! an address translator on the way would drop a reply from another address of this host. The kernel chooses the source
//! where none is known yet, when an endpoint is set, and when [`super::routes`] finds that the source is no longer valid.

use std::net::{Ipv4Addr, SocketAddr};

use super::cookie::Origin;
use super::relay::Header;
use crate::model::{NodeAddress, Path};
use crate::os::batch::Source;

/// The address and port of a peer, and the source of datagrams to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    /// Without one, the kernel chooses.
    pub(super) source: Option<Source>,
    /// The relay that has this address, if it forwards the datagrams.
    pub(super) via: Option<Via>,
}

/// The relay that forwards datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Via {
    pub(super) relay: NodeAddress,
    /// What precedes each datagram to it.
    pub(super) header: Header,
}

impl Endpoint {
    /// The path that leads there.
    pub(super) fn path(&self) -> Path {
        match self.via {
            None => Path::Direct(self.address),
            Some(via) => Path::Relay(via.relay),
        }
    }

    /// The path as the limits of handshakes tell it from others: peers behind one relay do not share one.
    pub(super) fn origin(&self) -> Origin {
        Origin {
            address: self.address,
            label: self.label(),
        }
    }

    /// The mesh address of the peer, if a relay forwards the datagrams.
    #[inline]
    pub(super) fn label(&self) -> Option<Ipv4Addr> {
        self.via.map(|via| via.header.label)
    }

    /// The same endpoint, with the source left to the kernel.
    pub(super) fn without_source(self) -> Self {
        Self {
            source: None,
            ..self
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            source: None,
            via: None,
        }
    }
}
