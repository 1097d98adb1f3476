//! What rules are about: nodes and instances, with the facts that selectors look at.

use std::fmt;
use std::net::IpAddr;

use super::ports::{Asked, PortSet};
use super::selector::Selector;
use crate::model::{Label, Protocol, ServiceName};

/// Something with addresses in the mesh: a node, or one instance of one or more services.
///
/// A program without an instance address sends from the address of its node, so it is its node. An address that two subjects of one
/// node have counts as both of them; an address that subjects of two nodes have is no source and no destination of anything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The addresses in the mesh.
    pub addresses: Vec<IpAddr>,
    /// The name of the node on which it is.
    pub node: Label,
    /// The tags of this node.
    pub tags: Vec<Label>,
    /// The services that are reached at these addresses.
    pub services: Vec<Offered>,
    /// Whether these addresses are those of the node itself.
    pub is_node: bool,
}

/// A service that a subject offers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Offered {
    /// The name of the service.
    pub service: ServiceName,
    /// The ports that are declared.
    pub ports: Vec<OfferedPort>,
    /// Who may reach these ports besides what the policy says (`mesh.allow`). An empty list narrows nothing. Selectors beyond
    /// [`MAX_NARROWED`] do not count.
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

/// How many services at one address, and how many selectors of each, are asked who may reach them. What goes beyond admits nobody: a
/// member must not make each packet expensive that others send to it or get from it.
pub const MAX_NARROWED: usize = 16;

impl Offered {
    /// The selectors of which one must select a source.
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

    /// The services whose owner narrows who reaches them.
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

/// As messages call it: `node web-1`, or `shop/db on web-1`.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
