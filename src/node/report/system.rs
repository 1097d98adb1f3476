//! Lists the changes that meshd made to the machine.

use crate::node::config::Config;
use crate::node::joined::JoinedNode;
use crate::node::resolver::Dns;
use crate::protocol::local::{SCHEMA, SystemEntry, SystemList};

/// Returns all changes that meshd made to the machine, each with its reason.
pub(in crate::node) fn system(config: &Config, node: Option<&JoinedNode>) -> SystemList {
    let mut entries = vec![
        entry(
            "socket",
            config.api.socket.display().to_string(),
            "meshctl connects to it",
        ),
        entry(
            "file",
            config.state_dir.display().to_string(),
            "holds keys and records; it stays when meshd stops",
        ),
    ];
    if let Some(node) = node {
        entries.extend(node.device.network.entries());
        entries.extend(node.workloads.firewall.entries());
        entries.push(entry(
            "socket",
            format!("UDP port {}", node.device.tunnel.listen_port()),
            "receives and sends the packets of the tunnel",
        ));
        if let Some(dns) = &node.resolver.dns {
            entries.extend(of_resolver(dns, &config.tunnel.interface));
        }
    }
    SystemList {
        schema: SCHEMA,
        entries,
    }
}

fn entry(kind: &str, what: String, why: &str) -> SystemEntry {
    SystemEntry {
        kind: kind.into(),
        what,
        why: why.into(),
    }
}

fn of_resolver(dns: &Dns, interface: &str) -> Vec<SystemEntry> {
    let mut entries = Vec::new();
    for address in dns.in_tunnel.listen() {
        entries.push(entry(
            "resolver",
            format!("{address} inside {interface}"),
            "answers DNS queries of this machine and its containers, without a socket",
        ));
    }
    if dns.split_dns() != "none" {
        entries.push(entry(
            "resolver",
            format!("systemd-resolved: server and domains of {interface}"),
            "sends queries for names of the mesh, and no others, to the DNS address",
        ));
    }
    let keeper = dns.keeper.as_ref();
    if keeper.is_some_and(|keeper| keeper.problem().is_none()) {
        entries.push(entry(
            "file",
            "/etc/resolv.conf; the original is in /etc/resolv.conf.before-meshd".into(),
            "makes the DNS address the only DNS server of this machine",
        ));
    }
    for address in dns.server.listen() {
        entries.push(entry(
            "socket",
            format!("UDP and TCP {address}"),
            "answers DNS queries",
        ));
    }
    entries
}
