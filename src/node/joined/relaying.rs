//! Relays and punches: passes what peers say about them between the tunnel, the paths, and the record of this node.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{JoinedNode, mapping, messages, pinhole};
use crate::model::{NodeAddress, Path, PublicKey};
use crate::node::reach::{Witness, sends_to_lost};
use crate::node::state::Identity;
use crate::path::relays::MeasuredRelay;
use crate::protocol::path_messages::{ByeReason, MAX_RELAYS, Message, Paths, RelayRoundTrip};
use crate::records::netmap::{Member, Netmap};
use crate::tunnel::{PathReport, Tunnel};

/// A peer that answered within this time is a relay to name. The path to a peer that is idle is measured every 120 s, so one lost
/// probe does not change the record.
const ECHO_WITHIN: Duration = Duration::from_secs(300);
/// From where a peer saw this node counts for so long after its echo: it is believed for some minutes from then on.
const SEEN_WITHIN: Duration = Duration::from_secs(60);

/// Measures the relays and asks peers for direct paths, where that is due.
pub(super) fn poll(node: &mut JoinedNode, now: Instant) {
    if node.device.reach.is_measuring(now) {
        measure(node, now);
    }
    let relayed = node.paths.steered().relayed();
    let paths = &node.paths;
    let is_heard = |peer: &PublicKey| paths.steered().is_open(peer);
    let is_direct = |peer: &PublicKey| paths.steered().is_direct(peer);
    let punching = &mut node.device.reach.punching;
    for peer in punching.poll(&relayed, is_heard, is_direct, now) {
        send_paths(node, &peer, true, now);
    }
}

/// The tunnel has reported the paths to a peer: takes over from where the peer saw this node.
pub(super) fn handle_report(
    node: &mut JoinedNode,
    peer: PublicKey,
    report: &PathReport,
    now: Instant,
) {
    mapping::handle_report(node, peer, report);
    pinhole::handle_report(node, peer, report);
    let mut paths = report.paths.iter();
    let primary = paths.find(|path| Some(path.path) == report.primary);
    let mesh = node.replica.ledger().mesh().map(|mesh| &mesh.addresses);
    if let Some(path) = primary
        && let (Some(seen), Some(trip)) = (path.seen, path.answered)
        && now.saturating_duration_since(trip.at) < SEEN_WITHIN
    {
        let reach = &mut node.device.reach;
        reach.handle_seen(Witness::Peer(peer), seen, mesh, trip.at);
    }
}

/// A peer has sent its candidates, and its round trips to relays.
pub(super) fn handle_paths(node: &mut JoinedNode, peer: PublicKey, paths: &Paths, now: Instant) {
    // These messages belong to no punch.
    if paths.tries_mapping {
        node.device.reach.mapping.state.handle_tried(&peer, now);
        node.device.pinhole.state.handle_tried(&peer, now);
        return;
    }
    if paths.try_my_mapping {
        if mapping::handle_try(node, peer, paths, now) {
            let message = node.device.reach.tries_message();
            messages::send_paths(node, &peer, message, None);
        }
        return;
    }
    let Some(mesh) = node.replica.ledger().mesh() else {
        return;
    };
    let addresses = paths.candidates.iter().map(|candidate| candidate.address);
    let addresses = addresses.filter(|address| !mesh.addresses.contains(address.ip()));
    let addresses: Vec<SocketAddr> = addresses.collect();
    let reach = &mut node.device.reach;
    let trips = paths.relays.iter().map(|of| {
        let trip = Duration::from_micros(of.rtt_us.into());
        (NodeAddress(of.relay), trip)
    });
    node.paths.handle_relays(&peer, trips.collect(), now);
    let steps = reach.punching.handle_paths(peer, paths.punch, now);
    if let Some(hops) = steps.open {
        open_routers(node, &peer, &addresses, hops, now);
    }
    if steps.answer {
        send_paths(node, &peer, false, now);
    }
    if steps.probe {
        let paths: Vec<Path> = addresses.into_iter().map(Path::Direct).collect();
        node.paths.handle_consent(&peer, &paths, now);
    }
}

/// Opens the routers of this node's network for a peer at these addresses, as far as the budget permits.
pub(super) fn open_routers(
    node: &mut JoinedNode,
    peer: &PublicKey,
    addresses: &[SocketAddr],
    hops: u8,
    now: Instant,
) {
    for address in addresses {
        if node.device.reach.punching.may_open(*peer, *address, now) {
            node.device.tunnel.steering().open_routers(*address, hops);
        }
    }
}

