//! Renders the nftables tables as text from the wanted state. Pure.
//!
//! Each text replaces a whole table in one transaction, so the kernel never has a part of a table. Established
//! connections are not affected, because connection tracking keeps their translation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};

use self::balance::Target;
pub(super) use self::local::LocalRules;
use self::sets::set;
use super::{FirewallState, Native, Ports};
use crate::model::interface::is_plain_interface;

mod balance;
mod local;
mod sets;

/// The name of meshd's tables.
pub(super) const TABLE: &str = "meshd";
/// The packet mark that Docker's nftables backend can be configured to accept. It is a bit that well-known overlay
/// networks do not use.
pub(super) const MARK: u32 = 0x0200_0000;
/// The first service address is host 64 of block 0.
const FIRST_SERVICE: u32 = 64;
/// The match for packets of new connections to ports that the destination does not declare.
const UNDECLARED: &str = "meta l4proto != icmp ip daddr . meta l4proto . th dport != @declared";
/// The index of the loopback device, which is the same in every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;
/// The valid part of a [`FirewallState`], and what was left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ValidState {
    bridges: Vec<String>,
    networks: Vec<Ipv4Net>,
    containers: BTreeMap<Ipv4Addr, Ipv4Addr>,
    services: BTreeMap<Ipv4Addr, Vec<Ipv4Addr>>,
    /// The rules that distribute connections over these targets.
    balance: Vec<String>,
    /// The exposed containers that have mesh addresses of their own.
    natives: BTreeSet<Ipv4Addr>,
    /// The addresses of services outside the mesh.
    outside: BTreeSet<Ipv4Addr>,
    /// The ports that accept connections, by instance address, of the containers that do not accept them on all ports.
    declared: BTreeMap<Ipv4Addr, Ports>,
    /// The policy between the containers of this host, if there is one.
    local: Option<LocalRules>,
    /// What was left out, and the reason.
    pub(super) left_out: Vec<String>,
}

impl ValidState {
    pub(super) fn of(state: &FirewallState) -> Self {
        let mut valid = Self::default();
        valid.add_bridges(state);
        valid.add_mappings(state);
        valid.add_services(state);
        let policy = state.policy.as_ref();
        valid.local = policy.and_then(|policy| LocalRules::of(policy, &valid, state));
        valid
    }

    /// Adds the bridges and the subnets of container networks.
    fn add_bridges(&mut self, state: &FirewallState) {
        let mut networks = Vec::new();
        for (bridge, subnets) in &state.bridges {
            if !is_plain_interface(bridge) || *bridge == state.interface {
                self.left_out
                    .push(format!("the bridge {bridge:?}: its name is not plain"));
                continue;
            }
            self.bridges.push(bridge.clone());
            let native = state.native.as_ref();
            if native.is_some_and(|native| native.bridge == *bridge) {
                continue;
            }
            for subnet in subnets {
                if subnet.contains(&state.prefix) || state.prefix.contains(subnet) {
                    self.left_out.push(format!(
                        "the subnet {subnet} of {bridge}: it overlaps the mesh prefix {}",
                        state.prefix
                    ));
                } else {
                    networks.push(subnet.trunc());
                }
            }
        }
        self.networks = Ipv4Net::aggregate(&networks);
    }

    /// Adds the containers behind instance addresses.
    fn add_mappings(&mut self, state: &FirewallState) {
        let mut taken = BTreeSet::new();
        for (instance, mapped) in &state.mappings {
            let to = mapped.container;
            let native = state.native.as_ref();
            if to == *instance && native.is_some_and(|n| n.range.contains(&to)) && to != state.node
            {
                self.natives.insert(to);
                continue;
            }
            let usable = !(to.is_loopback()
                || to.is_unspecified()
                || to.is_multicast()
                || to.is_broadcast()
                || state.prefix.contains(&to));
            if !state.block.contains(instance) || *instance == state.node || !usable {
                self.left_out.push(format!(
                    "{} at {instance}: it cannot be mapped onto {to}",
                    mapped.name.escape_debug()
                ));
            } else if taken.insert(to) {
                self.containers.insert(*instance, to);
                if state.outside.contains(instance) {
                    self.outside.insert(to);
                }
            } else {
                self.left_out.push(format!(
                    "{} at {instance}: another instance has {to} already",
                    mapped.name.escape_debug()
                ));
            }
        }
        for (instance, mapped) in &state.mappings {
            let is_valid =
                self.natives.contains(instance) || self.containers.contains_key(instance);
            if let Some(ports) = mapped.ports.as_ref().filter(|_| is_valid) {
                self.declared.insert(*instance, ports.clone());
            }
        }
    }

