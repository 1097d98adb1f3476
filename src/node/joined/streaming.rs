//! Streams to relays: passes values between the members, the paths and the streams.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::JoinedNode;
use crate::model::{NodeAddress, Path, PublicKey};
use crate::node::streams::{Offered, RelayStreamEvent};
use crate::path::peer::State;
use crate::path::streams::KnownRelay;
use crate::path::watch::Reach;
use crate::protocol::stream::StreamTarget;

/// The members have changed: some may offer streams now, and some may use those of this node.
pub(super) fn set_members(node: &mut JoinedNode) {
    let id = node.id();
    let members = node.netmap.members.values();
    let others = members.filter(|member| member.id != id);
    let mut addresses = BTreeMap::new();
    let mut offered = BTreeMap::new();
    for member in others {
        let address = NodeAddress(member.block.node_v4());
        addresses.insert(member.id, address);
        let offer = member.stream.as_ref().filter(|_| member.speaks_paths);
        let target = offer.and_then(|o| StreamTarget::parse(&o.url, o.pin.as_deref()));
        if let Some(target) = target.filter(|_| node.device.reach.uses_relays()) {
            offered.insert(member.id, Offered { address, target });
        }
    }
    node.device.streams.set_members(addresses, offered);
}

/// Opens and closes streams as it is due, and lets the paths follow.
pub(super) fn poll(node: &mut JoinedNode, now: Instant) {
    let known = known_relays(node);
    node.device.streams.poll(&known, now);
    node.paths.set_streams(node.device.streams.open(), now);
}

/// The stream to a relay was opened or has ended.
pub(super) fn handle_event(node: &mut JoinedNode, event: RelayStreamEvent, now: Instant) {
    node.device.streams.handle_event(event, now);
    poll(node, now);
}

/// The relays that offer streams, and how they are reached.
fn known_relays(node: &JoinedNode) -> Vec<KnownRelay<PublicKey>> {
    let (own, steered) = (node.id(), node.paths.steered());
    let members = node.netmap.members.values();
    let unreached = members.filter(|member| {
        let state = steered.get(&member.id).map(|peer| peer.state());
        !matches!(state, Some(State::Open | State::Suspect { .. }))
    });
    let named: BTreeSet<PublicKey> = unreached.flat_map(|m| m.relays.iter().copied()).collect();
    let members = node.netmap.members.keys();
    let primary = members.filter_map(|id| steered.get(id)?.links().primary());
    let used = primary.filter(|path| matches!(path, Path::Stream(_)));
    let used: BTreeSet<NodeAddress> = used.filter_map(|path| path.relay()).collect();
    let offered = node.device.streams.offered().iter();
    let known = offered.map(|(id, offered)| {
        let peer = steered.get(id);
        let state = peer.map_or(State::Cold, |peer| peer.state());
        let path = peer.and_then(|peer| peer.links().primary());
        let reach = node.paths.reach().get(id).copied();
        KnownRelay {
            relay: *id,
            rank: rank(&own, id),
            by_udp: is_by_udp(state, path, reach),
            is_lost: matches!(state, State::Lost { .. }),
            is_named: named.contains(id),
            is_used: used.contains(&offered.address),
        }
    });
    known.collect()
}

/// Whether a relay is reached by UDP. A path whose time to answer is over does not count, though the peer is lost only some seconds later:
/// a stream that turns out not to be needed is closed again.
fn is_by_udp(state: State, path: Option<Path>, reach: Option<Reach>) -> bool {
    let answers = match state {
        State::Open => true,
        State::Suspect { is_over, .. } => !is_over,
        State::Cold | State::Opening { .. } | State::Lost { .. } => false,
    };
    let is_udp = path.is_some_and(|path| !matches!(path, Path::Stream(_)));
    answers && is_udp && reach != Some(Reach::Unreachable)
}

/// The place of a relay in an order that is another one for each node. Keys are random, so this is too.
fn rank(own: &PublicKey, relay: &PublicKey) -> u64 {
    let word = |key: &PublicKey| {
        let first = key.0.first_chunk::<8>().copied();
        u64::from_be_bytes(first.unwrap_or_default())
    };
    word(own) ^ word(relay)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::path::link::Evidence;
    use crate::path::links::Candidate;
    use crate::path::peer::{Action, PeerPaths, Report};

    #[test]
    fn a_relay_that_somebody_doubts_is_not_reached_by_udp_before_it_counts_as_lost() {
        let start = Instant::now();
        let path = Path::Direct(([192, 0, 2, 1], 51820).into());
        let mut peer = PeerPaths::default();
        let candidate = Candidate {
            path,
            evidence: Evidence::Host,
        };
        peer.set_candidates(vec![candidate], start);
        peer.handle_wanted(start);
        let report = Report {
            is_offered: true,
            primary: Some(path),
            heard: Some(start),
            ..Report::default()
        };
        peer.handle_report(&report, start);
        let is_by_udp = |peer: &PeerPaths| is_by_udp(peer.state(), Some(path), None);
        assert!(is_by_udp(&peer));
        // The relay was idle. A keepalive of it did not come, so it was probed in vain.
        peer.handle_doubt(start);
        let after = |ms| start + Duration::from_millis(ms);
        let polls = (0..2000).step_by(10).map(after);
        let given_up = polls.into_iter().find(|now| {
            let actions = peer.poll(|_| true, *now);
            assert!(!actions.contains(&Action::Use(path, None)));
            !is_by_udp(&peer)
        });
        let took = given_up.map(|at| at - start);
        assert!(
            took.is_some_and(|took| took < Duration::from_millis(500)),
            "{took:?}"
        );
        assert!(!matches!(peer.state(), State::Lost { .. }));
    }

    #[test]
    fn a_relay_that_is_reached_by_a_stream_or_does_not_answer_is_not_reached_by_udp() {
        let node = NodeAddress([10, 210, 1, 1].into());
        let udp = Some(Path::Direct(([192, 0, 2, 1], 51820).into()));
        assert!(is_by_udp(State::Open, udp, Some(Reach::Reachable)));
        assert!(!is_by_udp(State::Open, udp, Some(Reach::Unreachable)));
        assert!(!is_by_udp(State::Open, Some(Path::Stream(node)), None));
        assert!(!is_by_udp(State::Cold, udp, None));
    }
}
