//! Tells other nodes of the paths of this one, and asks them for theirs ([`crate::node::rows`]).

use std::time::Instant;

use super::{JoinedNode, messages};
use crate::model::{Path, PublicKey};
use crate::node::contact::Contact;
use crate::path::watch::Reach;
use crate::protocol::local::PeerState;
use crate::protocol::path_messages::{MAX_ROW, Message, RowPart, RowPath};
use crate::records::netmap::Member;

/// Asks the nodes that are reached for their rows, unless these are fresh. Somebody looks at the paths between all nodes.
pub(in crate::node) fn ask_rows(node: &mut JoinedNode, now: Instant) {
    let reach = node.paths.reach().iter();
    let reached = reach.filter(|(_, reach)| **reach == Reach::Reachable);
    let reached: Vec<PublicKey> = reached.map(|(id, _)| *id).collect();
    for id in node.device.asked.rows.poll(reached, now) {
        send(node, &id, Message::AskRow(0));
    }
}

/// A node told a part of its row.
pub(super) fn handle_part(node: &mut JoinedNode, of: &PublicKey, part: RowPart, now: Instant) {
    if let Some(after) = node.device.asked.rows.handle_part(of, part, now) {
        send(node, of, Message::AskRow(after));
    }
}

/// A member asks for the part of the row of this node after an address.
pub(super) fn handle_asked(node: &mut JoinedNode, by: PublicKey, after: u32, now: Instant) {
    if !node.device.asked.rows.answers(by, now) {
        return;
    }
    let mut others = others(node);
    others.retain(|member| member.block.node_v4().to_bits() > after);
    let has_more = others.len() > MAX_ROW;
    let paths = others.into_iter().take(MAX_ROW);
    let part = RowPart {
        after,
        has_more,
        paths: paths.map(|member| path_to(node, member, now)).collect(),
    };
    send(node, &by, Message::Row(part));
}

/// The whole row of this node.
pub(in crate::node) fn own_row(node: &JoinedNode, now: Instant) -> Vec<RowPath> {
    let others = others(node).into_iter();
    others.map(|member| path_to(node, member, now)).collect()
}

/// The other members, in the order of their addresses.
fn others(node: &JoinedNode) -> Vec<&Member> {
    let own = node.id();
    let members = node.netmap.members.values();
    let mut others: Vec<&Member> = members.filter(|member| member.id != own).collect();
    others.sort_unstable_by_key(|member| member.block.node_v4());
    others
}

fn path_to(node: &JoinedNode, member: &Member, now: Instant) -> RowPath {
    let tunnel = &node.device.tunnel;
    let peer = tunnel.peer(&member.wireguard_key.0);
    let port = tunnel.listen_port();
    let (state, _) = Contact::new(&node.paths, member, peer.as_ref(), port, now).state();
    let state = match (state, peer.and_then(|peer| peer.path)) {
        (PeerState::Direct, Some(Path::Relay(_))) => PeerState::Relay,
        (PeerState::Direct, Some(Path::Stream(_))) => PeerState::Stream,
        _ => state,
    };
    let round_trip = match state {
        PeerState::Connecting | PeerState::Unreachable => None,
        _ => node.paths.distances().round_trip(&member.id),
    };
    // 0 stands for a round trip that was not measured.
    let rtt_us = round_trip.map(|trip| u32::try_from(trip.as_micros()).unwrap_or(u32::MAX).max(1));
    RowPath {
        to: member.block.node_v4(),
        state: Some(state),
        rtt_us,
    }
}

/// Sends a message by the path in use. One that is lost is asked for again.
fn send(node: &JoinedNode, to: &PublicKey, message: Message) {
    if let Some(member) = node.netmap.members.get(to) {
        messages::send(&node.device.tunnel, &node.identity, member, message, None);
    }
}
