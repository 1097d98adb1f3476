//! A node that proved its identity and is no member: it may publish what proves that it belongs here, since this store
//! may be an emptied or restored one, and nothing else. Its time, its messages and the number of its kind are bounded:
//! anybody can make a key and open a stream.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{End, Served};
use crate::coordinator::hub::{Position, PublishRefused, Published};
use crate::wire::control::Refusal;
use crate::wire::ledger::Refused;

/// Strangers at once at most. One that belongs here is a member within some round trips.
pub(super) const MAX_STRANGERS: usize = 64;
/// How long a stranger may stay one.
const PATIENCE: Duration = Duration::from_secs(30);
/// Messages with records from a stranger at most.
const MAX_PUBLISHES: u32 = 64;

/// What a stranger has left.
#[derive(Debug)]
pub(super) struct Stranger {
    since: Instant,
    publishes: u32,
    /// Why a record is not taken yet.
    later: Option<String>,
    _slot: OwnedSemaphorePermit,
}

impl Stranger {
    /// One more stranger, if there may be.
    pub(super) fn admit(served: &Served) -> Result<Self, End> {
        let slot = served.strangers.clone().try_acquire_owned().map_err(|_| {
            End::Refuse(
                Refusal::Busy,
                "too many nodes that are not members here are connected; try again".to_owned(),
            )
        })?;
        Ok(Self {
            since: Instant::now(),
            publishes: 0,
            later: None,
            _slot: slot,
        })
    }

    /// Whether it may stay a little longer.
    pub(super) fn check(&self) -> Result<(), End> {
        if self.since.elapsed() > PATIENCE || self.publishes > MAX_PUBLISHES {
            return Err(self.end());
        }
        Ok(())
    }

    /// Looks at what it published.
    pub(super) fn handle_published(&mut self, published: &Published) -> Result<(), End> {
        self.publishes += 1;
        let forged = |refused: &PublishRefused| {
            matches!(
                refused,
                PublishRefused::Ledger(Refused::Signature | Refused::TooLong(_))
            )
        };
        if published.refused.iter().any(forged) {
            return Err(End::Refuse(
                Refusal::Protocol,
                "a record's signature does not hold".to_owned(),
            ));
        }
        let later = |refused: &&PublishRefused| matches!(refused, PublishRefused::NotYet(_));
        if let Some(later) = published.refused.iter().find(later) {
            self.later = Some(later.to_string());
        }
        self.check()
    }

    /// It has published all that it holds. Where that is to be taken later, it comes again: a stream that waits would hold
    /// the place of another.
    pub(super) fn handle_told(&self) -> Result<(), End> {
        match &self.later {
            Some(_) => Err(self.end()),
            None => Ok(()),
        }
    }

    fn end(&self) -> End {
        match &self.later {
            Some(why) => End::Refuse(Refusal::Busy, why.clone()),
            None => not_a_member(),
        }
    }
}

/// What a stranger receives in place of the store's name and revision. The name is new each time: no node takes it for
/// that of a store it knows, so it offers all that it holds.
pub(super) fn position() -> Position {
    Position {
        store: format!("{:016x}", getrandom::u64().unwrap_or_default()),
        revision: 0,
        snapshot: true,
    }
}

fn not_a_member() -> End {
    End::Refuse(
        Refusal::NotAMember,
        "this node is no member of the coordinator's mesh; join with a token: meshctl join TOKEN"
            .to_owned(),
    )
}
