//! A path: the way that datagrams take to a peer.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

/// The maximum number of paths to one peer.
pub const MAX_PATHS: usize = 12;

/// The IPv4 address of a node in the mesh. It is the first of the node's block, and names the node in frames of relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddress(pub Ipv4Addr);

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The way that datagrams take to a peer. The order of the variants is the order in which paths are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// They are sent to this endpoint of the peer.
    Direct(SocketAddr),
    /// This node forwards them, over UDP.
    Relay(NodeAddress),
    /// This node forwards them, over a TLS stream.
    Stream(NodeAddress),
}

impl Path {
    /// The endpoint of the peer, if the path leads to it without a relay.
    #[must_use]
    pub fn endpoint(&self) -> Option<SocketAddr> {
        match self {
            Self::Direct(endpoint) => Some(*endpoint),
            Self::Relay(_) | Self::Stream(_) => None,
        }
    }

    /// The node that forwards the datagrams.
    #[must_use]
    pub fn relay(&self) -> Option<NodeAddress> {
        match self {
            Self::Direct(_) => None,
            Self::Relay(node) | Self::Stream(node) => Some(*node),
        }
    }

    /// The number of the kind: the smaller it is, the more the kind is preferred.
    #[must_use]
    pub fn kind(&self) -> u8 {
        match self {
            Self::Direct(_) => 0,
            Self::Relay(_) => 1,
            Self::Stream(_) => 2,
        }
    }

    /// Whether the paths lead to different ports of one address: an address translator may have given the peer another port.
    #[must_use]
    pub fn is_rebound(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Direct(one), Self::Direct(other)) => {
                one.ip() == other.ip() && one.port() != other.port()
            }
            _ => false,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(endpoint) => endpoint.fmt(f),
            Self::Relay(node) => write!(f, "relay {node}"),
            Self::Stream(node) => write!(f, "stream {node}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(text: &str) -> Path {
        Path::Direct(text.parse().expect("a literal"))
    }

    #[test]
    fn only_another_port_of_the_same_address_is_a_rebound_path() {
        let relay = Path::Relay(NodeAddress(Ipv4Addr::new(10, 210, 1, 1)));
        let home = direct("192.0.2.1:51820");
        assert!(home.is_rebound(&direct("192.0.2.1:1")));
        assert!(!home.is_rebound(&home));
        assert!(!home.is_rebound(&direct("192.0.2.2:1")));
        assert!(!home.is_rebound(&relay) && !relay.is_rebound(&home));
    }

    #[test]
    fn direct_paths_are_preferred_to_relays_and_relays_to_streams() {
        let node = NodeAddress(Ipv4Addr::new(10, 210, 1, 1));
        let mut paths = [
            Path::Stream(node),
            Path::Relay(node),
            direct("192.0.2.1:51820"),
        ];
        paths.sort_unstable();
        let shown = paths.map(|path| path.to_string());
        assert_eq!(
            shown,
            ["192.0.2.1:51820", "relay 10.210.1.1", "stream 10.210.1.1"]
        );
    }
}
