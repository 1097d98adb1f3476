//! What every way in shares: the zone, who may ask, where other names are asked, counts, and conversations over streams.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::conversation::converse;
use super::limits::{Limits, Refusal, Share};
use super::message::{Forwarded, Outcome, Pending, Silence, Transport, handle};
use super::plain::{self, Plain};
use super::upstream::Upstream;
use super::zone::Zone;

/// Connections at once at most, of all clients and of one.
pub(super) const MAX_CONNECTIONS: usize = 512;
pub(super) const MAX_CONNECTIONS_OF_ONE: usize = 32;
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
    /// Of them, with an answer that pointed into the mesh: what did was taken out.
    pub rebound: AtomicU64,
    drops: [AtomicU64; Drop::ALL.len()],
}

impl Counts {
    /// Queries not answered, or answered with a failure without being looked at, by reason.
    pub fn dropped(&self) -> impl Iterator<Item = (Drop, u64)> {
        let counts = self.drops.iter().map(|n| n.load(Ordering::Relaxed));
        Drop::ALL.into_iter().zip(counts)
    }

    fn drop(&self, reason: Drop) {
        if let Some(count) = self.drops.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Why a query, or a connection, is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// The source may not ask: no reply.
    Foreign,
    /// No query: no reply.
    Malformed,
    /// A reply, which is never answered.
    Reply,
    /// The client asks too fast, whatever it asks: no reply.
    Rate,
    /// The client asks too fast what must be forwarded: it is told so.
    ForwardRate,
    /// Too many forwarded queries are under way, of the client or altogether: it is told so.
    ForwardShare,
    /// Too many wait: no reply.
    Queue,
    /// Too many connections, of the client or altogether.
    Connections,
}

impl Drop {
    const ALL: [Self; 8] = [
        Self::Foreign,
        Self::Malformed,
        Self::Reply,
        Self::Rate,
        Self::ForwardRate,
        Self::ForwardShare,
        Self::Queue,
        Self::Connections,
    ];

    /// The reason's name in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Malformed => "malformed",
            Self::Reply => "reply",
            Self::Rate => "rate",
            Self::ForwardRate => "forward_rate",
            Self::ForwardShare => "forward_share",
            Self::Queue => "queue",
            Self::Connections => "connections",
        }
    }
}

/// What all servers of a node answer from.
pub struct Resolver {
    zone: Arc<ArcSwap<Zone>>,
    allowed: Arc<ArcSwap<Allowed>>,
    upstream: Arc<Upstream>,
    counts: Counts,
    limits: Arc<Limits>,
    started: Instant,
    random: AtomicU64,
    connections: Arc<Semaphore>,
    clients: Mutex<HashMap<IpAddr, usize>>,
}

/// What became of a query.
#[derive(Debug)]
pub(super) enum Dealt {
    /// The reply is written.
    Replied,
    /// [`Resolver::forward`] it.
    Forward(Box<Forwarding>),
    /// There will be no reply.
    Silent,
}

/// A query to be forwarded, with its place among those under way.
#[derive(Debug)]
pub(super) struct Forwarding {
    pending: Pending,
    share: Share,
}

/// A reply to a query that was forwarded. The query has its place among those under way until this is dropped.
#[derive(Debug)]
pub(super) struct ForwardedReply {
    octets: Vec<u8>,
    _share: Share,
}

impl ForwardedReply {
    pub(super) fn octets(&self) -> &[u8] {
        &self.octets
    }
}

impl Resolver {
    /// Answers from `zone`, for those in `allowed`; other names are asked of `upstream`.
    #[must_use]
    pub fn new(
        zone: Arc<ArcSwap<Zone>>,
        allowed: Arc<ArcSwap<Allowed>>,
        upstream: Arc<Upstream>,
    ) -> Self {
        let random = || getrandom::u64().unwrap_or_default();
        Self {
            zone,
            allowed,
            upstream,
            counts: Counts::default(),
            limits: Arc::new(Limits::new(random())),
            started: Instant::now(),
            random: AtomicU64::new(random()),
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
            self.counts.drop(Drop::Foreign);
        }
        admitted
    }

