//! The host names of services outside the mesh: asks for them, and lets the other parts follow their addresses.

use std::time::Instant;

use super::JoinedNode;
use crate::node::changes::ChangeRequest;
use crate::node::naming::NameAnswer;

/// Looks up the names for which that is due.
pub(super) fn poll(node: &mut JoinedNode, now: Instant) {
    for name in node.workloads.registry.named.poll(now) {
        node.resolver.look_up(name);
    }
}

/// A name was looked up.
pub(super) fn handle_answer(node: &mut JoinedNode, (name, answered): NameAnswer, now: Instant) {
    let registry = &mut node.workloads.registry;
    let answered = match answered {
        Ok(answered) => answered,
        Err(why) => return registry.named.handle_failure(&name, why, now),
    };
    let machine = &registry.machine;
    let Some(moved) = registry.named.handle_answer(&name, &answered, machine, now) else {
        return;
    };
    let (from, to) = (moved.from, moved.to);
    match from {
        None => tracing::info!("services at {name} are at {to}"),
        Some(from) => tracing::info!("services at {name} are at {to} now, and were at {from}"),
    }
    node.workloads.set_checks(&node.identity.block);
    node.dirty.firewall = true;
    node.dirty.own = true;
    // The address is known after a restart.
    node.change(ChangeRequest::Addresses);
}
