//! What this node knows of its own connection to the network.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::peers::{milliseconds, others, seconds};
use crate::model::address::is_routable;
use crate::model::{Label, NodeAddress, Path, PublicKey};
use crate::node::host::Interface;
use crate::node::joined::{JoinedNode, measured_relay};
use crate::node::reach::Witness;
use crate::node::remedies::is_private;
use crate::path::mapping::{Mapping, Refusal};
use crate::path::watch::Reach;
use crate::protocol::local::{
    Ipv6State, LocalAddress, NatCheck, NatFiltering, NatMapping, Netcheck, PathKind,
    PortMappingCheck, PortMappingState, RelayCheck, SCHEMA, SeenFrom, UdpCheck, UdpState,
};

/// Returns what is known of the network around this node.
pub(in crate::node) fn netcheck(node: &JoinedNode) -> Netcheck {
    let now = Instant::now();
    let link = node.replica.link();
    let udp = udp(node, now);
    let mapping = mapping(node);
    Netcheck {
        schema: SCHEMA,
        name: node.identity.name.clone(),
        addresses: addresses(node),
        ipv6: ipv6_of(node),
        mend: mend(
            udp.state,
            mapping,
            &node.device.reach.mapping.state,
            udp.port,
        ),
        udp,
        nat: NatCheck {
            mapping,
            filtering: NatFiltering::Unknown,
            seen: seen(node, now),
        },
        port_mapping: port_mapping(&node.device.reach.mapping.state, now),
        ipv6_pinhole: ipv6_pinhole(&node.device.pinhole.state, now),
        relays: relays(node, now),
        coordinator: link.url().to_owned(),
        coordinator_connected: link.is_connected(),
    }
}

/// From where a coordinator sees this node, and STUN servers see its tunnel.
fn seen(node: &JoinedNode, now: Instant) -> Vec<SeenFrom> {
    let link = node.replica.link();
    let ago = |at| Some(seconds(now.saturating_duration_since(at)));
    let coordinator = link.seen().map(|(address, at)| SeenFrom {
        by: link.url().to_owned(),
        address,
        port: None,
        seconds_ago: ago(at),
    });
    let reach = &node.device.reach;
    let observations = reach.observed.observations();
    let servers = observations.filter_map(|(witness, seen, at)| match witness {
        Witness::Server(server) => Some(SeenFrom {
            by: reach.stun.name_of(server),
            address: seen.ip(),
            port: Some(seen.port()),
            seconds_ago: ago(at),
        }),
        Witness::Peer(_) => None,
    });
    coordinator.into_iter().chain(servers).collect()
}

/// The port that the router maps to this node.
fn port_mapping(mapping: &Mapping<PublicKey>, now: Instant) -> PortMappingCheck {
    let empty = PortMappingCheck {
        state: PortMappingState::Off,
        protocol: None,
        endpoint: None,
        proven_seconds_ago: None,
        reason: None,
    };
    if !mapping.is_on() {
        let reason = Some("[path] port_mapping is false".to_owned());
        return PortMappingCheck { reason, ..empty };
    }
    let Some(report) = mapping.report() else {
        let asking = || "the router has not answered yet".to_owned();
        return PortMappingCheck {
            state: PortMappingState::None,
            reason: Some(mapping.why().map_or_else(asking, Refusal::reason)),
            ..empty
        };
    };
    let proven = report.proven.map(|at| now.saturating_duration_since(at));
    PortMappingCheck {
        state: match proven {
            Some(_) => PortMappingState::Proven,
            None => PortMappingState::Unproven,
        },
        protocol: Some(report.granted.protocol.as_str().to_owned()),
        endpoint: Some(report.granted.external),
        proven_seconds_ago: proven.map(seconds),
        reason: mapping.why().map(Refusal::reason),
    }
}

/// The hole in the router's firewall for IPv6, if there is an address to open it for.
fn ipv6_pinhole(mapping: &Mapping<PublicKey>, now: Instant) -> Option<PortMappingCheck> {
    let has_address = mapping.why() != Some(&Refusal::NoGateway);
    has_address.then(|| port_mapping(mapping, now))
}

/// Whether datagrams of peers arrive.
fn udp(node: &JoinedNode, now: Instant) -> UdpCheck {
    let peers = others(node);
    let watch = node.paths.watch();
    let heard: Vec<Instant> = peers.iter().filter_map(|m| watch.heard(&m.id)).collect();
    let last = heard.iter().max();
    let is_unreached = |id| watch.reach(id, now) == Reach::Unreachable;
    let state = if node.device.streams.is_blocked(now) {
        UdpState::Unanswered
    } else if !heard.is_empty() {
        UdpState::Works
    } else if !peers.is_empty() && peers.iter().all(|m| is_unreached(&m.id)) {
        UdpState::Unanswered
    } else {
        UdpState::Unknown
    };
    UdpCheck {
        port: node.device.tunnel.listen_port(),
        state,
        heard: heard.len(),
        peers: peers.len(),
        last_heard_seconds_ago: last.map(|at| seconds(now.saturating_duration_since(*at))),
    }
}

