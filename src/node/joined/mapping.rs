//! The port that the router maps to this node: which peers are asked to try it, and what shows that it works.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{JoinedNode, messages};
use crate::model::address::{is_public, is_routable};
use crate::model::{Path, PublicKey};
use crate::path::mapping::{Answer, Prover, Refusal, Report};
use crate::protocol::path_messages::{CandidateKind, Paths};
use crate::records::netmap::Member;
use crate::tunnel::PathReport;

/// A peer whose last packet is not older than this can be asked to try the mapped port.
pub(super) const HEARD_WITHIN: Duration = Duration::from_secs(180);

/// Asks the router and peers, where that is due.
pub(super) fn poll(node: &mut JoinedNode, now: Instant) {
    let awaited = node.device.reach.mapping.state.awaited(now);
    for (peer, report) in reports_of(node, awaited) {
        handle_report(node, peer, &report);
    }
    let Some(mesh) = node.replica.ledger().mesh().map(|mesh| mesh.addresses) else {
        return;
    };
    let provers = provers(node, now);
    let before = node.device.reach.mapping.state.offered();
    let asked = node.device.reach.mapping.poll(&provers, &mesh, now);
    follow(node, before);
    let report = node.device.reach.mapping.state.report();
    ask_to_try(node, asked, report);
}

/// What the tunnel reports about the paths to these peers.
pub(super) fn reports_of(node: &JoinedNode, peers: Vec<PublicKey>) -> Vec<(PublicKey, PathReport)> {
    let steering = node.device.tunnel.steering();
    let reports = peers.into_iter().filter_map(|peer| {
        let member = node.netmap.members.get(&peer)?;
        Some((peer, steering.report(&member.wireguard_key.0)?))
    });
    reports.collect()
}

/// Asks a peer to send to the address of what the router gave, if there are both.
pub(super) fn ask_to_try(node: &mut JoinedNode, peer: Option<PublicKey>, given: Option<Report>) {
    if let (Some(peer), Some(given)) = (peer, given) {
        let message = node.device.reach.try_message(given.granted.external);
        messages::send_paths(node, &peer, message, None);
    }
}

/// The router has answered.
pub(super) fn handle_answer(node: &mut JoinedNode, answer: Answer, now: Instant) {
    let Some(mesh) = node.replica.ledger().mesh().map(|mesh| mesh.addresses) else {
        return;
    };
    let before = node.device.reach.mapping.state.offered();
    let mapping = &mut node.device.reach.mapping;
    mapping.handle_answer(answer, &mesh, now);
    follow(node, before);
}

/// The tunnel has reported the paths to a peer: a datagram may have come through the mapping.
pub(super) fn handle_report(node: &mut JoinedNode, peer: PublicKey, report: &PathReport) {
    let before = node.device.reach.mapping.state.offered();
    for path in &report.paths {
        if let (Some(seen), Some(heard)) = (path.seen, path.heard) {
            let mapping = &mut node.device.reach.mapping.state;
            mapping.handle_seen(&peer, seen, heard);
        }
    }
    follow(node, before);
}

/// The default gateway and the addresses of this machine were listed.
pub(super) fn handle_listed(node: &mut JoinedNode, now: Instant) {
    let network = &node.device.network;
    let (gateway, gateway_v6) = (network.gateway(), network.gateway_v6());
    let port = node.device.tunnel.listen_port();
    let before = node.device.reach.mapping.state.offered();
    let device = &mut node.device;
    let interfaces = device.reach.not_excluded(&device.interfaces);
    let mapping = &mut device.reach.mapping;
    mapping.set_site(gateway.as_ref(), &interfaces, port, now);
    // Where the host has a public IPv4 address there is no router that keeps others out.
    let is_public = matches!(mapping.state.why(), Some(Refusal::Public(_)));
    let gateway_v6 = gateway_v6.filter(|_| !is_public);
    let pinhole = &mut device.pinhole;
    pinhole.set_site(gateway_v6.as_ref(), &interfaces, port, now);
    follow(node, before);
}

