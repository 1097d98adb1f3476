//! The transitions of members that have a line in the log and an event: admitted, removed, left, renamed, away, back. Pure.

use std::collections::HashMap;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::coordinator::store::Write;
use crate::model::{Label, PublicKey, WireGuardKey};
use crate::os::audit::{Event, LineDigest, Transition, What, Who};
use crate::os::log::TRANSITION;
use crate::protocol::api_token::ApiCertificate;
use crate::records::envelope::Authentic;
use crate::records::kinds::{Guest, Record, RecordKey, RevokedKind, Token};
use crate::records::ledger::guests;
use crate::records::{Ledger, api_revocation};

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
    /// It has had no stream for a minute.
    Away,
    /// It has a stream again, after so long.
    Back(Duration),
}

impl MemberTurn {
    /// Why the member was removed, if it was.
    fn removal(&self) -> Option<&'static str> {
        match self {
            Self::StayedAway => Some("it is ephemeral and stayed away"),
            Self::Removed => Some("the administrator removed it"),
            Self::TokenRevoked => Some("the administrator revoked its token"),
            Self::Left | Self::Renamed(_) | Self::Away | Self::Back(_) => None,
        }
    }
}

/// A node was admitted.
#[derive(Debug)]
pub(super) struct Admitted<'a> {
    pub node: &'a Label,
    pub id: PublicKey,
    pub token: PublicKey,
    pub block: Ipv4Net,
    /// The machine that joined.
    pub by: &'a Who,
}

impl Transition for Admitted<'_> {
    fn log(&self) {
        let (node, id, token) = (self.node, self.id.short(), self.token.short());
        tracing::info!(target: TRANSITION, %node, id, token, block = %self.block, "node admitted");
    }

    fn event(&self) -> Option<Event> {
        let what = What::NodeAdmitted {
            node: self.node.clone(),
            id: self.id,
            token: self.token,
            block: self.block,
        };
        Some(Event::done(self.by.clone(), what))
    }
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

/// A transition of a member, and who caused it if the member itself did not.
#[derive(Debug)]
pub(super) struct Caused<'a>(pub &'a MemberChange, pub &'a Who);

impl Transition for Caused<'_> {
    fn log(&self) {
        let MemberChange { node, id, turn } = self.0;
        let id = id.short();
        match turn {
            MemberTurn::Left => tracing::info!(target: TRANSITION, %node, id, "node left"),
            MemberTurn::StayedAway | MemberTurn::Removed | MemberTurn::TokenRevoked => {
                let reason = turn.removal();
                tracing::info!(target: TRANSITION, %node, id, reason, "node removed");
            }
            MemberTurn::Renamed(before) => {
                tracing::info!(target: TRANSITION, %node, id, %before, "node renamed");
            }
            MemberTurn::Away => tracing::warn!(target: TRANSITION, %node, id, "node away"),
            MemberTurn::Back(away) => {
                let away_seconds = away.as_secs();
                tracing::info!(target: TRANSITION, %node, id, away_seconds, "node back");
            }
        }
    }

    fn event(&self) -> Option<Event> {
        let MemberChange { node, id, turn } = self.0;
        let (node, id) = (node.clone(), *id);
        let itself = || Who::Member {
            name: node.clone(),
            id,
        };
        Some(match turn {
            MemberTurn::Left => Event::done(itself(), What::NodeLeft { node, id }),
            MemberTurn::Renamed(before) => {
                let before = before.clone();
                Event::done(itself(), What::NodeRenamed { node, id, before })
            }
            MemberTurn::StayedAway | MemberTurn::Removed | MemberTurn::TokenRevoked => {
                let reason = turn.removal().unwrap_or_default();
                let by = match (turn, self.1) {
                    (MemberTurn::StayedAway, _) => Who::Daemon,
                    // A node sent the record, which the mesh key signed.
                    (_, Who::Daemon) => Who::Administrator,
                    (_, by) => by.clone(),
                };
                Event::done(by, What::NodeRemoved { node, id, reason })
            }
            MemberTurn::Away => Event::done(Who::Daemon, What::NodeAway { node, id }),
            MemberTurn::Back(away) => {
                let away_seconds = away.as_secs();
                let by = itself();
                let what = What::NodeBack {
                    node,
                    id,
                    away_seconds,
                };
                Event::done(by, what)
            }
        })
    }
}