/// The peers that offer to relay for this node, the nearest first.
fn relays(node: &JoinedNode, now: Instant) -> Vec<RelayCheck> {
    if !node.device.reach.uses_relays() {
        return Vec::new();
    }
    let (tunnel, distances) = (&node.device.tunnel, node.paths.distances());
    let peers = others(node);
    let used = peers.iter().filter_map(|peer| {
        let path = tunnel.peer(&peer.wireguard_key.0)?.path?;
        path.relay()
    });
    let used: BTreeSet<NodeAddress> = used.collect();
    let offered = peers.iter().filter_map(|peer| {
        let report = tunnel.steering().report(&peer.wireguard_key.0)?;
        let has_stream = node.device.streams.is_open(&peer.id);
        let relay = measured_relay(peer.id, &report, has_stream, now)?;
        let round_trip = distances.round_trip(&peer.id).unwrap_or(relay.rtt);
        let in_use = used.contains(&NodeAddress(peer.block.node_v4()));
        let kind = match report.primary {
            Some(Path::Stream(_)) => PathKind::Stream,
            _ => PathKind::Relay,
        };
        let check = relay_check(&peer.name, kind, (round_trip, relay.load), in_use);
        Some((round_trip, check))
    });
    let mut offered: Vec<(Duration, RelayCheck)> = offered.collect();
    offered.sort_by_key(|(round_trip, _)| *round_trip);
    offered.into_iter().map(|(_, check)| check).collect()
}

fn relay_check(
    name: &Label,
    kind: PathKind,
    (round_trip, load): (Duration, u8),
    in_use: bool,
) -> RelayCheck {
    RelayCheck {
        name: name.clone(),
        kind,
        rtt_ms: Some(milliseconds(round_trip)),
        load: Some(f64::from(load) / 255.0),
        in_use,
    }
}

fn mapping(node: &JoinedNode) -> NatMapping {
    let Some((seen, _)) = node.replica.link().seen() else {
        return NatMapping::Unknown;
    };
    let is_own = outside(node).any(|i| i.address == seen);
    match (is_own, is_private(seen)) {
        (true, _) => NatMapping::None,
        // A coordinator in the same network, or a proxy before it, does not see what others see.
        (false, true) => NatMapping::Unknown,
        (false, false) => NatMapping::Translated,
    }
}

/// What to do so that others reach this node directly.
fn mend(
    udp: UdpState,
    mapping: NatMapping,
    port_mapping: &Mapping<PublicKey>,
    port: u16,
) -> Vec<String> {
    let mut mend = Vec::new();
    if udp == UdpState::Unanswered {
        mend.push(format!(
            "let this network pass UDP from and to port {port} of this host, because nobody answers by UDP"
        ));
    }
    let is_proven = port_mapping.report().is_some_and(|r| r.proven.is_some());
    if mapping == NatMapping::Translated && !is_proven {
        let router = port_mapping.why().filter(|_| port_mapping.is_on());
        let remedy = router.and_then(|why| why.remedy(port));
        mend.push(remedy.unwrap_or_else(|| format!(
            "forward UDP port {port} on the router before this host, or give this host IPv6, so that peers which are behind routers themselves can begin to send to it"
        )));
    }
    mend
}

/// The addresses of this machine outside the tunnel and outside the mesh.
fn outside(node: &JoinedNode) -> impl Iterator<Item = &Interface> {
    let own = node.device.tunnel.interface();
    let mesh = node.replica.ledger().mesh().map(|mesh| mesh.addresses);
    let is_outside = move |i: &&Interface| {
        i.name != own && is_routable(i.address) && !mesh.is_some_and(|m| m.contains(i.address))
    };
    node.device.interfaces.iter().filter(is_outside)
}

fn addresses(node: &JoinedNode) -> Vec<LocalAddress> {
    let own = node.netmap.members.get(&node.id());
    let is_offered = |ip: IpAddr| own.is_some_and(|m| m.endpoints.iter().any(|e| e.ip() == ip));
    let address = |interface: &Interface| LocalAddress {
        interface: interface.name.clone(),
        address: interface.address,
        private: is_private(interface.address),
        offered: is_offered(interface.address),
    };
    outside(node).map(address).collect()
}

/// The networks that this machine is in.
pub(super) fn networks_of(node: &JoinedNode) -> Vec<ipnet::IpNet> {
    outside(node)
        .filter_map(|interface| interface.net)
        .collect()
}

