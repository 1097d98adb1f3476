//! Passes values between the tunnel and the paths.

use std::time::Instant;

use super::JoinedNode;
use crate::node::contact::Contact;
use crate::node::paths::PathAction;
use crate::node::transitions::peers::PeerChange;
use crate::os::clock;
use crate::path::watch::Reach;

/// Passes the state of the peers from the tunnel to the paths, carries out on the tunnel what the paths return, and tells the
/// replica which peers are reachable. Returns whether the zone has to be computed again.
pub(super) fn poll_paths(node: &mut JoinedNode, now: Instant) -> bool {
    let id = node.id();
    let tunnel = &node.device.tunnel;
    let mut actions = Vec::new();
    for member in node.netmap.members.values().filter(|m| m.id != id) {
        let key = &member.wireguard_key.0;
        let Some(status) = tunnel.peer(key) else {
            continue;
        };
        let searching = node.paths.is_searching(&member.id);
        let answered = searching.then(|| tunnel.probing().take_answered_size(key));
        let serves = node.netmap.serves(&member.id);
        let answered = answered.flatten();
        let paths = &mut node.paths;
        let limit = paths.handle_peer_status(member.id, serves, &status, answered, now);
        if let Some(PathAction::Limit(_, bytes)) = limit
            && (bytes != node.device.mtu || status.path_mtu != u16::MAX)
        {
            let endpoint = status.endpoint.map(tracing::field::display);
            tracing::info!(peer = %member.name, endpoint, bytes, "the path to a peer carries packets of another size");
        }
        actions.extend(limit);
    }
    let (due, regrouped) = node.paths.poll(now);
    log_turns(node, now);
    actions.extend(due);
    for action in actions {
        carry_out(node, action);
    }
    let time = clock::now();
    for (id, reach) in node.paths.reach() {
        let is_reached = *reach == Reach::Reachable;
        node.replica.handle_reach(id, is_reached, time);
    }
    regrouped
}

/// Logs which peers answer, and which do not answer any more. A node that was removed, or that is a copy of another one, loses
/// all of them, and logs that instead.
fn log_turns(node: &mut JoinedNode, now: Instant) {
    let turns = node.paths.take_turns();
    if node.replica.is_removed() || node.replica.link().is_duplicate() {
        return;
    }
    let tunnel = &node.device.tunnel;
    for (id, turn) in turns {
        let Some(member) = node.netmap.members.get(&id) else {
            continue;
        };
        let status = tunnel.peer(&member.wireguard_key.0);
        let port = tunnel.listen_port();
        let contact = Contact::new(&node.paths, member, status.as_ref(), port, now);
        let change = PeerChange {
            peer: &member.name,
            turn,
            endpoint: status.and_then(|status| status.endpoint),
            why: &contact.reason(),
        };
        change.log();
    }
}

fn carry_out(node: &JoinedNode, action: PathAction) {
    let (PathAction::Probe(id)
    | PathAction::Try(id, _)
    | PathAction::ProbeSizes(id, _)
    | PathAction::Limit(id, _)) = &action;
    let Some(member) = node.netmap.members.get(id) else {
        return;
    };
    let tunnel = &node.device.tunnel;
    let (key, address) = (&member.wireguard_key.0, member.block.node_v4().into());
    let [own, _] = node.identity.addresses();
    match action {
        PathAction::Probe(_) => tunnel.probing().probe(key, own, address),
        PathAction::Try(_, endpoint) => {
            tunnel.set_endpoint(key, endpoint);
            tunnel.probing().initiate(key);
        }
        PathAction::ProbeSizes(_, sizes) => tunnel.probing().probe_sizes(key, own, address, &sizes),
        PathAction::Limit(_, bytes) => tunnel.set_path_mtu(key, bytes),
    }
}
