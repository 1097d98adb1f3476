//! The nftables tables as text, from the wiring. Pure.
//!
//! Each text replaces a whole table in one transaction: the kernel never has half of it, and connections that are under
//! way are not touched, since their translation is kept by connection tracking.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::{Native, Wiring};
use crate::model::interface::is_plain_interface;

/// The name of our tables.
pub(super) const TABLE: &str = "meshd";
/// The mark that Docker's nftables backend can be told to let through; a bit that the well-known overlays leave alone.
pub(super) const MARK: u32 = 0x0200_0000;
/// The first host of block 0 that is a service address.
const FIRST_SERVICE: u32 = 64;
/// The number of the loopback device, the same in every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;
/// The part of a wiring that makes sense, and what was left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sound {
    bridges: Vec<String>,
    networks: Vec<Ipv4Net>,
    containers: BTreeMap<Ipv4Addr, Ipv4Addr>,
    services: BTreeMap<Ipv4Addr, Vec<Ipv4Addr>>,
    /// The same targets, grouped by the node that has them.
    shares: BTreeMap<Ipv4Addr, Vec<Vec<Ipv4Addr>>>,
    /// Exposed containers that have mesh addresses themselves.
    natives: BTreeSet<Ipv4Addr>,
    /// What was left out, and why.
    pub(super) left_out: Vec<String>,
}

impl Sound {
    pub(super) fn of(wiring: &Wiring) -> Self {
        let mut sound = Self::default();
        sound.take_bridges(wiring);
        sound.take_mappings(wiring);
        sound.take_services(wiring);
        sound
    }

    /// The bridges and the subnets of container networks.
    fn take_bridges(&mut self, wiring: &Wiring) {
        let mut networks = Vec::new();
        for (bridge, subnets) in &wiring.bridges {
            if !is_plain_interface(bridge) || *bridge == wiring.interface {
                self.left_out
                    .push(format!("the bridge {bridge:?}: its name is not plain"));
                continue;
            }
            self.bridges.push(bridge.clone());
            let native = wiring.native.as_ref();
            if native.is_some_and(|native| native.bridge == *bridge) {
                continue;
            }
            for subnet in subnets {
                if subnet.contains(&wiring.prefix) || wiring.prefix.contains(subnet) {
                    self.left_out.push(format!(
                        "the subnet {subnet} of {bridge}: it overlaps the mesh prefix {}",
                        wiring.prefix
                    ));
                } else {
                    networks.push(subnet.trunc());
                }
            }
        }
        self.networks = Ipv4Net::aggregate(&networks);
    }

    /// The containers behind instance addresses.
    fn take_mappings(&mut self, wiring: &Wiring) {
        let mut taken = BTreeSet::new();
        for (instance, mapped) in &wiring.mappings {
            let to = mapped.container;
            let native = wiring.native.as_ref();
            if to == *instance && native.is_some_and(|n| n.range.contains(&to)) && to != wiring.node
            {
                self.natives.insert(to);
                continue;
            }
            let usable = !(to.is_loopback()
                || to.is_unspecified()
                || to.is_multicast()
                || to.is_broadcast()
                || wiring.prefix.contains(&to));
            if !wiring.block.contains(instance) || *instance == wiring.node || !usable {
                self.left_out.push(format!(
                    "{} at {instance}: it cannot be mapped onto {to}",
                    mapped.name.escape_debug()
                ));
            } else if taken.insert(to) {
                self.containers.insert(*instance, to);
            } else {
                self.left_out.push(format!(
                    "{} at {instance}: another instance has {to} already",
                    mapped.name.escape_debug()
                ));
            }
        }
    }

