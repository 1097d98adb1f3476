//! What every way in shares: the zone, who may ask, where other names are asked, counts, and conversations over streams.
//!
//! A query first takes the fast path, in the thread that received it. The fast path does a bounded amount of work, whatever
//! the zone holds. A query that it does not answer takes the full path, in a thread of its own ([`super::full_path`]), if
//! the limits admit it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::access::{Allowed, Client};
use super::choice::mixed;
use super::drop_reason::{Counts, DropReason};
use super::fast_path::{self, FEW_INSTANCES, FastPath};
use super::forward::{Asker, Forwarded, Upstream};
use super::full_path::{Deliver, FullPath, Job};
use super::limits::{Limits, Pool, Refusal, Share, Work};
use super::names::{Outcome as FullOutcome, Pending, Silence, handle};
use super::tcp::converse;
use super::transport::{MAX_QUERY, Transport};
use super::zone::Zone;

/// How long a connection may live.
const LIFE: Duration = Duration::from_secs(120);
/// A forwarded reply with more bytes than this has a place in [`Pool::Memory`]. Smaller replies are bounded by their number.
const LARGE: usize = 4 * 1024;
/// The work to parse a message and encode another one, in visited instances.
const MESSAGE: usize = 150;
/// The work to receive, filter and encode a forwarded record, in visited instances.
const FORWARDED_RECORD: usize = 10;

/// What all servers of a node answer from.
pub struct Resolver {
    zone: Arc<ArcSwap<Zone>>,
    allowed: Arc<ArcSwap<Allowed>>,
    upstream: Arc<Upstream>,
    counts: Counts,
    limits: Arc<Limits>,
    full_path: OnceLock<FullPath>,
    started: Instant,
    random: AtomicU64,
}

/// The outcome of a query on the fast path.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The reply is written.
    Replied,
    /// The query has to be handed over to the full path ([`Resolver::leave`]).
    Left(Admitted),
    /// There is no place for the query now, or its client has spent its share of a core.
    Busy,
    /// There will be no reply.
    Silent,
}

/// A query's place on the full path.
#[derive(Debug)]
pub(super) struct Admitted {
    share: Share,
    /// Whether the place is in [`Pool::Forwards`]. Otherwise it is in [`Pool::FullPath`].
    forward: bool,
}

/// The outcome of a query on the full path.
#[derive(Debug)]
pub(super) enum InFull {
    /// The reply.
    Reply(Reply),
    /// The query has to be forwarded ([`Resolver::forward`]).
    Forward(Forwarding),
    /// There will be no reply.
    Silent,
}

/// A query to be forwarded, with its place among those under way.
#[derive(Debug)]
pub(super) struct Forwarding {
    pending: Pending,
    share: Share,
}

/// A reply from the full path. The query keeps its place until the reply is dropped.
#[derive(Debug)]
pub(super) struct Reply {
    octets: Vec<u8>,
    _share: Share,
    memory: Option<Share>,
}

