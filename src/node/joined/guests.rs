//! The guests of this node: devices for which it is the door.

use std::collections::BTreeSet;

use super::JoinedNode;
use crate::model::WireGuardKey;
use crate::model::time::{Now, UnixSeconds};
use crate::node::device::Device;
use crate::node::docker::Docker;
use crate::node::guests::{DoorFacts, LastHeard};

/// Follows the records of guests. Returns whether guests came or went, which concerns the firewall.
pub(super) fn follow(node: &mut JoinedNode, now: Now) -> bool {
    let docker = node.workloads.docker.as_ref();
    let taken = docker.map_or_else(BTreeSet::new, Docker::leased);
    let door = DoorFacts {
        own: &node.identity.keys.identity,
        block: &node.identity.block,
        ledger: node.replica.ledger(),
        taken: &taken,
        native: docker.and_then(Docker::native).map(|plan| plan.range()),
    };
    let before = node.device.guests.addresses(door.block);
    let changes = node.device.guests.follow(&door, now);
    for change in &changes {
        node.disk.audit.note(change);
    }
    let addresses = node.device.guests.addresses(&node.identity.block);
    let is_changed = addresses != before;
    if let Some(docker) = &mut node.workloads.docker {
        docker.reserve(addresses);
    }
    is_changed
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
