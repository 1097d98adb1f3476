//! Passes values between the tunnel and the paths.

use std::time::Instant;

use super::{JoinedNode, calling, relaying, routing, rows, streaming, stun};
use crate::model::NodeAddress;
use crate::node::contact::Contact;
use crate::node::paths::{PathAction, SteerAction};
use crate::node::transitions::denials::FirstDenial;
use crate::node::transitions::peers::{PathChange, PeerChange};
use crate::os::clock;
use crate::path::peer::Action as Steer;
use crate::path::watch::Reach;
use crate::records::netmap::Member;

/// Carries out what is due for the paths. Returns whether the zone has to be computed again.
pub(super) fn poll_paths(node: &mut JoinedNode, now: Instant) -> bool {
    let is_regrouped = node.paths.is_due(now) && poll_all(node, now);
    relaying::poll(node, now);
    streaming::poll(node, now);
    calling::poll(node, now);
    stun::poll(node, now);
    poll_steered(node, now);
    node.device.asked.rows.forget_old(now);
    is_regrouped
}

/// The tunnel has news of the paths to peers.
pub(super) fn handle_news(node: &mut JoinedNode, now: Instant) {
    let tunnel = &node.device.tunnel;
    let news = tunnel.steering().take_news();
    let mut heard = Vec::new();
    for member in node.netmap.members.values() {
        let key = &member.wireguard_key.0;
        if news.contains(key)
            && let Some(report) = tunnel.steering().report(key)
        {
            let said = tunnel.steering().take_said(key);
            heard.push((member.id, report, said));
        }
    }
    for (id, report, said) in heard {
        node.paths.handle_report(&id, &report, now);
        relaying::handle_report(node, id, &report, now);
        if let Some(paths) = &said.paths {
            relaying::handle_paths(node, id, paths, now);
        }
        if let Some(reason) = said.bye {
            node.paths.handle_bye(&id, reason, now);
        }
        for call in &said.calls {
            calling::handle_peer_call(node, id, call, now);
        }
        if let Some(after) = said.asks_row {
            rows::handle_asked(node, id, after, now);
        }
        if let Some(part) = said.row {
            rows::handle_part(node, &id, part, now);
        }
    }
    for denial in node.device.tunnel.filter().take_first_denials() {
        let first = FirstDenial::of(&denial, &node.netmap);
        node.disk.audit.note(&first);
    }
    stun::handle_answers(node, now);
    stun::poll(node, now);
    relaying::poll(node, now);
    streaming::poll(node, now);
    calling::poll(node, now);
    node.paths.handle_news(now);
    poll_steered(node, now);
}

/// Carries out what is due for the paths of single peers.
pub(super) fn poll_steered(node: &mut JoinedNode, now: Instant) {
    let tunnel = &node.device.tunnel;
    for id in node.paths.reports_due(now) {
        let member = node.netmap.members.get(&id);
        let report = member.and_then(|m| tunnel.steering().report(&m.wireguard_key.0));
        if let Some(report) = report {
            node.paths.handle_report(&id, &report, now);
        }
    }
    for action in node.paths.poll_steered(now) {
        carry_out_steering(node, action, now);
    }
    routing::follow_paths(node);
}

/// Passes the state of the peers from the tunnel to the paths, carries out on the tunnel what the paths return, and tells the
/// replica which peers are reachable. Returns whether the zone has to be computed again.
fn poll_all(node: &mut JoinedNode, now: Instant) -> bool {
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
        node.disk.audit.note(&change);
    }
}

fn carry_out(node: &JoinedNode, action: PathAction) {
    let (PathAction::Probe(id)
    | PathAction::Try(id, _)
    | PathAction::ProbeSizes(id, _)
    | PathAction::Limit(id, _)
    | PathAction::Arm(id, ..)) = &action;
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
        PathAction::Limit(_, bytes) => tunnel.steering().set_path_mtu(key, bytes),
        PathAction::Arm(_, heard, sent) => tunnel.steering().arm(key, heard, sent),
    }
}

/// Carries out what is due for the paths of single peers.
fn carry_out_steering(node: &JoinedNode, action: SteerAction, now: Instant) {
    let steering = node.device.tunnel.steering();
    let members = &node.netmap.members;
    match action {
        SteerAction::Steer(id, action) => {
            if let Some(member) = members.get(&id) {
                steer(node, member, action);
            }
        }
        SteerAction::Release(id) => {
            if let Some(member) = members.get(&id) {
                steering.release(&member.wireguard_key.0);
            }
        }
        SteerAction::Relays(relays) => steering.set_relays(&relays),
        SteerAction::RelayFor(member, endpoints) => {
            let relay = steering.own_relay();
            relay.handle_paths(member, &endpoints, now);
            relay.handle_timeout(now);
        }
    }
}

fn steer(node: &JoinedNode, member: &Member, action: Steer) {
    let tunnel = &node.device.tunnel;
    let (key, address) = (&member.wireguard_key.0, member.block.node_v4().into());
    let [own, _] = node.identity.addresses();
    let steering = tunnel.steering();
    match action {
        Steer::Offer(paths, opens) => {
            let address = NodeAddress(member.block.node_v4());
            steering.offer(key, address, &paths, &opens);
        }
        Steer::Open => steering.open(key),
        Steer::Probe(path) => tunnel.probing().probe_path(key, own, address, Some(&path)),
        Steer::Use(path, gap) => {
            let (peer, path) = (&member.name, &path);
            node.disk.audit.note(&PathChange { peer, path });
            steering.use_path(key, path, gap);
        }
        Steer::Watch(patience, heard, sent) => {
            steering.set_patience(key, patience);
            steering.arm(key, heard, sent);
        }
    }
}
