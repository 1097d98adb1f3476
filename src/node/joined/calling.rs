//! Calls: where this node and a member have no path and no common relay, they agree over a coordinator on a moment to open their
//! routers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{JoinedNode, relaying};
use crate::model::time::unix_milliseconds;
use crate::model::{Path, PublicKey};
use crate::os::clock;
use crate::path::peer::State;
use crate::protocol::call::Call;
use crate::records::kinds::CALLS_1;

/// How long a peer is tried at its endpoints and through relays before it is called. By then a STUN server has most probably
/// answered.
const PATIENCE: Duration = Duration::from_secs(2);

/// Calls the members that are to be called now.
pub(super) fn poll(node: &mut JoinedNode, now: Instant) {
    if !may_call(node) {
        return;
    }
    let unreached = unreached(node, now);
    // The metric of how long punches take counts those with relayed peers.
    let is_counted = |_: &PublicKey| false;
    let punching = &mut node.device.calling.punching;
    for peer in punching.poll(&unreached, is_counted, now) {
        call(node, &peer, true, now);
    }
}

/// When [`poll`] is due.
pub(super) fn poll_timeout(node: &JoinedNode, now: Instant) -> Option<Instant> {
    if !may_call(node) {
        return None;
    }
    let steered = node.paths.steered();
    let members = node.netmap.members.keys();
    let openings = members.filter_map(|id| match steered.get(id)?.state() {
        State::Opening { since } => Some(since + PATIENCE).filter(|at| *at > now),
        _ => None,
    });
    let attempts = node.device.calling.punching.poll_timeout();
    openings.chain(attempts).min()
}

fn may_call(node: &JoinedNode) -> bool {
    node.replica.link().is_connected() && !node.replica.is_out()
}

/// The members that are tried in vain, and that follow calls.
fn unreached(node: &JoinedNode, now: Instant) -> Vec<PublicKey> {
    let (steered, ledger) = (node.paths.steered(), node.replica.ledger());
    let is_unreached = |id: &PublicKey| match steered.get(id).map(|peer| peer.state()) {
        Some(State::Opening { since }) => now.saturating_duration_since(since) >= PATIENCE,
        Some(State::Lost { .. }) => true,
        Some(State::Cold | State::Open | State::Suspect { .. }) | None => false,
    };
    let members = node.netmap.members.keys().copied();
    let unreached = members
        .filter(|id| is_unreached(id) && ledger.node(id).is_some_and(|node| node.speaks(CALLS_1)));
    unreached.collect()
}

/// Sends this node's candidates to a member over the coordinator. With `asks` it asks for an answer, and otherwise it answers.
fn call(node: &mut JoinedNode, peer: &PublicKey, asks: bool, now: Instant) {
    let candidates = node.device.reach.message(asks).candidates;
    let candidates: Vec<SocketAddr> = candidates.iter().map(|of| of.address).collect();
    if candidates.is_empty() {
        return;
    }
    if let Some(at) = node.device.calling.send(now) {
        let key = &node.identity.keys.identity;
        let call = Call::sign(key, peer, asks, candidates, at);
        // A call that is lost is followed by another one.
        let is_sent = node.connections.call(*peer, call);
        tracing::debug!(peer = peer.short(), asks, is_sent, "calls a node");
    }
}

/// A coordinator has passed on a call. It is followed as the message `paths` is that a peer sends by a session.
pub(super) fn handle_call(node: &mut JoinedNode, from: PublicKey, call: &Call, now: Instant) {
    let id = node.id();
    let member = node.netmap.members.get(&from);
    let is_known = from != id && member.is_some_and(|member| member.speaks_paths);
    let Some(mesh) = node.replica.ledger().mesh().map(|mesh| mesh.addresses) else {
        return;
    };
    if !is_known || node.replica.is_out() {
        return;
    }
    let calling = &mut node.device.calling;
    let wall = unix_milliseconds(clock::wall());
    let is_followed = calling.received.may_verify(now)
        && call.is_authentic(&from, &id)
        && calling.received.admit(from, call.at, wall, now);
    if !is_followed {
        tracing::debug!(from = from.short(), "a call is not followed");
        return;
    }
    let steps = calling.punching.handle_paths(from, call.asks, now);
    let mut addresses = call.candidates.clone();
    addresses.retain(|address| mesh.is_outside(address));
    if let Some(hops) = steps.open {
        relaying::open_routers(node, &from, &addresses, hops, now);
    }
    if steps.answer {
        self::call(node, &from, false, now);
    }
    if steps.probe {
        // Without a session each of these paths gets a handshake, which the budget of probes does not count.
        let punching = &mut node.device.reach.punching;
        addresses.retain(|address| punching.may_open(from, *address, now));
        let paths: Vec<Path> = addresses.into_iter().map(Path::Direct).collect();
        node.paths.handle_consent(&from, &paths, now);
    }
}
