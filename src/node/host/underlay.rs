//! The network below the tunnel: its MTU, this machine's addresses in it, and its DNS servers.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::resolv_conf::{self, ResolvConf};
use super::resolv_text::{is_ours, name_servers};
use super::survey::Survey;

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
    /// Whether the interface has no link layer, as tunnels have none.
    pub is_tunnel: bool,
}

/// Returns all addresses of interfaces that are up.
///
/// # Errors
/// The system returns an error, for example because meshd may open no more files.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let found: Vec<_> = nix::ifaddrs::getifaddrs()?.collect();
    // The kernel lists the link layer of an interface as one of its addresses.
    let tunnels: BTreeSet<String> = found
        .iter()
        .filter(|entry| {
            let link = entry.address.as_ref().and_then(|a| a.as_link_addr());
            link.is_some_and(|link| link.hatype() == libc::ARPHRD_NONE)
        })
        .map(|entry| entry.interface_name.clone())
        .collect();
    let interfaces = found
        .into_iter()
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
                is_tunnel: tunnels.contains(&entry.interface_name),
                name: entry.interface_name,
                address,
                net,
            })
        })
        .collect();
    Ok(interfaces)
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
