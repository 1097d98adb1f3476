//! What the kernel does for containers: instance addresses mapped one to one, service addresses balanced.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::wire::local::{Problem, SystemEntry};

/// What the kernel is to do for containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    /// The tunnel device.
    pub interface: String,
    /// The mesh's prefix.
    pub prefix: Ipv4Net,
    /// This node's block.
    pub block: Ipv4Net,
    /// This node's address.
    pub node: Ipv4Addr,
    /// Bridges of the engine's networks, with their subnets.
    pub bridges: BTreeMap<String, Vec<Ipv4Net>>,
    /// Containers by instance address.
    pub mappings: BTreeMap<Ipv4Addr, Mapped>,
    /// Usable instance addresses by service address; none: connections are refused.
    pub service_addresses: BTreeMap<Ipv4Addr, Vec<Ipv4Addr>>,
}

/// A container that an instance address is mapped to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// Its own address.
    pub container: Ipv4Addr,
    /// Its first process, by which its interface is found.
    pub pid: Option<u32>,
    /// Its name.
    pub name: String,
}

/// Keeps the kernel's rules as they are wanted.
#[derive(Debug, Default)]
pub struct Firewall;

impl Firewall {
    /// Starts with nothing wanted.
    #[must_use]
    pub fn start() -> Self {
        Self
    }

    /// Wants this from now on. Does not wait.
    pub fn set(&self, wiring: Wiring) {
        tracing::trace!(?wiring, "wanted");
    }

    /// What is wrong, with remedies.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// What is on the machine because of this.
    #[must_use]
    pub fn entries(&self) -> Vec<SystemEntry> {
        Vec::new()
    }

    /// Takes everything back.
    pub async fn stop(self) {}
}
