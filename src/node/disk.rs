//! The state of this node on disk. One task writes it ([`Writer`]); this file decides what is handed to the task and when.
//!
//! Of each file at most one write is outstanding. What changes meanwhile is written after it.

use std::collections::BTreeSet;

use super::calling::Calling;
use super::changes::Changes;
use super::docker::Docker;
use super::names::Names;
use super::policy::PolicyInForce;
use super::replica::{Replica, WriteOutcome};
use super::state::Identity;
use super::state::writer::{Content, StateFile, Writer};
use super::unwritten::{Part, Unwritten};
use crate::os::audit::Audit;
use crate::os::clock;
use crate::protocol::local::Problem;

/// The task that writes, and what could not be written.
pub(super) struct Disk {
    pub(super) writer: Writer,
    unwritten: Unwritten,
    /// The number of lines of `records.jsonl` that were damaged at the start.
    damaged: usize,
    /// The changes that wait until they are on disk.
    pub(super) changes: Changes,
    /// The files whose write is outstanding.
    outstanding: BTreeSet<StateFile>,
    /// The log of events.
    pub(super) audit: Audit,
}

/// The problem of a log of events that cannot be written, or whose files cannot be put aside or removed.
pub(super) fn audit_problem(audit: &Audit) -> Option<Problem> {
    let unwritten = audit.fault().map(|why| Problem {
        what: format!(
            "the audit log is not written; {} event(s) are missing from it",
            audit.lost()
        ),
        why,
        fix: "make room on the file system of the state directory, and correct the rights of audit.jsonl in it; meshd tries again by itself".into(),
    });
    unwritten.or_else(|| {
        Some(Problem {
            what: "the audit log takes more room on the disk than it should".into(),
            why: format!("its files cannot be put aside or removed: {}", audit.excess()?),
            fix: "correct the rights of the state directory and of the files audit.jsonl.* in it; meshd tries again by itself with the next event".into(),
        })
    })
}

impl Disk {
    pub(super) fn new(writer: Writer, damaged: usize, audit: Audit) -> Self {
        Self {
            writer,
            unwritten: Unwritten::default(),
            damaged,
            changes: Changes::default(),
            outstanding: BTreeSet::new(),
            audit,
        }
    }

    /// A write for the replica ended.
    pub(super) fn handle_records(&mut self, outcome: &WriteOutcome, replica: &mut Replica) {
        for (part, result) in &outcome.results {
            self.unwritten.note(*part, result.clone());
        }
        replica.handle_written(outcome, clock::now());
    }

    /// The write of `file` ended.
    pub(super) fn handle_ended(&mut self, file: StateFile) {
        self.outstanding.remove(&file);
    }

    /// Notes the result of an attempt to write `part`.
    pub(super) fn note(&mut self, part: Part, result: Result<(), impl std::fmt::Display>) {
        self.unwritten.note(part, result);
    }

    /// Writes the content of a change. There is no other change before the end of this write.
    pub(super) fn write_change(&mut self, content: Content) {
        self.write(StateFile::Change, content);
    }

    /// Writes the identity, from which the tunnel's old key was removed.
    pub(super) fn remove_old_key(&mut self, identity: &Identity) {
        let content = Content::Identity(Box::new(identity.clone()));
        self.write(StateFile::OldKey, content);
    }

    /// Whether the disk has refused to remove the tunnel's old key.
    pub(super) fn has_old_key(&self) -> bool {
        self.unwritten.has(Part::OldKey)
    }

    /// Writes the addresses of containers, where they changed.
    pub(super) fn write_leases(&mut self, docker: &Docker) {
        match docker.unwritten() {
            Some(leases) => self.write(StateFile::Leases, Content::Leases(leases)),
            None => self.unwritten.note(Part::Leases, Ok::<(), &str>(())),
        }
    }

    /// Writes which service has which address, so that no address moves when meshd starts again. This is not done at each
    /// change: other members can cause changes, and each write costs the disk.
    pub(super) fn write_service_addresses(&mut self, names: &Names) {
        if let Some(addresses) = names.unwritten() {
            let content = Content::ServiceAddresses(addresses.clone());
            self.write(StateFile::ServiceAddresses, content);
        }
    }

    /// Writes the times of the last calls of members, if there were others. Members cause this, so it is not done at each call.
    pub(super) fn write_calls(&mut self, calling: &Calling) {
        if let Some(calls) = calling.received.unwritten() {
            self.write(StateFile::Calls, Content::Calls(calls));
        }
    }

    /// Writes the policy in force, if it changed.
    pub(super) fn write_policy(&mut self, policy: &PolicyInForce) {
        if let Some(record) = policy.unwritten() {
            let content = Content::Policy(Box::new(record.clone()));
            self.write(StateFile::Policy, content);
        }
    }

    fn write(&mut self, file: StateFile, content: Content) {
        if self.outstanding.insert(file) {
            self.writer.write_state(file, content);
        }
    }

    /// What could not be written.
    pub(super) fn unwritten(&self) -> impl Iterator<Item = Problem> {
        self.unwritten.problems()
    }

    /// The number of writes that failed since the start.
    pub(super) fn write_failures(&self) -> u64 {
        self.unwritten.failures()
    }

    /// What was lost on disk before the start.
    pub(super) fn lost(&self) -> Option<Problem> {
        (self.damaged > 0).then(|| Problem {
            what: "some records on disk were lost".into(),
            why: format!(
                "{} line(s) of records.jsonl were damaged and left out",
                self.damaged
            ),
            fix: "nothing, they come again from the coordinator; check the disk".into(),
        })
    }

    /// Whether a write is outstanding, besides those for the replica.
    pub(super) fn is_writing(&self) -> bool {
        !self.outstanding.is_empty()
    }

    /// Waits until all is written.
    pub(super) async fn stop(self) {
        self.writer.stop().await;
    }
}
