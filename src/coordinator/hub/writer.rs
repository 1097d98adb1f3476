//! The one writer of a hub: the store behind the state, and how well the store takes writes.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::errors::fault;
use super::loaded::Loaded;
use super::view::View;
use crate::coordinator::store::{News, Store, StoreError, Stored};
use crate::model::PublicKey;
use crate::model::time::Now;
use crate::os::audit::Who;
use crate::os::log::TRANSITION;
use crate::protocol::api::ApiError;
use crate::records::Ledger;
use crate::records::kinds::RecordKey;
use crate::records::ledger::Replaced;

/// How long no other write is tried after one that failed. To read a large mesh back from the disk takes a while.
pub(super) const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(2);
/// The shortest time between two synchronisations with the other coordinators because of joins that would be refused. It
/// bounds the work that forged requests cause.
const SYNC_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Writer {
    pub(super) store: Box<dyn Store>,
    health: Health,
    /// When all that other coordinators wrote was known last.
    synced: Option<Instant>,
}

/// How the store took the last write.
enum Health {
    Good,
    Failed {
        at: Instant,
        error: StoreError,
        /// Whether the memory may still hold records that the disk does not.
        is_ahead: bool,
    },
}

impl Writer {
    pub(super) fn new(store: Box<dyn Store>) -> Self {
        Self {
            store,
            health: Health::Good,
            synced: None,
        }
    }
}

/// A turn of the writer: the store may be written until this value is dropped. All of it happens at one time, `now`.
pub(super) struct Turn<'a> {
    pub writer: MutexGuard<'a, Writer>,
    pub view: &'a View,
    pub now: Now,
    /// Who asked for the writes.
    pub by: Who,
}

impl Turn<'_> {
    /// After a write that failed: waits for the pause to pass, then finds out whether the store can be written again.
    pub(super) fn recover(&mut self) -> Result<(), StoreError> {
        let now = self.now.monotonic;
        let Health::Failed {
            at,
            error,
            is_ahead,
        } = &self.writer.health
        else {
            return Ok(());
        };
        if now.saturating_duration_since(*at) < PAUSE_AFTER_FAILURE {
            return Err(error.clone());
        }
        let is_ahead = *is_ahead;
        if let Err(error) = self.writer.store.put(&[]) {
            self.writer.health = Health::Failed {
                at: now,
                error: error.clone(),
                is_ahead,
            };
            return Err(error);
        }
        if is_ahead {
            self.reload()?;
        }
        self.writer.health = Health::Good;
        tracing::info!(target: TRANSITION, "store back; it accepts writes again");
        Ok(())
    }

    /// Handles a write that failed. The memory returns to what is on disk.
    pub(super) fn fail(&mut self, error: StoreError) -> ApiError {
        note_failure(self.view, &error);
        let reloaded = self.reload();
        self.writer.health = Health::Failed {
            at: self.now.monotonic,
            error: error.clone(),
            is_ahead: reloaded.is_err(),
        };
        fault(error)
    }

    /// Replaces the state by the contents of the store. Readers see the state before until it is replaced.
    pub(super) fn reload(&mut self) -> Result<(), StoreError> {
        let loaded = Loaded::from(self.writer.store.load()?);
        self.take_over(loaded);
        Ok(())
    }

    fn take_over(&self, loaded: Loaded) {
        let mut state = self.view.write();
        state.take_over(loaded, self.now.monotonic);
        self.view.revision.send_replace(state.revision);
    }

    /// Puts back what an attempt of a write that was not carried out had replaced.
    pub(super) fn undo(&mut self, replaced: Vec<Replaced>) -> Result<(), StoreError> {
        let undone = {
            let mut state = self.view.write();
            state.ledger.as_mut().is_none_or(|ledger| {
                replaced
                    .into_iter()
                    .rev()
                    .all(|replaced| ledger.put_back(replaced))
            })
        };
        if undone { Ok(()) } else { self.reload() }
    }

    /// Waits until all that other coordinators wrote is known. Returns whether it did so, since it does not do so for each of
    /// many requests in a short time.
    pub(super) fn sync(&mut self) -> Result<bool, StoreError> {
        let now = self.now.monotonic;
        let recently = |at| now.saturating_duration_since(at) < SYNC_PAUSE;
        if self.writer.store.followed().is_none() || self.writer.synced.is_some_and(recently) {
            return Ok(false);
        }
        self.writer.store.sync()?;
        self.writer.synced = Some(now);
        self.catch_up()?;
        Ok(true)
    }

    /// Reads all that other coordinators wrote, since records that only they know of are not lost.
    pub(super) fn see_all(&mut self) -> Result<(), StoreError> {
        if self.writer.store.followed().is_some() {
            self.writer.store.sync()?;
        }
        self.catch_up()
    }

    /// Applies what is known of the writes of other coordinators.
    pub(super) fn catch_up(&mut self) -> Result<(), StoreError> {
        // A state that is ahead of the store is replaced by the store's contents when the store can be read again.
        if matches!(self.writer.health, Health::Failed { is_ahead: true, .. }) {
            return Ok(());
        }
        match self.writer.store.news()? {
            None => {}
            Some(News::Everything(contents)) => self.take_over(Loaded::from(contents)),
            Some(News::Changes {
                mesh_key,
                records,
                revision,
                restored,
            }) => self.apply_changes(mesh_key, records, revision, restored),
        }
        Ok(())
    }

    fn apply_changes(
        &self,
        mesh_key: Option<PublicKey>,
        mut records: Vec<Stored>,
        revision: u64,
        restored: bool,
    ) {
        let mut state = self.view.write();
        let state = &mut *state;
        if !restored {
            // Another coordinator has received what the nodes hold.
            state.refill = None;
        }
        if state.ledger.is_none() {
            state.ledger = mesh_key.map(Ledger::new);
        }
        for stored in &records {
            state.changes.push(stored.revision, stored.key.clone());
        }
        records.sort_by_key(|stored| stored.key.stage());
        for stored in records {
            if let RecordKey::Membership(node) = &stored.key {
                state.former.remove(node);
            }
            if let Some(ledger) = &mut state.ledger
                && let Err(refused) = ledger.apply(stored.envelope)
            {
                tracing::warn!(record = %stored.key, %refused, "a record of another coordinator does not verify and is left out");
            }
        }
        state.revision = revision;
        self.view.revision.send_replace(revision);
    }
}

/// Counts and logs a write that failed.
pub(super) fn note_failure(view: &View, error: &StoreError) {
    view.counts.store_failures.fetch_add(1, Ordering::Relaxed);
    tracing::error!(%error, "a write to the store failed");
}