/// A record of the administrator that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Administered {
    /// The mesh record, and the key that signs it, for the first time.
    MeshMade(PublicKey),
    /// A mesh record with this version replaced another one.
    MeshChanged(u64),
    TokenMade(Token),
    TokenRevoked(PublicKey),
    /// The certificate of an API token. It is no record: the command that signed it tells the coordinator.
    ApiTokenMade(ApiCertificate),
    ApiTokenRevoked(PublicKey),
    GuestAdded(Guest),
    /// The guest with this key, and its name as far as it is known.
    GuestRemoved(WireGuardKey, Option<Label>),
    /// A policy with this version, and the digest of its text.
    PolicyApplied(u64, Option<LineDigest>),
    /// A record with this version that has a policy to be tried beside the one in force.
    PolicyTried {
        version: u64,
        /// The digest of the text of the policy to be tried.
        digest: LineDigest,
        /// The digest of the text of the policy in force.
        in_force: Option<LineDigest>,
    },
}

impl Administered {
    /// The record `key`, which `ledger` holds now. `is_first` says whether the ledger had no record with this key before.
    pub(super) fn of(ledger: &Ledger, key: &RecordKey, is_first: bool) -> Option<Self> {
        let entry = ledger.entry(key)?;
        if let Some(token) = api_revocation::revoked_by(key) {
            return Some(Self::ApiTokenRevoked(token));
        }
        // Whoever may sign such a record without the mesh key has it under another kind.
        if let Some(guest) = guests::record_at(ledger, key) {
            return Some(Self::GuestAdded(guest));
        }
        if let Some(id) = Guest::removed_by(key) {
            let name = guests::record_of(ledger, &id).map(|guest| guest.name);
            return Some(Self::GuestRemoved(id, name));
        }
        Some(match &entry.record {
            Record::Mesh(_) if is_first => Self::MeshMade(ledger.mesh_key()),
            Record::Mesh(mesh) => Self::MeshChanged(mesh.version),
            Record::Token(token) => Self::TokenMade(token.clone()),
            Record::Policy(policy) => {
                let digest = |text: &String| LineDigest::of(text.as_bytes());
                let in_force = policy.text.as_ref().map(digest);
                match policy.tried.as_ref().map(digest) {
                    None => Self::PolicyApplied(policy.version, in_force),
                    Some(digest) => Self::PolicyTried {
                        version: policy.version,
                        digest,
                        in_force,
                    },
                }
            }
            Record::Revocation(revocation) if revocation.revoked == RevokedKind::Token => {
                Self::TokenRevoked(revocation.id)
            }
            _ => return None,
        })
    }
}

/// An accepted record of the administrator, and who sent it.
#[derive(Debug)]
pub(super) struct Submitted<'a>(pub &'a Administered, pub &'a Who);