    /// The targets of service addresses, which need the mappings.
    fn take_services(&mut self, wiring: &Wiring) {
        for (service, instances) in &wiring.service_addresses {
            if !service_range(wiring).contains(service) {
                self.left_out
                    .push(format!("{service}: it is no service address"));
                continue;
            }
            let mut targets = BTreeSet::new();
            let mut by_node: BTreeMap<Ipv4Addr, BTreeSet<Ipv4Addr>> = BTreeMap::new();
            for instance in instances {
                if let Some(target) = self.target(wiring, *instance) {
                    targets.insert(target);
                    let node = block_of(*instance, wiring.block.prefix_len());
                    by_node.entry(node).or_default().insert(target);
                }
            }
            self.services
                .insert(*service, targets.into_iter().collect());
            let shares = by_node.into_values();
            let shares = shares.map(|of_node| of_node.into_iter().collect());
            self.shares.insert(*service, shares.collect());
        }
    }

    /// Where a packet to `instance` goes in the end: translation happens once per connection, so a service address must
    /// lead to a container of this node straight away. Only addresses in node blocks are allowed: another node's record must
    /// not send clients of this node to a machine outside the mesh, to a container network that is not part of the mesh, or
    /// to another service address.
    fn target(&self, wiring: &Wiring, instance: Ipv4Addr) -> Option<Ipv4Addr> {
        let block_zero = block_of(wiring.prefix.network(), wiring.block.prefix_len());
        let in_block_zero = block_of(instance, wiring.block.prefix_len()) == block_zero;
        if !wiring.prefix.contains(&instance) || in_block_zero {
            return None;
        }
        if instance == wiring.node || !wiring.block.contains(&instance) {
            return Some(instance);
        }
        let native = self.natives.get(&instance).copied();
        native.or_else(|| self.containers.get(&instance).copied())
    }

    /// Instance addresses and the containers behind them.
    pub(super) fn containers(&self) -> &BTreeMap<Ipv4Addr, Ipv4Addr> {
        &self.containers
    }

    /// Service addresses and where they lead.
    pub(super) fn services(&self) -> &BTreeMap<Ipv4Addr, Vec<Ipv4Addr>> {
        &self.services
    }

    /// Whether anything is translated. Where nothing is, no rule looks at connections: one that does has the kernel track
    /// all connections of the host, which costs each of its packets.
    fn translates(&self, wiring: &Wiring) -> bool {
        let maps = !self.containers.is_empty() || !self.services.is_empty();
        maps || !self.networks.is_empty() || wiring.native.is_some()
    }

    /// The table for IPv4. With `mark`, mapped connections carry [`MARK`].
    pub(super) fn table(&self, wiring: &Wiring, mark: bool) -> String {
        let Wiring {
            interface,
            prefix,
            block,
            ..
        } = wiring;
        let mut text = replacing("ip");
        let _ = writeln!(text, "table ip {TABLE} {{");
        self.sets(&mut text, wiring);
        let translates = self.translates(wiring);
        let native = wiring.native.as_ref().map(|n| native(n, wiring));
        let native = native.unwrap_or_default();
        chain(
            &mut text,
            "guard",
            "filter hook prerouting priority -310",
            &[
                vec![
                    // Most of all packets of some hosts, and cheaper to tell by its number.
                    format!("iif {LOOPBACK} accept"),
                    format!("iifname \"{interface}\" accept"),
                ],
                native.guard.clone(),
                vec![
                    format!("ip saddr {prefix} drop"),
                    "iifname @bridges accept".into(),
                    format!("ip daddr {prefix} drop"),
                ],
            ]
            .concat(),
        );
        if translates {
            self.translation(&mut text, wiring, &native);
        }
        chain(
            &mut text,
            "own_sources",
            "filter hook postrouting priority 300",
            &[format!("oifname \"{interface}\" ip saddr != {block} drop")],
        );
        self.filters(&mut text, wiring, native, mark);
        let refuse = [
            "meta l4proto tcp reject with tcp reset",
            "reject with icmp type host-unreachable",
        ];
        chain(&mut text, "refuse", "", &refuse.map(str::to_owned));
        text.push_str("}\n");
        text
    }

