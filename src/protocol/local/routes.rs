//! The networks and the services outside the mesh in the status of a node.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::model::{HostName, Label};

/// The host name of services outside the mesh, to which a node forwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideName {
    pub name: HostName,
    /// The address to which the node forwards. It is null until the name is answered.
    pub address: Option<Ipv4Addr>,
}

/// A network outside the mesh, and a node that routes to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRow {
    /// The addresses of the network.
    pub network: Ipv4Net,
    /// The name of the node that routes to it.
    pub node: Label,
    /// How this node uses that.
    pub state: RouteState,
}

/// How a node uses the offer of a node to route to a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteState {
    /// This node itself routes to the network.
    Own,
    /// Packets for the network are sent to that node.
    InUse,
    /// That node answers, and another one is nearer.
    Standby,
    /// That node does not answer.
    Unreachable,
    /// This machine reaches the network without the mesh.
    NotUsed,
}

impl RouteState {
    /// Each state.
    pub const ALL: [Self; 5] = [
        Self::Own,
        Self::InUse,
        Self::Standby,
        Self::Unreachable,
        Self::NotUsed,
    ];

    /// The state as JSON and metrics have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::InUse => "in_use",
            Self::Standby => "standby",
            Self::Unreachable => "unreachable",
            Self::NotUsed => "not_used",
        }
    }
}
