//! Detects that the store has lost records: its file was replaced by an older copy, the machine's disk was reset to a
//! snapshot, or the file was deleted. SQLite does not report that. Either of two things proves it, and no node can forge them:
//!
//! - a member's mark, which states that this store had a later revision;
//! - a record signed by the mesh key that the store does not hold. All such records come from the administrator through the
//!   coordinator, so the store held this one before any node did.
//!
//! The store is then treated as one restored from a backup with `mesh-coordinator restore`. It gets a new name, so nodes offer
//! all records that they hold. Marks that carry the old name prove nothing more, so each loss is detected only once.

use std::time::Instant;

use super::{Hub, Standing, Writer, fault};
use crate::coordinator::marks::Mark;
use crate::coordinator::store::StoreError;
use crate::model::PublicKey;
use crate::model::time::Now;
use crate::protocol::api::ApiError;
use crate::records::envelope::Authentic;

impl Hub {
    /// A mark for `node` at the store's present revision, if `node` is a member.
    #[must_use]
    pub fn mark_of(&self, node: &PublicKey) -> Option<String> {
        let state = self.read();
        let ledger = state.ledger.as_ref()?;
        (ledger.membership(node).is_some() && !ledger.is_revoked(node))
            .then(|| self.setup.marks.make(node, &state.store_id, state.revision))
    }

    /// Handles a mark that a stream of `node` returned. True if the mark states a later revision than the hub knows; then
    /// [`Hub::examine_loss`] has to find out whether the store has lost records.
    pub fn handle_mark(&self, node: &PublicKey, mark: &str) -> bool {
        let Some(mark) = self.setup.marks.read(node, mark) else {
            return false;
        };
        if self.standing(node) == Standing::Stranger {
            self.write().former.insert(*node);
        }
        self.is_behind(&mark)
    }

    /// Treats the store as restored from a backup, if this mark proves that it went back in time. Waits for the disk.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn examine_loss(&self, node: &PublicKey, mark: &str, now: Now) -> Result<(), ApiError> {
        let Some(mark) = self.setup.marks.read(node, mark) else {
            return Ok(());
        };
        let now = now.monotonic;
        let mut writer = self.writer();
        self.recover(&mut writer, now).map_err(fault)?;
        self.see_all(&mut writer, now)
            .map_err(|error| self.fail(&mut writer, error, now))?;
        if !self.is_behind(&mark) {
            return Ok(());
        }
        tracing::error!(
            node = node.short(),
            theirs = mark.revision,
            ours = self.revision(),
            "the store went back in time: was its file replaced by an older copy?"
        );
        self.begin_again(&mut writer, now)
    }

    fn is_behind(&self, mark: &Mark) -> bool {
        let state = self.read();
        mark.store == state.store_id && mark.revision > state.revision
    }

    /// Treats the store as restored from a backup, if it lacks one of `records` that the mesh key signed.
    pub(super) fn notice_loss(
        &self,
        writer: &mut Writer,
        records: &[Authentic],
        now: Instant,
    ) -> Result<(), ApiError> {
        if self.lacked(records).is_none() {
            return Ok(());
        }
        self.recover(writer, now).map_err(fault)?;
        self.see_all(writer, now)
            .map_err(|error| self.fail(writer, error, now))?;
        let Some(lacked) = self.lacked(records) else {
            return Ok(());
        };
        tracing::error!(
            record = lacked,
            "the store lacks a record that the administrator signed: was its file deleted, or replaced by an older copy?"
        );
        self.begin_again(writer, now)
    }

    /// The first of `records` that the mesh key signed and that the store should hold and does not.
    fn lacked(&self, records: &[Authentic]) -> Option<String> {
        let state = self.read();
        // During a refill the store is known to lack records, so a further one proves nothing new.
        if state.refill.is_some() {
            return None;
        }
        let ledger = state.ledger.as_ref()?;
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

    /// Reads all that other coordinators wrote, since records that only they know of are not lost.
    fn see_all(&self, writer: &mut Writer, now: Instant) -> Result<(), StoreError> {
        if writer.store.followed().is_some() {
            writer.store.sync()?;
        }
        self.catch_up(writer, now)
    }

    /// Gives the store a new name and the state of one restored from a backup.
    fn begin_again(&self, writer: &mut Writer, now: Instant) -> Result<(), ApiError> {
        writer
            .store
            .set_restored()
            .and_then(|()| self.reload(writer, now))
            .map_err(|error| self.fail(writer, error, now))
    }
}
