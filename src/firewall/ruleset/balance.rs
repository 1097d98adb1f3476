//! The rules that distribute connections to service addresses. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::firewall::Ports;

/// The number of values in the map of a service address that lead to one node, if nodes have different numbers of
/// instances.
const NODE_NUMBERS: u32 = 1 << 16;

/// A final destination of connections to a service address.
#[derive(Debug)]
pub(super) struct Target {
    /// The first address of the block of its node.
    pub(super) node: Ipv4Addr,
    /// The ports that accept connections, if it is a container of this node that does not accept them on all ports. Other nodes
    /// refuse what their containers do not declare.
    pub(super) ports: Option<Ports>,
}

/// The rules of a service address, which leads to `targets`. A connection goes to a target that accepts connections on its
/// port.
pub(super) fn rules(service: Ipv4Addr, targets: &BTreeMap<Ipv4Addr, Target>) -> Vec<String> {
    let all = |_: &Target| true;
    let declared = targets.values().filter_map(|target| target.ports.as_ref());
    let declared: Ports = declared.flatten().copied().collect();
    if declared.is_empty() {
        let rule = balanced(&format!("ip daddr {service}"), targets, all);
        return rule.into_iter().collect();
    }
    let of_port = declared.iter().filter_map(|port| {
        let (protocol, number) = port;
        let matched = format!("ip daddr {service} {} dport {number}", protocol.as_str());
        balanced(&matched, targets, |target| {
            target
                .ports
                .as_ref()
                .is_none_or(|ports| ports.contains(port))
        })
    });
    let of_port: Vec<String> = of_port.collect();
    let of_pings = format!("ip daddr {service} meta l4proto icmp");
    let of_others = format!("ip daddr {service}");
    let others = [
        balanced(&of_pings, targets, all),
        balanced(&of_others, targets, |target| target.ports.is_none()),
    ];
    of_port
        .into_iter()
        .chain(others.into_iter().flatten())
        .collect()
}

/// The rule that distributes the packets that `matched` matches over the targets that accept them. Each node receives an equal
/// share of the connections, and its instances divide this share equally.
fn balanced(
    matched: &str,
    targets: &BTreeMap<Ipv4Addr, Target>,
    accepts: impl Fn(&Target) -> bool,
) -> Option<String> {
    let mut nodes: BTreeMap<Ipv4Addr, Vec<Ipv4Addr>> = BTreeMap::new();
    for (address, target) in targets.iter().filter(|(_, target)| accepts(target)) {
        nodes.entry(target.node).or_default().push(*address);
    }
    let nodes: Vec<Vec<Ipv4Addr>> = nodes.into_values().collect();
    let mut targets: Vec<Ipv4Addr> = nodes.iter().flatten().copied().collect();
    targets.sort_unstable();
    let lengths: BTreeSet<usize> = nodes.iter().map(Vec::len).collect();
    let (numbers, slots): (usize, Vec<String>) = match targets.as_slice() {
        [] => return None,
        [one] => return Some(format!("{matched} dnat to {one}")),
        // All nodes have the same number of instances, so one value for each instance is enough.
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
        "{matched} dnat to numgen random mod {numbers} map {{ {} }}",
        slots.join(", ")
    ))
}
