//! The rules and chains that the tables of both families have. Pure.

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};

use super::family::Family;

/// The index of the loopback device, which is the same in every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// Appends a chain. A chain without a `hook` is the target of jumps from other chains.
pub(super) fn chain(text: &mut String, name: &str, hook: &str, rules: &[String]) {
    let _ = writeln!(text, "\tchain {name} {{");
    if !hook.is_empty() {
        let _ = writeln!(text, "\t\ttype {hook}; policy accept;");
    }
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    let _ = writeln!(text, "\t}}");
}

/// The match that leaves out the addresses of guests, for a rule about this node's block.
pub(super) fn except(family: Family, guests: &BTreeSet<impl ToString>) -> String {
    if guests.is_empty() {
        return String::new();
    }
    let guests: Vec<String> = guests.iter().map(ToString::to_string).collect();
    format!(" {} daddr != {{ {} }}", family.ip(), guests.join(", "))
}

/// The match for connections to a mesh address that a rule of the table has translated.
pub(super) fn mapped(family: Family, prefix: impl Display) -> String {
    format!("ct status dnat ct original {} daddr {prefix}", family.ip())
}

/// The chain that drops packets with addresses of the mesh from where they cannot come. `more` are rules about sources that come before
/// the rules about all others.
pub(super) fn guard(
    text: &mut String,
    family: Family,
    interface: &str,
    prefix: impl Display,
    more: &[String],
) {
    let ip = family.ip();
    chain(
        text,
        "guard",
        "filter hook prerouting priority -310",
        &[
            vec![
                // On some hosts most packets are on the loopback device, and comparing an index is cheaper than comparing a name.
                format!("iif {LOOPBACK} accept"),
                format!("iifname \"{interface}\" accept"),
            ],
            more.to_vec(),
            vec![
                format!("{ip} saddr {prefix} drop"),
                "iifname @bridges accept".to_owned(),
                format!("{ip} daddr {prefix} drop"),
            ],
        ]
        .concat(),
    );
}

/// The chain that keeps queries of this host to its own node address out of connection tracking: they are not translated, and
/// tracking them costs much compared with answering them.
pub(super) fn own_names(text: &mut String, family: Family, node: impl Display) {
    let ip = family.ip();
    chain(
        text,
        "own_names",
        "filter hook output priority -300",
        &[
            format!("oif != {LOOPBACK} accept"),
            format!("udp dport 53 {ip} daddr {node} notrack"),
            format!("udp sport 53 {ip} saddr {node} notrack"),
        ],
    );
}

/// The rules that translate instance addresses. `is_declared` is whether one of the instances declares ports.
pub(super) fn to_containers(family: Family, is_declared: bool) -> Vec<String> {
    let ip = family.ip();
    let undeclared =
        is_declared.then(|| format!("{ip} daddr @declaring {} accept", family.undeclared()));
    let translate = format!("dnat to {ip} daddr map @containers");
    undeclared.into_iter().chain([translate]).collect()
}

/// The rules that give packets of containers their source in the mesh: the instance address, or the address of the node.
pub(super) fn leaving(
    family: Family,
    interface: &str,
    prefix: impl Display,
    node: impl Display,
) -> Vec<String> {
    let (ip, mapped) = (family.ip(), mapped(family, prefix));
    vec![
        format!("oifname \"{interface}\" snat to {ip} saddr map @identities"),
        format!("oifname \"{interface}\" {ip} saddr @networks snat to {node}"),
        format!("{mapped} snat to {ip} saddr map @identities"),
        format!("{mapped} {ip} saddr @networks snat to {node}"),
    ]
}

/// The chain that lets only packets from `sources` into the tunnel: addresses of this node's block, and of the networks to which it
/// routes.
pub(super) fn own_sources(
    text: &mut String,
    family: Family,
    interface: &str,
    sources: impl IntoIterator<Item = String>,
) {
    let ip = family.ip();
    let sources = sources.into_iter();
    let others: Vec<String> = sources.map(|net| format!(" {ip} saddr != {net}")).collect();
    chain(
        text,
        "own_sources",
        "filter hook postrouting priority 300",
        &[format!("oifname \"{interface}\"{} drop", others.concat())],
    );
}

/// The rule that makes the segments of connections fit into the tunnel.
pub(super) fn clamp(interface: &str) -> String {
    format!(
        "oifname \"{interface}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
    )
}

/// The rule against packets from the mesh to addresses of this host's networks that no rule translated.
pub(super) fn untranslated(interface: &str) -> String {
    format!("iifname \"{interface}\" ct state new ct status & dnat == 0 drop")
}
