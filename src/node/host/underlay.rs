//! The network below the tunnel: its MTU, this machine's addresses in it, and its DNS servers.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::resolv_conf::{self, ResolvConf};
use super::resolv_text::{is_ours, name_servers};
use super::survey::Survey;
use crate::model::MeshAddresses;
use crate::model::address::is_routable;

/// The bytes that the tunnel adds over IPv6: 40 for IP, 8 for UDP, 32 for WireGuard. Over IPv4 it is 20 less, but one
/// tunnel may use either.
const MAX_OVERHEAD: u32 = 80;
/// The minimum MTU of IPv6 (RFC 8200 section 5).
const MIN_MTU: u32 = 1280;
/// The file in which systemd-resolved lists its upstream servers.
const RESOLVED_UPSTREAMS: &str = "/run/systemd/resolve/resolv.conf";

/// An address of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The name of the interface.
    pub name: String,
    /// One of its addresses.
    pub address: IpAddr,
    /// The address with its prefix.
    pub net: Option<ipnet::IpNet>,
}

/// Returns all addresses of interfaces that are up.
#[must_use]
pub fn interfaces() -> Vec<Interface> {
    let Ok(found) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    found
        .filter(|entry| entry.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP))
        .filter_map(|entry| {
            let ip = |s: &nix::sys::socket::SockaddrStorage| {
                s.as_sockaddr_in()
                    .map(|a| IpAddr::V4(a.ip()))
                    .or_else(|| s.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            };
            let address = entry.address.as_ref().and_then(ip)?;
            let mask = entry.netmask.as_ref().and_then(ip);
            let net = mask.and_then(|mask| ipnet::IpNet::with_netmask(address, mask).ok());
            Some(Interface {
                name: entry.interface_name,
                address,
                net,
            })
        })
        .collect()
}

/// The bridges whose addresses no other machine can reach.
#[derive(Debug, Clone, Default)]
pub struct Inward {
    /// The bridges of the container engine's networks, from its API.
    pub engine: BTreeSet<String>,
    /// The bridges that connect only guests of this machine, from the kernel.
    pub guests: BTreeSet<String>,
}

/// The endpoints at which other nodes may reach this node's tunnel: the machine's own addresses, IPv4 first.
#[must_use]
pub fn candidates(
    found: &[Interface],
    own: &str,
    mesh: &MeshAddresses,
    port: u16,
    inward: &Inward,
) -> Vec<SocketAddr> {
    let usable =
        |i: &&Interface| i.name != own && is_routable(i.address) && !mesh.contains(i.address);
    let usable: Vec<&Interface> = found.iter().filter(usable).collect();
    let of = |without: &BTreeSet<String>| {
        let outward = usable.iter().filter(|i| !without.contains(&i.name));
        outward.map(|i| i.address).collect::<Vec<IpAddr>>()
    };
    let mut addresses = of(&inward.guests);
    // A node must offer at least one address. A bridge that connects only guests may be all it has, if the machine is
    // itself a guest. The engine's bridges were created on this machine, so they are never an uplink.
    if addresses.is_empty() {
        addresses = of(&inward.engine);
    }
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.dedup();
    addresses
        .into_iter()
        .take(crate::records::kinds::MAX_ENDPOINTS)
        .map(|ip| SocketAddr::new(ip, port))
        .collect()
}

/// The MTU of the tunnel device: the MTU of the narrowest interface with a usable address, less the tunnel's overhead.
/// Bridges that lead only to guests do not count.
#[must_use]
pub fn tunnel_mtu(found: &[Interface], survey: &Survey, own: &str) -> u16 {
    let guests = survey.guest_bridges();
    let narrowest = found
        .iter()
        .filter(|i| i.name != own && !i.address.is_loopback() && !guests.contains(&i.name))
        .filter_map(|i| survey.mtu(&i.name))
        .min()
        .unwrap_or(1500);
    u16::try_from(narrowest.saturating_sub(MAX_OVERHEAD).clamp(MIN_MTU, 9000)).unwrap_or(1420)
}

/// The host's own DNS servers. If meshd manages resolv.conf, these are the servers in the original file.
#[must_use]
pub fn resolvers(managed: &ResolvConf) -> Vec<SocketAddr> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let found = read(resolv_conf::PATH);
    let text = if is_ours(&found) {
        managed.original().unwrap_or_default()
    } else {
        found
    };
    let listed = name_servers(&text);
    // The stub would send queries for names of the mesh back to this node.
    let stub_only = !listed.is_empty() && listed.iter().all(|server| server.ip().is_loopback());
    if stub_only && Path::new(RESOLVED_UPSTREAMS).exists() {
        name_servers(&read(RESOLVED_UPSTREAMS))
    } else {
        listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, address: &str) -> Interface {
        Interface {
            name: name.into(),
            address: address.parse().expect("a literal"),
            net: None,
        }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn offered(found: &[Interface], inward: &Inward) -> Vec<String> {
        let mesh = MeshAddresses {
            prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
            prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
            node_block_v4: 24,
            node_block_v6: 64,
        };
        let offered = candidates(found, "mesh0", &mesh, 51820, inward);
        offered.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn candidates_are_what_another_machine_can_reach() {
        let found = [
            interface("lo", "127.0.0.1"),
            interface("eth0", "2001:db8::5"),
            interface("eth0", "fe80::1"),
            interface("eth0", "198.51.100.5"),
            interface("docker0", "172.17.0.1"),
            interface("backend", "172.18.0.1"),
            interface("mesh0", "10.210.1.1"),
            interface("eth1", "10.210.9.9"),
        ];
        let inward = Inward {
            engine: names(&["backend"]),
            guests: names(&["docker0", "backend"]),
        };
        let both = ["198.51.100.5:51820", "[2001:db8::5]:51820"];
        assert_eq!(offered(&found, &inward), both);
    }

    #[test]
    fn a_bridge_is_offered_where_it_is_the_only_uplink_and_its_name_does_not_matter() {
        let found = [
            interface("br-lan", "192.0.2.5"),
            interface("br-0a1b", "172.18.0.1"),
        ];
        let inward = |guests: &[&str]| Inward {
            engine: names(&["br-0a1b"]),
            guests: names(guests),
        };
        for guests in [&["br-0a1b"][..], &["br-0a1b", "br-lan"]] {
            assert_eq!(offered(&found, &inward(guests)), ["192.0.2.5:51820"]);
        }
        assert_eq!(
            offered(&found[1..], &inward(&["br-0a1b"])),
            Vec::<String>::new(),
            "bridges of the engine are never offered"
        );
    }
}
