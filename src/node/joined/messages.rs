//! Sends messages about paths to peers.

use super::JoinedNode;
use crate::model::{Path, PublicKey};
use crate::node::state::Identity;
use crate::protocol::path_messages::{Message, Paths};
use crate::records::netmap::Member;
use crate::tunnel::Tunnel;

/// Sends a message about this node's paths to a peer, by `path` if it is known, or by the path in use.
pub(super) fn send_paths(node: &JoinedNode, peer: &PublicKey, paths: Paths, path: Option<&Path>) {
    let Some(member) = node.netmap.members.get(peer) else {
        return;
    };
    let message = Message::Paths(paths);
    let (tunnel, identity) = (&node.device.tunnel, &node.identity);
    let is_sent = path.is_some() && send(tunnel, identity, member, message.clone(), path);
    if !is_sent && !send(tunnel, identity, member, message, None) {
        tracing::debug!(peer = %member.name, "there is no session by which to agree on a direct path");
    }
}

/// Sends a message about paths to a peer by `path`, or by the path in use. Returns false if there is no session.
pub(super) fn send(
    tunnel: &Tunnel,
    identity: &Identity,
    member: &Member,
    message: Message,
    path: Option<&Path>,
) -> bool {
    let [own, _] = identity.addresses();
    let ends = (own, member.block.node_v4().into());
    let key = &member.wireguard_key.0;
    tunnel.probing().send_message(key, ends, message, path)
}
