//! Calls: where this node and a member have no path and no common relay, they agree over a coordinator, or by way of a peer that both
//! reach, on a moment to open their routers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{JoinedNode, messages, relaying};
use crate::model::address::is_public;
use crate::model::time::{Now, unix_milliseconds};
use crate::model::{Path, PublicKey};
use crate::node::calling::Calling;
use crate::os::clock;
use crate::path::call_log::{CallResult, CallWay};
use crate::path::common_peers::{Chance, MAX_WAYS, choose};
use crate::path::peer::State;
use crate::protocol::call::Call;
use crate::protocol::path_messages::{CallEnd, Message, PeerCall};
use crate::records::kinds::{CALLS_1, PEER_CALLS_1};
use crate::records::netmap::Member;

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
    let (calling, members) = (&mut node.device.asked.calls, &node.netmap.members);
    calling.log.retain(|id| members.contains_key(id));
    for peer in calling.punching.poll(&unreached, |_| true, is_counted, now) {
        let by = peers_to(node, &peer);
        let clocks = by_both_clocks(now);
        if let Some(at) = node.device.asked.calls.send(clocks) {
            call(node, &peer, (true, at), &by, now);
        }
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
    let attempts = node.device.asked.calls.punching.poll_timeout();
    openings.chain(attempts).min()
}

/// Whether there is a way by which this node can call others.
pub(in crate::node) fn may_call(node: &JoinedNode) -> bool {
    let is_connected = node.replica.link().is_connected();
    !node.replica.is_out() && (is_connected || common_peers(node).next().is_some())
}

/// The time `now` by both clocks.
fn by_both_clocks(now: Instant) -> Now {
    Now {
        monotonic: now,
        wall: clock::wall(),
    }
}

/// The members that are tried in vain, and that follow calls.
fn unreached(node: &JoinedNode, now: Instant) -> Vec<PublicKey> {
    let steered = node.paths.steered();
    let is_unreached = |id: &PublicKey| match steered.get(id).map(|peer| peer.state()) {
        Some(State::Opening { since }) => now.saturating_duration_since(since) >= PATIENCE,
        Some(State::Lost { .. }) => true,
        Some(State::Cold | State::Open | State::Suspect { .. }) | None => false,
    };
    let members = node.netmap.members.keys().copied();
    let unreached = members.filter(|id| is_unreached(id) && speaks(node, id, CALLS_1));
    unreached.collect()
}

fn speaks(node: &JoinedNode, id: &PublicKey, word: &str) -> bool {
    let record = node.replica.ledger().node(id);
    record.is_some_and(|record| record.speaks(word))
}

/// The peers that this node reaches and that pass calls on.
fn common_peers(node: &JoinedNode) -> impl Iterator<Item = &Member> {
    let members = node.netmap.members.values();
    members.filter(move |member| passes_calls(node, member))
}

/// Whether this node reaches a member that passes calls on.
fn passes_calls(node: &JoinedNode, member: &Member) -> bool {
    let peer = node.paths.steered().get(&member.id);
    let state = peer.map(|peer| peer.state());
    let is_reached = matches!(state, Some(State::Open | State::Suspect { .. }));
    is_reached && member.id != node.id() && speaks(node, &member.id, PEER_CALLS_1)
}

/// The peers that are asked to pass on a call to a member.
fn peers_to(node: &JoinedNode, called: &PublicKey) -> Vec<PublicKey> {
    if !speaks(node, called, PEER_CALLS_1) {
        return Vec::new();
    }
    let named = node.netmap.members.get(called).map(|member| &member.relays);
    let chance = |peer: &Member| {
        if named.is_some_and(|relays| relays.contains(&peer.id)) {
            Chance::Named
        } else if peer.endpoints.iter().any(|at| is_public(at.ip())) {
            Chance::Public
        } else {
            Chance::Unknown
        }
    };
    let peers = common_peers(node).map(|peer| (chance(peer), peer.id));
    let peers: Vec<(Chance, PublicKey)> = peers.collect();
    choose(&peers, node.device.asked.calls.log.calls(called))
}

/// Sends this node's candidates to a member over the coordinator and by the peers `by`: nobody knows which of these ways leads to it.
/// With `asks` it asks for an answer, and otherwise it answers. The call has the time `at`.
fn call(
    node: &mut JoinedNode,
    peer: &PublicKey,
    (asks, at): (bool, u64),
    by: &[PublicKey],
    now: Instant,
) {
    let candidates = node.device.reach.message(asks).candidates;
    let candidates: Vec<SocketAddr> = candidates.iter().map(|of| of.address).collect();
    if candidates.is_empty() {
        return;
    }
    let call = Call::sign(&node.identity.keys.identity, peer, asks, candidates, at);
    // A call that is lost is followed by another one.
    let is_connected = node.replica.link().is_connected();
    let by_coordinator = is_connected && node.connections.call(*peer, call.clone());
    let by_peers = by.iter();
    let by_peers = by_peers.filter(|by| send_by(node, by, CallEnd::To(*peer), &call));
    let by_peers = by_peers.count();
    tracing::debug!(
        peer = peer.short(),
        asks,
        by_coordinator,
        by_peers,
        "calls a node"
    );
    let log = &mut node.device.asked.calls.log;
    if by_coordinator {
        log.count(CallWay::Coordinator, CallResult::Sent);
    }
    for _ in 0..by_peers {
        log.count(CallWay::Peer, CallResult::Sent);
    }
    if asks {
        let by_peers = u32::try_from(by_peers).unwrap_or(u32::MAX);
        log.handle_asked(*peer, by_coordinator, by_peers, now);
    }
}

