//! The sets and maps that the rules refer to. Pure.

use std::fmt::Write as _;

use super::ValidState;
use crate::firewall::FirewallState;

impl ValidState {
    /// The sets and maps that the rules refer to.
    pub(super) fn sets(&self, text: &mut String, state: &FirewallState) {
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
            self.containers
                .iter()
                .filter(|(_, c)| !self.outside.contains(c))
                .map(|(i, c)| format!("{c} : {i}")),
        );
        if !self.outside.is_empty() {
            set(
                text,
                "set outside",
                "type ipv4_addr",
                self.outside.iter().map(ToString::to_string),
            );
        }
        self.declared_ports(text);
        if state.native.is_some() {
            set(
                text,
                "set natives",
                "type ipv4_addr",
                self.natives.iter().map(ToString::to_string),
            );
        }
    }

    /// The sets of the ports that containers declare, if any does.
    fn declared_ports(&self, text: &mut String) {
        if self.declared.is_empty() {
            return;
        }
        set(
            text,
            "set declaring",
            "type ipv4_addr",
            self.declared.keys().map(ToString::to_string),
        );
        let elements = self.declared.iter().flat_map(|(instance, ports)| {
            let ports = ports.iter();
            ports
                .map(move |(protocol, port)| format!("{instance} . {} . {port}", protocol.as_str()))
        });
        set(
            text,
            "set declared",
            "type ipv4_addr . inet_proto . inet_service",
            elements,
        );
    }
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
