//! The transitions of members that have a line in the log: removed, left, renamed. Pure.

use std::collections::HashMap;

use crate::coordinator::store::Write;
use crate::model::{Label, PublicKey};
use crate::os::log::TRANSITION;
use crate::records::Ledger;
use crate::records::envelope::Authentic;
use crate::records::kinds::{Record, RecordKey, RevokedKind};

/// A transition of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberChange {
    pub node: Label,
    pub id: PublicKey,
    pub turn: MemberTurn,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberTurn {
    /// It left the mesh.
    Left,
    /// It was ephemeral and stayed away.
    StayedAway,
    /// The administrator removed it.
    Removed,
    /// The administrator revoked its token.
    TokenRevoked,
    /// It had this name before.
    Renamed(Label),
}

/// The names of all members before records are applied, if one of the records may change members.
#[derive(Debug)]
pub(super) struct NamesBefore(Option<HashMap<PublicKey, Label>>);

impl NamesBefore {
    /// `ledger` is the one to which `records` are going to be applied.
    pub(super) fn note(ledger: Option<&Ledger>, records: &[Authentic]) -> Self {
        let concerns = |record: &Authentic| {
            let key = record.key();
            matches!(
                key,
                Some(RecordKey::Revocation(_) | RecordKey::Departure(_) | RecordKey::Name(_))
            )
        };
        let names = ledger.filter(|_| records.iter().any(concerns));
        Self(names.map(Ledger::names))
    }

    /// The transitions that `writes` are. `ledger` is the one after them. A departure of `absent` is not sent by the node itself,
    /// which stays away.
    pub(super) fn changes(
        &self,
        ledger: &Ledger,
        writes: &[Write],
        absent: Option<PublicKey>,
    ) -> Vec<MemberChange> {
        let Some(before) = &self.0 else {
            return Vec::new();
        };
        let after = ledger.names();
        let mut changes = Vec::new();
        let mut add = |id: &PublicKey, turn| {
            if let Some(node) = before.get(id) {
                let (node, id) = (node.clone(), *id);
                changes.push(MemberChange { node, id, turn });
            }
        };
        for write in writes {
            match &write.key {
                RecordKey::Departure(id) if absent == Some(*id) => {
                    add(id, MemberTurn::StayedAway);
                }
                RecordKey::Departure(id) => add(id, MemberTurn::Left),
                RecordKey::Revocation(id) => match revoked(ledger, &write.key) {
                    Some(RevokedKind::Node) => add(id, MemberTurn::Removed),
                    Some(RevokedKind::Token) => {
                        let members = write.gone.iter().filter_map(member);
                        members.for_each(|id| add(id, MemberTurn::TokenRevoked));
                    }
                    None => {}
                },
                _ => {}
            }
        }
        for write in writes {
            let RecordKey::Name(id) = &write.key else {
                continue;
            };
            if let (Some(held), Some(now)) = (before.get(id), after.get(id))
                && held != now
            {
                let turn = MemberTurn::Renamed(held.clone());
                let (node, id) = (now.clone(), *id);
                changes.push(MemberChange { node, id, turn });
            }
        }
        changes
    }
}

fn revoked(ledger: &Ledger, key: &RecordKey) -> Option<RevokedKind> {
    match &ledger.entry(key)?.record {
        Record::Revocation(revocation) => Some(revocation.revoked),
        _ => None,
    }
}

fn member(key: &RecordKey) -> Option<&PublicKey> {
    match key {
        RecordKey::Membership(id) => Some(id),
        _ => None,
    }
}

impl MemberChange {
    pub(super) fn log(&self) {
        let (node, id) = (&self.node, self.id.short());
        let removed = |reason: &str| {
            tracing::info!(target: TRANSITION, %node, id, reason, "node removed");
        };
        match &self.turn {
            MemberTurn::Left => tracing::info!(target: TRANSITION, %node, id, "node left"),
            MemberTurn::StayedAway => removed("it is ephemeral and stayed away"),
            MemberTurn::Removed => removed("the administrator removed it"),
            MemberTurn::TokenRevoked => removed("the administrator revoked its token"),
            MemberTurn::Renamed(before) => {
                tracing::info!(target: TRANSITION, %node, id, %before, "node renamed");
            }
        }
    }
}