impl Reply {
    fn new(octets: Vec<u8>, share: Share) -> Self {
        Self {
            octets,
            _share: share,
            memory: None,
        }
    }

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
            full_path: OnceLock::new(),
            started: Instant::now(),
            random: AtomicU64::new(random()),
        }
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns the client that `source` belongs to. Counts a drop if `source` may not ask.
    pub(super) fn admits(&self, source: IpAddr) -> Option<Client> {
        let client = self.allowed.load().client(source);
        if client.is_none() {
            self.counts.drop(DropReason::Foreign);
        }
        client
    }

    /// Takes what a few queries are answered from. Not to be kept: changes are not seen in it.
    pub(super) fn batch_context(&self) -> QueryContext<'_> {
        QueryContext {
            resolver: self,
            zone: self.zone.load(),
            allowed: self.allowed.load(),
            now_ns: self.now_ns(),
            entropy: self.entropy(),
            queries: 0,
        }
    }

    /// Starts the full path if it is not started yet. The first call has to be made inside the runtime.
    pub(super) fn start_full_path(self: &Arc<Self>) -> &FullPath {
        self.full_path.get_or_init(|| FullPath::start(self))
    }

    /// Hands a query over to the full path, which calls `deliver` with the reply, if there is one.
    pub(super) fn leave(
        self: &Arc<Self>,
        query: &[u8],
        transport: Transport,
        admitted: Admitted,
        deliver: Deliver,
    ) {
        // One byte more than the maximum is enough to detect that a query is too long.
        let query = query.get(..=MAX_QUERY).unwrap_or(query).into();
        let job = Job {
            query,
            transport,
            admitted,
            deliver,
        };
        if !self.start_full_path().push(job) {
            self.counts.drop(DropReason::Queue);
        }
    }

    /// Answers a query without a bound on the work, and charges its client for the work.
    pub(super) fn answer_in_full(
        &self,
        query: &[u8],
        transport: Transport,
        admitted: Admitted,
    ) -> InFull {
        let (zone, entropy) = (self.zone.load(), self.entropy());
        let Admitted { share, forward } = admitted;
        let client = share.client();
        let charge = |walked, written| {
            let work = Work { walked, written };
            self.limits.charge(client, work, self.now_ns());
        };
        let reply = |octets: Vec<u8>, walked, share| {
            self.counts.queries.fetch_add(1, Ordering::Relaxed);
            charge(walked, octets.len());
            InFull::Reply(Reply::new(octets, share))
        };
        let walked = fast_path::walked(&zone, query);
        let mut octets = Vec::new();
        if !forward
            && fast_path::answer(&zone, query, transport, entropy, &mut octets) == FastPath::Replied
        {
            return reply(octets, walked, share);
        }
        let walked = walked + MESSAGE;
        let pending = match handle(&zone, query, transport, entropy) {
            FullOutcome::Reply(octets) => return reply(octets, walked, share),
            FullOutcome::Silence(why) => {
                charge(walked, 0);
                self.counts.drop(match why {
                    Silence::NoHeader => DropReason::Malformed,
                    Silence::IsReply => DropReason::Reply,
                });
                return InFull::Silent;
            }
            FullOutcome::Forward(pending) => *pending,
        };
        if !client.may_recurse() {
            self.counts.drop(DropReason::Recursion);
            return reply(pending.refuse(), walked, share);
        }
        let admitted = match forward {
            true => Ok(share),
            false => self
                .limits
                .admit_forward(client, self.now_ns())
                .map_err(|why| {
                    self.count_refusal(why);
                    share
                }),
        };
        match admitted {
            Ok(share) => {
                self.counts.queries.fetch_add(1, Ordering::Relaxed);
                charge(walked, 0);
                InFull::Forward(Forwarding { pending, share })
            }
            Err(share) => reply(pending.finish(Forwarded::failure()), walked, share),
        }
    }

    /// Asks the upstreams, for a bounded time.
    pub(super) async fn forward(&self, forwarding: Forwarding) -> Reply {
        self.counts.forwarded.fetch_add(1, Ordering::Relaxed);
        let Forwarding { pending, share } = forwarding;
        let client = share.client();
        let asker = Asker {
            limits: Arc::clone(&self.limits),
            client,
        };
        let mut forwarded = self.upstream.ask_as(&pending.asked, Some(asker)).await;
        if forwarded.strip(&self.zone.load()).is_any() {
            self.counts.rebound.fetch_add(1, Ordering::Relaxed);
        }
        let records = forwarded.answers.len() + forwarded.authority.len();
        let mut reply = Reply::new(pending.finish(forwarded), share);
        let work = Work {
            walked: MESSAGE + records * FORWARDED_RECORD,
            written: reply.octets.len(),
        };
        self.limits.charge(client, work, self.now_ns());
        if reply.octets.len() > LARGE {
            let kib = reply.octets.len() as u32 / 1024;
            reply.memory = self.limits.take(Pool::Memory, client, kib);
            if reply.memory.is_none() {
                self.counts.drop(DropReason::Memory);
                reply.octets = pending.finish(Forwarded::failure());
            }
        }
        reply
    }

    /// Admits a TCP segment of `client` to the queue of the stack inside the tunnel device.
    pub(super) fn admit_segment(&self, client: Client) -> Option<Share> {
        let admitted = self.limits.admit_segment(client, self.now_ns());
        admitted.inspect_err(|why| self.count_refusal(*why)).ok()
    }

    pub(super) fn count_queue(&self) {
        self.counts.drop(DropReason::Queue);
    }

    fn count_refusal(&self, why: Refusal) {
        self.counts.drop(match why {
            Refusal::Rate => DropReason::ForwardRate,
            Refusal::Work => DropReason::Work,
            Refusal::Full(Pool::Forwards) => DropReason::ForwardShare,
            Refusal::Full(_) => DropReason::Queue,
        });
    }

    fn now_ns(&self) -> u64 {
        let elapsed = self.started.elapsed().as_nanos();
        elapsed.try_into().unwrap_or(u64::MAX / 2)
    }

    fn entropy(&self) -> u64 {
        mixed(self.random.fetch_add(STEP, Ordering::Relaxed))
    }

    /// A place for one more connection of `client`, if there is one.
    pub(super) fn place(self: &Arc<Self>, client: Client) -> Option<Place> {
        let share = self.limits.take(Pool::Connections, client, 1);
        if share.is_none() {
            self.counts.drop(DropReason::Connections);
        }
        Some(Place {
            resolver: Arc::clone(self),
            share: share?,
        })
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
pub(super) struct QueryContext<'a> {
    resolver: &'a Resolver,
    zone: Guard<Arc<Zone>>,
    allowed: Guard<Arc<Allowed>>,
    now_ns: u64,
    entropy: u64,
    queries: u64,
}

