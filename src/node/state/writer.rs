//! The task that writes the state of a node to disk, so that the agent never waits for the disk.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::records::RecordLog;
use super::{Identity, StateDir, StateError, calls, policy};
use crate::containers::ContainerId;
use crate::model::PublicKey;
use crate::node::replica::{RecordsWrite, WriteOutcome, WriteRequest};
use crate::node::unwritten::Part;
use crate::os::tasks::{TaskHandle, Tasks};
use crate::records::Envelope;
use crate::records::service_address::ServiceAddresses;
use crate::services::registry::StoredServices;

/// The maximum number of requests that wait. The replica has one outstanding, as has each [`StateFile`].
const MAX_REQUESTS: usize = 8;
/// How long the agent waits for the disk when it stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A file of the state, besides those of the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::node) enum StateFile {
    /// The identity, or the services that were added with `meshctl service add`: the caller of a change is waiting until the
    /// file is written.
    Change,
    /// The identity without the former key of the tunnel.
    OldKey,
    /// The addresses of containers.
    Leases,
    /// The service address of each service.
    ServiceAddresses,
    /// The time of the last call of each member.
    Calls,
    /// The record of the policy in force.
    Policy,
}

/// The new content of a file.
#[derive(Debug)]
pub(in crate::node) enum Content {
    Identity(Box<Identity>),
    Services(StoredServices),
    Leases(BTreeMap<ContainerId, Ipv4Addr>),
    ServiceAddresses(ServiceAddresses),
    Calls(BTreeMap<PublicKey, u64>),
    Policy(Box<Envelope>),
}

/// A request to the task.
#[derive(Debug)]
enum Request {
    Replica(WriteRequest),
    State(StateFile, Content),
}

/// The outcome of a request.
#[derive(Debug)]
pub(in crate::node) enum Written {
    /// For the replica.
    Replica(WriteOutcome),
    /// For a file of the state, with its content.
    State(StateFile, Content, Result<(), StateError>),
}

/// The handle of the task, which ends after this value is dropped and the last request is carried out.
#[derive(Debug)]
pub(in crate::node) struct Writer {
    requests: mpsc::Sender<Request>,
    task: TaskHandle,
}

impl Writer {
    /// Starts the task. The receiver returns the outcomes, one for each request, in the same order.
    pub(in crate::node) fn start(log: RecordLog, dir: StateDir) -> (Self, mpsc::Receiver<Written>) {
        let (requests, mut waiting) = mpsc::channel(MAX_REQUESTS);
        let (sender, outcomes) = mpsc::channel(MAX_REQUESTS);
        let mut files = Files { log, dir };
        let write = move || {
            while let Some(request) = waiting.blocking_recv() {
                if sender.blocking_send(files.carry_out(request)).is_err() {
                    return;
                }
            }
        };
        let task = async move { tokio::task::spawn_blocking(write).await };
        let task = Tasks::current().spawn_finite("disk writer", task);
        (Self { requests, task }, outcomes)
    }

    /// Sends a request of the replica to the task.
    pub(in crate::node) fn write(&self, request: WriteRequest) {
        self.send(Request::Replica(request));
    }

    /// Sends the new content of a file to the task.
    pub(in crate::node) fn write_state(&self, file: StateFile, content: Content) {
        self.send(Request::State(file, content));
    }

    fn send(&self, request: Request) {
        // At most one request of each kind is outstanding, so the channel has room, unless the task has ended.
        if self.requests.try_send(request).is_err() {
            tracing::error!("the task that writes to disk has ended");
        }
    }

    /// Waits until all requests are carried out.
    pub(in crate::node) async fn stop(mut self) {
        drop(self.requests);
        if timeout(STOP_TIMEOUT, self.task.ended()).await.is_err() {
            tracing::warn!("the disk does not answer; the last changes are not written");
        }
    }
}

/// The files that the task writes.
struct Files {
    log: RecordLog,
    dir: StateDir,
}

impl Files {
    fn carry_out(&mut self, request: Request) -> Written {
        match request {
            Request::Replica(request) => Written::Replica(self.write(request)),
            Request::State(file, content) => {
                let result = match &content {
                    Content::Identity(identity) => self.dir.set_identity(identity),
                    Content::Services(services) => self.dir.set_services(services),
                    Content::Leases(leases) => self.dir.set_leases(leases),
                    Content::ServiceAddresses(addresses) => {
                        self.dir.set_service_addresses(addresses)
                    }
                    Content::Calls(times) => calls::write(&self.dir, times),
                    Content::Policy(record) => policy::write(&self.dir, record),
                };
                Written::State(file, content, result)
            }
        }
    }

    /// Carries a request out in the order that [`WriteRequest`] requires.
    fn write(&mut self, request: WriteRequest) -> WriteOutcome {
        let mut outcome = WriteOutcome::default();
        self.write_parts(request, &mut outcome);
        outcome.record_lines = self.log.lines();
        outcome
    }

