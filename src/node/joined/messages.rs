//! Sends messages about paths to peers.

use super::JoinedNode;
use crate::model::PublicKey;
use crate::node::state::Identity;
use crate::protocol::path_messages::{Message, Paths};
use crate::records::netmap::Member;
use crate::tunnel::Tunnel;

/// Sends a message about this node's paths to a peer, by the path in use.
pub(super) fn send_paths(node: &JoinedNode, peer: &PublicKey, paths: Paths) {
    let Some(member) = node.netmap.members.get(peer) else {
        return;
    };
    let message = Message::Paths(paths);
    if !send(&node.device.tunnel, &node.identity, member, message) {
        tracing::debug!(peer = %member.name, "there is no session by which to agree on a direct path");
    }
}

/// Sends a message about paths to a peer by the path in use. Returns false if there is no session.
pub(super) fn send(
    tunnel: &Tunnel,
    identity: &Identity,
    member: &Member,
    message: Message,
) -> bool {
    let [own, _] = identity.addresses();
    let ends = (own, member.block.node_v4().into());
    let key = &member.wireguard_key.0;
    tunnel.probing().send_message(key, ends, message, None)
}