    /// Takes what a few queries are answered from. Not to be kept: changes are not seen in it.
    pub(super) fn sit(&self) -> Sitting<'_> {
        Sitting {
            resolver: self,
            zone: self.zone.load(),
            allowed: self.allowed.load(),
            now_ns: self
                .started
                .elapsed()
                .as_nanos()
                .try_into()
                .unwrap_or(u64::MAX / 2),
            entropy: self.entropy(),
            queries: 0,
        }
    }

    /// Asks the upstreams, for a bounded time.
    pub(super) async fn forward(&self, forwarding: Forwarding) -> ForwardedReply {
        self.counts.forwarded.fetch_add(1, Ordering::Relaxed);
        let Forwarding { pending, share } = forwarding;
        let mut forwarded = self.upstream.ask(&pending.asked).await;
        if forwarded.strip(&self.zone.load()).is_any() {
            self.counts.rebound.fetch_add(1, Ordering::Relaxed);
        }
        ForwardedReply {
            octets: pending.finish(forwarded),
            _share: share,
        }
    }

    pub(super) fn count_queue(&self) {
        self.counts.drop(Drop::Queue);
    }

    fn entropy(&self) -> u64 {
        mix(self.random.fetch_add(STEP, Ordering::Relaxed))
    }

    /// A place for one more connection of `client`, if there is one.
    pub(super) fn place(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let taken = self.try_place(client);
        if taken.is_none() {
            self.counts.drop(Drop::Connections);
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

/// What queries are answered from, for as long as a batch takes.
pub(super) struct Sitting<'a> {
    resolver: &'a Resolver,
    zone: Guard<Arc<Zone>>,
    allowed: Guard<Arc<Allowed>>,
    now_ns: u64,
    entropy: u64,
    queries: u64,
}

impl Sitting<'_> {
    /// Deals with a query, without waiting.
    pub(super) fn answer(
        &mut self,
        query: &[u8],
        client: IpAddr,
        transport: Transport,
        reply: &mut Vec<u8>,
    ) -> Dealt {
        if !self.allowed.admits(client) {
            return self.silent(Drop::Foreign);
        }
        let resolver = self.resolver;
        if !resolver.limits.admits(client, self.now_ns) {
            return self.silent(Drop::Rate);
        }
        self.entropy = mix(self.entropy.wrapping_add(STEP));
        let plain = plain::answer(&self.zone, query, transport, self.entropy, reply);
        let share = match plain {
            Plain::Replied => {
                self.queries += 1;
                return Dealt::Replied;
            }
            // Whether it is forwarded at all is known before the message is taken apart.
            Plain::Elsewhere => match self.admit_forward(client) {
                Some(share) => Some(share),
                None => {
                    self.queries += 1;
                    plain::fail(query, reply);
                    return Dealt::Replied;
                }
            },
            Plain::Odd => None,
        };
        let pending = match handle(&self.zone, query, transport, self.entropy) {
            Outcome::Reply(octets) => {
                self.queries += 1;
                *reply = octets;
                return Dealt::Replied;
            }
            Outcome::Silence(why) => {
                reply.clear();
                return self.silent(match why {
                    Silence::NoHeader => Drop::Malformed,
                    Silence::IsReply => Drop::Reply,
                });
            }
            Outcome::Forward(pending) => *pending,
        };
        self.queries += 1;
        reply.clear();
        match share.or_else(|| self.admit_forward(client)) {
            Some(share) => Dealt::Forward(Box::new(Forwarding { pending, share })),
            None => {
                *reply = pending.finish(Forwarded::failure());
                Dealt::Replied
            }
        }
    }

    fn admit_forward(&self, client: IpAddr) -> Option<Share> {
        let counts = &self.resolver.counts;
        let admitted = self.resolver.limits.admit_forward(client, self.now_ns);
        let refused = |why: &Refusal| match why {
            Refusal::Rate => counts.drop(Drop::ForwardRate),
            Refusal::Share => counts.drop(Drop::ForwardShare),
        };
        admitted.inspect_err(refused).ok()
    }

    fn silent(&self, reason: Drop) -> Dealt {
        self.resolver.counts.drop(reason);
        Dealt::Silent
    }
}

impl std::ops::Drop for Sitting<'_> {
    fn drop(&mut self) {
        let counts = &self.resolver.counts;
        counts.queries.fetch_add(self.queries, Ordering::Relaxed);
    }
}

/// Numbers that differ from call to call; the order of answers need not be unpredictable. SplitMix64 (Steele, Lea and
/// Flood, 2014).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(number: u64) -> u64 {
    let mut mixed = number;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
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
        let _ = timeout(LIFE, converse(stream, self.client, &self.resolver)).await;
    }
}

impl std::ops::Drop for Place {
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
