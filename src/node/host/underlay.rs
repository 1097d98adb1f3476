//! The network below: its MTU, this machine's addresses in it, its resolvers.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use super::resolv_conf::{self, ResolvConf};
use super::resolv_text::{is_ours, name_servers};
use crate::model::MeshAddresses;
use crate::model::address::is_routable;

/// Octets that the tunnel adds over IPv6: 40 of IP, 8 of UDP, 32 of WireGuard. IPv4's is 20 less, but the same tunnel
/// may go over either.
const OVERHEAD: u32 = 80;
/// The least MTU that IPv6 works with (RFC 8200 section 5).
const LEAST: u32 = 1280;
/// Where systemd-resolved keeps the resolvers behind its stub.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// An address of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The interface's name.
    pub name: String,
    /// One of its addresses.
    pub address: IpAddr,
    /// With its prefix.
    pub net: Option<ipnet::IpNet>,
}

/// All addresses of interfaces that are up.
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

/// Bridges whose addresses no other machine reaches.
#[derive(Debug, Clone, Default)]
pub struct Inward {
    /// Those of the container engine's networks, by its API.
    pub engine: BTreeSet<String>,
    /// Those that lead to guests of this machine only, as the kernel shows.
    pub guests: BTreeSet<String>,
}

/// Where other nodes may reach this one's tunnel: the machine's own addresses, IPv4 first.
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
    // A machine must offer something. A bridge with guests alone may be all it has, if it is a guest itself. One of the
    // engine's it made itself.
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

/// Octets of a packet in the tunnel at most: what the narrowest interface with a usable address leaves, `guests` aside.
#[must_use]
pub fn tunnel_mtu(found: &[Interface], own: &str, guests: &BTreeSet<String>) -> u16 {
    let narrowest = found
        .iter()
        .filter(|i| i.name != own && !i.address.is_loopback() && !guests.contains(&i.name))
        .filter_map(|i| mtu_of(&i.name))
        .min()
        .unwrap_or(1500);
    u16::try_from(narrowest.saturating_sub(OVERHEAD).clamp(LEAST, 9000)).unwrap_or(1420)
}

/// An interface's MTU, in this thread's network namespace.
fn mtu_of(name: &str) -> Option<u32> {
    // SAFETY: zeros are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, octet) in request
        .ifr_name
        .iter_mut()
        .zip(name.bytes().take(libc::IFNAMSIZ - 1))
    {
        *slot = octet as libc::c_char;
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).ok()?;
    // SAFETY: the request holds a name that ends with a zero; the kernel writes the MTU into the union, which then has
    // that member.
    unsafe {
        let done = libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) == 0;
        done.then(|| u32::try_from(request.ifr_ifru.ifru_mtu).ok())
            .flatten()
    }
}

/// The host's own resolvers: those from before, where meshd keeps resolv.conf in `managed`.
#[must_use]
pub fn resolvers(managed: &ResolvConf) -> Vec<SocketAddr> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let found = read(resolv_conf::PATH);
    let text = if is_ours(&found) {
        managed.before().unwrap_or_default()
    } else {
        found
    };
    let listed = name_servers(&text);
    // The stub would ask this node again for names of the mesh.
    let stub_only = !listed.is_empty() && listed.iter().all(|server| server.ip().is_loopback());
    if stub_only && Path::new(BEHIND_STUB).exists() {
        name_servers(&read(BEHIND_STUB))
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
            "the engine's word is not doubted"
        );
    }
}
