//! Explains the path from this node to a peer: what was tried, what came back, and what to do.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::netcheck::{ipv6_of, networks_of, outer_address};
use super::peers::{contact_of, member_of, milliseconds, seconds};
use crate::node::joined::JoinedNode;
use crate::node::remedies::{End, Isolated, Situation};
use crate::os::clock;
use crate::path::tried::Attempts;
use crate::path::watch::Reach;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{
    EndpointSource, PathKind, PathRow, PathState, PeerState, SCHEMA, Why, WhyRequest,
};
use crate::records::netmap::Member;
use crate::tunnel::PeerStatus as TunnelPeer;

/// Explains the path between two nodes, one of which has to be this node.
pub(in crate::node) fn why(node: &JoinedNode, request: &WhyRequest) -> Result<Why, ApiError> {
    let to = member_of(node, &request.to)?;
    let from = match &request.from {
        Some(text) => member_of(node, text)?,
        None => own_member(node)?,
    };
    let own = node.id();
    match (from.id == own, to.id == own) {
        (true, true) => Err(ApiError::new(
            ErrorCode::BadRequest,
            format!("{} is this node; name another one", to.name),
        )),
        (true, false) => Ok(explain(node, to)),
        // The path back: this node knows its own end of it.
        (false, true) => Ok(explain(node, from)),
        (false, false) => Err(ApiError::new(
            ErrorCode::Conflict,
            format!(
                "this node knows only the paths that begin or end at itself ({}); run `meshctl why {}` on {}",
                node.identity.name, to.name, from.name
            ),
        )),
    }
}

fn own_member(node: &JoinedNode) -> Result<&Member, ApiError> {
    let own = node.netmap.members.get(&node.id());
    own.ok_or_else(|| {
        ApiError::new(
            ErrorCode::Conflict,
            "this node is not a member of the mesh yet; `meshctl status` shows why",
        )
    })
}

fn explain(node: &JoinedNode, member: &Member) -> Why {
    let now = Instant::now();
    let ago = |at: Instant| now.saturating_duration_since(at);
    let peer = node.device.tunnel.peer(&member.wireguard_key.0);
    let peer = peer.as_ref();
    let contact = contact_of(node, member, peer, now);
    let (state, reason) = contact.state();
    let is_reached = !matches!(state, PeerState::Connecting | PeerState::Unreachable);
    let round_trip = node.paths.distances().round_trip(&member.id);
    let handshake = peer.and_then(|p| p.last_handshake);
    let handshake = handshake.and_then(|at| clock::wall().duration_since(at).ok());
    let situation = situation(node, member, peer, contact.reach, now);
    let tried = node.paths.tried();
    let in_use = peer.and_then(|p| p.endpoint);
    let path = Path {
        endpoint: in_use,
        is_reached,
        rtt_ms: round_trip.filter(|_| is_reached).map(milliseconds),
        mtu: Some(node.paths.limit(&member.id)).filter(|_| is_reached),
    };
    let attempts: Vec<(SocketAddr, Attempts)> = tried.of(&member.id).collect();
    let sent = attempts.iter().filter_map(|(_, of)| of.sent).max();
    Why {
        schema: SCHEMA,
        from: node.identity.name.clone(),
        to: member.name.clone(),
        state,
        via: None,
        reason,
        since_seconds_ago: tried
            .since(&member.id)
            .filter(|_| is_reached)
            .map(|at| seconds(ago(at))),
        rtt_ms: path.rtt_ms,
        mtu: path.mtu,
        last_heard_seconds_ago: contact.heard.map(seconds),
        last_sent_seconds_ago: sent
            .max(peer.and_then(|p| p.last_send))
            .map(|at| seconds(ago(at))),
        last_handshake_seconds_ago: handshake.map(seconds),
        rx_bytes: peer.map_or(0, |p| p.rx_bytes),
        paths: rows(&situation, &path, &attempts, ago),
        mend: situation.remedies(),
    }
}