/// Sends this node's candidates to a peer, and asks it for a punch with `punch`.
fn send_paths(node: &mut JoinedNode, peer: &PublicKey, punch: bool, now: Instant) {
    let mut relays: Vec<RelayRoundTrip> = measured(node, now)
        .map(|(member, relay)| RelayRoundTrip {
            relay: member.block.node_v4(),
            rtt_us: u32::try_from(relay.rtt.as_micros()).unwrap_or(u32::MAX),
        })
        .collect();
    relays.sort_unstable_by_key(|relay| (relay.rtt_us, relay.relay));
    relays.truncate(MAX_RELAYS);
    let message = Paths {
        relays,
        ..node.device.reach.message(punch)
    };
    // An answer is sent by the path of the peer's last packet: the path in use may not work any more.
    let path = node.paths.steered().last_heard(peer).filter(|_| !punch);
    messages::send_paths(node, peer, message, path.as_ref());
}

/// Tells all peers that this node stops, so that they use other paths at once.
pub(super) fn say_bye(identity: &Identity, netmap: &Netmap, tunnel: &Tunnel) {
    let id = identity.keys.identity.public();
    let members = netmap.members.values();
    for member in members.filter(|member| member.speaks_paths && member.id != id) {
        let bye = Message::Bye(ByeReason::Stopping);
        messages::send(tunnel, identity, member, bye, None);
    }
}

/// This host has the addresses `listed` from now on. Tells the peers that send to one which it has lost, since they would notice that
/// only after a while.
pub(super) fn say_roaming(node: &JoinedNode, listed: &BTreeSet<IpAddr>) {
    let lost = node.device.reach.lost(listed);
    if lost.is_empty() {
        return;
    }
    let (id, steering) = (node.id(), node.device.tunnel.steering());
    let is_concerned = |member: &&Member| {
        let report = steering.report(&member.wireguard_key.0);
        let sends_there = report.is_some_and(|report| sends_to_lost(&report, &lost, listed));
        member.speaks_paths && member.id != id && sends_there
    };
    for member in node.netmap.members.values().filter(is_concerned) {
        let bye = Message::Bye(ByeReason::Roaming);
        messages::send(&node.device.tunnel, &node.identity, member, bye, None);
    }
}

/// Measures the peers that offer to relay for this node.
fn measure(node: &mut JoinedNode, now: Instant) {
    let relays = measured(node, now).map(|(_, relay)| relay);
    let relays: Vec<MeasuredRelay<PublicKey>> = relays.collect();
    let is_blocked = node.device.streams.is_blocked(now);
    let reach = &mut node.device.reach;
    node.dirty.own |= reach.handle_measured(&relays, is_blocked, now);
}

/// The peers that offer to relay for this node.
fn measured(
    node: &JoinedNode,
    now: Instant,
) -> impl Iterator<Item = (&Member, MeasuredRelay<PublicKey>)> {
    let (id, steering) = (node.id(), node.device.tunnel.steering());
    let members = node.netmap.members.values();
    let others = members.filter(move |member| {
        let may_offer = node.netmap.rules.may_offer_relay(member);
        may_offer && member.speaks_paths && member.id != id
    });
    others.filter_map(move |member| {
        let report = steering.report(&member.wireguard_key.0)?;
        let has_stream = node.device.streams.is_open(&member.id);
        Some((member, measured_relay(member.id, &report, has_stream, now)?))
    })
}

/// The peer as a relay, if it offers to relay and its own path is direct, or the stream that this node has opened to it.
pub(in crate::node) fn measured_relay(
    relay: PublicKey,
    report: &PathReport,
    has_stream: bool,
    now: Instant,
) -> Option<MeasuredRelay<PublicKey>> {
    let is_stream = |path: &Path| has_stream && matches!(path, Path::Stream(_));
    let primary = report.primary;
    let primary = primary.filter(|path| path.endpoint().is_some() || is_stream(path))?;
    let mut paths = report.paths.iter();
    let path = paths.find(|path| path.path == primary)?;
    let is_recent = now.saturating_duration_since(path.answered?.at) < ECHO_WITHIN;
    is_recent.then_some(MeasuredRelay {
        relay,
        rtt: path.sample?.took,
        // A relay takes a stream only if it relays, and its echoes on a stream do not contain its load.
        load: match path.offer {
            Some(offer) => offer.load,
            None if is_stream(&primary) => 0,
            None => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::path_messages::RelayOffer;
    use crate::testbed::records::id;
    use crate::tunnel::RoundTrip;

    #[test]
    fn a_relay_that_is_measured_every_two_minutes_stays_one_when_a_probe_is_lost() {
        let start = Instant::now();
        let trip = RoundTrip {
            at: start,
            took: Duration::from_millis(5),
        };
        let path = Path::Direct(([192, 0, 2, 1], 51820).into());
        let offer = RelayOffer { load: 7, tag: 1 };
        let report = PathReport::of(path, trip, Some(offer));
        let relay = MeasuredRelay {
            relay: id(1),
            rtt: trip.took,
            load: 7,
        };
        let after = |seconds| {
            let now = start + Duration::from_secs(seconds);
            measured_relay(id(1), &report, false, now)
        };
        assert_eq!([0, 245].map(after), [Some(relay), Some(relay)]);
        assert_eq!(after(300), None);
    }
}
