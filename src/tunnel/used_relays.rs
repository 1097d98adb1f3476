//! The relays that this node may use to reach others. Pure.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::endpoint::{Endpoint, Via};
use super::relay::{Header, Tag};
use crate::model::NodeAddress;

/// A relay that this node may use: a member that offers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UsedRelay {
    pub(super) node: NodeAddress,
    /// The tag that the relay gave to this node.
    pub(super) tag: Tag,
}

/// The relays that this node may use, by their endpoints.
pub(super) type UsedRelays = HashMap<SocketAddr, UsedRelay>;

/// A relay that this node may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsableRelay {
    /// The mesh address of the relay.
    pub node: NodeAddress,
    /// Its endpoint, by a direct path.
    pub endpoint: SocketAddr,
    /// The tag that it gave to this node.
    pub tag: u32,
}

impl UsableRelay {
    pub(super) fn entry(&self) -> Option<(SocketAddr, UsedRelay)> {
        let relay = UsedRelay {
            node: self.node,
            tag: Tag::from_bits(self.tag)?,
        };
        Some((self.endpoint, relay))
    }
}

/// Where datagrams to the node with this address are sent, through a relay that gave this node a tag.
pub(super) fn through(
    relays: &UsedRelays,
    relay: NodeAddress,
    address: NodeAddress,
) -> Option<Endpoint> {
    let mut relays = relays.iter();
    let (endpoint, used) = relays.find(|(_, used)| used.node == relay)?;
    let via = Via {
        relay,
        header: Header {
            label: address.0,
            tag: Some(used.tag),
        },
    };
    Some(Endpoint {
        via: Some(via),
        ..Endpoint::from(*endpoint)
    })
}

/// Where datagrams that are sent to `endpoint` through a relay go now: the relay may have moved, or may have given another tag.
/// None if that is not known.
pub(super) fn followed(relays: &UsedRelays, endpoint: &Endpoint) -> Option<Endpoint> {
    let via = endpoint.via?;
    through(relays, via.relay, NodeAddress(via.header.label))
}

/// Where the sender of a frame is reached: through the relay that the frame came from, if it is one of `relays`.
pub(super) fn sender_of(relays: &UsedRelays, header: Header, from: Endpoint) -> Option<Endpoint> {
    let relay = relays.get(&from.address)?;
    let via = Via {
        relay: relay.node,
        header: Header {
            label: header.label,
            tag: Some(relay.tag),
        },
    };
    Some(Endpoint {
        via: Some(via),
        ..from
    })
}