    /// Adds the targets of service addresses. The mappings have to be there already.
    fn add_services(&mut self, state: &FirewallState) {
        for (service, instances) in &state.service_addresses {
            if !service_range(state).contains(service) {
                self.left_out
                    .push(format!("{service}: it is no service address"));
                continue;
            }
            let targets = instances.iter().filter_map(|instance| {
                let target = Target {
                    node: block_of(*instance, state.block.prefix_len()),
                    ports: self.declared.get(instance).cloned(),
                };
                Some((self.target(state, *instance)?, target))
            });
            let targets: BTreeMap<Ipv4Addr, Target> = targets.collect();
            self.balance.extend(balance::rules(*service, &targets));
            self.services
                .insert(*service, targets.into_keys().collect());
        }
    }

    /// The final destination of a packet to `instance`. The kernel translates a connection once, so a service address
    /// has to lead directly to a container of this node. Only addresses in node blocks are allowed: the record of
    /// another node must not make this node send packets to a machine outside the mesh, to a container network that is
    /// not part of the mesh, or to another service address.
    fn target(&self, state: &FirewallState, instance: Ipv4Addr) -> Option<Ipv4Addr> {
        let block_zero = block_of(state.prefix.network(), state.block.prefix_len());
        let in_block_zero = block_of(instance, state.block.prefix_len()) == block_zero;
        if !state.prefix.contains(&instance) || in_block_zero {
            return None;
        }
        if instance == state.node || !state.block.contains(&instance) {
            return Some(instance);
        }
        let native = self.natives.get(&instance).copied();
        native.or_else(|| self.containers.get(&instance).copied())
    }

    /// The containers by instance address.
    pub(super) fn containers(&self) -> &BTreeMap<Ipv4Addr, Ipv4Addr> {
        &self.containers
    }

    /// The policy between the containers of this host, if there is one.
    pub(super) fn local(&self) -> Option<&LocalRules> {
        self.local.as_ref()
    }

    /// The targets by service address.
    pub(super) fn services(&self) -> &BTreeMap<Ipv4Addr, Vec<Ipv4Addr>> {
        &self.services
    }

    /// Whether anything is translated. If nothing is, no rule may refer to connections: such a rule makes the kernel
    /// track all connections of the host, which costs time for each packet.
    fn translates(&self, state: &FirewallState) -> bool {
        let maps = !self.containers.is_empty() || !self.services.is_empty();
        maps || !state.routes.is_empty() || !self.networks.is_empty() || state.native.is_some()
    }