impl Transition for Submitted<'_> {
    fn log(&self) {
        match self.0 {
            Administered::MeshMade(key) => {
                tracing::info!(target: TRANSITION, key = key.short(), "mesh made");
            }
            Administered::MeshChanged(version) => {
                tracing::info!(target: TRANSITION, version, "mesh changed");
            }
            Administered::TokenMade(token) => {
                let (id, uses, ephemeral) = (token.id.short(), token.uses, token.ephemeral);
                tracing::info!(target: TRANSITION, token = id, uses, ephemeral, "token made");
            }
            Administered::TokenRevoked(id) => {
                tracing::info!(target: TRANSITION, token = id.short(), "token revoked");
            }
            Administered::ApiTokenMade(token) => {
                let (id, name) = (token.id.short(), &token.name);
                tracing::info!(target: TRANSITION, token = id, %name, "API token made");
            }
            Administered::ApiTokenRevoked(id) => {
                tracing::info!(target: TRANSITION, token = id.short(), "API token revoked");
            }
            Administered::GuestAdded(guest) => {
                let (name, doors) = (&guest.name, guest.doors.len());
                tracing::info!(target: TRANSITION, guest = %name, doors, "guest added");
            }
            Administered::GuestRemoved(key, name) => {
                let guest = name
                    .as_ref()
                    .map_or_else(|| key.to_string(), Label::to_string);
                tracing::info!(target: TRANSITION, guest, "guest removed");
            }
            Administered::PolicyApplied(version, _) => {
                tracing::info!(target: TRANSITION, version, "policy applied");
            }
            Administered::PolicyTried { version, .. } => {
                tracing::info!(target: TRANSITION, version, "policy sent to be tried");
            }
        }
    }

    fn event(&self) -> Option<Event> {
        let what = match self.0 {
            Administered::MeshMade(mesh_key) => What::MeshMade {
                mesh_key: *mesh_key,
            },
            Administered::MeshChanged(version) => What::MeshChanged { version: *version },
            Administered::TokenMade(token) => What::TokenMade {
                token: token.id,
                uses: token.uses,
                tags: token.tags.clone(),
                ephemeral: token.ephemeral,
                expires_at: token.expires_at,
            },
            Administered::TokenRevoked(token) => What::TokenRevoked { token: *token },
            Administered::ApiTokenMade(token) => What::ApiTokenMade {
                token: token.id,
                name: token.name.clone(),
                scopes: token.scopes.clone(),
                expires_at: token.expires_at,
            },
            Administered::ApiTokenRevoked(token) => What::ApiTokenRevoked { token: *token },
            Administered::GuestAdded(guest) => What::GuestAdded {
                guest: guest.name.clone(),
                key: guest.id,
                doors: guest.doors.iter().map(|door| door.node).collect(),
                tags: guest.tags.clone(),
                expires_at: guest.expires_at,
            },
            Administered::GuestRemoved(key, name) => What::GuestRemoved {
                guest: name.clone(),
                key: *key,
                reason: "the administrator removed it",
            },
            Administered::PolicyApplied(version, digest) => What::PolicyApplied {
                version: *version,
                digest: *digest,
            },
            Administered::PolicyTried {
                version,
                digest,
                in_force,
            } => What::PolicyTried {
                version: *version,
                digest: Some(*digest),
                in_force: *in_force,
            },
        };
        Some(Event::done(self.1.clone(), what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::log::captured;
    use crate::records::Envelope;
    use crate::records::kinds::MeshPolicy;
    use crate::testbed::records as build;

    const DOCUMENT: &str = include_str!("../../../docs/logs.md");

    #[test]
    fn a_guest_that_is_added_or_removed_is_one_line_and_names_the_guest() {
        let mut ledger = Ledger::new(build::id(1));
        let guest = Guest {
            id: WireGuardKey([7; 32]),
            version: 1,
            name: build::label("anna"),
            tags: vec![],
            doors: vec![],
            preshared_hash: Guest::hash_of(&[1; 32]),
            expires_at: None,
        };
        let mut apply = |payload: String| {
            let record = Envelope::seal_payload(payload, &build::key(1));
            let key = record.key().expect("a header");
            ledger.apply(record).expect("the mesh key's");
            let administered = Administered::of(&ledger, &key, true);
            administered.expect("it is of the administrator")
        };
        let added = apply(guest.payload());
        let removed = apply(Guest::removal_payload(guest.id));
        let by = Who::Administrator;
        let lines = captured::lines(|| {
            Submitted(&added, &by).log();
            Submitted(&removed, &by).log();
        });
        assert_eq!(
            lines,
            [
                "INFO guest added guest=anna doors=0",
                "INFO guest removed guest=anna"
            ]
        );
        for line in &lines {
            captured::assert_documented(line, DOCUMENT);
        }
        let what = Submitted(&removed, &by).event().map(|event| event.what);
        let expected = What::GuestRemoved {
            guest: Some(guest.name),
            key: guest.id,
            reason: "the administrator removed it",
        };
        assert_eq!(what, Some(expected));
    }

    #[test]
    fn a_policy_that_is_tried_is_another_event_than_one_that_is_applied() {
        let mut ledger = Ledger::new(build::id(1));
        let mut apply = |policy: MeshPolicy| {
            let record = build::sealed(&Record::Policy(policy), 1);
            ledger.apply(record).expect("it is newer");
            let administered = Administered::of(&ledger, &RecordKey::Policy, false);
            administered.expect("it is of the administrator")
        };
        let digest = |text: &str| LineDigest::of(text.as_bytes());
        let tried = apply(MeshPolicy::new(1, "a").trying("b"));
        let expected = Administered::PolicyTried {
            version: 1,
            digest: digest("b"),
            in_force: Some(digest("a")),
        };
        assert_eq!(tried, expected);
        let applied = apply(MeshPolicy::new(2, "b"));
        assert_eq!(applied, Administered::PolicyApplied(2, Some(digest("b"))));
        let by = Who::Administrator;
        let lines = captured::lines(|| {
            Submitted(&tried, &by).log();
            Submitted(&applied, &by).log();
        });
        assert_eq!(
            lines,
            [
                "INFO policy sent to be tried version=1",
                "INFO policy applied version=2"
            ]
        );
        for line in &lines {
            captured::assert_documented(line, DOCUMENT);
        }
        let what = Submitted(&tried, &by).event().map(|event| event.what);
        let expected = What::PolicyTried {
            version: 1,
            digest: Some(digest("b")),
            in_force: Some(digest("a")),
        };
        assert_eq!(what, Some(expected));
    }
}
