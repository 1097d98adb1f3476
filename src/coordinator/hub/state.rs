//! The state of a coordinator that streams and administrators read: the ledger, its recent changes, and which nodes are connected.

use std::collections::HashMap;
use std::time::Instant;

use super::changes::Changes;
use super::former::Former;
use super::members::{MemberChange, MemberTurn};
use super::refill::{Phase, Refill};
use crate::model::{Label, PublicKey};
use crate::records::envelope::Authentic;
use crate::records::{Envelope, Ledger};

/// What a node is to the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The node is a member of the mesh.
    Member,
    /// The node was removed.
    Revoked,
    /// The coordinator holds no membership of the node.
    NotMember,
}

pub(super) struct State {
    pub store_id: String,
    pub ledger: Option<Ledger>,
    pub revision: u64,
    pub changes: Changes,
    /// The number of open streams of each node that has one.
    pub connected: HashMap<PublicKey, usize>,
    /// When the last stream of a member closed, for members without a stream.
    pub absent: HashMap<PublicKey, Instant>,
    /// Members that have had no stream for so long that there is an event about it: their names, and since when they have none.
    pub away: HashMap<PublicKey, (Label, Instant)>,
    pub started: Instant,
    /// Set while the store has lost records and waits for the nodes to offer them.
    pub refill: Option<Refill>,
    /// Nodes that are not members and were members according to their marks. A coordinator has admitted each of them once.
    pub former: Former,
}

impl State {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            store_id: String::new(),
            ledger: None,
            revision: 0,
            changes: Changes::new(),
            connected: HashMap::new(),
            absent: HashMap::new(),
            away: HashMap::new(),
            started: now,
            refill: None,
            former: Former::default(),
        }
    }

    pub(super) fn holds(&self, envelope: &Envelope) -> bool {
        let ledger = self.ledger.as_ref();
        ledger.is_some_and(|ledger| ledger.holds(envelope))
    }

    pub(super) fn standing(&self, node: &PublicKey) -> Standing {
        match &self.ledger {
            Some(ledger) if ledger.is_revoked(node) => Standing::Revoked,
            Some(ledger) if ledger.membership(node).is_some() => Standing::Member,
            _ => Standing::NotMember,
        }
    }

    /// The phase of the refill; absent if the store is not being refilled.
    pub(super) fn phase(&self, now: Instant) -> Option<Phase> {
        let refill = self.refill.as_ref()?;
        let members = self.ledger.iter().flat_map(|ledger| {
            ledger
                .memberships()
                .map(|membership| membership.id)
                .filter(|id| !ledger.is_revoked(id))
        });
        Some(refill.phase(members, now))
    }

    /// Handles that a stream of `node` was opened or closed. Returns the transition of a member that was away.
    pub(super) fn set_connected(
        &mut self,
        node: PublicKey,
        is_open: bool,
        now: Instant,
    ) -> Option<MemberChange> {
        let streams = self.connected.entry(node).or_default();
        *streams = if is_open {
            *streams + 1
        } else {
            streams.saturating_sub(1)
        };
        if *streams > 0 {
            self.absent.remove(&node);
            let (name, since) = self.away.remove(&node)?;
            let away = now.saturating_duration_since(since);
            return Some(MemberChange {
                node: name,
                id: node,
                turn: MemberTurn::Back(away),
            });
        }
        self.connected.remove(&node);
        let ledger = self.ledger.as_ref();
        if ledger.is_some_and(|ledger| ledger.membership(&node).is_some()) {
            self.absent.insert(node, now);
        }
        None
    }

    /// Stores that a mark of `node` proves a membership that the store does not hold.
    pub(super) fn handle_former(&mut self, node: PublicKey) {
        if self.standing(&node) == Standing::NotMember {
            let ledger = self.ledger.as_ref();
            let is_known = |node: &PublicKey| {
                ledger.is_some_and(|l| l.is_revoked(node) || l.membership(node).is_some())
            };
            self.former.insert(node, is_known);
        }
    }

    /// The first of `records` that the mesh key signed and that the store should hold and does not.
    pub(super) fn lacked(&self, records: &[Authentic]) -> Option<String> {
        // During a refill the store is known to lack records, so a further one proves nothing new.
        if self.refill.is_some() {
            return None;
        }
        let ledger = self.ledger.as_ref()?;
        for record in records.iter().filter(|r| r.signer == ledger.mesh_key()) {
            if ledger.holds(record) {
                continue;
            }
            if ledger.check_authentic(record).is_ok() {
                let (header, _) = record.parsed().ok()?;
                return Some(header.key.to_string());
            }
        }
        None
    }
}
