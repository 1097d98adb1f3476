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
        // The state of an idle peer does not change before something is sent to it.
        let answers = node.paths.reach().get(id) != Some(&Reach::Unreachable);
        let is_reached = answers && matches!(state, State::Open | State::Suspect { .. });
        KnownRelay {
            relay: *id,
            rank: rank(&own, id),
            by_udp: is_reached && path.is_some_and(|path| !matches!(path, Path::Stream(_))),
            is_lost: matches!(state, State::Lost { .. }),
            is_named: named.contains(id),
            is_used: used.contains(&offered.address),
        }
    });
    known.collect()
}

/// The place of a relay in an order that is another one for each node. Keys are random, so this is too.
fn rank(own: &PublicKey, relay: &PublicKey) -> u64 {
    let word = |key: &PublicKey| {
        let first = key.0.first_chunk::<8>().copied();
        u64::from_be_bytes(first.unwrap_or_default())
    };
    word(own) ^ word(relay)
}