/// The facts for remedies about the path to `member`, which is `peer` in the tunnel.
pub(super) fn situation(
    node: &JoinedNode,
    member: &Member,
    peer: Option<&TunnelPeer>,
    reach: Reach,
    now: Instant,
) -> Situation {
    let contact = contact_of(node, member, peer, now);
    let own = node.netmap.members.get(&node.id());
    Situation {
        own: End {
            name: node.identity.name.to_string(),
            endpoints: own.map_or_else(Vec::new, |own| own.endpoints.clone()),
            outer: outer_address(node),
        },
        peer: End {
            name: member.name.to_string(),
            endpoints: member.endpoints.clone(),
            outer: None,
        },
        reach,
        is_heard: contact.heard.is_some(),
        arrives: contact.heard.is_none() && contact.received > 0,
        any_heard: node.paths.watch().any_heard(),
        networks: networks_of(node),
        ipv6: ipv6_of(node),
        isolated: if node.replica.is_removed() {
            Some(Isolated::Removed)
        } else if node.replica.link().is_duplicate() {
            Some(Isolated::Copied)
        } else {
            None
        },
    }
}

/// The path in use.
struct Path {
    endpoint: Option<SocketAddr>,
    is_reached: bool,
    rtt_ms: Option<f64>,
    mtu: Option<u16>,
}

/// A row for each endpoint: the one in use, those that the peer publishes, and those that it was seen at.
fn rows(
    situation: &Situation,
    path: &Path,
    attempts: &[(SocketAddr, Attempts)],
    ago: impl Fn(Instant) -> Duration,
) -> Vec<PathRow> {
    let published = &situation.peer.endpoints;
    let seen = attempts.iter().map(|(endpoint, _)| endpoint);
    let mut endpoints: Vec<SocketAddr> = Vec::new();
    for endpoint in path.endpoint.iter().chain(published).chain(seen) {
        if !endpoints.contains(endpoint) {
            endpoints.push(*endpoint);
        }
    }
    let row = |endpoint: SocketAddr| {
        let of = attempts.iter().find(|(at, _)| *at == endpoint);
        let of = of.map(|(_, of)| *of).unwrap_or_default();
        let is_in_use = path.is_reached && path.endpoint == Some(endpoint);
        let (state, reason) = state_of(situation, path, endpoint, &of);
        PathRow {
            kind: PathKind::Direct,
            endpoint: Some(endpoint),
            via: None,
            source: Some(if published.contains(&endpoint) {
                EndpointSource::Host
            } else {
                EndpointSource::Observed
            }),
            state,
            probes: of.probes,
            answers: of.answers,
            rtt_ms: path.rtt_ms.filter(|_| is_in_use),
            mtu: path.mtu.filter(|_| is_in_use),
            last_heard_seconds_ago: of.heard.map(|at| seconds(ago(at))),
            last_sent_seconds_ago: of.sent.map(|at| seconds(ago(at))),
            reason,
        }
    };
    endpoints.into_iter().map(row).collect()
}

fn state_of(
    situation: &Situation,
    path: &Path,
    endpoint: SocketAddr,
    of: &Attempts,
) -> (PathState, Option<String>) {
    let is_current = path.endpoint == Some(endpoint);
    if path.is_reached && is_current {
        return (PathState::InUse, None);
    }
    if let Some(why) = situation.why_unusable(endpoint) {
        return (PathState::Unusable, Some(why));
    }
    if path.is_reached || of.probes == 0 {
        return (PathState::Untried, None);
    }
    let state = match (is_current, situation.reach) {
        (true, Reach::Unknown | Reach::Reachable) => PathState::Trying,
        _ => PathState::Failed,
    };
    let reason =
        (of.heard.is_none() && state == PathState::Failed).then(|| situation.why_failed(endpoint));
    (state, reason)
}
