//! The sets in which the rules of the policy note the packets that they deny, and the rules that note them. Pure.
//!
//! A full set takes no more packets. Then the rule that notes them does not match, so it must not have the verdict: that is the next
//! rule. Packets without ports have a set of their own, because what is in the place of a port there is a checksum, or anything.

use super::family::Family;
use super::sets::set;

/// The set of the source, destination, protocol and port of denied packets.
const PORTS: &str = "denied_ports";
/// The set of the source, destination and protocol of denied packets that have no ports.
const OTHERS: &str = "denied_others";
/// The maximum number of elements of each set.
pub(in crate::firewall) const MAX_NOTED: usize = 1024;
/// The time in seconds after which an element is removed, counted from the last packet that it stands for.
pub(in crate::firewall) const LIFETIME: u64 = 3600;
/// The match for packets that have ports.
const WITH_PORTS: &str = "meta l4proto { tcp, udp }";

/// Whether a script makes these sets.
pub(in crate::firewall) fn notes(script: &str) -> bool {
    script.lines().any(begins_set)
}

/// Whether this line of a script or of a listing is the first one of such a set.
pub(in crate::firewall) fn begins_set(line: &str) -> bool {
    let name = line.strip_prefix("\tset ");
    let name = name.and_then(|line| line.strip_suffix(" {"));
    name == Some(PORTS) || name == Some(OTHERS)
}

/// Appends the sets.
pub(super) fn sets(text: &mut String, family: Family) {
    let address = family.address();
    for (name, more) in [(PORTS, " . inet_service"), (OTHERS, "")] {
        set(
            text,
            &format!("set {name}"),
            &format!(
                "type {address} . {address} . inet_proto{more}; size {MAX_NOTED}; flags dynamic,timeout; timeout {LIFETIME}s"
            ),
            std::iter::empty(),
        );
    }
}

/// The rules that note a packet by its own addresses.
pub(super) fn packets(family: Family) -> [String; 2] {
    let ip = family.ip();
    let ends = format!("{ip} saddr . {ip} daddr");
    [
        noting(
            WITH_PORTS,
            PORTS,
            &format!("{ends} . meta l4proto . th dport"),
        ),
        noting(
            "meta l4proto != { tcp, udp }",
            OTHERS,
            &format!("{ends} . meta l4proto"),
        ),
    ]
}

/// The rules that note a packet by the ends of its connection. An answer is noted as the request of its client, and one of a protocol
/// without ports as a request of the server, as the rules of the policy take it.
pub(super) fn connections(family: Family) -> [String; 5] {
    let (ip, icmp, others) = (family.ip(), family.icmp(), family.others());
    let (client, server) = (
        format!("ct original {ip} saddr"),
        format!("ct reply {ip} saddr"),
    );
    let (original, reply) = ("ct direction original", "ct direction reply");
    let request = format!("{client} . {server} . meta l4proto");
    let answer = format!("{server} . {client} . meta l4proto");
    [
        noting(
            &format!("{original} {WITH_PORTS}"),
            PORTS,
            &format!("{request} . th dport"),
        ),
        noting(
            &format!("{reply} {WITH_PORTS}"),
            PORTS,
            &format!("{request} . th sport"),
        ),
        noting(&format!("meta l4proto {icmp}"), OTHERS, &request),
        noting(&format!("{original} {others}"), OTHERS, &request),
        noting(&format!("{reply} {others}"), OTHERS, &answer),
    ]
}

/// The rule that notes the packets that `matched` matches, by `key`.
fn noting(matched: &str, set: &str, key: &str) -> String {
    format!("{matched} update @{set} {{ {key} counter }}")
}
