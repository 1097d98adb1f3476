//! The handle with which a daemon records events, and the thread that writes them.
//!
//! Nobody waits for the disk to record an event. A caller that acknowledges an action waits with [`Audit::flush`] until the events
//! before are on disk. All events that wait are written with one call and one synchronisation. A disk that takes no writes costs
//! events and never stops the daemon.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::event::{Event, HeadFound, Transition, What, Who};
use super::files::{Files, Opened};
use super::pace::{Entry, Pace};
use super::recorder::Recorder;
use crate::os::clock;

/// The maximum number of events that wait for the disk.
const MAX_WAITING: usize = 4096;
/// The maximum number of them that outside causes can repeat. The other places are kept for the actions of people.
const MAX_NOISE: usize = 1024;
/// How long a caller waits for the disk. After that the disk counts as stalled until it takes a write.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for a stalled disk.
const STALLED_TIMEOUT: Duration = Duration::from_millis(50);
/// The time between two looks at events that are held, and at a disk that took no write.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Records events. A clone records into the same log.
#[derive(Debug, Clone, Default)]
pub struct Audit(Option<Arc<Handle>>);

/// Ends the thread when the last clone is dropped.
#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.queue().is_closed = true;
        self.0.filled.notify_one();
    }
}

#[derive(Debug, Default)]
struct Shared {
    directory: PathBuf,
    queue: Mutex<Queue>,
    /// Events wait, or the log is closed.
    filled: Condvar,
    /// A write has ended, with or without success.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Entry>,
    pace: Pace,
    /// The number of events that were added to `waiting`, and of those whose write ended.
    added: u64,
    ended: u64,
    /// Events that found no place.
    dropped: u64,
    /// Events that are not in the log since the start.
    lost: u64,
    fault: Option<String>,
    /// Why the log takes more room than it should.
    excess: Option<String>,
    is_stalled: bool,
    is_closed: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // No code under the lock can panic while the queue is half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn add(&mut self, entry: Entry) {
        let most = match entry.event.noise() {
            Some(_) => MAX_NOISE,
            None => MAX_WAITING,
        };
        if self.waiting.len() >= most {
            self.dropped = self.dropped.saturating_add(1);
            self.lost = self.lost.saturating_add(1);
            return;
        }
        self.waiting.push_back(entry);
        self.added += 1;
    }

    /// Whether events are missing, and the log does not say so yet.
    fn is_missing(&self) -> bool {
        self.fault.is_some() || self.dropped > 0
    }
}

impl Audit {
    /// Records nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Continues the log in a directory, or begins one. A log that cannot be written is a problem, and the daemon runs all the same.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            ..Shared::default()
        });
        let thread = Thread {
            shared: Arc::clone(&shared),
            directory: directory.to_owned(),
            recorder: None,
            unopened: 0,
            looked: Instant::now(),
        };
        let spawned = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || thread.run());
        if let Err(error) = spawned {
            tracing::error!(%error, "the audit log is not written");
            return Self::none();
        }
        Self(Some(Arc::new(Handle(shared))))
    }

    /// The directory of the log. None if nothing is recorded.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        self.0.as_ref().map(|handle| handle.0.directory.as_path())
    }

    /// Records an event.
    pub fn record(&self, event: Event) {
        let Some(handle) = &self.0 else {
            return;
        };
        let entry = Entry {
            at: clock::wall(),
            event,
        };
        let mut queue = handle.0.queue();
        if let Some(entry) = queue.pace.handle(entry, Instant::now()) {
            queue.add(entry);
        }
        drop(queue);
        handle.0.filled.notify_one();
    }

    /// Logs a transition, and records its event.
    pub fn note(&self, transition: &impl Transition) {
        transition.log();
        if self.0.is_some()
            && let Some(event) = transition.event()
        {
            self.record(event);
        }
    }

    /// Waits until all events that were recorded before are on disk, or cannot be written. It blocks the thread.
    pub fn flush(&self) {
        let Some(handle) = &self.0 else {
            return;
        };
        let queue = handle.0.queue();
        let end = queue.added;
        let limit = if queue.is_stalled {
            STALLED_TIMEOUT
        } else {
            FLUSH_TIMEOUT
        };
        let waited = handle
            .0
            .ended
            .wait_timeout_while(queue, limit, |queue| queue.ended < end);
        let (mut queue, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() && !queue.is_stalled {
            queue.is_stalled = true;
            drop(queue);
            tracing::error!(
                "the disk does not answer; events wait for it, and actions are acknowledged before their events are on disk"
            );
        }
    }

    /// As [`Audit::flush`], without blocking the thread.
    pub async fn flushed(&self) {
        if self.0.is_none() {
            return;
        }
        let audit = self.clone();
        // The panic of the task is logged already.
        let _ = tokio::task::spawn_blocking(move || audit.flush()).await;
    }

    /// Records that the daemon stops, with all events that are held.
    pub async fn stop(&self) {
        let Some(handle) = &self.0 else {
            return;
        };
        let held = handle.0.queue().pace.drain(clock::wall());
        for entry in held {
            handle.0.queue().add(entry);
        }
        self.record(Event::done(Who::Daemon, What::Stopped {}));
        self.flushed().await;
    }

    /// Why events are missing from the log, if it could not be written last time.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let handle = self.0.as_ref()?;
        let queue = handle.0.queue();
        if queue.is_stalled {
            return Some("the disk does not answer".to_owned());
        }
        queue.fault.clone()
    }

    /// Why the log takes more room than it should, if it does: its file cannot be put aside, or its oldest file cannot be removed.
    #[must_use]
    pub fn excess(&self) -> Option<String> {
        self.0.as_ref()?.0.queue().excess.clone()
    }

    /// The number of events since the start that are not in the log.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.as_ref().map_or(0, |handle| handle.0.queue().lost)
    }
}