impl QueryContext<'_> {
    /// Processes a query on the fast path, without waiting and with a bounded amount of work.
    pub(super) fn answer(
        &mut self,
        query: &[u8],
        source: IpAddr,
        transport: Transport,
        reply: &mut Vec<u8>,
    ) -> Outcome {
        let resolver = self.resolver;
        let Some(client) = self.allowed.client(source) else {
            return self.silent(DropReason::Foreign);
        };
        if !resolver.limits.admits(client, self.now_ns) {
            return self.silent(DropReason::Rate);
        }
        let streamed = transport == Transport::Tcp;
        if streamed && !resolver.limits.admit_streamed(client, self.now_ns) {
            return Outcome::Busy;
        }
        self.entropy = mixed(self.entropy.wrapping_add(STEP));
        let (most, entropy) = (FEW_INSTANCES, self.entropy);
        match fast_path::answer_within(most, &self.zone, query, transport, entropy, reply) {
            FastPath::Replied => {
                self.queries += 1;
                Outcome::Replied
            }
            FastPath::Forward if !client.may_recurse() => {
                self.queries += 1;
                resolver.counts.drop(DropReason::Recursion);
                fast_path::refuse(query, reply);
                Outcome::Replied
            }
            // Whether it is forwarded at all is known before the message is taken apart.
            FastPath::Forward => match resolver.limits.admit_forward(client, self.now_ns) {
                Ok(share) => {
                    let forward = true;
                    Outcome::Left(Admitted { share, forward })
                }
                Err(why) => {
                    resolver.count_refusal(why);
                    self.queries += 1;
                    fast_path::fail(query, reply);
                    Outcome::Replied
                }
            },
            FastPath::NeedsFullParse => {
                reply.clear();
                match resolver.limits.admit_full_path(client, self.now_ns) {
                    Ok(share) => {
                        let forward = false;
                        Outcome::Left(Admitted { share, forward })
                    }
                    Err(why) => {
                        // Over a stream the query waits and is not lost.
                        if !streamed {
                            resolver.count_refusal(why);
                        }
                        Outcome::Busy
                    }
                }
            }
        }
    }

    fn silent(&self, reason: DropReason) -> Outcome {
        self.resolver.counts.drop(reason);
        Outcome::Silent
    }
}

impl Drop for QueryContext<'_> {
    fn drop(&mut self) {
        let counts = &self.resolver.counts;
        counts.queries.fetch_add(self.queries, Ordering::Relaxed);
    }
}

/// Numbers that differ from call to call; the order of answers need not be unpredictable. SplitMix64 (Steele, Lea and
/// Flood, 2014).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// One of a client's connections.
pub(super) struct Place {
    resolver: Arc<Resolver>,
    share: Share,
}

impl Place {
    /// Answers queries of `source` until the client closes the stream or is quiet for too long.
    pub(super) async fn converse(
        self,
        source: IpAddr,
        stream: impl AsyncRead + AsyncWrite + Unpin,
    ) {
        let Self { resolver, share } = self;
        // However it ends, there is nobody left to tell.
        let _ = timeout(LIFE, converse(stream, source, &resolver)).await;
        drop(share);
    }
}
