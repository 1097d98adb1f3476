//! What a node refused because of the policy.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::time::UnixSeconds;
use crate::model::{Label, ServiceName};

/// The policy that a node keeps to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// The version of the policy in force.
    pub version: u64,
    /// The policy that is tried beside it, with `meshctl policy apply --dry-run`. It is null if none is.
    pub tried: Option<TriedPolicy>,
}

/// A policy that is tried. Nothing is denied by it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TriedPolicy {
    /// The version with which it was applied.
    pub version: u64,
    /// How long ago it was applied. It is null if that is not known.
    pub since_seconds_ago: Option<f64>,
}

/// The last refusals of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedList {
    /// The version of this document: 1.
    pub schema: u32,
    /// The version of the policy in force. It is null if there is none.
    pub policy: Option<u64>,
    /// The refusals, the latest first. There is one for each source, destination and port.
    pub denied: Vec<DeniedRow>,
}

/// Packets that the policy denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedRow {
    pub from: DeniedEnd,
    pub to: DeniedEnd,
    /// What the packets asked for, as a policy has it: `5432/tcp`, `53/udp`, `icmp` or `other`.
    pub asked: String,
    pub direction: DeniedDirection,
    /// Whether the packets passed, and only the policy that is tried (`meshctl policy apply --dry-run`) would deny them.
    #[serde(default)]
    pub passed: bool,
    /// How many there were.
    pub count: u64,
    /// When there was the first one. Between addresses of one node it may be up to 15 seconds late, since the kernel counts these.
    pub first_at: UnixSeconds,
    /// When there was the last one.
    pub last_at: UnixSeconds,
}

/// A source or destination of packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedEnd {
    pub address: IpAddr,
    /// The node that has the address. It is null if no member has it.
    pub node: Option<Label>,
    /// The services at the address.
    pub services: Vec<ServiceName>,
    /// The guest that has the address, whose door is the node.
    #[serde(default)]
    pub guest: Option<Label>,
}

/// Which way denied packets went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeniedDirection {
    /// A program or container of this node sent them.
    Outgoing,
    /// Another node sent them.
    Incoming,
    /// A direction of a later version.
    #[serde(other)]
    Other,
}
