//! The addresses at which this node's tunnel may be reached. Pure.
//!
//! There are four kinds, from the best evidence to the weakest: addresses that the operator has set, ports that a gateway mapped
//! (`mapping`), addresses of the machine's interfaces, and addresses from which others saw packets come (`observed`). A node offers
//! them to its peers in this order.
//!
//! Interfaces that no other machine reaches directly are left out: bridges of containers, by what the container engine and the kernel
//! say about them and never by their name, and tunnels of other programs. The address of another tunnel would let the mesh run
//! through that tunnel, or through itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::model::MeshAddresses;
use crate::model::address::is_routable;
use crate::protocol::path_messages::{Candidate, CandidateKind, MAX_CANDIDATES};

mod observed;
#[cfg(test)]
mod tests;

pub use observed::Observed;

/// An address of an interface of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress<'a> {
    /// The name of the interface.
    pub interface: &'a str,
    /// The address.
    pub address: IpAddr,
    /// Whether the interface has no link layer (ARPHRD_NONE), as tunnels have none.
    pub is_tunnel: bool,
}

/// What is left out of the addresses of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Exclusions<'a> {
    /// This node's own tunnel device.
    pub own: &'a str,
    /// The addresses of the mesh.
    pub mesh: &'a MeshAddresses,
    /// The bridges of the container engine's networks.
    pub engine: &'a BTreeSet<String>,
    /// The bridges that connect only guests of this machine.
    pub guests: &'a BTreeSet<String>,
    /// What the operator excludes.
    pub settings: &'a [Exclude],
}

/// An exclusion of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exclude {
    /// All addresses of this interface.
    Interface(String),
    /// All addresses within this prefix.
    Prefix(IpNet),
}

impl Exclude {
    /// Whether this address is left out.
    #[must_use]
    pub fn covers(&self, host: &HostAddress<'_>) -> bool {
        match self {
            Self::Interface(name) => name == host.interface,
            Self::Prefix(prefix) => prefix.contains(&host.address),
        }
    }
}

/// The names of interfaces that belong to tunnels of other programs: kernel WireGuard, Tailscale, NetBird.
const TUNNELS: [&str; 3] = ["wg", "tailscale", "wt"];

/// The addresses of the machine at which other nodes may reach it, IPv4 first.
#[must_use]
pub fn host_addresses(found: &[HostAddress<'_>], exclusions: Exclusions<'_>) -> Vec<IpAddr> {
    let usable: Vec<&HostAddress<'_>> =
        found.iter().filter(|host| exclusions.allow(host)).collect();
    let of = |bridges: &BTreeSet<String>, tunnels: bool| {
        let outward = usable.iter().filter(|host| {
            !bridges.contains(host.interface) && (tunnels || !host.belongs_to_a_tunnel())
        });
        outward.map(|host| host.address).collect::<Vec<IpAddr>>()
    };
    // A node must offer at least one address. A bridge that connects only guests may be all it has, if the machine is itself a
    // guest, and so may an interface without a link layer, as some mobile modems are. The engine's bridges were created on this
    // machine, so they are never an uplink.
    let mut addresses = of(exclusions.guests, false);
    if addresses.is_empty() {
        addresses = of(exclusions.engine, false);
    }
    if addresses.is_empty() {
        addresses = of(exclusions.engine, true);
    }
    addresses.sort_by_key(IpAddr::is_ipv6);
    let mut seen = BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses
}

impl HostAddress<'_> {
    fn belongs_to_a_tunnel(&self) -> bool {
        self.is_tunnel || TUNNELS.iter().any(|word| is_numbered(self.interface, word))
    }
}

/// Whether `name` is `word` and a number, as in `wg0`.
fn is_numbered(name: &str, word: &str) -> bool {
    name.strip_prefix(word)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

impl Exclusions<'_> {
    fn allow(&self, host: &HostAddress<'_>) -> bool {
        host.interface != self.own
            && is_routable(host.address)
            && !self.mesh.contains(host.address)
            && !self.settings.iter().any(|exclude| exclude.covers(host))
    }
}

/// What a node knows about its own addresses.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnAddresses<'a> {
    /// The addresses that the operator has set.
    pub set: &'a [SocketAddr],
    /// The addresses that gateways mapped to this node's port and that are proven.
    pub mapped: &'a [SocketAddr],
    /// The addresses of interfaces, as [`host_addresses`] returns them.
    pub host: &'a [IpAddr],
    /// The port of the tunnel at these addresses.
    pub port: u16,
    /// The addresses that others saw.
    pub observed: &'a [SocketAddr],
}

impl OwnAddresses<'_> {
    /// The candidates, best evidence first. An address that is known in several ways is one candidate, with the best evidence.
    /// Addresses of the mesh are left out whatever their evidence.
    #[must_use]
    pub fn candidates(&self, mesh: &MeshAddresses) -> Vec<Candidate> {
        let host = self.host.iter().map(|ip| SocketAddr::new(*ip, self.port));
        let of = |addresses: &[SocketAddr], kind| {
            let candidates = addresses.iter().map(|address| Candidate {
                kind,
                address: *address,
            });
            candidates.collect::<Vec<_>>()
        };
        let all = [
            of(self.set, CandidateKind::Set),
            of(self.mapped, CandidateKind::Mapped),
            of(&host.collect::<Vec<_>>(), CandidateKind::Host),
            of(self.observed, CandidateKind::Observed),
        ];
        let mut seen = BTreeSet::new();
        let mut candidates: Vec<Candidate> = all.into_iter().flatten().collect();
        candidates.retain(|candidate| {
            mesh.is_outside(&candidate.address) && seen.insert(candidate.address)
        });
        candidates.truncate(MAX_CANDIDATES);
        candidates
    }
}
