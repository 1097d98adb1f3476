//! Decides what is written to disk and when.
//!
//! At most one write is outstanding. All that changes meanwhile goes into the next one, so that the number of writes follows
//! the speed of the disk, and the memory for what waits is bounded by the size of the ledger. A write that failed is tried
//! again after [`RETRY_PAUSE`].
//!
//! Records of this node are sent to others only after they are on disk ([`Storage::own_write`]). Otherwise a node that crashes
//! would find a newer record with its own key in the mesh after its restart. A disk that refuses the records does not delay
//! them any further: a full disk must not silence the node.

use std::time::{Duration, Instant};

use super::effect::{RecordsWrite, WriteOutcome, WriteRequest};
use super::newcomers::{InStep, Newcomers};
use super::position::Position;
use crate::node::unwritten::Part;
use crate::records::{Envelope, Ledger};

/// The pause before a write that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// The shortest time between two writes of the lists of newcomers. Each of them writes all lists.
const NEWCOMERS_INTERVAL: Duration = Duration::from_secs(1);
/// `records.jsonl` is replaced when it has more than three times as many lines as there are records, and more than this.
const SLACK_LINES: usize = 1024;

/// The write that is outstanding.
#[derive(Debug)]
struct Outstanding {
    has_records: bool,
    /// The revision of the lists of newcomers, if they are written.
    newcomers: Option<u64>,
    position: Option<Position>,
    in_step: Option<InStep>,
}

/// What is to be written, and the write that is outstanding.
#[derive(Debug)]
pub(super) struct Storage {
    /// Records that are to be appended.
    new: Vec<Envelope>,
    /// Whether all records are to be written instead.
    all: bool,
    /// The lines of `records.jsonl`.
    lines: usize,
    position: Option<Position>,
    in_step: Option<InStep>,
    newcomers_written: Option<Instant>,
    outstanding: Option<Outstanding>,
    /// The number of the last write that was begun.
    begun: u64,
    /// The number of the write that contains the newest records of this node, until it ended.
    own_write: Option<u64>,
    /// When a write that failed is tried again.
    retry_at: Option<Instant>,
}

impl Storage {
    /// Creates the state for a file with `lines` lines. With `is_whole` being false the file lacks records of the ledger.
    pub(super) fn new(lines: usize, is_whole: bool) -> Self {
        Self {
            new: Vec::new(),
            all: !is_whole,
            lines,
            position: None,
            in_step: None,
            newcomers_written: None,
            outstanding: None,
            begun: 0,
            own_write: None,
            retry_at: None,
        }
    }

    /// The ledger has accepted `records`. With `are_own` they are records of this node.
    pub(super) fn add(&mut self, records: &[Envelope], are_own: bool, ledger: &Ledger) {
        if !self.all {
            self.new.extend_from_slice(records);
            if self.lines + self.new.len() > ledger.len() * 3 + SLACK_LINES {
                self.all = true;
            }
        }
        if self.all {
            self.new.clear();
        }
        // While the disk refuses records, they are sent without it. A write that is tried again may still succeed.
        let is_refusing = self.retry_at.is_some() && self.outstanding.is_none();
        if are_own && !is_refusing {
            self.own_write = Some(self.begun + 1);
        }
    }

    /// This node has reached `position`.
    pub(super) fn set_position(&mut self, position: Position) {
        self.position = Some(position);
    }

    /// This node is in step with a coordinator.
    pub(super) fn set_in_step(&mut self, in_step: InStep) {
        self.in_step = Some(in_step);
    }

    /// The number of the write that has to end before the newest records of this node may be sent. None if they may be sent
    /// now.
    pub(super) fn own_write(&self) -> Option<u64> {
        self.own_write
    }

    /// Whether a write is outstanding.
    pub(super) fn is_writing(&self) -> bool {
        self.outstanding.is_some()
    }

    /// The next write, if one is due.
    pub(super) fn poll(
        &mut self,
        ledger: &Ledger,
        newcomers: &Newcomers,
        now: Instant,
    ) -> Option<WriteRequest> {
        if self.outstanding.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        let records = if self.all {
            Some(RecordsWrite::All(ledger.envelopes().cloned().collect()))
        } else if self.new.is_empty() {
            None
        } else {
            Some(RecordsWrite::Append(std::mem::take(&mut self.new)))
        };
        self.all = false;
        let is_recent = |at: Instant| now.saturating_duration_since(at) < NEWCOMERS_INTERVAL;
        let is_late = !self.newcomers_written.is_some_and(is_recent);
        let lists = newcomers.unwritten().filter(|_| is_late);
        let mut request = WriteRequest {
            records,
            ..WriteRequest::default()
        };
        if lists.is_some() || newcomers.is_written() {
            request.position = self.position.take();
            request.in_step = self.in_step.take();
        }
        let revision = lists.as_ref().map(|(revision, _)| *revision);
        request.newcomers = lists.map(|(_, lists)| lists);
        if request == WriteRequest::default() {
            return None;
        }
        if revision.is_some() {
            self.newcomers_written = Some(now);
        }
        self.begun += 1;
        self.outstanding = Some(Outstanding {
            has_records: request.records.is_some(),
            newcomers: revision,
            position: request.position.clone(),
            in_step: request.in_step.clone(),
        });
        Some(request)
    }

    /// The outstanding write ended. Messages that waited for a write with the returned number, or for an earlier one, may be
    /// sent now.
    pub(super) fn handle_written(
        &mut self,
        outcome: &WriteOutcome,
        newcomers: &mut Newcomers,
        now: Instant,
    ) -> u64 {
        self.lines = outcome.record_lines;
        let Some(written) = self.outstanding.take() else {
            return 0;
        };
        // A part that was not tried is still to be written, unless it changed meanwhile.
        if written.has_records && !outcome.is_written(Part::Records) {
            self.all = true;
            self.new.clear();
        }
        if let (Some(revision), true) = (written.newcomers, outcome.is_written(Part::Newcomers)) {
            newcomers.handle_written(revision);
        }
        if !outcome.is_written(Part::Position) {
            self.position = self.position.take().or(written.position);
        }
        if !outcome.is_written(Part::InStep) {
            self.in_step = self.in_step.take().or(written.in_step);
        }
        let has_failed = outcome.results.iter().any(|(_, result)| result.is_err());
        self.retry_at = has_failed.then(|| now + RETRY_PAUSE);
        let ended = if has_failed { u64::MAX } else { self.begun };
        self.own_write = self.own_write.filter(|number| *number > ended);
        ended
    }
}
