//! Explains the path from this node to a peer: what was tried, what came back, and what to do.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::netcheck::{ipv6_of, networks_of, outer_address};
use super::peers::{contact_of, member_of, milliseconds, over_tls, relay_name, relayed, seconds};
use crate::model::Path;
use crate::node::contact::Contact;
use crate::node::joined::{JoinedNode, may_call};
use crate::node::remedies::{Calls, End, Isolated, Situation};
use crate::os::clock;
use crate::path::link::{Evidence, Link};
use crate::path::peer::PeerPaths;
use crate::path::tried::Attempts;
use crate::path::watch::Reach;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{
    CallCheck, EndpointSource, PathKind, PathRow, PathState, PeerState, SCHEMA, Why, WhyRequest,
};
use crate::records::kinds::CALLS_1;
use crate::records::netmap::Member;

/// How long the answer to a call may take: it passes the coordinator, or a peer.
const CALL_ANSWER_WITHIN: Duration = Duration::from_secs(5);

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
    let situation = situation(node, member, &contact, now);
    let tried = node.paths.tried();
    let in_use = peer.and_then(|p| p.path);
    let (state, via) = relayed(node, &member.name, state, in_use);
    let reason = reason.or_else(|| over_tls(state, via.as_ref(), contact.port));
    let attempts: Vec<(Path, Attempts)> = tried.of(&member.id).collect();
    let sent = attempts.iter().filter_map(|(_, of)| of.sent).max();
    let mtu = Some(node.paths.limit(&member.id)).filter(|_| is_reached);
    let rtt_ms = round_trip.filter(|_| is_reached).map(milliseconds);
    let known = KnownPaths {
        in_use,
        is_reached,
        rtt_ms,
        mtu,
        links: node.paths.steered().get(&member.id),
        attempts,
    };
    Why {
        schema: SCHEMA,
        from: node.identity.name.clone(),
        to: member.name.clone(),
        state,
        via,
        reason,
        since_seconds_ago: tried
            .since(&member.id)
            .filter(|_| is_reached)
            .map(|at| seconds(ago(at))),
        rtt_ms,
        mtu,
        last_heard_seconds_ago: contact.heard.map(seconds),
        last_sent_seconds_ago: sent
            .max(peer.and_then(|p| p.last_send))
            .map(|at| seconds(ago(at))),
        last_handshake_seconds_ago: handshake.map(seconds),
        rx_bytes: peer.map_or(0, |p| p.rx_bytes),
        call: last_call(node, member, now),
        paths: rows(node, &situation, &known, now),
        mend: situation.remedies(),
    }
}

fn last_call(node: &JoinedNode, member: &Member, now: Instant) -> Option<CallCheck> {
    let ago = |at: Instant| seconds(now.saturating_duration_since(at));
    let last = node.device.asked.calls.log.last(&member.id)?;
    Some(CallCheck {
        sent_seconds_ago: ago(last.at),
        by_coordinator: last.by_coordinator,
        by_peers: last.by_peers,
        answered_seconds_ago: last.answered.map(ago),
    })
}

/// What the calls to `member` show.
fn calls_to(node: &JoinedNode, member: &Member, now: Instant) -> Calls {
    let record = node.replica.ledger().node(&member.id);
    let Some(last) = node.device.asked.calls.log.last(&member.id) else {
        return if record.is_some_and(|record| !record.speaks(CALLS_1)) {
            Calls::Unsupported
        } else if may_call(node) {
            Calls::Pending
        } else {
            Calls::NoWay
        };
    };
    let age = now.saturating_duration_since(last.at);
    match (last.answered, last.by_coordinator, last.by_peers) {
        (Some(_), ..) => Calls::Answered,
        (None, false, 0) => Calls::NoWay,
        (None, ..) if age < CALL_ANSWER_WITHIN => Calls::Pending,
        (None, by_coordinator, by_peers) => Calls::Unanswered {
            by_coordinator,
            by_peers,
        },
    }
}

/// The facts for remedies about the path to `member`.
fn situation(node: &JoinedNode, member: &Member, contact: &Contact, now: Instant) -> Situation {
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
        reach: contact.reach,
        is_heard: contact.heard.is_some(),
        arrives: contact.heard.is_none() && contact.received > 0,
        any_heard: node.paths.watch().any_heard(),
        networks: networks_of(node),
        ipv6: ipv6_of(node),
        calls: calls_to(node, member, now),
        isolated: if node.replica.is_removed() {
            Some(Isolated::Removed)
        } else if node.replica.link().is_duplicate() {
            Some(Isolated::Copied)
        } else {
            None
        },
    }
}

