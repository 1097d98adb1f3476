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

/// The relay that forwards datagrams, or the node at the other end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Via {
    pub(super) relay: NodeAddress,
    /// What precedes each datagram to it. Its label is the peer, also on a stream to the peer itself.
    pub(super) header: Header,
    pub(super) carrier: Carrier,
}

/// How datagrams reach a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    /// By UDP, to the address of the endpoint.
    Udp,
    /// By the stream between this node and the relay. The endpoint has no address.
    Stream,
    /// By the stream of a member for which this node relays. The label is the source.
    Member,
}

impl Via {
    /// The stream to `node`, by which the peer with the address `peer` is reached.
    pub(super) fn streamed(node: NodeAddress, peer: Ipv4Addr) -> Self {
        Self {
            relay: node,
            header: Header {
                label: peer,
                tag: None,
            },
            carrier: Carrier::Stream,
        }
    }
}

impl Endpoint {
    /// The endpoint behind a stream, which has no address.
    pub(super) fn streamed(via: Via) -> Self {
        Self {
            address: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            source: None,
            via: Some(via),
        }
    }

    /// The path that leads there.
    pub(super) fn path(&self) -> Path {
        match self.via {
            None => Path::Direct(self.address),
            Some(via) if via.carrier == Carrier::Udp => Path::Relay(via.relay),
            Some(via) => Path::Stream(via.relay),
        }
    }

    /// The stream by which datagrams go, if they do not go by UDP.
    #[inline]
    pub(super) fn stream(&self) -> Option<&Via> {
        self.via.as_ref().filter(|via| via.carrier != Carrier::Udp)
    }

    /// Whether no other node forwards the datagrams: they go to the peer by UDP, or by a stream to the peer itself.
    pub(super) fn leads_to_peer(&self) -> bool {
        self.via
            .is_none_or(|via| via.carrier != Carrier::Udp && via.header.label == via.relay.0)
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
