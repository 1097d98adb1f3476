//! The hole in the router's firewall for IPv6: which peers are asked to try it, and what shows that it works.
//!
//! The hole has the address and port of this node, so it is among the addresses that this node offers whether it works or not. A firewall
//! also lets in what this node asked for. So only a peer that is relayed, and to which this node has sent nothing over IPv6 for some time,
//! can show that there is a hole.

use std::time::{Duration, Instant};

use super::JoinedNode;
use super::mapping::{self, HEARD_WITHIN};
use crate::model::{Path, PublicKey};
use crate::path::mapping::{Answer, Prover};
use crate::tunnel::PathReport;

/// After this time a firewall has most probably forgotten what this node sent: RFC 4787 section 4.3 recommends five minutes.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

/// Asks the router and peers, where that is due.
pub(super) fn poll(node: &mut JoinedNode, now: Instant) {
    let awaited = node.device.pinhole.state.awaited(now);
    for (peer, report) in mapping::reports_of(node, awaited) {
        handle_report(node, peer, &report);
    }
    let Some(mesh) = node.replica.ledger().mesh().map(|mesh| mesh.addresses) else {
        return;
    };
    let provers = provers(node, now);
    let asked = node.device.pinhole.poll(&provers, &mesh, now);
    let report = node.device.pinhole.state.report();
    mapping::ask_to_try(node, asked, report);
}

/// The router has answered.
pub(super) fn handle_answer(node: &mut JoinedNode, answer: Answer, now: Instant) {
    if let Some(mesh) = node.replica.ledger().mesh().map(|mesh| mesh.addresses) {
        node.device.pinhole.handle_answer(answer, &mesh, now);
    }
}

/// The tunnel has reported the paths to a peer: a datagram may have come through the hole.
pub(super) fn handle_report(node: &mut JoinedNode, peer: PublicKey, report: &PathReport) {
    for path in &report.paths {
        if let (Some(seen), Some(heard)) = (path.seen, path.heard) {
            node.device.pinhole.state.handle_seen(&peer, seen, heard);
        }
    }
}

/// The peers that may try the hole.
fn provers(node: &JoinedNode, now: Instant) -> Vec<Prover<PublicKey>> {
    if node.device.pinhole.state.report().is_none() {
        return Vec::new();
    }
    let own = node.id();
    let asked = node.device.reach.mapping.state.awaited(now);
    let members = node.netmap.members.values();
    let others = members
        .filter(|member| member.speaks_paths && member.id != own && !asked.contains(&member.id));
    let provers = others.filter_map(|member| {
        let steering = node.device.tunnel.steering();
        let report = steering.report(&member.wireguard_key.0)?;
        let heard = now.saturating_duration_since(report.last_receive?);
        let is_relayed = matches!(report.primary, Some(Path::Relay(_)));
        let may_prove = is_relayed && heard < HEARD_WITHIN && is_forgotten(node, &member.id, now);
        may_prove.then_some(Prover {
            peer: member.id,
            is_relayed: true,
            seen: None,
        })
    });
    provers.collect()
}

/// Whether this node has sent nothing to a peer over IPv6 for so long that no firewall remembers it.
fn is_forgotten(node: &JoinedNode, peer: &PublicKey, now: Instant) -> bool {
    let is_recent = |at: Instant| now.saturating_duration_since(at) < FORGOTTEN_AFTER;
    let is_v6 = |path: &Path| path.endpoint().is_some_and(|endpoint| endpoint.is_ipv6());
    let mut tried = node.paths.tried().of(peer);
    !tried.any(|(path, of)| is_v6(&path) && of.sent.is_some_and(is_recent))
}