/// Whether this machine has IPv6 outside the tunnel.
pub(super) fn ipv6_of(node: &JoinedNode) -> Ipv6State {
    let mut state = Ipv6State::None;
    for interface in outside(node).filter(|i| i.address.is_ipv6()) {
        if !is_private(interface.address) {
            return Ipv6State::Public;
        }
        state = Ipv6State::Private;
    }
    state
}

/// The address from which a coordinator sees this node, if it is a public one that is none of its own.
pub(super) fn outer_address(node: &JoinedNode) -> Option<IpAddr> {
    let (seen, _) = node.replica.link().seen()?;
    (mapping(node) == NatMapping::Translated).then_some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::mapping::{Action, Answer, Granted, Protocol, Site};
    use crate::testbed::records::plan;

    #[test]
    fn a_relay_has_its_round_trip_in_milliseconds_and_its_load_as_a_part_of_one() {
        let name: Label = "web".parse().expect("a label");
        let round_trip = (Duration::from_micros(12_500), 255);
        let check = relay_check(&name, PathKind::Relay, round_trip, true);
        let expected = RelayCheck {
            name,
            kind: PathKind::Relay,
            rtt_ms: Some(12.5),
            load: Some(1.0),
            in_use: true,
        };
        assert_eq!(check, expected);
    }

    #[test]
    fn a_node_is_told_what_its_network_and_its_router_have_to_let_pass() {
        let mapping = Mapping::new(false, 0, Instant::now());
        let mend = |udp, nat, port| mend(udp, nat, &mapping, port);
        assert!(mend(UdpState::Works, NatMapping::None, 51820).is_empty());
        assert_eq!(
            mend(UdpState::Unanswered, NatMapping::Unknown, 51820),
            [
                "let this network pass UDP from and to port 51820 of this host, because nobody answers by UDP"
            ]
        );
        assert_eq!(
            mend(UdpState::Works, NatMapping::Translated, 51821),
            [
                "forward UDP port 51821 on the router before this host, or give this host IPv6, so that peers which are behind routers themselves can begin to send to it"
            ]
        );
    }

    fn site() -> Site {
        Site {
            gateway: [192, 168, 1, 1].into(),
            interface: 2,
            own: [192, 168, 1, 10].into(),
            port: 51820,
        }
    }

    /// The mapping after the router was asked and answered this.
    fn asked(result: Result<Granted, Refusal>, now: Instant) -> Mapping<PublicKey> {
        let mut mapping = Mapping::new(true, 0, now);
        let _ = mapping.set_site(Some(site()), now);
        let actions = mapping.poll(&[], now);
        let number = match actions.as_slice() {
            [Action::Ask(request)] => request.number,
            other => panic!("{other:?}"),
        };
        let _ = mapping.handle_answer(Answer { number, result }, &plan(), now);
        mapping
    }

    #[test]
    fn a_mapping_is_shown_with_its_protocol_and_its_proof_or_with_the_reason_why_there_is_none() {
        let now = Instant::now();
        let external = "203.0.113.7:49152".parse().expect("a literal");
        let granted = Granted {
            protocol: Protocol::NatPmp,
            external,
            lifetime: Duration::from_secs(7200),
        };
        let mut mapping = asked(Ok(granted), now);
        let unproven = PortMappingCheck {
            state: PortMappingState::Unproven,
            protocol: Some("nat-pmp".into()),
            endpoint: Some(external),
            proven_seconds_ago: None,
            reason: None,
        };
        assert_eq!(port_mapping(&mapping, now), unproven);
        mapping.handle_seen(&PublicKey([1; 32]), external, now);
        let later = now + Duration::from_secs(7);
        let proven = PortMappingCheck {
            state: PortMappingState::Proven,
            proven_seconds_ago: Some(7.0),
            ..unproven
        };
        assert_eq!(port_mapping(&mapping, later), proven);
        assert!(mend(UdpState::Works, NatMapping::Translated, &mapping, 51820).is_empty());
        let silent = asked(Err(Refusal::Silent(site().gateway)), now);
        let none = port_mapping(&silent, now);
        assert_eq!(none.state, PortMappingState::None);
        assert_eq!(
            none.reason.as_deref(),
            Some("the router 192.168.1.1 answers neither PCP nor NAT-PMP nor UPnP")
        );
        let remedies = mend(UdpState::Works, NatMapping::Translated, &silent, 51820);
        let [remedy] = remedies.as_slice() else {
            panic!("{remedies:?}")
        };
        assert!(
            remedy.starts_with("switch UPnP, NAT-PMP or PCP on"),
            "{remedy}"
        );
        assert_eq!(ipv6_pinhole(&silent, now), Some(none));
        assert_eq!(ipv6_pinhole(&Mapping::new(true, 0, now), now), None);
        let off = port_mapping(&Mapping::new(false, 0, now), now);
        assert_eq!(off.state, PortMappingState::Off);
        assert_eq!(off.reason.as_deref(), Some("[path] port_mapping is false"));
    }
}
