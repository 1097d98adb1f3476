//! Passes the ways to networks outside the mesh to the tunnel, to the machine and to the firewall.

use ipnet::{IpNet, Ipv4Net};

use super::JoinedNode;
use crate::model::PublicKey;
use crate::node::paths::Paths;
use crate::node::routing::{RoutingInput, Standing};
use crate::path::peer::{PeerPaths, State};

/// Follows the map of the mesh, the paths to members and the addresses of this machine. Returns whether that concerns the firewall.
pub(super) fn follow(node: &mut JoinedNode) -> bool {
    // Before the addresses of this machine are known, it is not known either which networks it is in.
    if node.device.routing.is_idle(&node.netmap) || node.device.interfaces.is_empty() {
        return false;
    }
    let before = node.device.routing.own().clone();
    let is_changed = choose(node);
    set_routes(node);
    if is_changed {
        set_networks(node);
    }
    *node.device.routing.own() != before
}

/// Follows the paths to members. This is done for each report of a path, so it does nothing unless the way to a network changes.
pub(super) fn follow_paths(node: &mut JoinedNode) {
    let (routing, paths) = (&node.device.routing, &node.paths);
    if !routing.is_current(&node.netmap, |id| standing(paths, id)) && choose(node) {
        set_routes(node);
        set_networks(node);
    }
}

/// Chooses the members by which networks are reached. Returns whether anything changed.
fn choose(node: &mut JoinedNode) -> bool {
    let own = node.id();
    let interfaces = networks(node);
    let paths = &node.paths;
    let input = RoutingInput {
        own,
        interfaces: &interfaces,
        standing: &|id| standing(paths, id),
    };
    let is_changed = node.device.routing.follow(&node.netmap, &input);
    for change in node.device.routing.take_changes() {
        node.disk.audit.note(&change);
    }
    is_changed
}

/// Sets in the tunnel which peer routes to which network. A peer may have got another key although its networks did not change.
fn set_routes(node: &JoinedNode) {
    let members = &node.netmap.members;
    let routes = node.device.routing.through_tunnel(&networks(node));
    let routes = routes.into_iter().filter_map(|(network, id)| {
        let member = members.get(&id)?;
        Some((IpNet::V4(network), member.wireguard_key.0))
    });
    let routes: Vec<(IpNet, [u8; 32])> = routes.collect();
    node.device.tunnel.filter().set_routes(&routes);
}

/// Sets the networks that peers reach through this node, and the routes of the kernel to those behind other nodes.
fn set_networks(node: &JoinedNode) {
    let (routing, block) = (&node.device.routing, node.identity.block);
    let routed = routing.own().iter().map(|network| IpNet::V4(*network));
    let own = [IpNet::V4(block.v4), IpNet::V6(block.v6)];
    let own: Vec<IpNet> = own.into_iter().chain(routed).collect();
    node.device.tunnel.filter().set_own_networks(&own);
    let networks: Vec<Ipv4Net> = routing.chosen().keys().copied().collect();
    (node.device.network).set(|wanted| wanted.plan.set_networks(networks, &block));
}

/// What is known of the way to a member. It does not answer if it was silent for so long, or if the path in use is and no other path has
/// answered in its place.
pub(in crate::node) fn standing(paths: &Paths, id: &PublicKey) -> Standing {
    let state = paths.steered().get(id).map(PeerPaths::state);
    let is_lost = matches!(
        state,
        Some(State::Lost { .. } | State::Suspect { is_over: true, .. })
    );
    let group = paths.distances().groups().get(id).copied();
    Standing {
        is_silent: is_lost || paths.unreachable().contains(id),
        group: group.unwrap_or(u8::MAX),
    }
}

/// The networks that this machine is in by its own interfaces.
fn networks(node: &JoinedNode) -> Vec<(String, IpNet)> {
    let own = node.device.tunnel.interface();
    let interfaces = node.device.interfaces.iter();
    let others = interfaces.filter(|i| i.name != own && i.address.is_ipv4());
    let networks = others.filter_map(|i| Some((i.name.clone(), i.net?.trunc())));
    // An address alone is in no network.
    networks
        .filter(|(_, net)| net.prefix_len() < net.max_prefix_len())
        .collect()
}
