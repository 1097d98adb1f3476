//! Renders the nftables table for IPv6. Pure.
//!
//! It maps the IPv6 addresses of instances as the table for IPv4 maps the IPv4 ones. Service addresses and containers with mesh
//! addresses of their own are of IPv4 only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::Ipv6Net;

use super::chains::{
    chain, clamp, except, guard, leaving, mapped, own_names, own_sources, to_containers,
    untranslated,
};
use super::family::Family;
use super::local::{LocalAddresses, LocalRules};
use super::{MARK, TABLE, ValidState, replacing, sets};
use crate::firewall::{LocalPolicy, Ports, StateV6};

/// The valid part of a [`StateV6`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ValidV6 {
    networks: Vec<Ipv6Net>,
    containers: BTreeMap<Ipv6Addr, Ipv6Addr>,
    /// The ports that accept connections, by instance address, of the containers that do not accept them on all ports.
    declared: BTreeMap<Ipv6Addr, Ports>,
    /// The policy between the containers of this host, if there is one.
    local: Option<LocalRules>,
}

impl ValidV6 {
    /// `bridges` are the bridges that are valid. What is left out is added to `left_out`, with the reason.
    pub(super) fn of(
        state: &StateV6,
        policy: Option<&LocalPolicy>,
        bridges: &[String],
        left_out: &mut Vec<String>,
    ) -> Self {
        let mut valid = Self::default();
        valid.add_networks(state, bridges, left_out);
        valid.add_mappings(state, left_out);
        let containers = valid.containers();
        valid.local = policy.and_then(|policy| {
            let addresses = LocalAddresses {
                prefix: state.prefix.into(),
                node: state.node.into(),
                mapped: containers.collect(),
                natives: BTreeSet::new(),
            };
            LocalRules::of(policy, addresses)
        });
        valid
    }

    fn add_networks(&mut self, state: &StateV6, bridges: &[String], left_out: &mut Vec<String>) {
        let mut networks = Vec::new();
        let known = |bridge: &String| bridges.contains(bridge);
        for (bridge, subnets) in state.networks.iter().filter(|(bridge, _)| known(bridge)) {
            for subnet in subnets {
                if subnet.contains(&state.prefix) || state.prefix.contains(subnet) {
                    left_out.push(format!(
                        "the subnet {subnet} of {bridge}: it overlaps the mesh prefix {}",
                        state.prefix
                    ));
                } else {
                    networks.push(subnet.trunc());
                }
            }
        }
        self.networks = Ipv6Net::aggregate(&networks);
    }

    fn add_mappings(&mut self, state: &StateV6, left_out: &mut Vec<String>) {
        let mut taken = BTreeSet::new();
        for (instance, mapped) in &state.mappings {
            let to = mapped.container;
            let usable = !(to.is_loopback()
                || to.is_unspecified()
                || to.is_multicast()
                || to.is_unicast_link_local()
                || state.prefix.contains(&to));
            if !state.block.contains(instance) || *instance == state.node || !usable {
                left_out.push(format!(
                    "{} at {instance}: it cannot be mapped onto {to}",
                    mapped.name.escape_debug()
                ));
            } else if taken.insert(to) {
                self.containers.insert(*instance, to);
                if let Some(ports) = &mapped.ports {
                    self.declared.insert(*instance, ports.clone());
                }
            } else {
                left_out.push(format!(
                    "{} at {instance}: another instance has {to} already",
                    mapped.name.escape_debug()
                ));
            }
        }
    }

