//! The guests of this node: devices for which it is the door.

use super::JoinedNode;
use crate::model::WireGuardKey;
use crate::model::time::{Now, UnixSeconds};
use crate::node::device::Device;
use crate::node::guests::{DoorFacts, LastHeard};
use crate::node::workloads::block;

/// Follows the records of guests. Returns whether guests came or went, which concerns the firewall.
pub(super) fn follow(node: &mut JoinedNode, now: Now) -> bool {
    let taken = block::taken(&node.workloads);
    let door = DoorFacts {
        own: &node.identity.keys.identity,
        block: &node.identity.block,
        ledger: node.replica.ledger(),
        taken: &taken,
    };
    let changes = node.device.guests.follow(&door, now);
    for change in &changes {
        node.disk.audit.note(change);
    }
    let addresses = node.device.guests.addresses(&node.identity.block);
    block::set_guests(&mut node.workloads, addresses)
}

/// Looks which guests were heard, and which have expired.
pub(super) fn poll(node: &mut JoinedNode, now: Now) {
    let Device { tunnel, guests, .. } = &mut node.device;
    let last = |key: &WireGuardKey| -> Option<LastHeard> {
        let status = tunnel.peer(&key.0)?;
        Some((status.last_receive?, status.endpoint))
    };
    let (changes, is_changed) = guests.handle_heard(last, now.monotonic);
    for change in &changes {
        node.disk.audit.note(change);
    }
    node.dirty.own |= is_changed;
    if guests.has_expired(UnixSeconds::from_system(now.wall)) {
        node.dirty.members = true;
        node.dirty.own = true;
    }
}
