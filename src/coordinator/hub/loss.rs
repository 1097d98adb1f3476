//! Detects that the store has lost records: its file was replaced by an older copy, the machine's disk was reset to a
//! snapshot, or the file was deleted. SQLite does not report that. Either of two things proves it, and no node can forge them:
//!
//! - a member's mark, which states that this store had a later revision;
//! - a record signed by the mesh key that the store does not hold. All such records come from the administrator through the
//!   coordinator, so the store held this one before any node did.
//!
//! The store is then treated as one restored from a backup with `mesh-coordinator restore`. It gets a new name, so nodes offer
//! all records that they hold. Marks that carry the old name prove nothing more, so each loss is detected only once.

use super::errors::fault;
use super::state::State;
use super::view::View;
use super::writer::Turn;
use crate::coordinator::marks::Mark;
use crate::model::PublicKey;
use crate::os::audit::{Event, Text, What, Who};
use crate::protocol::api::ApiError;
use crate::records::envelope::Authentic;

impl View {
    /// A mark for `node` at the store's present revision, if `node` is a member.
    #[must_use]
    pub fn mark_of(&self, node: &PublicKey) -> Option<String> {
        let state = self.read();
        let ledger = state.ledger.as_ref()?;
        (ledger.membership(node).is_some() && !ledger.is_revoked(node))
            .then(|| self.setup.marks.make(node, &state.store_id, state.revision))
    }

    /// Handles a mark that a stream of `node` returned. True if the mark states a later revision than the hub knows; then
    /// [`super::Hub::examine_loss`] has to find out whether the store has lost records.
    pub fn handle_mark(&self, node: &PublicKey, mark: &str) -> bool {
        let Some(mark) = self.setup.marks.read(node, mark) else {
            return false;
        };
        let mut state = self.write();
        state.handle_former(*node);
        is_behind(&state, &mark)
    }
}

impl Turn<'_> {
    /// Treats the store as restored from a backup, if this mark proves that it went back in time.
    pub(super) fn examine_loss(&mut self, node: &PublicKey, mark: &str) -> Result<(), ApiError> {
        let Some(mark) = self.view.setup.marks.read(node, mark) else {
            return Ok(());
        };
        self.recover().map_err(fault)?;
        self.see_all().map_err(|error| self.fail(error))?;
        let ours = {
            let state = self.view.read();
            if !is_behind(&state, &mark) {
                return Ok(());
            }
            state.revision
        };
        tracing::error!(
            node = node.short(),
            theirs = mark.revision,
            ours,
            "the store went back in time: was its file replaced by an older copy?"
        );
        let theirs = mark.revision;
        self.begin_again(&format!(
            "it has revision {ours}, and a node proves revision {theirs}"
        ))
    }

    /// Treats the store as restored from a backup, if it lacks one of `records` that the mesh key signed.
    pub(super) fn notice_loss(&mut self, records: &[Authentic]) -> Result<(), ApiError> {
        if self.view.read().lacked(records).is_none() {
            return Ok(());
        }
        self.recover().map_err(fault)?;
        self.see_all().map_err(|error| self.fail(error))?;
        let Some(lacked) = self.view.read().lacked(records) else {
            return Ok(());
        };
        tracing::error!(
            record = %lacked,
            "the store lacks a record that the administrator signed: was its file deleted, or replaced by an older copy?"
        );
        self.begin_again(&format!("it lacks the record {lacked}"))
    }

    /// Gives the store a new name and the state of one restored from a backup.
    fn begin_again(&mut self, why: &str) -> Result<(), ApiError> {
        let reason = Text::from(why);
        let event = Event::done(Who::Daemon, What::StoreWentBack { reason });
        self.view.setup.audit.record(event);
        let restored = self.writer.store.set_restored();
        restored
            .and_then(|()| self.reload())
            .map_err(|error| self.fail(error))
    }
}

fn is_behind(state: &State, mark: &Mark) -> bool {
    mark.store == state.store_id && mark.revision > state.revision
}
