//! The sets and maps that the rules refer to. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};

use super::ValidState;
use super::family::Family;
use crate::firewall::{FirewallState, Ports};

impl ValidState {
    /// The sets and maps that the rules for IPv4 refer to.
    pub(super) fn sets(&self, text: &mut String, state: &FirewallState) {
        bridges(text, &self.bridges);
        let containers = (&self.containers, &self.outside);
        mappings(text, Family::V4, &self.networks, containers);
        declared(text, Family::V4, &self.declared);
        if state.native.is_some() {
            set(
                text,
                "set natives",
                "type ipv4_addr",
                self.natives.iter().map(ToString::to_string),
            );
        }
    }
}

/// The set of the bridges of containers.
pub(super) fn bridges(text: &mut String, bridges: &[String]) {
    set(
        text,
        "set bridges",
        "type ifname",
        bridges.iter().map(|bridge| format!("\"{bridge}\"")),
    );
}

/// The sets of container networks and of instance addresses, and the maps between these and containers' own addresses. The addresses
/// in `outside` are those of services outside the mesh, which send nothing by their instance addresses.
pub(super) fn mappings<A: Display + Ord>(
    text: &mut String,
    family: Family,
    networks: &[impl Display],
    (containers, outside): (&BTreeMap<A, A>, &BTreeSet<A>),
) {
    let address = family.address();
    set(
        text,
        "set networks",
        &format!("type {address}; flags interval"),
        networks.iter().map(ToString::to_string),
    );
    set(
        text,
        "set instances",
        &format!("type {address}"),
        containers.keys().map(ToString::to_string),
    );
    let map = format!("type {address} : {address}");
    set(
        text,
        "map containers",
        &map,
        containers.iter().map(|(i, c)| format!("{i} : {c}")),
    );
    set(
        text,
        "map identities",
        &map,
        containers
            .iter()
            .filter(|(_, c)| !outside.contains(*c))
            .map(|(i, c)| format!("{c} : {i}")),
    );
    if !outside.is_empty() {
        set(
            text,
            "set outside",
            &format!("type {address}"),
            outside.iter().map(ToString::to_string),
        );
    }
}

/// The sets of the instances that declare ports, and of these ports. Nothing if there are none.
pub(super) fn declared<A: Display>(
    text: &mut String,
    family: Family,
    declared: &BTreeMap<A, Ports>,
) {
    if declared.is_empty() {
        return;
    }
    let address = family.address();
    set(
        text,
        "set declaring",
        &format!("type {address}"),
        declared.keys().map(ToString::to_string),
    );
    let elements = declared.iter().flat_map(|(instance, ports)| {
        let ports = ports.iter();
        ports.map(move |(protocol, port)| format!("{instance} . {} . {port}", protocol.as_str()))
    });
    set(
        text,
        "set declared",
        &format!("type {address} . inet_proto . inet_service"),
        elements,
    );
}

/// Appends a named set or map. nftables does not accept an empty list of elements.
pub(super) fn set(text: &mut String, what: &str, of: &str, elements: impl Iterator<Item = String>) {
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