/// The thread that writes.
struct Thread {
    shared: Arc<Shared>,
    directory: PathBuf,
    /// None until the log could be opened.
    recorder: Option<Recorder<Files>>,
    /// Events that ended before the log could be opened.
    unopened: u64,
    /// When the held events were last looked at.
    looked: Instant,
}

impl Thread {
    fn run(mut self) {
        // The first line is that of the start, so the log is opened before there is an event.
        let mut batch = Vec::new();
        loop {
            let result = self.write(&batch);
            self.handle_ended(batch.len() as u64, result);
            match self.next_batch() {
                Some(next) => batch = next,
                None => return,
            }
        }
    }

    /// Waits for events. An empty batch means that events are missing, which is recorded as soon as the log can be written.
    fn next_batch(&mut self) -> Option<Vec<Entry>> {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.queue();
        loop {
            let now = Instant::now();
            let is_due = now.saturating_duration_since(self.looked) >= LOOK_INTERVAL;
            if is_due {
                self.looked = now;
                for entry in queue.pace.poll(now, clock::wall()) {
                    queue.add(entry);
                }
            }
            if !queue.waiting.is_empty() {
                return Some(queue.waiting.drain(..).collect());
            }
            if queue.is_closed {
                return None;
            }
            if is_due && queue.is_missing() {
                return Some(Vec::new());
            }
            queue = if queue.is_missing() || queue.pace.holds_any() {
                let waited = shared.filled.wait_timeout(queue, LOOK_INTERVAL);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                let waited = shared.filled.wait(queue);
                waited.unwrap_or_else(PoisonError::into_inner)
            };
        }
    }

    fn write(&mut self, batch: &[Entry]) -> io::Result<()> {
        let now = clock::wall();
        let recorder = match &mut self.recorder {
            Some(recorder) => recorder,
            None => match open(&self.directory, now) {
                Ok(mut recorder) => {
                    if self.unopened > 0 {
                        recorder.note_missing(self.unopened, "the log could not be opened");
                    }
                    self.recorder.insert(recorder)
                }
                Err(error) => {
                    self.unopened = self.unopened.saturating_add(batch.len() as u64);
                    return Err(error);
                }
            },
        };
        let dropped = std::mem::take(&mut self.shared.queue().dropped);
        if dropped > 0 {
            recorder.note_missing(dropped, "too many events waited for the disk");
        }
        recorder.write(batch, now)
    }

