//! Notices that the store has lost something: its file was replaced by an older copy, the machine's disk went back to a
//! snapshot, or the file was deleted. SQLite says nothing of that. Two things prove it, and nobody can make them up:
//!
//! - a member's mark, which says that this very store had a later revision;
//! - a record signed by the mesh key that the store does not hold: all such records come through the administrator's call,
//!   so the store had it before any node did.
//!
//! The store is then what it would be after `mesh-coordinator restore` of a backup: another store, to which nodes tell all
//! they hold. Marks of the store that it was prove nothing more, so one loss is noticed once.

use super::{Hub, Standing, Writer, fault};
use crate::coordinator::marks::Mark;
use crate::coordinator::store::StoreError;
use crate::model::PublicKey;
use crate::model::record::Record;
use crate::wire::api::ApiError;
use crate::wire::envelope::Authentic;

impl Hub {
    /// The mark of `node`, if it is a member.
    #[must_use]
    pub fn mark_of(&self, node: &PublicKey) -> Option<String> {
        let state = self.read();
        let ledger = state.ledger.as_ref()?;
        (ledger.membership(node).is_some() && !ledger.is_revoked(node))
            .then(|| self.setup.marks.make(node, &state.store_id, state.revision))
    }

    /// A stream of `node` returned its mark. True if the mark may prove that the store went back, which
    /// [`Hub::examine_loss`] is to find out.
    pub fn handle_mark(&self, node: &PublicKey, mark: &str) -> bool {
        let Some(mark) = self.setup.marks.read(node, mark) else {
            return false;
        };
        if self.standing(node) == Standing::Stranger {
            self.write().former.insert(*node);
        }
        self.is_behind(&mark)
    }

    /// Makes the store another one if it went back in time by this mark. Waits for the disk.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn examine_loss(&self, node: &PublicKey, mark: &str) -> Result<(), ApiError> {
        let Some(mark) = self.setup.marks.read(node, mark) else {
            return Ok(());
        };
        let mut writer = self.writer();
        self.recover(&mut writer).map_err(fault)?;
        self.see_all(&mut writer)
            .map_err(|error| self.fail(&mut writer, error))?;
        if !self.is_behind(&mark) {
            return Ok(());
        }
        tracing::error!(
            node = node.short(),
            theirs = mark.revision,
            ours = self.revision(),
            "the store went back in time: was its file replaced by an older copy?"
        );
        self.begin_again(&mut writer)
    }

    fn is_behind(&self, mark: &Mark) -> bool {
        let state = self.read();
        mark.store == state.store_id && mark.revision > state.revision
    }

    /// Makes the store another one if it lacks what the mesh key signed.
    pub(super) fn notice_loss(
        &self,
        writer: &mut Writer,
        records: &[Authentic],
    ) -> Result<(), ApiError> {
        if self.lacked(records).is_none() {
            return Ok(());
        }
        self.recover(writer).map_err(fault)?;
        self.see_all(writer)
            .map_err(|error| self.fail(writer, error))?;
        let Some(lacked) = self.lacked(records) else {
            return Ok(());
        };
        tracing::error!(
            record = lacked,
            "the store lacks what the administrator signed: was its file deleted, or replaced by an older copy?"
        );
        self.begin_again(writer)
    }

    /// The first of `records` that the mesh key signed and that the store should have had.
    fn lacked(&self, records: &[Authentic]) -> Option<String> {
        let state = self.read();
        // Until the nodes have told, it is known to lack something.
        if state.refill.is_some() {
            return None;
        }
        let ledger = state.ledger.as_ref()?;
        for record in records.iter().filter(|r| r.signer == ledger.mesh_key()) {
            if ledger.holds(record) {
                continue;
            }
            if ledger.check_authentic(record).is_ok() {
                let (header, _) = Record::parse(&record.payload).ok()?;
                return Some(format!("{} {}", header.kind, header.id));
            }
        }
        None
    }

    /// What other coordinators wrote is no loss.
    fn see_all(&self, writer: &mut Writer) -> Result<(), StoreError> {
        if writer.store.followed().is_some() {
            writer.store.sync()?;
        }
        self.catch_up(writer)
    }

    fn begin_again(&self, writer: &mut Writer) -> Result<(), ApiError> {
        writer
            .store
            .set_restored()
            .and_then(|()| self.reload(writer))
            .map_err(|error| self.fail(writer, error))
    }
}
