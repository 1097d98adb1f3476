//! The rules for packets that leave the mesh: to services outside it, and to the networks to which this node routes. They are of IPv4
//! only. Pure.

use ipnet::Ipv4Net;

use super::chains::mapped;
use super::family::Family;
use super::{MARK, ValidState};
use crate::firewall::FirewallState;

/// The networks to which this node routes, as a set in the syntax of nftables.
pub(super) fn set(state: &FirewallState) -> Option<String> {
    let networks: Vec<String> = Ipv4Net::aggregate(&state.outside.routes)
        .iter()
        .map(ToString::to_string)
        .collect();
    (!networks.is_empty()).then(|| format!("{{ {} }}", networks.join(", ")))
}

/// The rule that forwards both directions of connections from the mesh to these networks. With `mark`, they carry [`MARK`].
pub(super) fn passing(state: &FirewallState, mark: bool) -> Option<String> {
    let networks = set(state)?;
    let mark = if mark {
        format!("meta mark set meta mark | {MARK:#010x} ")
    } else {
        String::new()
    };
    Some(format!(
        "ct original ip saddr {} ct original ip daddr {networks} {mark}accept",
        state.prefix
    ))
}

impl ValidState {
    /// The rules for packets to hosts that have no route to the mesh: services outside it, and networks to which this node routes. They
    /// get the address of this machine as their source.
    pub(super) fn masqueraded(&self, state: &FirewallState) -> Vec<String> {
        let mapped = mapped(Family::V4, state.prefix);
        let outside =
            (!self.outside.is_empty()).then(|| format!("{mapped} ip daddr @outside masquerade"));
        let routes = set(state).map(|networks| {
            let (interface, prefix) = (&state.interface, state.prefix);
            format!("oifname != \"{interface}\" ip saddr {prefix} ip daddr {networks} masquerade")
        });
        outside.into_iter().chain(routes).collect()
    }
}
