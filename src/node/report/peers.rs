//! The peers of a node: their states, and the problems with the paths to them.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::model::text::listed;
use crate::model::{Label, Path};
use crate::node::contact::{self, Contact};
use crate::node::host::interfaces;
use crate::node::joined::JoinedNode;
use crate::os::clock;
use crate::path::mtu::LEAST_IPV6;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{PeerState, PeerStatus, Problem};
use crate::records::netmap::Member;
use crate::tunnel::PeerStatus as TunnelPeer;

/// The maximum number of peers that a problem names.
const MAX_NAMED: usize = 5;

/// The status of each peer, in the order of their names.
pub(super) fn peers(node: &JoinedNode, now: Instant) -> Vec<PeerStatus> {
    let isolated = if node.replica.is_removed() {
        Some("this node was removed from the mesh, so no peer accepts its packets")
    } else if node.replica.link().is_duplicate() {
        Some("this machine is a copy of another node, so it does not connect to the peers")
    } else {
        None
    };
    others(node)
        .into_iter()
        .map(|member| {
            let peer = node.device.tunnel.peer(&member.wireguard_key.0);
            let handshake = peer.as_ref().and_then(|p| p.last_handshake);
            let contact = contact_of(node, member, peer.as_ref(), now);
            let (state, reason) = contact.state();
            let (state, via) = relayed(
                node,
                &member.name,
                state,
                peer.as_ref().and_then(|p| p.path),
            );
            let reason = reason.map(|why| isolated.map_or(why, str::to_owned));
            let reason = reason.or_else(|| over_tls(state, via.as_ref(), contact.port));
            let measured = match state {
                PeerState::Connecting | PeerState::Unreachable => None,
                _ => node.paths.distances().round_trip(&member.id),
            };
            PeerStatus {
                id: member.id,
                name: member.name.clone(),
                tags: member.tags.clone(),
                address_v4: member.block.node_v4(),
                address_v6: member.block.node_v6(),
                state,
                via,
                reason,
                last_heard_seconds_ago: contact.heard.map(seconds),
                version: node
                    .replica
                    .ledger()
                    .node(&member.id)
                    .and_then(|record| record.shown_version()),
                endpoint: peer.as_ref().and_then(|p| p.endpoint),
                last_handshake_seconds_ago: handshake
                    .and_then(|at| clock::wall().duration_since(at).ok())
                    .map(seconds),
                rtt_ms: measured.map(milliseconds),
                path_mtu: Some(node.paths.limit(&member.id)),
                rx_bytes: peer.as_ref().map_or(0, |p| p.rx_bytes),
                tx_bytes: peer.as_ref().map_or(0, |p| p.tx_bytes),
            }
        })
        .collect()
}

/// Why a peer is reached over TLS.
pub(super) fn over_tls(state: PeerState, via: Option<&Label>, port: u16) -> Option<String> {
    if state != PeerState::Stream {
        return None;
    }
    Some(match via {
        Some(via) => format!(
            "this network drops UDP, so packets go over TLS to {via}; let UDP port {port} pass to reach other nodes directly"
        ),
        None => "UDP does not pass between it and this node, so packets go over TLS".to_owned(),
    })
}

/// The state of a peer that is reached by `path`, and the node that relays to it.
pub(super) fn relayed(
    node: &JoinedNode,
    peer: &Label,
    state: PeerState,
    path: Option<Path>,
) -> (PeerState, Option<Label>) {
    let via = path.and_then(|path| relay_name(node, path));
    match (state, path) {
        (PeerState::Direct, Some(Path::Relay(_))) => (PeerState::Relay, via),
        // The stream to the peer itself has nobody in between.
        (PeerState::Direct, Some(Path::Stream(_))) => {
            (PeerState::Stream, via.filter(|via| via != peer))
        }
        (PeerState::Idle, Some(Path::Relay(_) | Path::Stream(_))) => (state, via),
        _ => (state, None),
    }
}

/// The name of the node that relays on a path.
pub(super) fn relay_name(node: &JoinedNode, path: Path) -> Option<Label> {
    let address = path.relay()?.0;
    let mut members = node.netmap.members.values();
    let relay = members.find(|member| member.block.node_v4() == address);
    relay.map(|member| member.name.clone())
}

/// The facts about the path to `member`, which is `peer` in the tunnel.
pub(super) fn contact_of(
    node: &JoinedNode,
    member: &Member,
    peer: Option<&TunnelPeer>,
    now: Instant,
) -> Contact {
    let port = node.device.tunnel.listen_port();
    Contact::new(&node.paths, member, peer, port, now)
}