    /// The containers by instance address.
    pub(super) fn containers(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> + use<> {
        let containers: Vec<(IpAddr, IpAddr)> = self
            .containers
            .iter()
            .map(|(instance, container)| ((*instance).into(), (*container).into()))
            .collect();
        containers.into_iter()
    }

    pub(super) fn local(&self) -> Option<&LocalRules> {
        self.local.as_ref()
    }

    /// Whether anything is translated. If nothing is, no rule may refer to connections, as in the table for IPv4.
    fn translates(&self) -> bool {
        !self.containers.is_empty() || !self.networks.is_empty()
    }

    /// A container could reach this node's address from its link-local address, which says nothing of who it is. The policy would take it
    /// for the node, so such packets are dropped. They are of no use in the mesh, since they are not forwarded.
    fn table(&self, state: &StateV6, bridges: &[String], interface: &str, mark: bool) -> String {
        let mut text = replacing(Family::V6.ip());
        let _ = writeln!(text, "table ip6 {TABLE} {{");
        sets::bridges(&mut text, bridges);
        if self.translates() {
            // Services outside the mesh are of IPv4 only.
            let outside = BTreeSet::new();
            sets::mappings(
                &mut text,
                Family::V6,
                &self.networks,
                (&self.containers, &outside),
            );
            sets::declared(&mut text, Family::V6, &self.declared);
        }
        if let Some(local) = &self.local {
            local.sets(&mut text);
            local.chains(&mut text);
        }
        let prefix = state.prefix;
        let link_local = [format!("ip6 saddr fe80::/10 ip6 daddr {prefix} drop")];
        guard(&mut text, Family::V6, interface, prefix, &link_local);
        if self.translates() {
            own_names(&mut text, Family::V6, state.node);
            let to_containers = to_containers(Family::V6, !self.declared.is_empty());
            let hook = "nat hook prerouting priority -105";
            chain(&mut text, "arriving", hook, &to_containers);
            let hook = "nat hook output priority -105";
            chain(&mut text, "from_host", hook, &to_containers);
            let hook = "nat hook postrouting priority 95";
            let leaving = leaving(Family::V6, interface, state.prefix, state.node);
            chain(&mut text, "leaving", hook, &leaving);
        }
        own_sources(&mut text, Family::V6, interface, [state.block.to_string()]);
        self.filters(&mut text, state, interface, mark);
        let refuse = [
            "meta l4proto tcp reject with tcp reset",
            "reject with icmpv6 type addr-unreachable",
        ];
        chain(&mut text, "refuse", "", &refuse.map(str::to_owned));
        text.push_str("}\n");
        text
    }

    /// The chains that filter forwarded packets and packets of this host.
    fn filters(&self, text: &mut String, state: &StateV6, interface: &str, mark: bool) {
        let translates = self.translates();
        let refused = format!(
            "ip6 daddr {}{} goto refuse",
            state.block,
            except(Family::V6, &state.guests)
        );
        let invalid = translates.then(|| "ip6 daddr @instances ct state invalid drop".to_owned());
        let local = self.local.as_ref();
        let mut passing = vec![clamp(interface)];
        passing.extend(invalid.clone());
        passing.extend(local.iter().flat_map(|local| local.passing(interface)));
        passing.push(refused.clone());
        if translates {
            passing.push(untranslated(interface));
        }
        if mark && translates {
            let mapped = mapped(Family::V6, state.prefix);
            passing.push(format!("{mapped} meta mark set meta mark | {MARK:#010x}"));
        }
        let hook = "filter hook forward priority -150";
        chain(text, "passing", hook, &passing);
        let mut to_nowhere = vec![format!("ip6 daddr {} accept", state.node)];
        to_nowhere.extend(local.map(LocalRules::sent_by_host));
        to_nowhere.extend(invalid);
        to_nowhere.push(refused);
        let hook = "filter hook output priority 0";
        chain(text, "to_nowhere", hook, &to_nowhere);
    }
}

impl ValidState {
    /// The table for IPv6. With `mark`, mapped connections carry [`MARK`].
    pub(in crate::firewall) fn table_v6(
        &self,
        state: &StateV6,
        interface: &str,
        mark: bool,
    ) -> String {
        let nothing = ValidV6::default();
        let valid = self.v6.as_ref().unwrap_or(&nothing);
        valid.table(state, &self.bridges, interface, mark)
    }

    /// The table for IPv6 of a machine whose kernel cannot translate IPv6 addresses. Containers reach the node there too, as far as the
    /// policy allows it.
    pub(in crate::firewall) fn guard_v6(&self, state: &StateV6, interface: &str) -> String {
        let local = self.v6.as_ref().and_then(|v6| v6.local.clone());
        let valid = ValidV6 {
            local,
            ..ValidV6::default()
        };
        valid.table(state, &self.bridges, interface, false)
    }
}
