//! One question in progress: it sends the requests that its [`Schedule`] returns, and gives the answer to all clients that wait
//! for it.
//!
//! A flight continues without clients in two cases. The clients got a stale answer, and the fresh answer is still to come. Or
//! they got their answer, and it is not known yet whether an upstream that has not answered is silent. The number of such flights
//! is bounded.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::future::{AbortHandle, abortable};
use futures_util::stream::FuturesUnordered;
use hickory_proto::rr::Name;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::sleep_until;

use super::super::query::Question;
use super::answer::{Forwarded, Source};
use super::cache::{Key, Storable};
use super::exchange::Received;
use super::memory::Lesson;
use super::schedule::{Outcome, Schedule, Send, may_be_case};
use super::server::Server;
use super::{Asker, Shared, lock};

/// The state that the clients of one question share.
#[derive(Debug)]
pub(super) struct Flight {
    answer: watch::Sender<Option<Arc<Forwarded>>>,
    /// The client that asked first, or `None` if that was the node itself.
    asker: Option<Asker>,
    clients: AtomicUsize,
    left: Notify,
}

/// A client that waits for the answer.
pub(super) struct Passenger(Arc<Flight>);

impl Flight {
    pub(super) fn new(asker: Option<Asker>) -> Arc<Self> {
        Arc::new(Self {
            answer: watch::Sender::new(None),
            asker,
            clients: AtomicUsize::new(0),
            left: Notify::new(),
        })
    }

    /// Adds a client. The caller must hold the lock of the list of flights.
    pub(super) fn join(self: &Arc<Self>) -> Passenger {
        self.clients.fetch_add(1, Ordering::Relaxed);
        Passenger(Arc::clone(self))
    }
}

impl Passenger {
    pub(super) async fn answer(&self) -> Option<Arc<Forwarded>> {
        let mut answer = self.0.answer.subscribe();
        let found = answer.wait_for(Option::is_some).await.ok()?;
        found.clone()
    }
}

impl Drop for Passenger {
    fn drop(&mut self) {
        if self.0.clients.fetch_sub(1, Ordering::Relaxed) == 1 {
            // Without clients the answer is dropped, unless another client has joined in the meantime.
            let is_left = || self.0.clients.load(Ordering::Relaxed) == 0;
            let answer = &self.0.answer;
            answer.send_if_modified(|answer| is_left() && answer.take().is_some());
            self.0.left.notify_one();
        }
    }
}

/// Asks the upstreams until there is an answer and nothing more to learn.
pub(super) async fn run(shared: Arc<Shared>, flight: Arc<Flight>, key: Key, asked: Question) {
    let listed = Listed {
        shared: &shared,
        flight: &flight,
        key: &key,
    };
    let (asked, servers) = (Arc::new(asked), shared.servers.load_full());
    let now = Instant::now();
    let plan = lock(&shared.memory).plan(&servers, now);
    let mut schedule = Schedule::new(plan, now);
    let mut attempts = FuturesUnordered::new();
    let mut handles: Vec<AbortHandle> = Vec::new();
    let (mut delivered, mut background) = (false, None);
    loop {
        let now = Instant::now();
        while let Some(send) = schedule.poll(now) {
            let permit = Arc::clone(&shared.sockets).try_acquire_owned().ok();
            if permit.is_none() {
                // There is no socket left. The request that is sent now replaces the earlier ones of this question.
                handles.drain(..).for_each(|handle| handle.abort());
            }
            let (shared, asked) = (Arc::clone(&shared), Arc::clone(&asked));
            let asker = flight.asker.clone();
            let server = servers.get(send.place).cloned();
            let (attempt, handle) = abortable(attempt(shared, server, asked, asker, send, permit));
            handles.push(handle);
            attempts.push(async move { (send, attempt.await) });
        }
        learn(&shared, &servers, schedule.lessons(), now);
        if !delivered && let Some(outcome) = schedule.take_outcome() {
            listed.deliver(outcome, &servers, &asked, now);
            delivered = true;
        }
        if schedule.is_over() {
            return;
        }
        if delivered && background.is_none() {
            let Ok(permit) = Arc::clone(&shared.background).try_acquire_owned() else {
                return;
            };
            background = Some(permit);
        }
        let timeout = schedule.poll_timeout().unwrap_or(now);
        tokio::select! {
            Some((send, result)) = attempts.next() => {
                take(&mut schedule, send, result.ok());
            }
            () = sleep_until(timeout.into()) => {}
            () = flight.left.notified(), if background.is_none() => match listed.leave() {
                Ok(permit) => background = permit,
                Err(Full) => return,
            },
        }
    }
}

