//! Nodes that join and leave the mesh, as this node learns of it.

use std::net::Ipv4Addr;

use crate::model::{Label, PublicKey};
use crate::os::audit::{Event, Transition, What, Who};
use crate::os::log::TRANSITION;
use crate::records::Ledger;
use crate::records::kinds::RecordKey;
use crate::records::netmap::Netmap;

/// A transition of another member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) struct MemberChange {
    pub node: Label,
    pub id: PublicKey,
    pub turn: MemberTurn,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) enum MemberTurn {
    /// It joined, and has this address.
    Joined(Ipv4Addr),
    /// It left the mesh.
    Left,
    /// The administrator removed it.
    Removed,
    /// It has another name than this one now.
    Renamed(Label),
}

/// The transitions between two maps of the mesh. `ledger` is the one that `after` was computed from, and `own` is this node.
/// There are none at the start of a node, and none for nodes that were members before this node joined.
pub(in crate::node) fn changes(
    before: &Netmap,
    after: &Netmap,
    own: &PublicKey,
    ledger: &Ledger,
) -> Vec<MemberChange> {
    let Some(own_rank) = after.members.get(own).map(|member| member.issued_at) else {
        return Vec::new();
    };
    if before.members.is_empty() {
        return Vec::new();
    }
    let mut changes = Vec::new();
    for (id, member) in after.members.iter().filter(|(id, _)| *id != own) {
        let turn = match before.members.get(id) {
            None if member.issued_at >= own_rank => MemberTurn::Joined(member.block.node_v4()),
            Some(held) if held.name != member.name => MemberTurn::Renamed(held.name.clone()),
            _ => continue,
        };
        let (node, id) = (member.name.clone(), *id);
        changes.push(MemberChange { node, id, turn });
    }
    for (id, member) in before.members.iter().filter(|(id, _)| *id != own) {
        if after.members.contains_key(id) {
            continue;
        }
        let turn = if ledger.entry(&RecordKey::Departure(*id)).is_some() {
            MemberTurn::Left
        } else if ledger.is_revoked(id) || ledger.membership(id).is_none() {
            MemberTurn::Removed
        } else {
            // It is still a member, and its record is only being replaced.
            continue;
        };
        let (node, id) = (member.name.clone(), *id);
        changes.push(MemberChange { node, id, turn });
    }
    changes
}

impl Transition for MemberChange {
    fn event(&self) -> Option<Event> {
        let (node, id) = (self.node.clone(), self.id);
        let itself = Who::Member {
            name: node.clone(),
            id,
        };
        Some(match &self.turn {
            MemberTurn::Joined(address) => {
                let address = *address;
                Event::done(itself, What::NodeJoined { node, id, address })
            }
            MemberTurn::Left => Event::done(itself, What::NodeLeft { node, id }),
            MemberTurn::Removed => {
                let reason = "the administrator removed it";
                Event::done(Who::Administrator, What::NodeRemoved { node, id, reason })
            }
            MemberTurn::Renamed(before) => {
                let before = before.clone();
                Event::done(itself, What::NodeRenamed { node, id, before })
            }
        })
    }

    fn log(&self) {
        let (node, id) = (&self.node, self.id.short());
        match &self.turn {
            MemberTurn::Joined(address) => {
                tracing::info!(target: TRANSITION, %node, id, %address, "node joined");
            }
            MemberTurn::Left => tracing::info!(target: TRANSITION, %node, id, "node left"),
            MemberTurn::Removed => tracing::info!(target: TRANSITION, %node, id, "node removed"),
            MemberTurn::Renamed(before) => {
                tracing::info!(target: TRANSITION, %node, id, %before, "node renamed");
            }
        }
    }
}
