//! Records that nodes and the administrator send: each is checked, applied in memory, and written. If the write fails, the memory
//! returns to what is on disk.

use super::claims::{self, Arrival};
use super::effects::effect_of;
use super::errors::{fault, no_mesh};
use super::members::{Administered, Caused, NamesBefore, Submitted};
use super::published::{PublishRefused, Published};
use super::writer::{Turn, note_failure};
use crate::coordinator::store::{StoreError, Write};
use crate::model::PublicKey;
use crate::protocol::admin::Submit;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::records::batch::batches;
use crate::records::envelope::Authentic;
use crate::records::kinds::RecordKey;
use crate::records::ledger::{Refused, Replaced, verified};
use crate::records::{Envelope, Ledger};

/// The sender of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A stream of this node.
    Stream(PublicKey),
    /// The store, which has the departure of this node that stays away.
    Absence(PublicKey),
    Administrator,
}

impl Turn<'_> {
    /// Takes signed records of the administrator in, all or none, and the mesh key the first time.
    pub(super) fn submit(&mut self, submit: Submit) -> Result<u64, ApiError> {
        self.catch_up().map_err(fault)?;
        let held = self.view.read().ledger.as_ref().map(Ledger::mesh_key);
        let new = match (held, submit.mesh_key) {
            (None, None) => return Err(no_mesh()),
            (Some(held), Some(offered)) if held != offered => {
                return Err(ApiError::new(
                    ErrorCode::Conflict,
                    format!(
                        "this coordinator serves the mesh {} already; use that mesh's key, or give the new mesh a coordinator of its own",
                        held.short()
                    ),
                ));
            }
            (None, Some(key)) => Some(Ledger::new(key)),
            (Some(_), _) => None,
        };
        match (&new, &self.view.read().ledger) {
            (Some(ledger), _) | (None, Some(ledger)) => rehearse(ledger, &submit.records)?,
            (None, None) => return Err(no_mesh()),
        }
        if let Some(ledger) = new {
            // A key without records does no harm if the next write fails: the administrator runs `init` again.
            let stored = self.writer.store.set_mesh_key(&ledger.mesh_key());
            stored
                .inspect_err(|error| note_failure(self.view, error))
                .map_err(fault)?;
            self.view.write().ledger = Some(ledger);
        }
        let records = submit.records.into_iter().map(verified);
        let records: Result<Vec<Authentic>, Refused> = records.collect();
        let records = records.map_err(is_refused)?;
        let published = self.take_in(records, Origin::Administrator)?;
        match published.refused.into_iter().next() {
            Some((_, why)) => Err(ApiError::new(ErrorCode::Conflict, why.to_string())),
            None => Ok(self.view.revision()),
        }
    }

    /// Accepts records in as many writes as the store's bounds require.
    pub(super) fn take_in(
        &mut self,
        records: Vec<Authentic>,
        origin: Origin,
    ) -> Result<Published, ApiError> {
        self.recover().map_err(fault)?;
        let mut published = Published::default();
        let bounds = self.writer.store.bounds();
        for part in batches(records, bounds.records, bounds.bytes) {
            let mut attempt = 0;
            let taken = loop {
                let taken = self
                    .catch_up()
                    .and_then(|()| self.take_in_part(&part, origin));
                match taken {
                    Err(StoreError::Behind) if self.writer.store.another_attempt(attempt) => {
                        attempt += 1;
                    }
                    taken => break taken,
                }
            };
            let taken = taken.map_err(|error| self.fail(error))?;
            let audit = &self.view.setup.audit;
            for record in &taken.administered {
                audit.note(&Submitted(record, &self.by));
            }
            for change in &taken.changes {
                audit.note(&Caused(change, &self.by));
            }
            published.accepted += taken.accepted;
            published.has_events |= !(taken.administered.is_empty() && taken.changes.is_empty());
            published.refused.extend(taken.refused);
        }
        Ok(published)
    }

    /// Accepts records in one write.
    fn take_in_part(
        &mut self,
        records: &[Authentic],
        origin: Origin,
    ) -> Result<Published, StoreError> {
        let arrival = Arrival {
            now: self.now,
            phase: self.view.read().phase(self.now.monotonic),
        };
        let names = NamesBefore::note(self.view.read().ledger.as_ref(), records);
        let mut published = Published::default();
        let (mut writes, mut replaced) = (Vec::new(), Vec::new());
        for envelope in records {
            match self.apply(envelope, origin, &arrival)? {
                Ok(Some((write, before))) => {
                    writes.push(write);
                    replaced.push(before);
                }
                Ok(None) => {}
                Err(refused) => published.refused.push((envelope.key(), refused)),
            }
        }
        if writes.is_empty() {
            return Ok(published);
        }
        let last = match self.writer.store.put(&writes) {
            Err(StoreError::Behind) => {
                self.undo(replaced)?;
                return Err(StoreError::Behind);
            }
            last => last?,
        };
        published.accepted = u32::try_from(writes.len()).unwrap_or(u32::MAX);
        let mut state = self.view.write();
        if let Some(ledger) = &state.ledger {
            let absent = match origin {
                Origin::Absence(node) => Some(node),
                Origin::Stream(_) | Origin::Administrator => None,
            };
            published.changes = names.changes(ledger, &writes, absent);
            if origin == Origin::Administrator {
                let records = writes.iter().zip(&replaced);
                let records = records.filter_map(|(write, replaced)| {
                    Administered::of(ledger, &write.key, replaced.is_first())
                });
                published.administered = records.collect();
            }
        }
        let first = last.saturating_sub(writes.len() as u64) + 1;
        for (revision, write) in (first..).zip(writes) {
            if let RecordKey::Membership(node) = &write.key {
                state.former.remove(node);
            }
            state.changes.push(revision, write.key);
        }
        state.revision = last;
        self.view.revision.send_replace(last);
        Ok(published)
    }

    /// Applies one record in memory. If it is new, returns the write for it and what it replaced.
    fn apply(
        &mut self,
        envelope: &Authentic,
        origin: Origin,
        arrival: &Arrival,
    ) -> Result<Result<Option<(Write, Replaced)>, PublishRefused>, StoreError> {
        if self.view.read().holds(envelope) {
            return Ok(Ok(None));
        }
        let permitted = match origin {
            Origin::Stream(sender) | Origin::Absence(sender) => {
                let store = &mut *self.writer.store;
                claims::permit_on_stream(self.view, store, &sender, envelope, arrival)?
            }
            Origin::Administrator => match claims::left_out(&self.view.read(), envelope) {
                Some(member) => Err(PublishRefused::LeftOut(member)),
                None => Ok(()),
            },
        };
        if let Err(refused) = permitted {
            return Ok(Err(refused));
        }
        let mut state = self.view.write();
        let Some(ledger) = &mut state.ledger else {
            return Ok(Err(Refused::NoMesh.into()));
        };
        Ok(match ledger.replace_authentic(envelope.clone()) {
            Ok(None) => Ok(None),
            Err(refused) => Err(refused.into()),
            Ok(Some(replaced)) => {
                let write = Write {
                    effect: effect_of(ledger, &replaced, origin == Origin::Administrator),
                    key: replaced.key().clone(),
                    envelope: Envelope::clone(envelope),
                    gone: replaced.dropped().to_vec(),
                };
                Ok(Some((write, replaced)))
            }
        })
    }
}

/// Whether `ledger` would accept all of `records`.
fn rehearse(ledger: &Ledger, records: &[Envelope]) -> Result<(), ApiError> {
    if let [record] = records {
        return ledger.check(record).map_err(is_refused);
    }
    // Several records may depend on each other.
    let mut rehearsal = ledger.clone();
    for record in records {
        rehearsal.apply(record.clone()).map_err(is_refused)?;
    }
    Ok(())
}

fn is_refused(why: Refused) -> ApiError {
    ApiError::new(ErrorCode::Conflict, format!("a record is refused: {why}"))
}
