//! The guests of a node.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::model::{Label, WireGuardKey};

/// A guest for which the node is the door.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestStatus {
    pub name: Label,
    /// The public half of the key of its tunnel.
    pub key: WireGuardKey,
    /// The addresses that the node leased to it.
    pub address_v4: Ipv4Addr,
    pub address_v6: Ipv6Addr,
    /// Whether the node heard it in the last three minutes. Its name is answered only then.
    pub is_here: bool,
    /// Seconds since its last datagram. It is null if it was never heard since the start.
    pub last_heard_seconds_ago: Option<f64>,
    /// Where its datagrams came from last.
    pub endpoint: Option<SocketAddr>,
}
