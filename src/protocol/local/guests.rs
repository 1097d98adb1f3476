//! The guests of a node.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::model::{Label, PublicKey, WireGuardKey};
use crate::records::Envelope;

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

/// The guests of the mesh, for a command that removes one while no coordinator is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestKeys {
    pub schema: u32,
    /// The key that signs removals.
    pub mesh_key: PublicKey,
    /// The guests that were not removed, in the order of their names.
    pub guests: Vec<GuestKey>,
}

/// A guest of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestKey {
    pub name: Label,
    /// The public half of the key of its tunnel.
    pub key: WireGuardKey,
}

/// The removal of a guest, which the administrator signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveGuest {
    /// The record.
    pub record: Envelope,
}

/// A guest was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRemoved {
    pub schema: u32,
    /// The key of the guest.
    pub key: WireGuardKey,
}
