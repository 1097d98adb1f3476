//! STUN: asks servers for this node's public address while no peer reports it, and takes over their answers.

use std::net::SocketAddr;
use std::time::Instant;

use super::JoinedNode;
use crate::model::PublicKey;
use crate::node::reach::Witness;
use crate::node::stun::StunServer;
use crate::path::peer::State;
use crate::path::stun::StunAction;
use crate::tunnel::StunAnswer;

/// Asks the servers, where that is due.
pub(super) fn poll(node: &mut JoinedNode, now: Instant) {
    let id = node.id();
    let is_out = node.replica.is_out();
    let has_others = node.netmap.members.keys().any(|member| *member != id);
    let steered = node.paths.steered();
    // What a peer saw that was lost since may hold no more: perhaps it was lost because the router uses another port.
    let is_reached = |id: &PublicKey| {
        let state = steered.get(id).map(|peer| peer.state());
        steered.is_direct(id) && matches!(state, Some(State::Open | State::Suspect { .. }))
    };
    let reach = &mut node.device.reach;
    let is_needed = has_others && !is_out && !reach.is_told_by_peers(is_reached);
    reach.stun.rounds.set_needed(is_needed, now);
    let client = node.device.tunnel.steering().stun();
    for action in reach.stun.rounds.poll(now) {
        match action {
            StunAction::LookUp => reach.stun.look_up(&node.replica.coordinators()),
            StunAction::Ask(server) => client.ask(server),
            StunAction::Repeat(server) => client.repeat(server),
            StunAction::Close(server) => client.close(server),
        }
    }
}

/// The servers were looked up.
pub(super) fn handle_servers(node: &mut JoinedNode, mut servers: Vec<StunServer>, now: Instant) {
    let mesh = node.replica.ledger().mesh().map(|mesh| mesh.addresses);
    servers.retain(|server| mesh.is_some_and(|mesh| mesh.is_outside(&server.address)));
    let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
    let stun = &mut node.device.reach.stun;
    stun.set_names(servers);
    stun.rounds.handle_servers(&addresses, now);
    poll(node, now);
}

/// Takes over what servers have answered.
pub(super) fn handle_answers(node: &mut JoinedNode, now: Instant) {
    let answers = node.device.tunnel.steering().stun().take_answers();
    let mesh = node.replica.ledger().mesh().map(|mesh| mesh.addresses);
    let port = node.device.tunnel.listen_port();
    for StunAnswer { server, seen } in answers {
        let mut interfaces = node.device.interfaces.iter();
        let is_own = interfaces.any(|interface| interface.address == seen.ip());
        let is_translated = !is_own || seen.port() != port;
        let reach = &mut node.device.reach;
        reach.stun.rounds.handle_answer(server, is_translated, now);
        reach.handle_seen(Witness::Server(server), seen, mesh.as_ref(), now);
    }
}
