//! Joins: the ledger decides first, then the store, which spends a use of the token and leases a block.

use super::errors::{fault, no_mesh};
use super::members::Admitted as NodeAdmitted;
use super::refill::Phase;
use super::writer::{Turn, note_failure};
use crate::coordinator::enroll::{self, Proven, Refusal};
use crate::coordinator::store::{Admission, Admitted, StoreError};
use crate::model::time::UnixSeconds;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::join::{JoinCheck, JoinResponse};
use crate::records::{Envelope, RecordKey};

impl Turn<'_> {
    /// Admits a node. Waits for the disk.
    pub(super) fn join(&mut self, proven: &Proven) -> Result<JoinResponse, ApiError> {
        self.recover().map_err(fault)?;
        let mut attempt = 0;
        let (admission, admitted) = loop {
            self.catch_up().map_err(fault)?;
            let admission = self.examine_in_sync(proven)?;
            match self.writer.store.admit(&admission) {
                Ok(admitted) => break (admission, admitted),
                Err(StoreError::Behind) if self.writer.store.another_attempt(attempt) => {
                    attempt += 1;
                }
                Err(error) => return Err(self.refuse_admission(error)),
            }
        };
        self.apply_admission(proven, &admission, admitted)
    }

    /// Examines a join as [`Turn::join`] does, and changes nothing.
    pub(super) fn check_join(&mut self, proven: &Proven) -> Result<JoinCheck, ApiError> {
        self.catch_up().map_err(fault)?;
        let admission = self.examine_in_sync(proven)?;
        let state = self.view.read();
        let ledger = state.ledger.as_ref().ok_or_else(no_mesh)?;
        let keys = [RecordKey::Mesh, RecordKey::Token(admission.token)];
        let entries = keys.iter().filter_map(|key| ledger.entry(key));
        Ok(JoinCheck {
            records: entries.map(|entry| entry.envelope.clone()).collect(),
        })
    }

    /// Updates the memory after the store has admitted a node, and makes the response.
    fn apply_admission(
        &mut self,
        proven: &Proven,
        admission: &Admission,
        admitted: Admitted,
    ) -> Result<JoinResponse, ApiError> {
        let internal = |text: String| ApiError::new(ErrorCode::Internal, text);
        let mut state = self.view.write();
        let state = &mut *state;
        let ledger = state.ledger.as_mut().ok_or_else(no_mesh)?;
        // Nobody else writes meanwhile, so the ledger accepts what it accepted when the join was examined.
        ledger
            .replace_authentic(proven.envelope().clone())
            .map_err(|why| internal(why.to_string()))?;
        let block = ledger
            .mesh()
            .and_then(|mesh| mesh.addresses.block(admitted.block))
            .ok_or_else(|| internal("the leased block is outside the address plan".to_owned()))?;
        let keys = [
            RecordKey::Mesh,
            RecordKey::Token(admission.token),
            RecordKey::Membership(admission.node),
            // The node keeps to the policy from its first packet on.
            RecordKey::Policy,
        ];
        let entries = keys.iter().filter_map(|key| ledger.entry(key));
        let records = entries.map(|entry| entry.envelope.clone()).collect();
        state.former.remove(&admission.node);
        if admitted.revision > state.revision {
            state.changes.push(admitted.revision, admission.key.clone());
            state.revision = admitted.revision;
            self.view.revision.send_replace(state.revision);
            let admitted = NodeAdmitted {
                node: &admission.name,
                id: admission.node,
                token: admission.token,
                block: block.v4,
                by: &self.by,
            };
            self.view.setup.audit.note(&admitted);
        }
        Ok(JoinResponse {
            block,
            records,
            revision: admitted.revision,
        })
    }

    /// The request to the store for a join that the ledger grants. A join that would be refused is examined again once all that
    /// other coordinators wrote is known: what it lacks, or what frees its name, may be on its way.
    fn examine_in_sync(&mut self, proven: &Proven) -> Result<Admission, ApiError> {
        match self.examine(proven) {
            Err(_) if self.sync().map_err(fault)? => self.examine(proven),
            examined => examined,
        }
    }

    fn examine(&mut self, proven: &Proven) -> Result<Admission, ApiError> {
        self.permit_after_restore(proven)?;
        let state = self.view.read();
        let ledger = state.ledger.as_ref().ok_or_else(no_mesh)?;
        let granted = enroll::check(proven, ledger, UnixSeconds::from_system(self.now.wall))?;
        Ok(Admission {
            node: granted.membership.id,
            key: RecordKey::Membership(granted.membership.id),
            name: granted.membership.name,
            token: granted.membership.token,
            uses: granted.uses,
            blocks: granted.addresses.block_count(),
            envelope: Envelope::clone(proven.envelope()),
        })
    }

    /// Refuses a join for which a store that is being refilled may lack earlier admissions by the same token.
    fn permit_after_restore(&mut self, proven: &Proven) -> Result<(), ApiError> {
        let busy = |text: String| Err(ApiError::new(ErrorCode::Busy, text));
        let (phase, is_held) = {
            let state = self.view.read();
            let phase = state.phase(self.now.monotonic);
            (phase, state.holds(proven.envelope()))
        };
        match phase {
            None => Ok(()),
            Some(Phase::Over) => {
                self.writer.store.set_refilled().map_err(fault)?;
                self.view.write().refill = None;
                tracing::info!(
                    "the nodes have sent what happened since the backup; tokens admit nodes as usual"
                );
                Ok(())
            }
            // A node that was granted the same before the backup receives it from the backup.
            Some(_) if is_held => Ok(()),
            Some(Phase::Nobody(left)) => busy(format!(
                "the coordinator was restored from a backup and first hears from its nodes what has happened since; try again in {} s",
                left.as_secs() + 1
            )),
            Some(Phase::NewTokens(_) | Phase::Alone) => {
                let token = &proven.envelope().signer;
                if self.writer.store.is_issued_here(token).map_err(fault)? {
                    return Ok(());
                }
                busy(
                    "the coordinator was restored from a backup and does not know yet whether this token was spent since; make a new one with `meshctl token create`, or try again when the nodes are back".to_owned(),
                )
            }
        }
    }

    /// The error for a node that the store did not admit.
    fn refuse_admission(&self, error: StoreError) -> ApiError {
        match error {
            StoreError::NameTaken(name) => {
                let state = self.view.read();
                match &state.ledger {
                    Some(ledger) => Refusal::name_taken(ledger, &name).into(),
                    None => no_mesh(),
                }
            }
            StoreError::TokenSpent(_) => ApiError::new(ErrorCode::Forbidden, error.to_string()),
            StoreError::NoBlock(_) => ApiError::new(ErrorCode::Conflict, error.to_string()),
            StoreError::Behind => fault(error),
            StoreError::Full | StoreError::Failed(_) => {
                note_failure(self.view, &error);
                fault(error)
            }
        }
    }
}