    fn write_parts(&mut self, request: WriteRequest, outcome: &mut WriteOutcome) {
        let mut note = |part, result: Result<(), String>| {
            let is_written = result.is_ok();
            outcome.results.push((part, result));
            is_written
        };
        if let Some(records) = request.records {
            let written = match records {
                RecordsWrite::Append(records) => self.log.append(&records),
                RecordsWrite::All(records) => self.log.replace(records.iter()),
            };
            if !note(Part::Records, written.map_err(|e| e.to_string())) {
                return;
            }
        }
        if let Some(in_step) = request.in_step {
            let written = self.dir.set_in_step(&in_step);
            note(Part::InStep, written.map_err(|e| e.to_string()));
        }
        if let Some(lists) = request.newcomers {
            let written = self.dir.set_newcomers(&lists);
            if !note(Part::Newcomers, written.map_err(|e| e.to_string())) {
                return;
            }
        }
        if let Some(position) = request.position {
            let written = self.dir.set_position(&position);
            note(Part::Position, written.map_err(|e| e.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::UnixSeconds;
    use crate::node::replica::{InStep, NewcomerLists, Position};
    use crate::records::Envelope;
    use crate::records::kinds::Record;
    use crate::testbed::records as build;
    use crate::testbed::records::{id, key};

    fn token(n: u8) -> Envelope {
        Envelope::seal(&Record::Token(build::token(&id(n))), &key(1))
    }

    fn request(n: u8) -> WriteRequest {
        WriteRequest {
            records: Some(RecordsWrite::Append(vec![token(n)])),
            newcomers: Some(NewcomerLists::default()),
            position: Some(Position {
                store: Some("s".into()),
                revision: n.into(),
                mark: None,
            }),
            in_step: Some(InStep {
                in_step: Some(UnixSeconds(n.into())),
            }),
        }
    }

    /// A state directory inside a temporary one.
    fn files() -> (tempfile::TempDir, StateDir, RecordLog) {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let dir = StateDir::open(&parent.path().join("state")).expect("a new directory");
        let mesh = id(1);
        let (log, _) = RecordLog::open(&dir.path("records.jsonl"), mesh).expect("writable");
        (parent, dir, log)
    }

    #[tokio::test]
    async fn requests_are_carried_out_in_order_and_to_the_end_when_the_task_stops() {
        let (_parent, dir, log) = files();
        let (writer, mut outcomes) = Writer::start(log, dir.clone());
        for n in [2, 3] {
            writer.write(request(n));
        }
        writer.stop().await;
        for lines in [2, 4] {
            let Some(Written::Replica(outcome)) = outcomes.recv().await else {
                panic!("one for each request");
            };
            assert_eq!(outcome.record_lines, lines);
            assert!(outcome.results.iter().all(|(_, result)| result.is_ok()));
            assert_eq!(outcome.results.len(), 4);
        }
        assert_eq!(dir.position().revision, 3);
    }

    #[tokio::test]
    async fn a_file_that_the_disk_refuses_comes_back_with_its_content_and_the_reason() {
        let (_parent, dir, log) = files();
        let (writer, mut outcomes) = Writer::start(log, dir.clone());
        std::fs::create_dir(dir.path("instances.json")).expect("its own directory");
        let leases = BTreeMap::from([(
            ContainerId::parse("c1").expect("hexadecimal"),
            Ipv4Addr::new(10, 210, 1, 64),
        )]);
        let content = || Content::Leases(leases.clone());
        for is_written in [false, true] {
            if is_written {
                std::fs::remove_dir(dir.path("instances.json")).expect("it is empty");
            }
            writer.write_state(StateFile::Leases, content());
            let Some(Written::State(file, content, result)) = outcomes.recv().await else {
                panic!("one for each request");
            };
            assert_eq!(file, StateFile::Leases);
            assert!(matches!(content, Content::Leases(back) if back == leases));
            assert_eq!(result.is_ok(), is_written);
        }
        writer.stop().await;
        assert_eq!(dir.leases(), leases);
    }

    #[test]
    fn a_position_is_not_written_if_what_comes_before_it_is_not() {
        let parts = |outcome: &WriteOutcome| -> Vec<(Part, bool)> {
            let results = outcome.results.iter();
            results
                .map(|(part, result)| (*part, result.is_ok()))
                .collect()
        };
        let (_parent, dir, log) = files();
        let mut files = Files {
            log,
            dir: dir.clone(),
        };
        std::fs::create_dir(dir.path("newcomers.json")).expect("its own directory");
        assert_eq!(
            parts(&files.write(request(2))),
            [
                (Part::Records, true),
                (Part::InStep, true),
                (Part::Newcomers, false)
            ]
        );
        assert_eq!(dir.position().revision, 0);
        // The directory takes the place of the file that is replaced.
        std::fs::remove_file(dir.path("records.jsonl")).expect("it was there");
        std::fs::create_dir(dir.path("records.jsonl")).expect("its own directory");
        let all = WriteRequest {
            records: Some(RecordsWrite::All(vec![token(2)])),
            ..request(4)
        };
        assert_eq!(parts(&files.write(all)), [(Part::Records, false)]);
        assert_eq!(dir.position().revision, 0);
    }
}
