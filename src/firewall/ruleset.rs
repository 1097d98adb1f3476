//! Renders the nftables tables as text from the wanted state. Pure.
//!
//! Each text replaces a whole table in one transaction, so the kernel never has a part of a table. Established
//! connections are not affected, because connection tracking keeps their translation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

use self::balance::Target;
pub(super) use self::bridges::guard_bridges;
use self::chains::{
    chain, clamp, except, guard, leaving, mapped, own_names, own_sources, to_containers,
    untranslated,
};
use self::family::Family;
use self::local::LocalAddresses;
pub(super) use self::local::LocalRules;
pub(super) use self::noting::{LIFETIME, MAX_NOTED, begins_set, notes};
use self::v6::ValidV6;
use super::{FirewallState, Native, Ports};
use crate::model::interface::is_plain_interface;

mod balance;
mod bridges;
mod chains;
mod family;
mod local;
mod noting;
mod routes;
mod sets;
mod v6;

/// The name of meshd's tables.
pub(super) const TABLE: &str = "meshd";
/// The packet mark that Docker's nftables backend can be configured to accept. It is a bit that well-known overlay
/// networks do not use.
pub(super) const MARK: u32 = 0x0200_0000;
/// The first service address is host 64 of block 0.
const FIRST_SERVICE: u32 = 64;
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
    /// The part for IPv6, if the machine has IPv6.
    v6: Option<ValidV6>,
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
        valid.local = policy.and_then(|policy| {
            let mapped = valid.containers.iter();
            let addresses = LocalAddresses {
                prefix: state.prefix.into(),
                node: state.node.into(),
                mapped: mapped.map(|(i, c)| ((*i).into(), (*c).into())).collect(),
                natives: valid.natives.iter().map(|n| IpAddr::V4(*n)).collect(),
            };
            LocalRules::of(policy, addresses)
        });
        let v6 = state.v6.as_ref();
        valid.v6 = v6.map(|v6| ValidV6::of(v6, policy, &valid.bridges, &mut valid.left_out));
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

    /// Adds the containers behind instance addresses, and after them the services outside the mesh: the records of a host name outside
    /// may lead to a container, which keeps its instance address.
    fn add_mappings(&mut self, state: &FirewallState) {
        let mut taken = BTreeSet::new();
        let is_outside = |instance: &Ipv4Addr| state.outside.instances.contains(instance);
        let (outside, containers): (Vec<_>, Vec<_>) = state
            .mappings
            .iter()
            .partition(|(instance, _)| is_outside(instance));
        for (instance, mapped) in containers.into_iter().chain(outside) {
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
                if is_outside(instance) {
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

    /// The containers by instance address, of both families.
    pub(super) fn containers(&self) -> BTreeMap<IpAddr, IpAddr> {
        let v4 = self.containers.iter();
        let v4 = v4.map(|(i, c)| (IpAddr::V4(*i), IpAddr::V4(*c)));
        let v6 = self.v6.iter().flat_map(ValidV6::containers);
        v4.chain(v6).collect()
    }

    /// The policy between the containers of this host for IPv4, if there is one.
    pub(super) fn local(&self) -> Option<&LocalRules> {
        self.local.as_ref()
    }

    /// The policy between the containers of this host for IPv6, if there is one.
    pub(super) fn local_v6(&self) -> Option<&LocalRules> {
        self.v6.as_ref().and_then(ValidV6::local)
    }

    /// The targets by service address.
    pub(super) fn services(&self) -> &BTreeMap<Ipv4Addr, Vec<Ipv4Addr>> {
        &self.services
    }

    /// Whether anything is translated. If nothing is, no rule may refer to connections: such a rule makes the kernel
    /// track all connections of the host, which costs time for each packet.
    fn translates(&self, state: &FirewallState) -> bool {
        let maps = !self.containers.is_empty() || !self.services.is_empty();
        let routes = !state.outside.routes.is_empty();
        maps || routes || !self.networks.is_empty() || state.native.is_some()
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
        guard(&mut text, Family::V4, interface, prefix, &native.guard);
        if translates {
            self.translation(&mut text, state, &native);
        }
        let sources = [block.to_string()].into_iter().chain(routes::set(state));
        own_sources(&mut text, Family::V4, interface, sources);
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
            format!(
                "ip daddr {block}{} goto refuse",
                except(Family::V4, &state.guests)
            ),
            format!("ip daddr {} goto refuse", service_addresses(state)),
        ];
        let invalid = translates.then(|| "ip daddr @instances ct state invalid drop".to_owned());
        let undeclared = self.undeclared_native();
        let mut passing = vec![clamp(interface)];
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
        passing.extend(routes::passing(state, mark));
        if translates {
            passing.push(untranslated(interface));
        }
        if mark && translates {
            let mapped = mapped(Family::V4, state.prefix);
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
        self.natives.iter().any(is_declaring).then(|| {
            let undeclared = Family::V4.undeclared();
            format!("ct state new ct original ip daddr @natives {undeclared} goto refuse")
        })
    }

    /// The rules that translate instance addresses.
    fn to_containers(&self) -> Vec<String> {
        let is_declaring = |instance| self.declared.contains_key(instance);
        to_containers(Family::V4, self.containers.keys().any(is_declaring))
    }

    /// The chains that translate addresses.
    fn translation(&self, text: &mut String, state: &FirewallState, native: &NativeRules) {
        let (interface, node) = (&state.interface, state.node);
        let services = service_addresses(state);
        own_names(text, Family::V4, node);
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
                leaving(Family::V4, interface, state.prefix, node),
                native.leaving.clone(),
            ]
            .concat(),
        );
    }
}

/// The range of service addresses in the syntax of nftables.
fn service_addresses(state: &FirewallState) -> String {
    let range = service_range(state);
    format!("{}-{}", range.start(), range.end())
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