/// The member that a person means by a name or by one of its mesh addresses.
pub(super) fn member_of<'a>(node: &'a JoinedNode, text: &str) -> Result<&'a Member, ApiError> {
    let wanted = text.to_ascii_lowercase();
    let address: Option<IpAddr> = wanted.parse().ok();
    let domain = format!(".node.{}", node.names.zone().load().domain);
    let name = wanted.strip_suffix(&domain).unwrap_or(&wanted);
    let is_meant = |member: &&Member| {
        member.name.as_str() == name || address.is_some_and(|a| member.block.contains(a))
    };
    node.netmap.members.values().find(is_meant).ok_or_else(|| {
        let text: String = text.chars().take(70).collect();
        let text = format!("there is no node {text}; `meshctl status` shows all nodes");
        ApiError::new(ErrorCode::NotFound, text)
    })
}

/// The other members, in the order of their names.
pub(in crate::node) fn others(node: &JoinedNode) -> Vec<&Member> {
    let own = node.id();
    let members = node.netmap.members.values();
    let mut others: Vec<&Member> = members.filter(|member| member.id != own).collect();
    others.sort_by(|a, b| a.name.cmp(&b.name));
    others
}

/// The reason why this node is not ready. None if it is ready.
pub(in crate::node) fn not_ready(node: &JoinedNode) -> Option<String> {
    let [own, _] = node.identity.addresses();
    let device = node.device.tunnel.interface();
    let interfaces = interfaces().unwrap_or_else(|_| node.device.interfaces.clone());
    contact::Readiness {
        removed: node.replica.is_removed(),
        copied: node.replica.link().is_duplicate(),
        tunnel: interfaces
            .iter()
            .any(|i| i.name == device && i.address == own),
        dns: node.resolver.dns.is_none() || node.names.zone().load().addresses.is_some(),
        others: others(node).len(),
        reached: node.paths.watch().any_heard(),
        port: node.device.tunnel.listen_port(),
    }
    .not_ready()
}

/// The problem of peers from which no packet was received since the start, and the problem of a node that no longer
/// reaches any peer.
pub(super) fn unreached(node: &JoinedNode) -> Vec<Problem> {
    if node.replica.is_removed() || node.replica.link().is_duplicate() {
        return Vec::new();
    }
    let now = Instant::now();
    let contacts: Vec<(&str, Contact)> = others(node)
        .into_iter()
        .map(|member| {
            let peer = node.device.tunnel.peer(&member.wireguard_key.0);
            let contact = contact_of(node, member, peer.as_ref(), now);
            (member.name.as_str(), contact)
        })
        .collect();
    let port = node.device.tunnel.listen_port();
    let never = contact::never_heard(&contacts, port);
    never
        .into_iter()
        .chain(contact::cut_off(&contacts, port))
        .collect()
}

/// The problem of paths that are too narrow for the packets that IPv6 has to be able to send.
pub(super) fn narrow_paths(node: &JoinedNode) -> Option<Problem> {
    let peers = others(node).into_iter();
    too_narrow(peers.map(|member| (member.name.as_str(), node.paths.limit(&member.id))))
}

/// The problem of those of `peers` whose paths carry fewer bytes than IPv6 requires. Each peer has its name and that number.
fn too_narrow<'a>(peers: impl Iterator<Item = (&'a str, u16)>) -> Option<Problem> {
    let narrow = peers.filter(|(_, limit)| *limit < LEAST_IPV6);
    let narrow: Vec<String> = narrow
        .map(|(name, limit)| format!("{name} ({limit} bytes)"))
        .collect();
    (!narrow.is_empty()).then(|| Problem {
        what: "large IPv6 packets to some peers may be lost".into(),
        why: format!(
            "IPv6 requires that packets of {LEAST_IPV6} bytes pass, and the paths to these peers are narrower: {}",
            listed(&narrow, MAX_NAMED)
        ),
        fix: "raise the MTU of the path to at least 1360, or let fragments of UDP datagrams pass"
            .into(),
    })
}

pub(super) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_paths_are_one_problem_that_names_some_peers_and_counts_the_others() {
        let names: Vec<String> = (0..100).map(|n| format!("node-{n}")).collect();
        let with = |limit: u16| too_narrow(names.iter().map(move |name| (name.as_str(), limit)));
        assert_eq!(with(LEAST_IPV6), None);
        let problem = with(LEAST_IPV6 - 1).expect("they are too narrow");
        let end = format!(
            ": node-0 ({0} bytes), node-1 ({0} bytes), node-2 ({0} bytes), node-3 ({0} bytes), node-4 ({0} bytes), 95 more",
            LEAST_IPV6 - 1
        );
        assert!(problem.why.ends_with(&end), "{problem:?}");
    }
}
