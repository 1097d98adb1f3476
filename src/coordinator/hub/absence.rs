//! Ephemeral nodes, which are removed when they stay away.
//!
//! A coordinator cannot sign for a node. So a node whose token is ephemeral signs its departure in advance and sends it to the
//! coordinator, which publishes it when the node has been away for [`MAX_ABSENCE`]. A dishonest coordinator can therefore remove
//! such nodes too early, and no others. A node that never sent a departure stays until the administrator removes it.

use std::time::{Duration, Instant};

use super::errors::fault;
use super::intake::Origin;
use super::members::{MemberChange, MemberTurn};
use super::state::{Standing, State};
use super::writer::Turn;
use crate::model::PublicKey;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::records::envelope::Authentic;
use crate::records::kinds::Record;
use crate::records::{Envelope, Ledger};

/// How long an ephemeral node may be away. A restart, a move to another machine and an upgrade of the coordinator take less.
pub(super) const MAX_ABSENCE: Duration = Duration::from_secs(600);

/// How long a member may be without a stream before there is an event about it. A restart takes less.
pub(super) const QUIET_ABSENCE: Duration = Duration::from_secs(60);

/// The members that have become away, each once until it is back. Members that have had no stream since the start count only if
/// no other coordinator may have theirs.
pub(super) fn newly_away(state: &mut State, is_alone: bool, now: Instant) -> Vec<MemberChange> {
    let Some(ledger) = &state.ledger else {
        return Vec::new();
    };
    // A removed node never comes back. A member whose record is missing for a while, because the store lost it, does.
    state.absent.retain(|id, _| !ledger.is_revoked(id));
    let (connected, absent, started) = (&state.connected, &state.absent, state.started);
    let is_absent = |since: &Instant| now.saturating_duration_since(*since) >= QUIET_ABSENCE;
    let since = |id: &PublicKey| match absent.get(id) {
        Some(since) => Some(*since),
        None => is_alone.then_some(started),
    };
    state
        .away
        .retain(|id, _| ledger.membership(id).is_some() && !ledger.is_revoked(id));
    let new: Vec<(PublicKey, Instant)> = ledger
        .memberships()
        .map(|membership| membership.id)
        .filter(|id| !connected.contains_key(id) && !state.away.contains_key(id))
        .filter(|id| !ledger.is_revoked(id))
        .filter_map(|id| Some((id, since(&id).filter(is_absent)?)))
        .collect();
    if new.is_empty() {
        return Vec::new();
    }
    let names = ledger.names();
    let mut changes = Vec::new();
    for (id, since) in new {
        if let Some(node) = names.get(&id) {
            state.away.insert(id, (node.clone(), since));
            let (node, turn) = (node.clone(), MemberTurn::Away);
            changes.push(MemberChange { node, id, turn });
        }
    }
    changes
}

/// Checks that an ephemeral member sends its own departure.
pub(super) fn check_departure(
    state: &State,
    node: &PublicKey,
    departure: &Envelope,
) -> Result<(), ApiError> {
    let refusal = |text| Err(ApiError::new(ErrorCode::Forbidden, text));
    let is_own = matches!(
        Record::parse(&departure.payload),
        Ok((_, Record::Departure(record))) if record.id == *node && departure.signer == *node
    );
    if !is_own || !departure.is_authentic() || state.standing(node) != Standing::Member {
        return refusal("a departure is not that of the node that sends it");
    }
    let ledger = state.ledger.as_ref();
    if !ledger.is_some_and(|ledger| is_ephemeral(ledger, node)) {
        return refusal("only nodes with an ephemeral token leave a departure");
    }
    Ok(())
}

/// The ephemeral members that have been away for too long.
pub(super) fn due(state: &State, now: Instant) -> Vec<PublicKey> {
    let Some(ledger) = &state.ledger else {
        return Vec::new();
    };
    ledger
        .memberships()
        .map(|membership| membership.id)
        .filter(|id| !state.connected.contains_key(id) && !ledger.is_revoked(id))
        .filter(|id| is_ephemeral(ledger, id))
        .filter(|id| {
            let since = state.absent.get(id).unwrap_or(&state.started);
            now.saturating_duration_since(*since) >= MAX_ABSENCE
        })
        .collect()
}

/// The ephemeral nodes with an open stream.
pub(super) fn connected_ephemeral(state: &State) -> Vec<PublicKey> {
    let Some(ledger) = &state.ledger else {
        return Vec::new();
    };
    let connected = state.connected.keys();
    connected
        .filter(|id| is_ephemeral(ledger, id))
        .copied()
        .collect()
}

impl Turn<'_> {
    pub(super) fn store_departure(
        &mut self,
        node: &PublicKey,
        departure: &Envelope,
    ) -> Result<(), ApiError> {
        self.recover().map_err(fault)?;
        // All departures of a node have the same effect, and each costs a write. So the first one is kept.
        let store = &mut self.writer.store;
        if store.departure(node).map_err(fault)?.is_none() {
            store.store_departure(node, departure).map_err(fault)?;
        }
        Ok(())
    }

    /// Publishes the departures of `due` nodes that are not connected to another coordinator.
    pub(super) fn dismiss(&mut self, due: Vec<PublicKey>) -> Result<(), ApiError> {
        let present = self.writer.store.present().map_err(fault)?;
        for node in due {
            if present.contains(&node) {
                continue;
            }
            let departure = self.writer.store.departure(&node).map_err(fault)?;
            let Some(departure) = departure.and_then(Authentic::verify) else {
                continue;
            };
            self.take_in(vec![departure], Origin::Absence(node))?;
        }
        Ok(())
    }
}

fn is_ephemeral(ledger: &Ledger, node: &PublicKey) -> bool {
    ledger
        .membership(node)
        .and_then(|membership| ledger.token(&membership.token))
        .is_some_and(|token| token.ephemeral)
}
