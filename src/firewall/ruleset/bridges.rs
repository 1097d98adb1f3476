//! Renders the table for bridges: which containers may use an address. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use super::chains::chain;
use super::local::LocalRules;
use super::sets::set;
use super::{TABLE, replacing};
use crate::firewall::FirewallState;
use crate::model::interface::is_plain_interface;

/// The table for bridges. Packets with the address of an exposed container are accepted only from that container's own
/// ports, and packets to the mesh from such a port have this address. `ports` has the ports of each container whose ports are known, the one
/// in the network of the address first. The policy `local` is enforced between the containers of a bridge.
pub(in crate::firewall) fn guard_bridges(
    state: &FirewallState,
    ports: &BTreeMap<IpAddr, Vec<String>>,
    local: Option<&LocalRules>,
) -> String {
    let plain = ports
        .iter()
        .filter(|(_, names)| names.iter().all(|name| is_plain_interface(name)));
    let (mut v4, mut v6): (Vec<Owned<'_>>, Vec<Owned<'_>>) = (Vec::new(), Vec::new());
    let mut advertised = Vec::new();
    for (address, names) in plain {
        match address {
            IpAddr::V4(_) => v4.push((address, names)),
            IpAddr::V6(address_v6) => {
                v6.push((address, names));
                advertised.push(advertisement(*address_v6, names));
            }
        }
    }
    let mut text = replacing("bridge");
    let _ = writeln!(text, "table bridge {TABLE} {{");
    owners(&mut text, ("addresses", "ports"), "ipv4_addr", &v4);
    let mut rules = vec![
        "ip saddr @addresses iifname . ip saddr != @ports drop".to_owned(),
        "arp saddr ip @addresses iifname . arp saddr ip != @ports drop".to_owned(),
    ];
    if !v4.is_empty() {
        bound(&mut text, "bound", &v4);
        let prefix = state.prefix;
        rules.push(format!(
            "iifname @bound ip daddr {prefix} iifname . ip saddr != @ports drop"
        ));
    }
    // Without such containers there are no rules of IPv6, which older versions of nftables may not understand.
    if let Some(part) = state.v6.as_ref().filter(|_| !v6.is_empty()) {
        owners(&mut text, ("addresses_v6", "ports_v6"), "ipv6_addr", &v6);
        bound(&mut text, "bound_v6", &v6);
        chain(&mut text, "advertised", "", &advertised);
        let hosts: BTreeSet<&String> = v6.iter().flat_map(|(_, names)| *names).collect();
        let hosts = hosts.into_iter().map(|name| format!("\"{name}\""));
        set(&mut text, "set hosts_v6", "type ifname", hosts);
        rules.extend([
            "ip6 saddr @addresses_v6 iifname . ip6 saddr != @ports_v6 drop".to_owned(),
            format!(
                "iifname @bound_v6 ip6 daddr {} iifname . ip6 saddr != @ports_v6 drop",
                part.prefix
            ),
            "icmpv6 type nd-neighbor-advert jump advertised".to_owned(),
            format!("iifname @hosts_v6 {ROUTING} drop"),
        ]);
        let routing = [format!("oifname @hosts_v6 {ROUTING} drop")];
        let hook = "filter hook forward priority 0";
        chain(&mut text, "routers", hook, &routing);
    }
    let hook = "filter hook prerouting priority -310";
    chain(&mut text, "guard", hook, &rules);
    text.push_str(&local.map(LocalRules::bridged).unwrap_or_default());
    text.push_str("}\n");
    text
}

/// The match for messages by which a neighbor makes itself the router of others (RFC 4861 sections 4.2 and 4.5), and so reads and answers
/// what they send to the mesh. No exposed container sends them, and none receives them but from this host.
const ROUTING: &str = "icmpv6 type { nd-router-advert, nd-redirect }";

/// The address of a container, and the names of its ports.
type Owned<'a> = (&'a IpAddr, &'a Vec<String>);

/// The set of addresses, and the set of ports with the addresses that they may use, by these names.
fn owners(text: &mut String, (addresses, ports): (&str, &str), kind: &str, owned: &[Owned<'_>]) {
    set(
        text,
        &format!("set {addresses}"),
        &format!("type {kind}"),
        owned.iter().map(|(address, _)| address.to_string()),
    );
    set(
        text,
        &format!("set {ports}"),
        &format!("type ifname . {kind}"),
        owned.iter().flat_map(|(address, names)| {
            let names = names.iter();
            names.map(move |name| format!("\"{name}\" . {address}"))
        }),
    );
}

/// The set, by this name, of the ports whose packets to the mesh must have the address of their container. From an address of the network
/// that no container has, a container would pass for the node. The other ports of a container with several networks are not in the set,
/// because it may have its default route there.
fn bound(text: &mut String, name: &str, owned: &[Owned<'_>]) {
    let first = owned.iter().filter_map(|(_, names)| names.first());
    let first: BTreeSet<&String> = first.collect();
    let elements = first.into_iter().map(|name| format!("\"{name}\""));
    set(text, &format!("set {name}"), "type ifname", elements);
}

/// The rule that drops neighbor advertisements for `address` from other ports than those of its container. The target follows the
/// first 8 bytes of the message (RFC 4861 section 4.4). Versions of nftables before 1.0.8 have no word for it.
fn advertisement(address: Ipv6Addr, names: &[String]) -> String {
    let names = names.iter().map(|name| format!("\"{name}\""));
    let names: Vec<String> = names.collect();
    format!(
        "@th,64,128 {:#034x} iifname != {{ {} }} drop",
        address.to_bits(),
        names.join(", ")
    )
}
