//! The values that all servers of a node share: the zone, the sources that may ask, the upstreams, the limits and the counts.
//!
//! A query first takes the fast path, in the thread that received it ([`super::batch_context`]). The fast path does a bounded
//! amount of work, whatever the zone holds. A query that it does not answer takes the full path, in a thread of its own
//! ([`super::full_path`]), if the limits admit it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};

use super::access::{Allowed, Client};
use super::choice::mixed;
use super::drop_reason::{Counts, DropReason};
use super::forward::Upstream;
use super::job::Job;
use super::limits::{Limits, Pool, Refusal, Share, Work};
use super::zone::Zone;
use crate::os::random;

/// What all servers of a node answer from.
pub struct Resolver {
    zone: Arc<ArcSwap<Zone>>,
    allowed: Arc<ArcSwap<Allowed>>,
    upstream: Arc<Upstream>,
    counts: Counts,
    limits: Arc<Limits>,
    /// The queue of the full path, once its thread is started. The thread ends when this is dropped.
    queue: OnceLock<SyncSender<Job>>,
    started: Instant,
    random: AtomicU64,
}

impl Resolver {
    /// Answers from `zone` to the sources in `allowed`, and forwards other names to `upstream`.
    #[must_use]
    pub fn new(
        zone: Arc<ArcSwap<Zone>>,
        allowed: Arc<ArcSwap<Allowed>>,
        upstream: Arc<Upstream>,
    ) -> Self {
        let random = || random::u64().unwrap_or_default();
        Self {
            zone,
            allowed,
            upstream,
            counts: Counts::default(),
            limits: Arc::new(Limits::new(random())),
            queue: OnceLock::new(),
            started: Instant::now(),
            random: AtomicU64::new(random()),
        }
    }

    /// Returns the counts since the start.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns the zone as it is now.
    pub(super) fn zone(&self) -> Guard<Arc<Zone>> {
        self.zone.load()
    }

    pub(super) fn allowed(&self) -> Guard<Arc<Allowed>> {
        self.allowed.load()
    }

    pub(super) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    pub(super) fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    pub(super) fn queue(&self) -> &OnceLock<SyncSender<Job>> {
        &self.queue
    }

    /// Returns the client that `source` belongs to. Counts a drop if `source` may not ask.
    pub(super) fn admits(&self, source: IpAddr) -> Option<Client> {
        let client = self.allowed.load().client(source);
        if client.is_none() {
            self.counts.drop(DropReason::Foreign);
        }
        client
    }

    /// Admits a TCP segment of `client` to the queue of the stack inside the tunnel device.
    pub(super) fn admit_segment(&self, client: Client) -> Option<Share> {
        let admitted = self.limits.admit_segment(client, self.now_ns());
        admitted.inspect_err(|why| self.count_refusal(*why)).ok()
    }

    /// Admits one more forwarded query of `client`.
    pub(super) fn admit_forward(&self, client: Client) -> Option<Share> {
        let admitted = self.limits.admit_forward(client, self.now_ns());
        admitted.inspect_err(|why| self.count_refusal(*why)).ok()
    }

    /// Admits one more connection of `client`.
    pub(super) fn admit_connection(&self, client: Client) -> Option<Share> {
        let share = self.limits.take(Pool::Connections, client, 1);
        if share.is_none() {
            self.counts.drop(DropReason::Connections);
        }
        share
    }

    /// Reserves memory for a large reply to `client`.
    pub(super) fn reserve(&self, client: Client, bytes: usize) -> Option<Share> {
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        let share = self.limits.take(Pool::Memory, client, kib);
        if share.is_none() {
            self.counts.drop(DropReason::Memory);
        }
        share
    }

    /// Charges `client` for an answer: the instances of the zone that were visited, and the bytes that were written.
    pub(super) fn charge(&self, client: Client, walked: usize, written: usize) {
        let work = Work { walked, written };
        self.limits.charge(client, work, self.now_ns());
    }

    pub(super) fn count_refusal(&self, why: Refusal) {
        self.counts.drop(match why {
            Refusal::Rate => DropReason::ForwardRate,
            Refusal::Work => DropReason::Work,
            Refusal::Full(Pool::Forwards) => DropReason::ForwardShare,
            Refusal::Full(_) => DropReason::Queue,
        });
    }

    /// Returns the nanoseconds since the start: the clock of the limits.
    pub(super) fn now_ns(&self) -> u64 {
        let elapsed = self.started.elapsed().as_nanos();
        elapsed.try_into().unwrap_or(u64::MAX / 2)
    }

    /// Returns a number that differs from call to call. The order of answers need not be unpredictable.
    pub(super) fn entropy(&self) -> u64 {
        mixed(self.random.fetch_add(STEP, Ordering::Relaxed))
    }
}

/// The increment of SplitMix64 (Steele, Lea and Flood, 2014).
pub(super) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
