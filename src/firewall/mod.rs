//! What the kernel does for containers: instance addresses, service addresses, and guards against addresses that are
//! not one's own.
//!
//! A [`Wiring`] says what there is to be; [`Firewall`] brings the kernel there, watches it, puts back what others take
//! away, and leaves nothing behind when it stops. What it writes is a pure function of the wiring (`ruleset`):
//!
//! - a table `meshd` of our own maps each instance address onto its container, balances service addresses, keeps the
//!   exposed container's identity as the source, and refuses at once what leads nowhere;
//! - one rule in the engine's chain `DOCKER-USER` lets mapped connections through: no accept in a table of our own
//!   overrides a drop in another;
//! - guards drop packets that claim an address of somebody else: neighbours on the network below, containers, and
//!   containers of one bridge among themselves;
//! - where the engine gives mesh addresses out itself, a route leads to its bridge, which answers for the rest of the mesh;
//! - a container's port of the bridge turns packets around, so that it reaches its own name.
//!
//! It never touches rules of others, and never flushes anything.

mod conntrack;
mod docker_user;
mod kernel;
mod native;
mod netfilter;
mod ports;
mod problems;
mod reconciler;
mod refused;
mod ruleset;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

pub use reconciler::Firewall;

/// What the kernel is to do for containers. Plain values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    /// The tunnel device, such as `mesh0`.
    pub interface: String,
    /// All IPv4 addresses of the mesh.
    pub prefix: Ipv4Net,
    /// This node's block.
    pub block: Ipv4Net,
    /// This node's address.
    pub node: Ipv4Addr,
    /// Bridges of the container engine's networks, with their subnets.
    pub bridges: BTreeMap<String, Vec<Ipv4Net>>,
    /// Containers by instance address.
    pub mappings: BTreeMap<Ipv4Addr, Mapped>,
    /// Usable instance addresses by service address. With none, connections are refused.
    pub service_addresses: BTreeMap<Ipv4Addr, Vec<Ipv4Addr>>,
    /// The engine's network whose containers have mesh addresses of their own, if there is one.
    pub native: Option<Native>,
}

/// A network of the engine's whose containers have mesh addresses of their own: instance addresses in its range are
/// those of the containers themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Native {
    /// Its bridge.
    pub bridge: String,
    /// The part of the block that it gives out.
    pub range: Ipv4Net,
}

/// The container behind an instance address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// The container's own address.
    pub container: Ipv4Addr,
    /// Its first process, by which its port of the bridge is found.
    pub pid: Option<u32>,
    /// What people call it.
    pub name: String,
}
