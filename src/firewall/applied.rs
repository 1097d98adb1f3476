//! The firewall's changes to the machine, and their list for users.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::conntrack::StaleConnections;
use super::docker_user::{self, IPTABLES, Rule};
use super::ruleset::{TABLE, ValidState};
use super::{FirewallState, Native};
use crate::protocol::local::SystemEntry;

/// The changes to the machine that are in place.
#[derive(Default)]
pub(super) struct Applied {
    pub(super) state: Option<(Arc<FirewallState>, ValidState)>,
    /// For each family the script, and the table as the kernel listed it afterwards. None if another program may have changed it before
    /// that.
    pub(super) tables: BTreeMap<&'static str, (String, Option<String>)>,
    /// The rule in the engine's chain, by the program that put it there.
    pub(super) rules: BTreeMap<&'static str, Rule>,
    /// The mesh's prefix, if there are rules in the engine's chain for networks to which this node routes.
    pub(super) routed: Option<Ipv4Net>,
    /// The engine's network to which there is a route, and the source address of packets to it.
    pub(super) native: Option<(Native, Ipv4Addr)>,
    /// The ports that were set to hairpin mode: index and name.
    pub(super) hairpins: BTreeMap<u32, String>,
    /// How IPv4 forwarding was turned on, if meshd did that.
    pub(super) forwarding: Option<Forwarding>,
    /// The connections that are to be deleted, and could not be deleted at the last attempt.
    pub(super) undeleted: Option<StaleConnections>,
}

/// IPv4 forwarding that meshd turned on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forwarding {
    /// Whether there was a container engine at that time.
    pub(super) had_engine: bool,
}

impl Applied {
    /// All changes, each with its reason.
    pub(super) fn entries(&self) -> Vec<SystemEntry> {
        let mut entries = Vec::new();
        let mut entry = |kind: &str, what: String, why: &str| {
            entries.push(SystemEntry {
                kind: kind.into(),
                what,
                why: why.into(),
            });
        };
        for family in self.tables.keys() {
            let why = match *family {
                "ip" => {
                    "maps instance and service addresses, rejects packets to addresses without a target, drops packets with forged mesh addresses"
                }
                "ip6" => {
                    "maps IPv6 instance addresses, rejects packets to addresses without a target, drops IPv6 packets with forged mesh addresses"
                }
                _ => "drops packets of containers with the address of another container",
            };
            entry("rule", format!("nftables table {family} {TABLE}"), why);
        }
        for (program, rule) in &self.rules {
            let words = rule.words().join(" ");
            entry(
                "rule",
                format!("{program} {} {words}", docker_user::CHAIN),
                "lets connections to instance addresses pass the container engine's rules",
            );
        }
        if self.routed.is_some() {
            entry(
                "rule",
                format!("{IPTABLES} {} --ctorigdst NETWORK", docker_user::CHAIN),
                "lets packets to the networks to which this node routes pass the container engine's rules",
            );
        }
        if let Some((native, node)) = &self.native {
            entry(
                "route",
                format!("{} dev {} src {node}", native.range, native.bridge),
                "routes packets to the containers that have mesh addresses of their own",
            );
            entry(
                "sysctl",
                format!(
                    "net.ipv4.conf.{0}.proxy_arp = 1 (was 0), net.ipv4.neigh.{0}.proxy_delay = 0 (was 80)",
                    native.bridge
                ),
                "answers ARP requests of those containers for the rest of the mesh",
            );
        }
        for name in self.hairpins.values() {
            entry(
                "link",
                format!("{name} hairpin on"),
                "lets the container reach its own mesh name",
            );
        }
        if self.forwarding.is_some() {
            entry(
                "sysctl",
                "net.ipv4.ip_forward = 1 (was 0)".into(),
                "forwards packets between the mesh and containers",
            );
        }
        entries
    }
}