    /// The chains that filter forwarded packets and packets of this host.
    fn filters(&self, text: &mut String, wiring: &Wiring, native: NativeRules, mark: bool) {
        let Wiring {
            interface,
            block,
            node,
            ..
        } = wiring;
        let translates = self.translates(wiring);
        let refused = [
            format!("ip daddr {block} goto refuse"),
            format!("ip daddr {} goto refuse", service_addresses(wiring)),
        ];
        let invalid = translates.then(|| "ip daddr @instances ct state invalid drop".to_owned());
        let mut passing = vec![format!(
            "oifname \"{interface}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
        )];
        passing.extend(invalid.clone());
        if mark && !native.passing.is_empty() {
            passing.push(format!(
                "ct original ip daddr @natives meta mark set meta mark | {MARK:#010x}"
            ));
        }
        passing.extend(native.passing);
        passing.extend(refused.clone());
        if translates {
            passing.push(format!(
                "iifname \"{interface}\" ct state new ct status & dnat == 0 drop"
            ));
        }
        if mark && translates {
            let mapped = mapped(wiring);
            passing.push(format!("{mapped} meta mark set meta mark | {MARK:#010x}"));
        }
        let hook = "filter hook forward priority -150";
        chain(text, "passing", hook, &passing);
        let mut to_nowhere = vec![format!("ip daddr {node} accept")];
        to_nowhere.extend(native.from_host);
        to_nowhere.extend(invalid);
        to_nowhere.extend(refused);
        let hook = "filter hook output priority 0";
        chain(text, "to_nowhere", hook, &to_nowhere);
    }

    /// The sets and maps that the rules refer to.
    fn sets(&self, text: &mut String, wiring: &Wiring) {
        set(
            text,
            "set bridges",
            "type ifname",
            self.bridges.iter().map(|b| format!("\"{b}\"")),
        );
        set(
            text,
            "set networks",
            "type ipv4_addr; flags interval",
            self.networks.iter().map(ToString::to_string),
        );
        set(
            text,
            "set instances",
            "type ipv4_addr",
            self.containers.keys().map(ToString::to_string),
        );
        set(
            text,
            "map containers",
            "type ipv4_addr : ipv4_addr",
            self.containers.iter().map(|(i, c)| format!("{i} : {c}")),
        );
        set(
            text,
            "map identities",
            "type ipv4_addr : ipv4_addr",
            self.containers.iter().map(|(i, c)| format!("{c} : {i}")),
        );
        if wiring.native.is_some() {
            set(
                text,
                "set natives",
                "type ipv4_addr",
                self.natives.iter().map(ToString::to_string),
            );
        }
    }

    /// The chains that translate addresses.
    fn translation(&self, text: &mut String, wiring: &Wiring, native: &NativeRules) {
        let (interface, node) = (&wiring.interface, wiring.node);
        let services = service_addresses(wiring);
        let mapped = mapped(wiring);
        chain(
            text,
            "own_names",
            "filter hook output priority -300",
            // Nobody translates what this host asks itself, and to track it costs much for what an answer does.
            &[
                format!("oif != {LOOPBACK} accept"),
                format!("udp dport 53 ip daddr {node} notrack"),
                format!("udp sport 53 ip saddr {node} notrack"),
            ],
        );
        let balance: Vec<String> = self.shares.iter().filter_map(balanced).collect();
        chain(text, "services", "", &balance);
        chain(
            text,
            "arriving",
            "nat hook prerouting priority -105",
            &[
                "dnat to ip daddr map @containers".into(),
                format!("iifname != \"{interface}\" ip daddr {services} jump services"),
            ],
        );
        chain(
            text,
            "from_host",
            "nat hook output priority -105",
            &[
                "dnat to ip daddr map @containers".into(),
                format!("ip daddr {services} jump services"),
            ],
        );
        chain(
            text,
            "leaving",
            "nat hook postrouting priority 95",
            &[
                vec![
                    format!("oifname \"{interface}\" snat to ip saddr map @identities"),
                    format!("oifname \"{interface}\" ip saddr @networks snat to {node}"),
                    format!("{mapped} snat to ip saddr map @identities"),
                    format!("{mapped} ip saddr @networks snat to {node}"),
                ],
                native.leaving.clone(),
            ]
            .concat(),
        );
    }

