//! Forwards questions for names outside the mesh to the host's own resolvers, the upstreams.
//!
//! The cache answers a question as long as the TTLs permit, and longer when no upstream answers (RFC 8767). The same question
//! from several clients is asked once, and all of them wait for the answer. So a question that comes back to this node through
//! another resolver waits for itself and fails in the end, instead of going round without end.
//!
//! `schedule` decides which upstream is asked when and in which form, and `memory` stores what is known about each upstream.
//! Both are pure. `flight` runs one question, `pool` has the connections of hickory-resolver, and `exchange` interprets a
//! response. `rebinding` removes from an answer what points into the mesh.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::access::Client;
use super::limits::{self, Limits, Share};
use super::query::Question;
use crate::os::tasks::Tasks;
use cache::{Cache, Hit, Key};
use flight::{Flight, Passenger};
use memory::Memory;
use pool::Pool;

mod answer;
mod cache;
pub(super) mod exchange;
mod flight;
mod memory;
mod pool;
mod rebinding;
mod received;
mod schedule;
mod server;
mod sockets;

pub use answer::{Forwarded, Source};
pub use rebinding::Stripped;
pub use server::{Server, ServerError};

/// The maximum time that a client waits: a little longer than the search may take.
const OVERALL: Duration = schedule::SEARCH_TIMEOUT.saturating_add(Duration::from_millis(100));
/// How long a client waits for a fresh answer if there is a stale one (RFC 8767 section 5).
const STALE_TIMEOUT: Duration = Duration::from_millis(1_800);
/// The maximum number of sockets to upstreams, besides one for each question. A process may have 1,024 open files by default.
const SOCKETS: usize = 256;
/// The maximum number of questions that continue when no client waits for them.
const BACKGROUND: usize = 128;

/// The client for which a question is asked. The memory of the answer counts as this client's while it is in use.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pub(super) limits: Arc<Limits>,
    pub(super) client: Client,
}

impl Asker {
    /// Reserves this many bytes in the pool that bounds the large answers in progress.
    fn hold(&self, bytes: usize) -> Option<Share> {
        let kib = u32::try_from(bytes.div_ceil(1024)).ok()?;
        self.limits.take(limits::Pool::Memory, self.client, kib)
    }
}

/// The upstreams, with the cache of their answers.
#[derive(Default)]
pub struct Upstream {
    shared: Arc<Shared>,
}

/// The state that all questions in progress share.
struct Shared {
    servers: ArcSwap<Vec<Server>>,
    memory: Mutex<Memory>,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<Key, Arc<Flight>>>,
    sockets: Arc<Semaphore>,
    background: Arc<Semaphore>,
    pool: Pool,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            servers: ArcSwap::default(),
            memory: Mutex::default(),
            cache: Mutex::default(),
            flights: Mutex::default(),
            sockets: Arc::new(Semaphore::new(SOCKETS)),
            background: Arc::new(Semaphore::new(BACKGROUND)),
            pool: Pool::default(),
        }
    }
}

impl Upstream {
    /// Starts without an upstream. Every question fails until [`Upstream::set`] is called.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses `servers` from now on, in this order, without those whose address is in `own`: they would be this node itself.
    pub fn set(&self, servers: &[Server], own: &BTreeSet<IpAddr>) {
        let others = servers
            .iter()
            .filter(|s| !own.contains(&s.address.ip().to_canonical()));
        let others: Vec<Server> = others.cloned().collect();
        lock(&self.shared.memory).retain(&others);
        self.shared.servers.store(Arc::new(others));
    }

    /// Asks for the node itself. A failure is returned as the answer SERVFAIL.
    pub async fn ask(&self, asked: &Question) -> Forwarded {
        self.ask_as(asked, None).await
    }

    /// Asks for a client, or for the node itself if `asker` is `None`. A failure is returned as the answer SERVFAIL.
    pub(super) async fn ask_as(&self, asked: &Question, asker: Option<Asker>) -> Forwarded {
        let key = Key::new(asked);
        let (fresh, stale) = {
            let (mut cache, now) = (lock(&self.shared.cache), Instant::now());
            (cache.fresh(&key, now), cache.stale(&key, now))
        };
        if let Some(fresh) = fresh.and_then(Hit::answer) {
            return fresh;
        }
        let limit = if stale.is_some() {
            STALE_TIMEOUT
        } else {
            OVERALL
        };
        let passenger = self.join(&key, asked, asker);
        match timeout(limit, passenger.answer()).await {
            // Clients that wait for the answer to the same question share it.
            Ok(Some(found)) if found.source != Source::Nobody => Arc::unwrap_or_clone(found),
            _ => {
                lock(&self.shared.cache).hold(&key, Instant::now());
                let stale = stale.and_then(Hit::answer);
                stale.unwrap_or_else(Forwarded::failure)
            }
        }
    }

    /// Joins the flight of a question, and starts it if there is none.
    fn join(&self, key: &Key, asked: &Question, asker: Option<Asker>) -> Passenger {
        let mut flights = lock(&self.shared.flights);
        if let Some(flight) = flights.get(key) {
            return flight.join();
        }
        let flight = Flight::new(asker);
        let passenger = flight.join();
        flights.insert(key.clone(), Arc::clone(&flight));
        let shared = Arc::clone(&self.shared);
        let flight = flight::run(shared, flight, key.clone(), asked.clone());
        Tasks::current().spawn_child("a question to the upstreams", flight);
        passenger
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("servers", &self.shared.servers)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
