//! The relays that this node may use to reach others. Pure.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::endpoint::{Carrier, Endpoint, Via};
use super::relay::{Header, Tag};
use crate::model::NodeAddress;

/// A relay that this node may use: a member that offers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UsedRelay {
    pub(super) node: NodeAddress,
    /// Where frames to the relay are sent. Its own frames may come from elsewhere.
    pub(super) endpoint: SocketAddr,
    /// The tag that the relay gave to this node, as it sees it by the path to `endpoint`.
    pub(super) tag: Tag,
}

/// The relays that this node may use, by each endpoint from which their frames may come.
pub(super) type UsedRelays = HashMap<SocketAddr, UsedRelay>;

/// A relay that this node may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsableRelay {
    /// The mesh address of the relay.
    pub node: NodeAddress,
    /// Its endpoint, by a direct path. Frames to it are sent there.
    pub endpoint: SocketAddr,
    /// Its endpoints by the other direct paths. The relay chooses by itself from which of its endpoints it sends.
    pub others: Vec<SocketAddr>,
    /// The tag that it gave to this node.
    pub tag: u32,
}

impl UsableRelay {
    fn used(&self) -> Option<UsedRelay> {
        Some(UsedRelay {
            node: self.node,
            endpoint: self.endpoint,
            tag: Tag::from_bits(self.tag)?,
        })
    }
}

/// These relays, by their endpoints. One that has a tag of no value is left out.
pub(super) fn by_endpoint(relays: &[UsableRelay]) -> UsedRelays {
    let used = relays
        .iter()
        .filter_map(|relay| Some((relay, relay.used()?)));
    let others = used.clone().flat_map(|(relay, used)| {
        let others = relay.others.iter();
        others.map(move |endpoint| (*endpoint, used))
    });
    // The last entry for an endpoint counts: a relay that claims the endpoint of another one does not take its place.
    others
        .chain(used.map(|(relay, used)| (relay.endpoint, used)))
        .collect()
}

/// Where datagrams to the node with this address are sent, through a relay that gave this node a tag.
pub(super) fn through(
    relays: &UsedRelays,
    relay: NodeAddress,
    address: NodeAddress,
) -> Option<Endpoint> {
    let mut relays = relays.values();
    let used = relays.find(|used| used.node == relay)?;
    let via = Via {
        relay,
        header: Header {
            label: address.0,
            tag: Some(used.tag),
        },
        carrier: Carrier::Udp,
    };
    Some(Endpoint {
        via: Some(via),
        ..Endpoint::from(used.endpoint)
    })
}

/// Where datagrams that are sent to `endpoint` through a relay go now: the relay may have moved, or may have given another tag.
/// None if that is not known.
pub(super) fn followed(relays: &UsedRelays, endpoint: &Endpoint) -> Option<Endpoint> {
    let via = endpoint.via.filter(|via| via.carrier == Carrier::Udp)?;
    through(relays, via.relay, NodeAddress(via.header.label))
}

/// Where the sender of a frame is reached: through the relay that the frame came from, if it is one of `relays`. An answer goes to
/// the endpoint for which this node has a tag, even if the frame came from another endpoint of the relay.
pub(super) fn sender_of(relays: &UsedRelays, header: Header, from: Endpoint) -> Option<Endpoint> {
    let relay = relays.get(&from.address)?;
    let via = Via {
        relay: relay.node,
        header: Header {
            label: header.label,
            tag: Some(relay.tag),
        },
        carrier: Carrier::Udp,
    };
    let to = if from.address == relay.endpoint {
        from
    } else {
        Endpoint::from(relay.endpoint)
    };
    Some(Endpoint {
        via: Some(via),
        ..to
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 51820))
    }

    fn address(n: u8) -> NodeAddress {
        NodeAddress([10, 210, n, 1].into())
    }

    fn relay(n: u8, others: &[SocketAddr]) -> UsableRelay {
        UsableRelay {
            node: address(n),
            endpoint: endpoint(n),
            others: others.to_vec(),
            tag: u32::from(n),
        }
    }

    /// A frame of the member 9.
    const HEADER: Header = Header {
        label: std::net::Ipv4Addr::new(10, 210, 9, 1),
        tag: None,
    };

    #[test]
    fn a_frame_is_accepted_from_each_endpoint_of_a_relay_and_answered_to_the_one_for_sending() {
        let second: SocketAddr = "[2001:db8::1]:51820".parse().expect("a literal");
        let relays = by_endpoint(&[relay(1, &[second])]);
        let through = through(&relays, address(1), address(9));
        assert_eq!(through.map(|to| to.address), Some(endpoint(1)));
        for from in [endpoint(1), second] {
            assert_eq!(sender_of(&relays, HEADER, from.into()), through, "{from}");
        }
        assert_eq!(sender_of(&relays, HEADER, endpoint(2).into()), None);
    }

    #[test]
    fn a_relay_that_claims_the_endpoint_of_another_one_does_not_take_its_place() {
        let relays = [relay(1, &[endpoint(2)]), relay(2, &[endpoint(1)])];
        let [first, second] = &relays;
        for relays in [[first, second], [second, first]] {
            let relays = by_endpoint(&relays.map(Clone::clone));
            for n in [1, 2] {
                let sender = sender_of(&relays, HEADER, endpoint(n).into());
                let relay = sender.and_then(|sender| sender.via).map(|via| via.relay);
                assert_eq!(relay, Some(address(n)));
            }
        }
    }
}