    /// The table for IPv6: nobody but the tunnel brings packets from or to the mesh's prefix.
    pub(super) fn guard_v6(&self, interface: &str, prefix: Ipv6Net) -> String {
        let mut text = replacing("ip6");
        let _ = writeln!(text, "table ip6 {TABLE} {{");
        set(
            &mut text,
            "set bridges",
            "type ifname",
            self.bridges.iter().map(|b| format!("\"{b}\"")),
        );
        let _ = write!(
            text,
            "\tchain guard {{\n\
             \t\ttype filter hook prerouting priority -310; policy accept;\n\
             \t\tiifname {{ \"lo\", \"{interface}\" }} accept\n\
             \t\tip6 saddr {prefix} drop\n\
             \t\tiifname @bridges accept\n\
             \t\tip6 daddr {prefix} drop\n\
             \t}}\n\
             }}\n"
        );
        text
    }
}

/// Appends a chain. Without a `hook`, other chains jump to it.
fn chain(text: &mut String, name: &str, hook: &str, rules: &[String]) {
    let _ = writeln!(text, "\tchain {name} {{");
    if !hook.is_empty() {
        let _ = writeln!(text, "\t\ttype {hook}; policy accept;");
    }
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    let _ = writeln!(text, "\t}}");
}

/// The service addresses, as an interval.
fn service_addresses(wiring: &Wiring) -> String {
    let range = service_range(wiring);
    format!("{}-{}", range.start(), range.end())
}

/// Matches connections to a mesh address that a rule of the table has translated.
fn mapped(wiring: &Wiring) -> String {
    format!("ct status dnat ct original ip daddr {}", wiring.prefix)
}

/// Rules besides, where the engine gives mesh addresses out itself.
#[derive(Default)]
struct NativeRules {
    guard: Vec<String>,
    leaving: Vec<String>,
    passing: Vec<String>,
    from_host: Vec<String>,
}

fn native(native: &Native, wiring: &Wiring) -> NativeRules {
    let (bridge, prefix, node) = (&native.bridge, wiring.prefix, wiring.node);
    let interface = &wiring.interface;
    let first = u32::from(native.range.network()).saturating_add(2);
    let own = format!("{}-{}", Ipv4Addr::from(first), native.range.broadcast());
    NativeRules {
        guard: vec![format!("iifname \"{bridge}\" ip saddr {own} accept")],
        leaving: vec![
            // Other containers of this host show themselves to these as to everybody in the mesh.
            format!(
                "oifname \"{bridge}\" ct original ip daddr {prefix} snat to ip saddr map @identities"
            ),
            format!(
                "oifname \"{bridge}\" ct original ip daddr {prefix} ip saddr @networks snat to {node}"
            ),
            // A service address that leads back to their own bridge: the answer is to come by here.
            format!(
                "oifname \"{bridge}\" ct status dnat ct original ip daddr {prefix} ip saddr {own} snat to {node}"
            ),
            // Only outside the mesh nobody knows their addresses.
            format!(
                "oifname != {{ \"{interface}\", \"{bridge}\" }} ip saddr {own} ct original ip daddr != {prefix} masquerade"
            ),
        ],
        passing: vec![
            "ip daddr @natives accept".into(),
            // Those that are not exposed are reached by their neighbours, at ports that they publish, and by answers.
            format!("iifname \"{bridge}\" oifname \"{bridge}\" accept"),
            format!("oifname \"{bridge}\" ct status dnat accept"),
            format!("oifname \"{bridge}\" ct state established,related accept"),
        ],
        from_host: vec![
            // What a service address stands for is on the same link, yet must come by here.
            format!("oifname \"{bridge}\" icmp type redirect drop"),
            "ip daddr @natives accept".into(),
            format!("oifname \"{bridge}\" accept"),
        ],
    }
}