/// Sends a call to the peer `by`, by its session. Returns false if there is none.
fn send_by(node: &JoinedNode, by: &PublicKey, end: CallEnd, call: &Call) -> bool {
    let Some(member) = node.netmap.members.get(by) else {
        return false;
    };
    let call = call.clone();
    let message = Message::Call(PeerCall { end, call });
    messages::send(&node.device.tunnel, &node.identity, member, message, None)
}

/// A coordinator has passed on a call.
pub(super) fn handle_call(node: &mut JoinedNode, from: PublicKey, call: &Call, now: Instant) {
    handle_call_by(node, from, call, None, now);
}

/// A peer has sent a call: it passes on the call of a member, or asks this node to pass on its own.
pub(super) fn handle_peer_call(
    node: &mut JoinedNode,
    peer: PublicKey,
    PeerCall { end, call }: &PeerCall,
    now: Instant,
) {
    match end {
        CallEnd::From(from) => handle_call_by(node, *from, call, Some(peer), now),
        CallEnd::To(to) => {
            let is_passed_on = pass_on(node, peer, to, call, now);
            if !is_passed_on {
                tracing::debug!(
                    from = peer.short(),
                    to = to.short(),
                    "a call is not passed on"
                );
            }
            let result = match is_passed_on {
                true => CallResult::PassedOn,
                false => CallResult::Dropped,
            };
            node.device.asked.calls.log.count(CallWay::Peer, result);
        }
    }
}

/// Passes the call of a peer on to another member that this node reaches, or drops it. The receiver verifies the signature. Nothing is
/// stored.
fn pass_on(
    node: &mut JoinedNode,
    from: PublicKey,
    to: &PublicKey,
    call: &Call,
    now: Instant,
) -> bool {
    // A peer may send calls without end, so nothing here takes longer in a larger mesh.
    let member = node.netmap.members.get(to);
    let is_known = *to != from && member.is_some_and(|member| passes_calls(node, member));
    is_known
        && !node.replica.is_out()
        && node.device.asked.calls.received.may_pass_on(from, now)
        && send_by(node, to, CallEnd::From(from), call)
}

/// A call has arrived, by way of a peer or of a coordinator. It is followed as the message `paths` is that a peer sends by a session.
fn handle_call_by(
    node: &mut JoinedNode,
    from: PublicKey,
    call: &Call,
    by: Option<PublicKey>,
    now: Instant,
) {
    let id = node.id();
    let member = node.netmap.members.get(&from);
    let is_known = from != id && member.is_some_and(|member| member.speaks_paths);
    let Some(mesh) = node.replica.ledger().mesh().map(|mesh| mesh.addresses) else {
        return;
    };
    if !is_known || node.replica.is_out() {
        return;
    }
    let calling = &mut node.device.asked.calls;
    let result = judge(calling, (&from, &id), call, by, now);
    let way = by.map_or(CallWay::Coordinator, |_| CallWay::Peer);
    calling.log.count(way, result);
    if !matches!(result, CallResult::Followed | CallResult::Answered) {
        tracing::debug!(
            from = from.short(),
            result = result.as_str(),
            "a call is not followed"
        );
        return;
    }
    if !call.asks {
        calling.log.handle_answered(&from, now);
    }
    let steps = calling.punching.handle_paths(from, call.asks, now);
    let mut addresses = call.candidates.clone();
    addresses.retain(|address| mesh.is_outside(address));
    let answered_at = match steps.answer {
        true => node.device.asked.calls.answer(from, by_both_clocks(now)),
        false => None,
    };
    // A member that asks and gets no answer does not send, so the router would be opened in vain.
    let is_in_vain = call.asks && steps.answer && answered_at.is_none();
    if let Some(hops) = steps.open.filter(|_| !is_in_vain) {
        relaying::open_routers(node, &from, &addresses, hops, now);
    }
    if let Some(at) = answered_at {
        // The way that has just worked is not the only one: a peer may pass on calls and drop their answers.
        let others = peers_to(node, &from).into_iter();
        let others = others.filter(|peer| Some(*peer) != by);
        let peers = by.into_iter().chain(others).take(MAX_WAYS);
        let peers: Vec<PublicKey> = peers.collect();
        self::call(node, &from, (false, at), &peers, now);
    }
    if steps.probe {
        // Without a session each of these paths gets a handshake, which the budget of probes does not count.
        let punching = &mut node.device.reach.punching;
        addresses.retain(|address| punching.may_open(from, *address, now));
        let paths: Vec<Path> = addresses.into_iter().map(Path::Direct).collect();
        node.paths.handle_consent(&from, &paths, now);
    }
}

/// What becomes of a call `from` one node `to` this one, that came over a coordinator or `by` a peer.
fn judge(
    calling: &mut Calling,
    (from, to): (&PublicKey, &PublicKey),
    call: &Call,
    by: Option<PublicKey>,
    now: Instant,
) -> CallResult {
    let received = &mut calling.received;
    if !received.is_newer(from, call.at, now) {
        return CallResult::Repeated;
    }
    let wall = unix_milliseconds(clock::wall());
    let is_followed = received.may_verify(*from, by, now)
        && call.is_authentic(from, to)
        && received.admit(*from, call.at, wall, now);
    match (is_followed, call.asks) {
        (false, _) => CallResult::Refused,
        (true, true) => CallResult::Followed,
        (true, false) => CallResult::Answered,
    }
}
