//! The one order in which a node applies changes. Pure.
//!
//! An event changes one part of a node, and its handler marks in [`Dirty`] which other parts depend on that. After each event
//! the agent calls [`settle`] once, which brings these parts in step in a fixed order:
//!
//! 1. the ledger: the effects of the replica are carried out, and its changes are marked;
//! 2. the policy that the tunnel enforces, if members, services or the policy changed, and the peers of the tunnel, if members changed;
//! 3. the zone;
//! 4. the addresses of this machine, if they may have changed;
//! 5. the firewall, which needs the service addresses of the zone and the policy;
//! 6. the records of this node, which need the addresses. They are published once. They change the ledger, so steps 1 to 5 are
//!    run once more for them.
//!
//! The firewall comes before the records: an engine gives the address of a container that ended to the next one at once, so
//! the mapping to the old container is removed before anything is published.

use std::collections::BTreeSet;

use super::replica::Changes;
use crate::records::kinds::{Guest, RecordKey};

/// The parts of a node that are not in step yet.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Dirty {
    /// Members, or their keys, names or addresses, or whether this node is a duplicate: the tunnel and the whole zone depend
    /// on it.
    pub members: bool,
    /// The ids of services whose records changed, where nothing else changed.
    pub services: BTreeSet<String>,
    /// Which peers are reachable or near, or which service addresses are balanced: the whole zone depends on it.
    pub reach: bool,
    /// The addresses of this machine.
    pub interfaces: bool,
    /// What the kernel is to do for containers.
    pub firewall: bool,
    /// The records of this node.
    pub own: bool,
    /// The name of this node, which is published with its other records.
    pub name: bool,
}

impl Dirty {
    /// Everything, as at the start of a node.
    pub(super) fn all() -> Self {
        Self {
            members: true,
            services: BTreeSet::new(),
            reach: true,
            interfaces: true,
            firewall: true,
            own: true,
            name: false,
        }
    }

    fn mark(&mut self, changes: Changes) {
        self.members |= changes.duplicate;
        self.own |= changes.own;
        for key in changes.records {
            match key {
                RecordKey::Service(_) => drop(self.services.insert(key.id().into_owned())),
                RecordKey::Policy => {
                    self.members = true;
                    // The record of this node says whether it relays.
                    self.own = true;
                }
                key => {
                    self.members = true;
                    // The record of this node has the addresses of its guests.
                    self.own |= Guest::is_concerned(&key);
                }
            }
        }
    }
}

/// The parts of a node, as far as [`settle`] needs them.
pub(super) trait Stages {
    /// Services whose records were replaced, for the zone.
    type Replaced;

    /// Carries out the effects of the replica, and returns what changed in the ledger.
    fn follow_ledger(&mut self) -> Changes;

    /// Computes the map of the mesh anew, and sets the policy and the peers of the tunnel, and the peers of everything else that knows
    /// the members. Returns whether that concerns the firewall.
    fn apply_members(&mut self) -> bool;

    /// Renews these services in the map of the mesh. Returns what they replaced, and whether members have to be applied as well.
    fn renew_services(&mut self, ids: &BTreeSet<String>) -> (Self::Replaced, bool);

    /// Sets the policy of the tunnel after these services were replaced. Returns whether that concerns the firewall.
    fn apply_policy(&mut self, replaced: &Self::Replaced) -> bool;

    /// Computes the zone from nothing. Returns whether that concerns the firewall.
    fn rebuild_zone(&mut self) -> bool;

    /// Replaces services in the zone. Returns whether that concerns the firewall.
    fn replace_in_zone(&mut self, replaced: Self::Replaced) -> bool;

    /// Lists the addresses of this machine, and applies them to the resolver.
    fn list_interfaces(&mut self);

    /// Hands the wanted state of the kernel to the firewall.
    fn apply_firewall(&mut self);

    /// Publishes the records of this node that changed. With `has_new_name` its name record is among them.
    fn publish_own(&mut self, has_new_name: bool);
}

/// Brings all parts of `node` that are `dirty` in step, in the order of the module's documentation. What becomes dirty by the
/// publication itself, and would cause another one, stays in `dirty` until the next call.
pub(super) fn settle(dirty: &mut Dirty, node: &mut impl Stages) {
    dirty.mark(node.follow_ledger());
    apply(dirty, node);
    if std::mem::take(&mut dirty.own) {
        node.publish_own(std::mem::take(&mut dirty.name));
        dirty.mark(node.follow_ledger());
        apply(dirty, node);
    }
}

/// Steps 2 to 5.
fn apply<S: Stages>(dirty: &mut Dirty, node: &mut S) {
    let services = std::mem::take(&mut dirty.services);
    let mut replaced = None;
    if !dirty.members && !services.is_empty() {
        let (renewed, concerns_members) = node.renew_services(&services);
        // This is done even if members are applied next: these services no longer differ from the ledger then.
        dirty.firewall |= node.apply_policy(&renewed);
        dirty.members = concerns_members;
        replaced = Some(renewed);
    }
    if std::mem::take(&mut dirty.members) {
        dirty.firewall |= node.apply_members();
        dirty.reach = true;
    }
    if std::mem::take(&mut dirty.reach) {
        dirty.firewall |= node.rebuild_zone();
    } else if let Some(replaced) = replaced {
        dirty.firewall |= node.replace_in_zone(replaced);
    }
    if std::mem::take(&mut dirty.interfaces) {
        node.list_interfaces();
    }
    if std::mem::take(&mut dirty.firewall) {
        node.apply_firewall();
    }
}

#[cfg(test)]
mod tests;
