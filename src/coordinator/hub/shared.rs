//! A store that other coordinators write to as well.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Health, Hub, Loaded, Writer};
use crate::coordinator::store::{News, StoreError};
use crate::model::time::Now;
use crate::records::Ledger;
use crate::records::ledger::Replaced;

/// Time between two looks whether a watch lags, where a join would be refused.
const SYNC_PAUSE: Duration = Duration::from_millis(100);

impl Hub {
    /// Wakes who waits for what other coordinators write; absent if there are none.
    #[must_use]
    pub fn follow_others(&self) -> Option<watch::Receiver<u64>> {
        self.writer().store.followed()
    }

    /// Takes in what other coordinators wrote. May wait for a write of this one.
    pub fn handle_news(&self, now: Now) {
        let mut writer = self.writer();
        if let Err(error) = self.catch_up(&mut writer, now.monotonic) {
            tracing::warn!(%error, "what other coordinators wrote is not taken in");
        }
    }

    /// Waits until all that others wrote is known; whether that was looked at, which is not for every forged request.
    pub(super) fn sync(&self, writer: &mut Writer, now: Instant) -> Result<bool, StoreError> {
        let recently = |at| now.saturating_duration_since(at) < SYNC_PAUSE;
        if writer.store.followed().is_none() || writer.synced.is_some_and(recently) {
            return Ok(false);
        }
        writer.store.sync()?;
        writer.synced = Some(now);
        self.catch_up(writer, now)?;
        Ok(true)
    }

    /// Takes in what other coordinators wrote.
    pub(super) fn catch_up(&self, writer: &mut Writer, now: Instant) -> Result<(), StoreError> {
        // What is ahead of the store is replaced by all that is in it, when it can be read again.
        if matches!(writer.health, Health::Failed { ahead: true, .. }) {
            return Ok(());
        }
        match writer.store.news()? {
            None => {}
            Some(News::Everything(contents)) => {
                let loaded = Loaded::from(contents);
                let mut state = self.write();
                state.take_over(loaded, now);
                self.revision.send_replace(state.revision);
            }
            Some(News::Changes {
                mesh_key,
                records,
                revision,
                restored,
            }) => {
                let mut state = self.write();
                let state = &mut *state;
                if !restored {
                    // The nodes have told another coordinator.
                    state.refill = None;
                }
                if state.ledger.is_none() {
                    state.ledger = mesh_key.map(Ledger::new);
                }
                for stored in &records {
                    state.changes.push(stored.revision, stored.key.clone());
                }
                let mut records = records;
                records.sort_by_key(|stored| stored.key.stage());
                for stored in records {
                    if let Some(ledger) = &mut state.ledger
                        && let Err(refused) = ledger.apply(stored.envelope)
                    {
                        tracing::warn!(record = %stored.key, %refused, "a record of another coordinator does not verify and is left out");
                    }
                }
                state.revision = revision;
                self.revision.send_replace(revision);
            }
        }
        Ok(())
    }

    /// Takes back what was not written.
    pub(super) fn undo(
        &self,
        writer: &mut Writer,
        replaced: Vec<Replaced>,
        now: Instant,
    ) -> Result<(), StoreError> {
        let undone = {
            let mut state = self.write();
            state.ledger.as_mut().is_none_or(|ledger| {
                replaced
                    .into_iter()
                    .rev()
                    .all(|replaced| ledger.put_back(replaced))
            })
        };
        if undone {
            Ok(())
        } else {
            self.reload(writer, now)
        }
    }
}