    /// The table for IPv4. With `mark`, mapped connections carry [`MARK`].
    pub(super) fn table(&self, state: &FirewallState, mark: bool) -> String {
        let FirewallState {
            interface,
            prefix,
            block,
            ..
        } = state;
        let mut text = replacing("ip");
        let _ = writeln!(text, "table ip {TABLE} {{");
        self.sets(&mut text, state);
        if let Some(local) = &self.local {
            local.sets(&mut text);
            local.chains(&mut text);
        }
        let translates = self.translates(state);
        let native = state.native.as_ref().map(|n| native(n, state));
        let native = native.unwrap_or_default();
        chain(
            &mut text,
            "guard",
            "filter hook prerouting priority -310",
            &[
                vec![
                    // On some hosts most packets are on the loopback device, and comparing an index is cheaper than
                    // comparing a name.
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
            self.translation(&mut text, state, &native);
        }
        chain(
            &mut text,
            "own_sources",
            "filter hook postrouting priority 300",
            &[own_sources(state)],
        );
        self.filters(&mut text, state, native, mark);
        let refuse = [
            "meta l4proto tcp reject with tcp reset",
            "reject with icmp type host-unreachable",
        ];
        chain(&mut text, "refuse", "", &refuse.map(str::to_owned));
        text.push_str("}\n");
        text
    }

    /// The chains that filter forwarded packets and packets of this host.
    fn filters(&self, text: &mut String, state: &FirewallState, native: NativeRules, mark: bool) {
        let FirewallState {
            interface,
            block,
            node,
            ..
        } = state;
        let translates = self.translates(state);
        let refused = [
            format!("ip daddr {block} goto refuse"),
            format!("ip daddr {} goto refuse", service_addresses(state)),
        ];
        let invalid = translates.then(|| "ip daddr @instances ct state invalid drop".to_owned());
        let undeclared = self.undeclared_native();
        let mut passing = vec![format!(
            "oifname \"{interface}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
        )];
        passing.extend(invalid.clone());
        let local = self.local.as_ref();
        passing.extend(local.iter().flat_map(|local| local.passing(interface)));
        passing.extend(native.same_bridge);
        passing.extend(undeclared.clone());
        if mark && !native.passing.is_empty() {
            passing.push(format!(
                "ct original ip daddr @natives meta mark set meta mark | {MARK:#010x}"
            ));
        }
        passing.extend(native.passing);
        passing.extend(refused.clone());
        passing.extend(route_set(state).map(|networks| {
            let mark = if mark {
                format!("meta mark set meta mark | {MARK:#010x} ")
            } else {
                String::new()
            };
            format!(
                "ct original ip saddr {} ct original ip daddr {networks} {mark}accept",
                state.prefix
            )
        }));
        if translates {
            passing.push(format!(
                "iifname \"{interface}\" ct state new ct status & dnat == 0 drop"
            ));
        }
        if mark && translates {
            let mapped = mapped(state);
            passing.push(format!("{mapped} meta mark set meta mark | {MARK:#010x}"));
        }
        let hook = "filter hook forward priority -150";
        chain(text, "passing", hook, &passing);
        let mut to_nowhere = vec![format!("ip daddr {node} accept")];
        to_nowhere.extend(native.redirects);
        to_nowhere.extend(undeclared);
        to_nowhere.extend(local.map(LocalRules::sent_by_host));
        to_nowhere.extend(native.from_host);
        to_nowhere.extend(invalid);
        to_nowhere.extend(refused);
        let hook = "filter hook output priority 0";
        chain(text, "to_nowhere", hook, &to_nowhere);
    }

    /// The rule against new connections to undeclared ports of containers that have mesh addresses of their own. Those of
    /// others are not translated, so the packets to them are refused like those to any address without a target. The labels
    /// of a container do not change while it runs, so its established connections need no rule.
    fn undeclared_native(&self) -> Option<String> {
        let is_declaring = |native| self.declared.contains_key(native);
        self.natives
            .iter()
            .any(is_declaring)
            .then(|| format!("ct state new ct original ip daddr @natives {UNDECLARED} goto refuse"))
    }

    /// The rules that translate instance addresses.
    fn to_containers(&self) -> Vec<String> {
        let is_declaring = |instance| self.declared.contains_key(instance);
        let undeclared = self.containers.keys().any(is_declaring);
        let undeclared = undeclared.then(|| format!("ip daddr @declaring {UNDECLARED} accept"));
        let translate = "dnat to ip daddr map @containers".to_owned();
        undeclared.into_iter().chain([translate]).collect()
    }

    /// The chains that translate addresses.
    fn translation(&self, text: &mut String, state: &FirewallState, native: &NativeRules) {
        let (interface, node) = (&state.interface, state.node);
        let services = service_addresses(state);
        let mapped = mapped(state);
        chain(
            text,
            "own_names",
            "filter hook output priority -300",
            // Queries of this host to its own node address are not translated, and tracking them costs much compared
            // with answering them.
            &[
                format!("oif != {LOOPBACK} accept"),
                format!("udp dport 53 ip daddr {node} notrack"),
                format!("udp sport 53 ip saddr {node} notrack"),
            ],
        );
        chain(text, "services", "", &self.balance);
        chain(
            text,
            "arriving",
            "nat hook prerouting priority -105",
            &[
                self.to_containers(),
                vec![format!(
                    "iifname != \"{interface}\" ip daddr {services} jump services"
                )],
            ]
            .concat(),
        );
        chain(
            text,
            "from_host",
            "nat hook output priority -105",
            &[
                self.to_containers(),
                vec![format!("ip daddr {services} jump services")],
            ]
            .concat(),
        );
        chain(
            text,
            "leaving",
            "nat hook postrouting priority 95",
            &[
                self.masqueraded(state),
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

    /// The rules for packets to hosts that have no route to the mesh: services outside it, and networks to which this node routes. They
    /// get the address of this machine as their source.
    fn masqueraded(&self, state: &FirewallState) -> Vec<String> {
        let outside = (!self.outside.is_empty())
            .then(|| format!("{} ip daddr @outside masquerade", mapped(state)));
        let routes = route_set(state).map(|networks| {
            let (interface, prefix) = (&state.interface, state.prefix);
            format!("oifname != \"{interface}\" ip saddr {prefix} ip daddr {networks} masquerade")
        });
        outside.into_iter().chain(routes).collect()
    }

    /// The table for IPv6. It accepts packets from the mesh's prefix only from the tunnel device and this host, and packets
    /// to the prefix also from the bridges of containers.
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

/// The networks to which this node routes, as a set in the syntax of nftables.
fn route_set(state: &FirewallState) -> Option<String> {
    let networks: Vec<String> = Ipv4Net::aggregate(&state.routes)
        .iter()
        .map(ToString::to_string)
        .collect();
    (!networks.is_empty()).then(|| format!("{{ {} }}", networks.join(", ")))
}

/// The rule against packets into the tunnel with a source that is not this node's. Hosts of the networks to which this node routes
/// answer through it.
fn own_sources(state: &FirewallState) -> String {
    let FirewallState {
        interface, block, ..
    } = state;
    match route_set(state) {
        None => format!("oifname \"{interface}\" ip saddr != {block} drop"),
        Some(networks) => {
            format!("oifname \"{interface}\" ip saddr != {block} ip saddr != {networks} drop")
        }
    }
}

/// Appends a chain. A chain without a `hook` is the target of jumps from other chains.
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

/// The range of service addresses in the syntax of nftables.
fn service_addresses(state: &FirewallState) -> String {
    let range = service_range(state);
    format!("{}-{}", range.start(), range.end())
}

/// The match for connections to a mesh address that a rule of the table has translated.
fn mapped(state: &FirewallState) -> String {
    format!("ct status dnat ct original ip daddr {}", state.prefix)
}

/// The additional rules for a network in which the engine assigns mesh addresses.
#[derive(Default)]
struct NativeRules {
    guard: Vec<String>,
    leaving: Vec<String>,
    /// Between containers on the bridge itself.
    same_bridge: Vec<String>,
    passing: Vec<String>,
    redirects: Vec<String>,
    from_host: Vec<String>,
}

fn native(native: &Native, state: &FirewallState) -> NativeRules {
    let (bridge, prefix, node) = (&native.bridge, state.prefix, state.node);
    let interface = &state.interface;
    let first = u32::from(native.range.network()).saturating_add(2);
    let own = format!("{}-{}", Ipv4Addr::from(first), native.range.broadcast());
    NativeRules {
        guard: vec![format!("iifname \"{bridge}\" ip saddr {own} accept")],
        leaving: vec![
            // Other containers of this host have the same source address here as anywhere in the mesh.
            format!(
                "oifname \"{bridge}\" ct original ip daddr {prefix} snat to ip saddr map @identities"
            ),
            format!(
                "oifname \"{bridge}\" ct original ip daddr {prefix} ip saddr @networks snat to {node}"
            ),
            // If a service address leads back to the sender's own bridge, the answer has to pass this host so that it
            // is translated back.
            format!(
                "oifname \"{bridge}\" ct status dnat ct original ip daddr {prefix} ip saddr {own} snat to {node}"
            ),
            // These addresses are unknown outside the mesh.
            format!(
                "oifname != {{ \"{interface}\", \"{bridge}\" }} ip saddr {own} ct original ip daddr != {prefix} masquerade"
            ),
        ],
        same_bridge: vec![format!("iifname \"{bridge}\" oifname \"{bridge}\" accept")],
        passing: vec![
            "ip daddr @natives accept".into(),
            // Containers that are not exposed accept connections to published ports, and answers.
            format!("oifname \"{bridge}\" ct status dnat accept"),
            format!("oifname \"{bridge}\" ct state established,related accept"),
        ],
        // The instance may be on the same link as the client, but the connection has to pass this host so that it is
        // translated.
        redirects: vec![format!("oifname \"{bridge}\" icmp type redirect drop")],
        from_host: vec![
            "ip daddr @natives accept".into(),
            format!("oifname \"{bridge}\" accept"),
        ],
    }
}

/// The table for bridges. Packets with the address of an exposed container are accepted only from that container's own
/// ports. `ports` has the ports of each container whose ports are known. The policy `local` is enforced between the containers of a
/// bridge.
pub(super) fn guard_bridges(
    ports: &BTreeMap<Ipv4Addr, Vec<String>>,
    local: Option<&LocalRules>,
) -> String {
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
         \t}\n",
    );
    text.push_str(&local.map(LocalRules::bridged).unwrap_or_default());
    text.push_str("}\n");
    text
}

/// Commands that delete meshd's table of `family`, whether or not it exists.
pub(super) fn replacing(family: &str) -> String {
    format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n")
}

/// The service addresses of the mesh: block 0 from host 64 on.
fn service_range(state: &FirewallState) -> std::ops::RangeInclusive<Ipv4Addr> {
    let first = u32::from(state.prefix.network());
    let size = 1u32
        .checked_shl(32 - u32::from(state.block.prefix_len()))
        .unwrap_or(u32::MAX);
    let last = first.saturating_add(size.saturating_sub(1).max(FIRST_SERVICE));
    Ipv4Addr::from(first.saturating_add(FIRST_SERVICE))..=Ipv4Addr::from(last)
}

/// The first address of the node block that contains `address`. All node blocks of a mesh have the same length.
fn block_of(address: Ipv4Addr, block_length: u8) -> Ipv4Addr {
    Ipv4Net::new(address, block_length).map_or(address, |net| net.network())
}

#[cfg(test)]
mod tests;
