//! The part of the kernel's configuration that containers need: instance addresses, service addresses, and guards
//! against packets with addresses that do not belong to their sender.
//!
//! A [`FirewallState`] describes the wanted configuration. [`Firewall`] applies it, watches the kernel, restores what
//! other programs remove, and removes everything when it stops. The tables are a pure function of the state
//! (`ruleset`). The configuration has these parts:
//!
//! - A table `meshd` maps each instance address to its container, distributes connections to service addresses over the
//!   instances, makes the instance address of an exposed container the source of its packets, and rejects packets to
//!   addresses without a target and new connections to ports that a container does not declare.
//! - A second table `meshd` does the same for the IPv6 addresses of instances. Service addresses are of IPv4 only.
//! - With a policy, the same tables enforce it between the containers of this host, since packets between them do not pass through
//!   the tunnel. They note what they deny in sets with a bound, which are read when somebody asks and at each comparison.
//! - One rule in the engine's chain `DOCKER-USER`, of each family that has this chain, accepts mapped connections. An accept in a
//!   table of our own would not be enough, because it does not override a drop in another table.
//! - Guards drop packets with a source address that does not belong to their sender, whether they come from hosts on
//!   the local network, from containers, or from another container on the same bridge.
//! - Instance addresses of services outside the mesh are mapped like those of containers. Packets to such a service have the address
//!   of this machine as their source, because the service has no route to the mesh.
//! - Packets of the mesh to networks to which this node routes are forwarded, with the address of this machine as their source.
//! - Where the engine itself assigns mesh addresses, a route leads to its bridge, and the bridge answers ARP requests
//!   for the rest of the mesh.
//! - The bridge port of a container is in hairpin mode, so that the container reaches its own name.
//!
//! The firewall changes no rules of other programs and flushes no table.

mod applied;
mod conntrack;
mod docker_user;
mod error;
mod kernel;
mod local_policy;
mod native;
mod netfilter;
mod noted;
mod ports;
mod problems;
mod reconciler;
mod ruleset;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use local_policy::LocalPolicy;
pub use noted::LocalDenial;
pub use reconciler::Firewall;

use crate::records::kinds::Protocol;

/// The wanted configuration of the kernel. It contains plain values only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallState {
    /// The name of the tunnel device, such as `mesh0`.
    pub interface: String,
    /// The IPv4 prefix of the mesh.
    pub prefix: Ipv4Net,
    /// This node's block.
    pub block: Ipv4Net,
    /// This node's address.
    pub node: Ipv4Addr,
    /// The bridges of the container engine's networks, and the subnets of each.
    pub bridges: BTreeMap<String, Vec<Ipv4Net>>,
    /// The containers by instance address.
    pub mappings: BTreeMap<Ipv4Addr, Mapped>,
    /// What is outside the mesh and is reached through this node.
    pub outside: Outside,
    /// The usable instance addresses by service address. Connections to a service address without any are rejected.
    pub service_addresses: BTreeMap<Ipv4Addr, Vec<Ipv4Addr>>,
    /// The engine's network whose containers have mesh addresses of their own, if there is one.
    pub native: Option<Native>,
    /// What the policy allows between the addresses of this node. None: everything.
    pub policy: Option<LocalPolicy>,
    /// The addresses in the block that are those of guests. Packets to them leave by the tunnel device, like packets to other nodes.
    pub guests: BTreeSet<Ipv4Addr>,
    /// The part for IPv6. None if the machine has no IPv6.
    pub v6: Option<StateV6>,
}

/// What is outside the mesh and outside this machine, and is reached through this node. It is of IPv4 only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outside {
    /// Those of the instance addresses in [`FirewallState::mappings`] that lead to services.
    pub instances: BTreeSet<Ipv4Addr>,
    /// The networks to which this node routes.
    pub routes: Vec<Ipv4Net>,
}

/// The wanted configuration for IPv6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateV6 {
    /// The IPv6 prefix of the mesh.
    pub prefix: Ipv6Net,
    /// This node's block.
    pub block: Ipv6Net,
    /// This node's address.
    pub node: Ipv6Addr,
    /// The subnets of the engine's networks. The bridges are among [`FirewallState::bridges`].
    pub networks: BTreeMap<String, Vec<Ipv6Net>>,
    /// The containers by instance address.
    pub mappings: BTreeMap<Ipv6Addr, Mapped<Ipv6Addr>>,
    /// The addresses of guests, as [`FirewallState::guests`].
    pub guests: BTreeSet<Ipv6Addr>,
}

impl FirewallState {
    /// The own addresses of all containers, each with the container's first process.
    fn processes(&self) -> impl Iterator<Item = (IpAddr, Option<u32>)> {
        let v4 = self.mappings.values();
        let v4 = v4.map(|mapped| (IpAddr::V4(mapped.container), mapped.pid));
        let v6 = self.v6.iter().flat_map(|v6| v6.mappings.values());
        v4.chain(v6.map(|mapped| (IpAddr::V6(mapped.container), mapped.pid)))
    }

    /// The first process of the container at an instance address.
    fn process_at(&self, instance: IpAddr) -> Option<u32> {
        match instance {
            IpAddr::V4(v4) => self.mappings.get(&v4)?.pid,
            IpAddr::V6(v6) => self.v6.as_ref()?.mappings.get(&v6)?.pid,
        }
    }

    /// The subnets of the engine's networks, each with its bridge.
    fn subnets(&self) -> impl Iterator<Item = (&String, IpNet)> {
        let v4 = self.bridges.iter();
        let v4 = v4.flat_map(|(name, nets)| nets.iter().map(move |net| (name, IpNet::V4(*net))));
        let v6 = self.v6.iter().flat_map(|v6| &v6.networks);
        v4.chain(v6.flat_map(|(name, nets)| nets.iter().map(move |net| (name, IpNet::V6(*net)))))
    }
}

/// A network of the engine whose containers have mesh addresses of their own. The instance addresses in its range are
/// the addresses of the containers themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Native {
    pub bridge: String,
    /// The part of the node's block from which the engine assigns addresses.
    pub range: Ipv4Net,
}

/// The container behind an instance address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped<A = Ipv4Addr> {
    /// The container's own address.
    pub container: A,
    /// The container's first process. The container's bridge port is found through it.
    pub pid: Option<u32>,
    /// The name that users see.
    pub name: String,
    /// The ports that accept connections to the instance address and to service addresses. None: all ports.
    pub ports: Option<Ports>,
}

/// Ports that accept connections.
pub type Ports = BTreeSet<(Protocol, NonZeroU16)>;
