//! What every way in shares: the zone, who may ask, where other names are asked, counts, and conversations over streams.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::message::{MAX_QUERY, Outcome, Pending, Transport, handle};
use super::upstream::Upstream;
use super::zone::Zone;

/// Connections at once at most, of all clients and of one.
pub(super) const MAX_CONNECTIONS: usize = 512;
pub(super) const MAX_CONNECTIONS_OF_ONE: usize = 32;
/// How long a connection may be quiet (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// How long a connection may live.
const LIFE: Duration = Duration::from_secs(120);

/// Who may ask.
#[derive(Debug, Clone, Default)]
pub struct Allowed(pub Vec<IpNet>);

impl Allowed {
    fn admits(&self, source: IpAddr) -> bool {
        self.0
            .iter()
            .any(|net| net.contains(&source.to_canonical()))
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Queries taken in.
    pub queries: AtomicU64,
    /// Of them, forwarded.
    pub forwarded: AtomicU64,
    /// Dropped: the source may not ask.
    pub foreign: AtomicU64,
    /// Dropped: no query.
    pub malformed: AtomicU64,
    /// Dropped: too many under way.
    pub overload: AtomicU64,
}

/// What all servers of a node answer from.
pub struct Resolver {
    zone: Arc<ArcSwap<Zone>>,
    allowed: Arc<ArcSwap<Allowed>>,
    upstream: Arc<Upstream>,
    counts: Counts,
    random: AtomicU64,
    connections: Arc<Semaphore>,
    clients: Mutex<HashMap<IpAddr, usize>>,
}

impl Resolver {
    /// Answers from `zone`, for those in `allowed`; other names are asked of `upstream`.
    #[must_use]
    pub fn new(
        zone: Arc<ArcSwap<Zone>>,
        allowed: Arc<ArcSwap<Allowed>>,
        upstream: Arc<Upstream>,
    ) -> Self {
        Self {
            zone,
            allowed,
            upstream,
            counts: Counts::default(),
            random: AtomicU64::new(getrandom::u64().unwrap_or_default()),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            clients: Mutex::default(),
        }
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether `source` may ask; counts one who may not.
    pub(super) fn admits(&self, source: IpAddr) -> bool {
        let admitted = self.allowed.load().admits(source);
        if !admitted {
            self.counts.foreign.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// Deals with a query, without waiting.
    pub(super) fn answer(&self, octets: &[u8], transport: Transport) -> Outcome {
        let outcome = handle(&self.zone.load(), octets, transport, self.entropy());
        let count = match &outcome {
            Outcome::Silence(_) => &self.counts.malformed,
            Outcome::Reply(_) | Outcome::Forward(_) => &self.counts.queries,
        };
        count.fetch_add(1, Ordering::Relaxed);
        outcome
    }

    /// Asks the upstreams. Bounded by them: with too many under way it fails at once.
    pub(super) async fn forward(&self, pending: Pending) -> Vec<u8> {
        self.counts.forwarded.fetch_add(1, Ordering::Relaxed);
        let forwarded = self
            .upstream
            .ask(pending.name.clone(), pending.record_type)
            .await;
        pending.finish(forwarded)
    }

    pub(super) fn count_overload(&self) {
        self.counts.overload.fetch_add(1, Ordering::Relaxed);
    }

    /// A number that differs from call to call; the order of answers need not be unpredictable. SplitMix64 (Steele,
    /// Lea and Flood, 2014).
    fn entropy(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut mixed = self.random.fetch_add(STEP, Ordering::Relaxed);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A place for one more connection of `client`, if there is one.
    pub(super) fn place(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let taken = self.try_place(client);
        if taken.is_none() {
            self.count_overload();
        }
        taken
    }

    fn try_place(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let slot = Arc::clone(&self.connections).try_acquire_owned().ok()?;
        let mut clients = self.lock_clients();
        let count = clients.entry(client).or_default();
        if *count >= MAX_CONNECTIONS_OF_ONE {
            return None;
        }
        *count += 1;
        drop(clients);
        Some(Place {
            resolver: Arc::clone(self),
            client,
            _slot: slot,
        })
    }

    fn lock_clients(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.clients
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

/// One of a client's connections.
pub(super) struct Place {
    resolver: Arc<Resolver>,
    client: IpAddr,
    _slot: OwnedSemaphorePermit,
}

impl Place {
    /// Answers queries until the client ends, or is quiet for too long.
    pub(super) async fn converse(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        // However it ends, there is nobody left to tell.
        let _ = timeout(LIFE, converse(stream, &self.resolver)).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.resolver.lock_clients();
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

/// Queries one after another, each with its length in front (RFC 1035 section 4.2.2); those sent ahead wait in the
/// stream (RFC 7766 section 6.2.1.1).
async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    resolver: &Resolver,
) -> io::Result<()> {
    let mut buffer = vec![0; MAX_QUERY + 1];
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        let Some(octets) = buffer.get_mut(..length) else {
            return Ok(());
        };
        timeout(IDLE, stream.read_exact(octets)).await??;
        let reply = match resolver.answer(octets, Transport::Tcp) {
            Outcome::Reply(reply) => reply,
            Outcome::Forward(pending) => resolver.forward(*pending).await,
            Outcome::Silence(_) => return Ok(()),
        };
        let Ok(length) = u16::try_from(reply.len()) else {
            return Ok(());
        };
        let framed = [&length.to_be_bytes()[..], &reply].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