/// What is known of the paths to a peer.
struct KnownPaths<'a> {
    in_use: Option<Path>,
    is_reached: bool,
    rtt_ms: Option<f64>,
    mtu: Option<u16>,
    /// The state machine of the paths, if the peer speaks of them.
    links: Option<&'a PeerPaths>,
    attempts: Vec<(Path, Attempts)>,
}

impl KnownPaths<'_> {
    /// The path in use first, then those that the peer publishes, and those that were tried or seen.
    fn in_order(&self, published: &[SocketAddr]) -> Vec<Path> {
        let published = published.iter().map(|endpoint| Path::Direct(*endpoint));
        let links = self.links.iter().flat_map(|peer| peer.links().all());
        let tried = self.attempts.iter().map(|(path, _)| *path);
        let mut paths: Vec<Path> = Vec::new();
        let all = published.chain(tried).chain(links.map(|link| link.path));
        for path in self.in_use.into_iter().chain(all) {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        paths
    }

    fn link(&self, path: Path) -> Option<&Link> {
        self.links?
            .links()
            .all()
            .iter()
            .find(|link| link.path == path)
    }

    fn of(&self, path: Path) -> Attempts {
        let of = self.attempts.iter().find(|(tried, _)| *tried == path);
        of.map(|(_, of)| *of).unwrap_or_default()
    }
}

fn rows(
    node: &JoinedNode,
    situation: &Situation,
    known: &KnownPaths<'_>,
    now: Instant,
) -> Vec<PathRow> {
    let ago = |at: Instant| seconds(now.saturating_duration_since(at));
    let published = &situation.peer.endpoints;
    let row = |path: Path| {
        let of = known.of(path);
        let is_in_use = known.is_reached && known.in_use == Some(path);
        let (state, reason) = state_of(situation, known, path, now);
        let measured = known.link(path).and_then(Link::srtt).map(milliseconds);
        PathRow {
            kind: match path {
                Path::Direct(_) => PathKind::Direct,
                Path::Relay(_) => PathKind::Relay,
                Path::Stream(_) => PathKind::Stream,
            },
            endpoint: path.endpoint(),
            via: relay_name(node, path),
            source: path.endpoint().map(|endpoint| {
                let evidence = known.link(path).map(|link| link.evidence);
                source_of(evidence, published.contains(&endpoint))
            }),
            state,
            probes: of.probes,
            answers: of.answers,
            rtt_ms: measured.or(known.rtt_ms.filter(|_| is_in_use)),
            mtu: known.mtu.filter(|_| is_in_use),
            last_heard_seconds_ago: of.heard.map(ago),
            last_sent_seconds_ago: of.sent.map(ago),
            reason,
        }
    };
    known.in_order(published).into_iter().map(row).collect()
}

fn source_of(evidence: Option<Evidence>, is_published: bool) -> EndpointSource {
    match evidence {
        Some(Evidence::Set) => EndpointSource::Set,
        Some(Evidence::Mapped) => EndpointSource::Mapped,
        Some(Evidence::Host) => EndpointSource::Host,
        Some(Evidence::Heard | Evidence::Observed) | None if is_published => EndpointSource::Host,
        Some(Evidence::Heard | Evidence::Observed) | None => EndpointSource::Observed,
    }
}

fn state_of(
    situation: &Situation,
    known: &KnownPaths<'_>,
    path: Path,
    now: Instant,
) -> (PathState, Option<String>) {
    let of = known.of(path);
    let is_current = known.in_use == Some(path);
    if known.is_reached && is_current {
        return (PathState::InUse, None);
    }
    let standby = known.links.and_then(|peer| peer.links().standby(now));
    if known.is_reached && standby == Some(path) {
        return (PathState::Standby, None);
    }
    let unusable = path.endpoint().and_then(|e| situation.why_unusable(e));
    if let Some(why) = unusable {
        return (PathState::Unusable, Some(why));
    }
    if of.probes == 0 && of.heard.is_none() {
        return (PathState::Untried, None);
    }
    if of.answers > 0 && known.is_reached {
        return (PathState::Standby, None);
    }
    let is_trying = is_current && situation.reach != Reach::Unreachable;
    if is_trying || of.answers > 0 {
        return (PathState::Trying, None);
    }
    let reason = path.endpoint().filter(|_| of.heard.is_none());
    let reason = reason.map(|endpoint| situation.why_failed(endpoint));
    (PathState::Failed, reason)
}
