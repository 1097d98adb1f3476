//! The guests of this node: devices for which it is the door.

use super::JoinedNode;
use crate::model::WireGuardKey;
use crate::model::time::{Now, UnixSeconds};
use crate::node::device::Device;
use crate::node::guests::{DoorFacts, LastHeard};
use crate::node::replica::LedgerRequest;
use crate::node::workloads::block;
use crate::os::clock;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{GuestKey, GuestKeys, GuestRemoved, RemoveGuest, SCHEMA};
use crate::records::kinds::Guest;
use crate::records::ledger::guests;

/// Follows the records of guests. Returns whether guests came or went, which concerns the firewall.
pub(super) fn follow(node: &mut JoinedNode, now: Now) -> bool {
    let taken = block::taken(&node.workloads);
    let door = DoorFacts {
        own: &node.identity.keys.identity,
        block: &node.identity.block,
        ledger: node.replica.ledger(),
        taken: &taken,
        native: block::native(&node.workloads),
    };
    let changes = node.device.guests.follow(&door, now);
    for change in &changes {
        node.disk.audit.note(change);
    }
    let addresses = node.device.guests.addresses(&node.identity.block);
    block::set_guests(&mut node.workloads, addresses)
}

/// Notes the last packets of the guests, and removes the guests that have expired.
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

/// The guests of the mesh.
pub(in crate::node) fn keys(node: &JoinedNode) -> GuestKeys {
    let ledger = node.replica.ledger();
    let guests = guests::guests(ledger).into_values();
    GuestKeys {
        schema: SCHEMA,
        mesh_key: ledger.mesh_key(),
        guests: guests
            .map(|guest| GuestKey {
                name: guest.name,
                key: guest.id,
            })
            .collect(),
    }
}

/// Removes a guest at this node, which passes the removal on to its peers and to the coordinator.
pub(in crate::node) fn remove(
    node: &mut JoinedNode,
    request: &RemoveGuest,
) -> Result<GuestRemoved, ApiError> {
    let record = &request.record;
    let removed = record.key().as_ref().and_then(Guest::removed_by);
    let by_administrator = record.signer == node.replica.ledger().mesh_key();
    let Some(key) = removed.filter(|_| by_administrator && record.is_authentic()) else {
        return Err(ApiError::new(
            ErrorCode::BadRequest,
            "the record is not the removal of a guest that the key of this mesh signed; `meshctl guest remove` makes one",
        ));
    };
    let apply = LedgerRequest::Apply {
        peer: node.id(),
        records: vec![record.clone()],
    };
    let applied = node.replica.handle_request(apply, clock::now());
    if applied.is_none() || !guests::is_removed(node.replica.ledger(), &key) {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            "this node is no member any more, or is the copy of another one, so no node takes the removal from it; run this on another node",
        ));
    }
    Ok(GuestRemoved {
        schema: SCHEMA,
        key,
    })
}