/// A flight in the list of flights. Dropping this removes it from the list.
struct Listed<'a> {
    shared: &'a Shared,
    flight: &'a Arc<Flight>,
    key: &'a Key,
}

/// There are too many flights without clients.
struct Full;

impl Listed<'_> {
    fn deliver(&self, outcome: Outcome, servers: &[Server], asked: &Question, now: Instant) {
        let answer = match outcome {
            Outcome::Answer { place, mut answer } => {
                if let Some(Server { address, .. }) = servers.get(place) {
                    answer.source = Source::Upstream(*address);
                    // The cache does not distinguish case, but some servers do. A name that does not exist in capital letters
                    // may exist in small ones.
                    let may_store = is_lowercase(&asked.name) || !may_be_case(&answer);
                    if let Some(stored) = Storable::of(&answer).filter(|_| may_store) {
                        let key = self.key.clone();
                        lock(&self.shared.cache).store(key, stored, *address, now);
                    }
                }
                answer
            }
            Outcome::Failed => Forwarded::failure(),
        };
        self.remove(&mut lock(&self.shared.flights));
        // No client can join any more. If there is none, the answer is dropped here and not at the end of the flight.
        if self.flight.clients.load(Ordering::Relaxed) > 0 {
            self.flight.answer.send_replace(Some(Arc::new(answer)));
        }
    }

    /// Takes a permit to continue without clients, unless a client has joined in the meantime.
    fn leave(&self) -> Result<Option<OwnedSemaphorePermit>, Full> {
        let mut flights = lock(&self.shared.flights);
        if self.flight.clients.load(Ordering::Relaxed) > 0 {
            return Ok(None);
        }
        let permit = Arc::clone(&self.shared.background).try_acquire_owned();
        permit.map(Some).map_err(|_| {
            self.remove(&mut flights);
            Full
        })
    }

    fn remove(&self, flights: &mut HashMap<Key, Arc<Flight>>) {
        if flights
            .get(self.key)
            .is_some_and(|f| Arc::ptr_eq(f, self.flight))
        {
            flights.remove(self.key);
        }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.remove(&mut lock(&self.shared.flights));
    }
}

fn learn(shared: &Shared, servers: &[Server], lessons: Vec<(usize, Lesson)>, now: Instant) {
    if lessons.is_empty() {
        return;
    }
    let mut memory = lock(&shared.memory);
    for (place, lesson) in lessons {
        let Some(Server { address, .. }) = servers.get(place) else {
            continue;
        };
        if !matches!(lesson, Lesson::Answered { .. }) {
            tracing::debug!(server = %address, ?lesson, "an upstream did not answer as it was asked");
        }
        memory.learn(*address, lesson, now);
    }
}

/// Passes the result of an attempt to the schedule. `None` means that the attempt was aborted.
fn take(schedule: &mut Schedule, send: Send, result: Option<io::Result<Received>>) {
    let now = Instant::now();
    match result {
        None => schedule.handle_given_up(send.attempt, now),
        Some(Err(error)) if is_own_fault(&error) => schedule.handle_given_up(send.attempt, now),
        // After a response to another question no other one comes over the stream.
        Some(Err(_) | Ok(Received::Stray)) => schedule.handle_error(send.attempt, now),
        Some(Ok(received)) => schedule.handle_reply(send.attempt, received, now),
    }
}

/// Whether this host has run out of something, which says nothing about the upstream.
fn is_own_fault(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    let scarce = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.kind() == io::ErrorKind::InvalidInput && code.is_none()
        || code.is_some_and(|code| scarce.contains(&code))
}

async fn attempt(
    shared: Arc<Shared>,
    server: Option<Server>,
    question: Arc<Question>,
    asker: Option<Asker>,
    send: Send,
    _permit: Option<OwnedSemaphorePermit>,
) -> io::Result<Received> {
    let server = server.ok_or(io::ErrorKind::InvalidInput)?;
    let pool = &shared.pool;
    pool.ask(
        &server,
        &question,
        send.form,
        send.transport,
        asker.as_ref(),
    )
    .await
}

fn is_lowercase(name: &Name) -> bool {
    name.eq_case(&name.to_lowercase())
}