/// The record of this node has the address while it may work.
fn follow(node: &mut JoinedNode, before: Option<SocketAddr>) {
    node.dirty.own |= node.device.reach.mapping.state.offered() != before;
}

/// A peer asks this node to send to the address that its router maps. Returns whether this node does.
pub(super) fn handle_try(
    node: &mut JoinedNode,
    peer: PublicKey,
    paths: &Paths,
    now: Instant,
) -> bool {
    let mut candidates = paths.candidates.iter();
    let mapped = candidates.find(|candidate| candidate.kind == CandidateKind::Mapped);
    let Some(address) = mapped.map(|candidate| candidate.address) else {
        return false;
    };
    let own = node.device.tunnel.interface();
    // A private IPv4 address is of use, because a router translates it. No router translates a private IPv6 address.
    let has_family = node.device.interfaces.iter().any(|interface| {
        let is_of_use = match interface.address {
            IpAddr::V4(_) => address.is_ipv4() && is_routable(interface.address),
            IpAddr::V6(_) => address.is_ipv6() && is_public(interface.address),
        };
        interface.name != own && is_of_use
    });
    let mesh = node.replica.ledger().mesh().map(|mesh| mesh.addresses);
    let is_sound = has_family
        && is_public(address.ip())
        && mesh.is_some_and(|mesh| !mesh.contains(address.ip()));
    if !is_sound || !(node.device.reach.mapping).may_try(peer, address.ip(), now) {
        return false;
    }
    (node.paths).handle_consent(&peer, &[Path::Direct(address)], now);
    true
}

/// The peers that may try the mapping that the router reports.
fn provers(node: &JoinedNode, now: Instant) -> Vec<Prover<PublicKey>> {
    let Some(mapping) = node.device.reach.mapping.state.report() else {
        return Vec::new();
    };
    let (own, outer) = (node.id(), mapping.granted.external.ip());
    let members = node.netmap.members.values();
    let others = members.filter(|member| member.speaks_paths && member.id != own);
    // A peer behind the same router shows nothing: most routers do not lead their own network back.
    let others = others.filter(|member| !has_address(member, outer));
    // A peer that tries an address does not say which one. So a peer that is asked to try the hole is not asked to try the mapping.
    let asked = node.device.pinhole.state.awaited(now);
    let others = others.filter(|member| !asked.contains(&member.id));
    let provers = others.filter_map(|member| {
        let report = node
            .device
            .tunnel
            .steering()
            .report(&member.wireguard_key.0)?;
        let heard = now.saturating_duration_since(report.last_receive?);
        let primary = report.primary.filter(|_| heard < HEARD_WITHIN)?;
        match primary {
            Path::Relay(_) => Some(Prover {
                peer: member.id,
                is_relayed: true,
                seen: None,
            }),
            Path::Direct(endpoint) if is_neighbour(node, endpoint.ip()) => None,
            Path::Direct(_) => Some(Prover {
                peer: member.id,
                is_relayed: false,
                seen: report.paths.iter().find(|seen| seen.path == primary)?.seen,
            }),
            // A peer that is reached so only may have no UDP.
            Path::Stream(_) => None,
        }
    });
    provers.collect()
}

fn has_address(member: &Member, address: IpAddr) -> bool {
    let known = member.endpoints.iter().chain(&member.at_router.observed);
    known.into_iter().any(|endpoint| endpoint.ip() == address)
}

/// Whether `address` is in one of the networks of this machine.
fn is_neighbour(node: &JoinedNode, address: IpAddr) -> bool {
    let own = node.device.tunnel.interface();
    let interfaces = node.device.interfaces.iter().filter(|i| i.name != own);
    let mut networks = interfaces.filter_map(|interface| interface.net);
    networks.any(|net| net.contains(&address))
}
