//! A registered service instance, and the choice of some of them. Pure.

use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use crate::model::address::Block;
use crate::model::{Label, PublicHost, ServerAddress};
use crate::protocol::local::Check;
use crate::records::kinds::{Protocol, default_weight};

/// The identity of a registered instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InstanceKey {
    /// The name of the service.
    pub name: Label,
    /// The port that the instance listens on.
    pub port: NonZeroU16,
    /// The transport protocol.
    pub protocol: Protocol,
}

/// Some instances of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The name of the service.
    pub name: Label,
    /// The port. None means all ports.
    pub port: Option<NonZeroU16>,
    /// The transport protocol. None means both.
    pub protocol: Option<Protocol>,
}

impl Selection {
    pub(super) fn has(&self, key: &InstanceKey) -> bool {
        key.name == self.name
            && self.port.is_none_or(|port| port == key.port)
            && self
                .protocol
                .is_none_or(|protocol| protocol == key.protocol)
    }
}

impl From<Label> for Selection {
    fn from(name: Label) -> Self {
        Self {
            name,
            port: None,
            protocol: None,
        }
    }
}

/// A registered instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredInstance {
    pub key: InstanceKey,
    /// The address that it listens on. None means the node's mesh addresses.
    pub address: Option<ServerAddress>,
    /// The check that determines its health.
    pub check: Option<Check>,
    /// SRV weight.
    #[serde(default = "default_weight")]
    pub weight: u16,
    /// The SRV priority. Clients use the lowest one that answers.
    #[serde(default)]
    pub priority: u16,
    /// The name of the port in SRV queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<Label>,
    /// Who may reach it, within the policy: selectors as text. If there are none, the policy alone decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// The host names under which an ingress offers it to the world outside the mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public: Vec<PublicHost>,
}

impl RegisteredInstance {
    /// Its address, if the address is outside `block`, so that packets from the mesh reach it only by an instance address.
    pub(super) fn address_outside_block(&self, block: &Block) -> Option<&ServerAddress> {
        let is_outside = |ip: IpAddr| !block.contains(ip);
        let address = self.address.as_ref();
        address.filter(|address| address.ip().is_none_or(is_outside))
    }
}
