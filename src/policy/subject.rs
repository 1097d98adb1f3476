//! The nodes and instances that rules are about, with the facts that selectors look at.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::ports::{Asked, PortSet};
use super::selector::Selector;
use crate::model::{Label, Protocol, ServiceName};

/// Something with addresses in the mesh: a node, one instance of one or more services, or a guest.
///
/// A program without an instance address sends from the address of its node, so rules take it for the node. If two subjects of one node
/// have an address, every rule for one of them is a rule for this address. If subjects of two nodes have an address, nothing passes to it
/// or from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The addresses in the mesh.
    pub addresses: Vec<IpAddr>,
    /// The name of its node.
    pub node: Label,
    /// The tags of this node, or those of the guest.
    pub tags: Vec<Label>,
    /// The services that are reached at these addresses.
    pub services: Vec<Offered>,
    /// Whether these addresses are those of the node itself.
    pub is_node: bool,
    /// The name of the guest that has these addresses, whose door the node is.
    pub guest: Option<Label>,
    /// The network that the subject is, if it is one to which the mesh routes. Such a subject has no addresses of its own.
    pub network: Option<Network>,
}

/// A network outside the mesh, to which nodes route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Network {
    /// Its addresses.
    pub prefix: IpNet,
    /// The names of the nodes that route to it, in alphabetical order.
    pub gateways: Vec<Label>,
}

/// A service that a subject offers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Offered {
    /// The name of the service.
    pub service: ServiceName,
    /// The ports that are declared.
    pub ports: Vec<OfferedPort>,
    /// The sources that the owner admits to these ports (`mesh.allow`). A packet passes only if the policy allows it too. An empty list
    /// admits every source. Selectors beyond [`MAX_NARROWED`] admit none.
    pub allow: Vec<Selector>,
}

/// A port that is declared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OfferedPort {
    /// The name of the port, if it has one.
    pub name: Option<Label>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// The facts about a node that decide what it may serve and offer.
#[derive(Debug, Clone, Copy)]
pub struct NodeFacts<'a> {
    /// The name of the node.
    pub name: &'a Label,
    /// The tags of the node.
    pub tags: &'a [Label],
}

/// The maximum number of services at one address that have `allow`, and of selectors in it. A service or a selector beyond it admits
/// nobody. Otherwise a member could make every packet expensive that others exchange with it.
pub const MAX_NARROWED: usize = 16;

impl Offered {
    /// The selectors that count. One of them must select the source of a packet.
    pub(super) fn admitted(&self) -> &[Selector] {
        let most = self.allow.len().min(MAX_NARROWED);
        self.allow.get(..most).unwrap_or_default()
    }
}

impl OfferedPort {
    /// What a packet for this port asks for.
    pub(super) fn asked(&self) -> Asked {
        Asked::Port(self.protocol, self.port)
    }
}

impl Subject {
    /// The projects of the services, each once for each service that has it.
    pub(super) fn projects(&self) -> impl Iterator<Item = &Label> {
        let services = self.services.iter();
        services.filter_map(|offered| offered.service.project.as_ref())
    }

    /// The services whose owner admits some sources only.
    pub(super) fn narrowed(&self) -> impl Iterator<Item = &Offered> {
        let services = self.services.iter();
        services.filter(|offered| !offered.allow.is_empty())
    }

    /// The ports of all services.
    pub(super) fn declared(&self) -> PortSet {
        let ports = self.services.iter().flat_map(|offered| &offered.ports);
        ports.map(OfferedPort::asked).collect()
    }
}

/// The name in messages: `node web-1`, `guest anna`, `shop/db on web-1`, or `network 192.168.1.0/24`.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(guest) = &self.guest {
            return write!(f, "guest {guest}");
        }
        if let Some(network) = &self.network {
            return write!(f, "network {}", network.prefix);
        }
        match self.services.first() {
            Some(offered) if !self.is_node => {
                if let Some(project) = &offered.service.project {
                    write!(f, "{project}/")?;
                }
                write!(f, "{} on {}", offered.service.name, self.node)
            }
            _ => write!(f, "node {}", self.node),
        }
    }
}
