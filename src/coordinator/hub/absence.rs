//! Ephemeral nodes, which are removed when they stay away.
//!
//! A coordinator cannot sign for anybody. So a node whose token is ephemeral leaves its departure, signed by itself,
//! with the coordinator, which publishes it when the time has come. By that a dishonest coordinator can remove such
//! nodes too early, and no others. A node that never left one stays until the administrator removes it.

use std::time::{Duration, Instant};

use super::{Hub, Origin, Standing, fault};
use crate::model::PublicKey;
use crate::model::time::Now;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::records::envelope::Authentic;
use crate::records::kinds::Record;
use crate::records::{Envelope, Ledger};

/// How long an ephemeral node may be away: a restart, a move to another machine, a coordinator's upgrade are shorter.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

impl Hub {
    /// Keeps the departure of an ephemeral node until it stays away. Waits for the disk.
    ///
    /// # Errors
    /// It is not the node's own, the node is no ephemeral member, or the store cannot be written.
    pub fn keep_farewell(
        &self,
        node: &PublicKey,
        departure: &Envelope,
        now: Now,
    ) -> Result<(), ApiError> {
        let own = matches!(
            Record::parse(&departure.payload),
            Ok((_, Record::Departure(said))) if said.id == *node && departure.signer == *node
        );
        if !own || !departure.is_authentic() || self.standing(node) != Standing::Member {
            return Err(refusal("a departure is not that of the node that sends it"));
        }
        if !self
            .read()
            .ledger
            .as_ref()
            .is_some_and(|ledger| is_ephemeral(ledger, node))
        {
            return Err(refusal(
                "only nodes with an ephemeral token leave a departure",
            ));
        }
        let mut writer = self.writer();
        self.recover(&mut writer, now.monotonic).map_err(fault)?;
        // One is as good as another, and each costs a write.
        if writer.store.farewell(node).map_err(fault)?.is_none() {
            writer.store.set_farewell(node, departure).map_err(fault)?;
        }
        Ok(())
    }

    /// Publishes the departures of ephemeral nodes that have been away for too long. Waits for the disk.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn dismiss_absent(&self, now: Now) -> Result<(), ApiError> {
        let due = self.due(now.monotonic);
        if due.is_empty() {
            return Ok(());
        }
        let mut writer = self.writer();
        let elsewhere = writer.store.present().map_err(fault)?;
        for node in due {
            if elsewhere.contains(&node) {
                continue;
            }
            let departure = writer.store.farewell(&node).map_err(fault)?;
            let Some(departure) = departure.and_then(Authentic::verify) else {
                continue;
            };
            let published =
                self.take_in(&mut writer, vec![departure], Origin::Stream(node), now)?;
            if published.accepted > 0 {
                tracing::info!(
                    node = node.short(),
                    "an ephemeral node stayed away and is removed"
                );
            }
        }
        Ok(())
    }

    /// Tells the other coordinators which ephemeral nodes are connected here. Waits for the store.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn tell_present(&self) -> Result<(), ApiError> {
        let mut writer = self.writer();
        let here: Vec<PublicKey> = {
            let state = self.read();
            let ephemeral = |id: &&PublicKey| {
                let ledger = state.ledger.as_ref();
                ledger.is_some_and(|ledger| is_ephemeral(ledger, id))
            };
            state.connected.keys().filter(ephemeral).copied().collect()
        };
        writer.store.set_present(&here).map_err(fault)
    }

    fn due(&self, now: Instant) -> Vec<PublicKey> {
        let state = self.read();
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
                now.saturating_duration_since(*since) >= PATIENCE
            })
            .collect()
    }
}

fn is_ephemeral(ledger: &Ledger, node: &PublicKey) -> bool {
    ledger
        .membership(node)
        .and_then(|membership| ledger.token(&membership.token))
        .is_some_and(|token| token.ephemeral)
}

fn refusal(text: &str) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, text)
}