    fn handle_ended(&self, count: u64, result: io::Result<()>) {
        let mut queue = self.shared.queue();
        queue.ended += count;
        queue.is_stalled = false;
        let before = queue.fault.take();
        if let Err(error) = &result {
            queue.lost = queue.lost.saturating_add(count);
            queue.fault = Some(crate::os::usage::without_numbers(&error.to_string()));
        }
        let lost = queue.lost;
        let excess = self.recorder.as_ref().and_then(Recorder::excess);
        let is_new_excess = excess.is_some() && queue.excess.is_none();
        queue.excess = excess.map(crate::os::usage::without_numbers);
        drop(queue);
        self.shared.ended.notify_all();
        if is_new_excess {
            let directory = self.directory.display();
            tracing::error!(%directory, reason = excess, "the audit log takes more room than it should");
        }
        match (before, result) {
            (None, Err(error)) => {
                let directory = self.directory.display();
                tracing::error!(%directory, %error, "the audit log cannot be written; events are missing from it");
            }
            (Some(_), Ok(())) => tracing::info!(lost, "the audit log is written again"),
            _ => {}
        }
    }
}

/// Appends one event to the log in a directory that no daemon uses.
///
/// # Errors
/// The system returned an error.
pub fn append(directory: &Path, event: Event) -> io::Result<()> {
    let Opened {
        files, chain, size, ..
    } = Files::open(directory)?;
    let now = clock::wall();
    Recorder::new(files, chain, size).write(&[Entry { at: now, event }], now)
}

/// Opens the log, and writes the line of the start.
fn open(directory: &Path, now: SystemTime) -> io::Result<Recorder<Files>> {
    let Opened {
        files,
        chain,
        size,
        torn_bytes,
        head,
    } = Files::open(directory)?;
    match head {
        HeadFound::New | HeadFound::Ok => {}
        HeadFound::Missing | HeadFound::Unreadable | HeadFound::Differs => tracing::error!(
            "the end of the audit log is not what was written; `meshctl audit --verify` says what is missing"
        ),
    }
    let what = What::Started {
        version: env!("CARGO_PKG_VERSION"),
        torn_bytes,
        head,
    };
    let mut recorder = Recorder::new(files, chain, size);
    let event = Event::done(Who::Daemon, what);
    recorder.write(&[Entry { at: now, event }], now)?;
    Ok(recorder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::audit::event::Text;
    use crate::os::audit::reading::{EventReader, NextEvent, verify};

    fn event(reason: &str) -> Event {
        let reason = Text::from(reason);
        Event::done(Who::Daemon, What::StoreWentBack { reason })
    }

    fn whats(directory: &Path) -> Vec<String> {
        let mut reader = EventReader::open(directory).expect("a log");
        let mut found = Vec::new();
        while let Some(next) = reader.poll().expect("readable") {
            match next {
                NextEvent::Event(line) => found.push(line.what),
                NextEvent::Unreadable => panic!("nobody changed it"),
            }
        }
        found
    }

    #[test]
    fn events_are_on_disk_after_a_flush_in_the_order_in_which_they_were_recorded() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let audit = Audit::open(directory.path());
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let audit = audit.clone();
                std::thread::spawn(move || {
                    for n in 0..50 {
                        audit.record(event(&format!("{thread} {n}")));
                        audit.flush();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no panic");
        }
        let found = whats(directory.path());
        assert_eq!(found.len(), 201);
        assert_eq!(found.first().map(String::as_str), Some("started"));
        let verified = verify(directory.path()).expect("readable").verified;
        assert_eq!(verified.findings, []);
    }

    #[tokio::test]
    async fn a_flood_is_bounded_and_its_last_event_is_there_after_a_stop() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let audit = Audit::open(directory.path());
        for n in 0..10_000 {
            let who = Who::Joiner {
                address: [192, 0, 2, 7].into(),
                token: None,
            };
            let refused = Err::<(), _>(format!("number {n}"));
            let what = What::JoinRefused { node: None };
            audit.record(Event::of_result(who, what, &refused));
        }
        audit.stop().await;
        let found = whats(directory.path());
        assert!(found.len() < 10, "{found:?}");
        assert_eq!(found.last().map(String::as_str), Some("stopped"));
        let text = std::fs::read_to_string(directory.path().join("audit.jsonl"));
        assert!(text.expect("there").contains("number 9999"));
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_a_fault_and_does_not_stop_anybody() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // A directory in the place of the file.
        std::fs::create_dir(directory.path().join("audit.jsonl")).expect("writable");
        let audit = Audit::open(directory.path());
        audit.record(event("a"));
        audit.flush();
        assert!(audit.fault().is_some());
        assert_eq!(audit.lost(), 1);
    }

    #[test]
    fn nothing_is_recorded_without_a_log() {
        let audit = Audit::none();
        audit.record(event("a"));
        audit.flush();
        assert_eq!((audit.fault(), audit.lost()), (None, 0));
    }
}