/// The table for bridges: an exposed container's own address comes from its own ports alone, whichever neighbour on a
/// bridge claims it. `ports` has those of each container whose ports are known.
pub(super) fn guard_bridges(ports: &BTreeMap<Ipv4Addr, Vec<String>>) -> String {
    let plain = || {
        ports
            .iter()
            .filter(|(_, names)| names.iter().all(|name| is_plain_interface(name)))
    };
    let mut text = replacing("bridge");
    let _ = writeln!(text, "table bridge {TABLE} {{");
    set(
        &mut text,
        "set addresses",
        "type ipv4_addr",
        plain().map(|(address, _)| address.to_string()),
    );
    set(
        &mut text,
        "set ports",
        "type ifname . ipv4_addr",
        plain().flat_map(|(address, names)| {
            names
                .iter()
                .map(move |name| format!("\"{name}\" . {address}"))
        }),
    );
    text.push_str(
        "\tchain guard {\n\
         \t\ttype filter hook prerouting priority -310; policy accept;\n\
         \t\tip saddr @addresses iifname . ip saddr != @ports drop\n\
         \t\tarp saddr ip @addresses iifname . arp saddr ip != @ports drop\n\
         \t}\n\
         }\n",
    );
    text
}

/// Takes our table of `family` away, whether it is there or not.
pub(super) fn replacing(family: &str) -> String {
    format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n")
}

/// The service addresses of the mesh: block 0 from host 64.
fn service_range(wiring: &Wiring) -> std::ops::RangeInclusive<Ipv4Addr> {
    let first = u32::from(wiring.prefix.network());
    let size = 1u32
        .checked_shl(32 - u32::from(wiring.block.prefix_len()))
        .unwrap_or(u32::MAX);
    let last = first.saturating_add(size.saturating_sub(1).max(FIRST_SERVICE));
    Ipv4Addr::from(first.saturating_add(FIRST_SERVICE))..=Ipv4Addr::from(last)
}

/// The first address of the node block that contains `address`. All node blocks of a mesh have the same length.
fn block_of(address: Ipv4Addr, block_length: u8) -> Ipv4Addr {
    Ipv4Net::new(address, block_length).map_or(address, |net| net.network())
}

/// The count of numbers in the map of a service address that lead to one node, if the nodes have different counts of
/// instances.
const NODE_NUMBERS: u32 = 1 << 16;

/// The rule of a service address. Each node gets an equal share of the connections, which its instances divide equally.
fn balanced((service, nodes): (&Ipv4Addr, &Vec<Vec<Ipv4Addr>>)) -> Option<String> {
    let mut targets: Vec<Ipv4Addr> = nodes.iter().flatten().copied().collect();
    targets.sort_unstable();
    let lengths: BTreeSet<usize> = nodes.iter().map(Vec::len).collect();
    let (numbers, slots): (usize, Vec<String>) = match targets.as_slice() {
        [] => return None,
        [one] => return Some(format!("ip daddr {service} dnat to {one}")),
        // All nodes have the same count of instances, so one number for each instance is enough.
        many if lengths.len() == 1 => {
            let slots = many.iter().enumerate();
            let slots = slots.map(|(slot, target)| format!("{slot} : {target}"));
            (many.len(), slots.collect())
        }
        _ => {
            let mut slots = Vec::new();
            let mut first = 0;
            for of_node in nodes {
                let end = first + NODE_NUMBERS as usize;
                for (place, target) in of_node.iter().enumerate() {
                    let at = |place| first + NODE_NUMBERS as usize * place / of_node.len();
                    slots.push(format!("{}-{} : {target}", at(place), at(place + 1) - 1));
                }
                first = end;
            }
            (first, slots)
        }
    };
    Some(format!(
        "ip daddr {service} dnat to numgen random mod {numbers} map {{ {} }}",
        slots.join(", ")
    ))
}

/// A named set or map; one without elements must not have the line.
fn set(text: &mut String, what: &str, of: &str, elements: impl Iterator<Item = String>) {
    let _ = writeln!(text, "\t{what} {{");
    for line in of.split("; ") {
        let _ = writeln!(text, "\t\t{line}");
    }
    let elements: Vec<String> = elements.collect();
    if !elements.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(", "));
    }
    let _ = writeln!(text, "\t}}");
}

#[cfg(test)]
mod tests;
