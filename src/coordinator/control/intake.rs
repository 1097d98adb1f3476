//! Processes the records of one `publish`, in steps that the node's allowance permits.

use std::collections::VecDeque;
use std::time::Instant;

use super::allowance::{Allowances, Signer};
use super::end::End;
use super::messages::refused_records;
use super::served::Served;
use super::unverified::Unverified;
use crate::coordinator::hub::{Hub, PublishRefused, Published, Screened, Standing};
use crate::model::PublicKey;
use crate::os::clock;
use crate::protocol::api::ApiError;
use crate::protocol::control::{FromCoordinator, MAX_RECORDS, Refusal};
use crate::records::Envelope;
use crate::records::envelope::MAX_PAYLOAD;
use crate::records::ledger::Refused;

/// The maximum number of records that are verified and written in one step.
const STEP: usize = 64;

/// The records of a `publish` that are not processed yet, and the results for those that are.
#[derive(Debug)]
pub(super) struct Intake {
    node: PublicKey,
    sequence: u64,
    /// Records that have to be verified and written.
    queue: VecDeque<Envelope>,
    /// Records of an unverified node that do not prove its membership. They are processed once it is a member.
    rest: Vec<Envelope>,
    published: Published,
    /// Set if the store could not be written.
    failed: Option<ApiError>,
}

/// The result of one step.
pub(super) enum Step {
    /// More records are left.
    Again,
    /// The node has used up its allowance until this time.
    Wait(Instant),
    /// All records are processed; this is the answer.
    Done(FromCoordinator),
}

impl Intake {
    /// Begins to process the records of a message.
    ///
    /// # Errors
    /// The message breaks a limit of the protocol, so the stream ends.
    pub(super) fn new(
        hub: &Hub,
        node: PublicKey,
        sequence: u64,
        records: Vec<Envelope>,
        unverified: Option<&mut Unverified>,
    ) -> Result<Self, End> {
        if records.len() > MAX_RECORDS {
            return Err(protocol(format!(
                "a message carries at most {MAX_RECORDS} records"
            )));
        }
        if let Some(long) = records
            .iter()
            .find(|record| record.payload.len() > MAX_PAYLOAD)
        {
            return Err(protocol(Refused::TooLong(long.payload.len()).to_string()));
        }
        let mut intake = Self {
            node,
            sequence,
            queue: VecDeque::new(),
            rest: Vec::new(),
            published: Published::default(),
            failed: None,
        };
        match unverified {
            None => intake.screen(hub, records),
            Some(unverified) => {
                let (proofs, rest) = records
                    .into_iter()
                    .partition(|record| unverified.may_prove(hub, &node, record));
                intake.rest = rest;
                intake.screen(hub, proofs);
            }
        }
        Ok(intake)
    }

    /// Drops or refuses the records for which that takes no verification, and queues the others.
    fn screen(&mut self, hub: &Hub, records: Vec<Envelope>) {
        for record in records {
            match hub.screen(&record) {
                Screened::Held => {}
                Screened::Refused(why) => self.note_refused(&record, why),
                Screened::Unverified => self.queue.push_back(record),
            }
        }
    }

    fn note_refused(&mut self, record: &Envelope, why: Refused) {
        let refused = (record.key(), PublishRefused::Ledger(why));
        self.published.refused.push(refused);
    }

    /// Processes as many records as the allowance permits now.
    ///
    /// # Errors
    /// A record is forged, so the stream ends.
    pub(super) async fn advance(&mut self, served: &Served) -> Result<Step, End> {
        let hub = &served.hub;
        if self.queue.is_empty() && !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            if hub.standing(&self.node) == Standing::Member {
                self.screen(hub, rest);
            } else {
                rest.iter()
                    .for_each(|record| self.note_refused(record, Refused::NotAMember));
            }
        }
        let is_member = hub.standing(&self.node) == Standing::Member;
        let now = Instant::now();
        let mut step = Vec::new();
        while let Some(next) = self.queue.front()
            && step.len() < STEP
        {
            // For an unverified node, `Unverified::may_prove` has limited the number of records in the queue.
            if is_member && let Err(later) = self.take(&served.allowances, next, now) {
                if step.is_empty() {
                    return Ok(Step::Wait(later));
                }
                break;
            }
            step.extend(self.queue.pop_front());
        }
        if step.is_empty() {
            return Ok(Step::Done(self.answer()));
        }
        let node = self.node;
        let write = move |hub: &Hub| hub.publish(&node, step, clock::now());
        let taken = if is_member {
            served.write(write).await
        } else {
            served.write_for_unverified(write).await
        };
        match taken {
            Ok(published) if published.reasons().any(is_forged) => {
                return Err(protocol("a record's signature does not hold".to_owned()));
            }
            Ok(published) => {
                self.published.accepted += published.accepted;
                self.published.refused.extend(published.refused);
            }
            Err(error) => {
                self.failed = Some(error);
                self.queue.clear();
                self.rest.clear();
            }
        }
        Ok(Step::Again)
    }

    fn take(
        &self,
        allowances: &Allowances,
        record: &Envelope,
        now: Instant,
    ) -> Result<(), Instant> {
        let signer = if record.signer == self.node {
            Signer::Itself
        } else {
            Signer::Another
        };
        allowances.take(self.node, signer, now)
    }

    /// The reason why a record may be accepted only later, if there is such a record.
    pub(super) fn later(&self) -> Option<String> {
        let is_later = |refused: &&PublishRefused| matches!(refused, PublishRefused::NotYet(_));
        let later = self.published.reasons().find(is_later);
        later.map(ToString::to_string)
    }

    fn answer(&mut self) -> FromCoordinator {
        let published = std::mem::take(&mut self.published);
        match self.failed.take() {
            None => FromCoordinator::Published {
                sequence: self.sequence,
                accepted: published.accepted,
                refused: published.reasons().map(ToString::to_string).collect(),
                refused_records: refused_records(published),
                failed: false,
            },
            Some(error) => FromCoordinator::Published {
                sequence: self.sequence,
                accepted: 0,
                refused: vec![error.message],
                refused_records: Vec::new(),
                failed: true,
            },
        }
    }
}

/// Whether the stream ends because of this refusal: the sender did not verify what it sent.
fn is_forged(refused: &PublishRefused) -> bool {
    matches!(
        refused,
        PublishRefused::Ledger(Refused::Signature | Refused::TooLong(_))
    )
}

fn protocol(message: String) -> End {
    End::Refuse(Refusal::Protocol, message)
}
