//! Whether a mapping works, as peers show it. Pure.
//!
//! A router may report a mapping that it does not have. So peers are asked to send to the outer address first, and to say so. A
//! mapping is proven by a datagram that arrived on a path on which the peer sees this node at the outer address. It is in doubt
//! from the first peer that tried in vain, until another proof.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::model::address::is_public;

/// How long after a proof the next one is asked for.
pub const PROVE_INTERVAL: Duration = Duration::from_secs(20);
/// A mapping that is in doubt for so long is dead: less than a minute after the last proof.
pub const DOUBTED_FOR: Duration = Duration::from_secs(35);
/// So many attempts in vain make a mapping dead: one datagram may be lost.
const LEAST_FAILURES: u32 = 3;
/// The first pause between two attempts. Each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The last pause.
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// How long an answer to the question is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long after its answer a datagram of the peer may arrive.
const ARRIVES_WITHIN: Duration = Duration::from_secs(2);
/// The pause if there is no peer to ask: at first, when sessions with peers are about to begin, and later.
const IDLE_PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];
/// How long the first of these pauses counts.
const YOUNG_FOR: Duration = Duration::from_secs(60);
/// The largest number of peers of which it is known when they were asked. The oldest are forgotten.
const MAX_ASKED: usize = 64;

/// A peer that may prove the mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prover<K> {
    /// Its name.
    pub peer: K,
    /// Whether it is reached through a relay. The router has then no translation for it that lets it in without the mapping.
    pub is_relayed: bool,
    /// Where it sees this node, if it is reached directly.
    pub seen: Option<SocketAddr>,
}

/// The proofs of one mapping. `K` names a peer.
#[derive(Debug)]
pub struct Proof<K> {
    /// The outer address.
    external: SocketAddr,
    /// Whether the outer port is the port of this node. A router may then show the outer address without the mapping.
    is_same_port: bool,
    /// When the mapping was made: what arrived before proves nothing.
    made: Instant,
    /// When a datagram last arrived through it.
    proven: Option<Instant>,
    asked: BTreeMap<K, Asked>,
    /// When the next peer is asked, and how many were asked since the last proof.
    next: Instant,
    attempts: u32,
    /// Since when peers try in vain, and how many did.
    doubted: Option<Instant>,
    failures: u32,
    /// Whether there was a peer to ask.
    has_provers: bool,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Instant,
    is_relayed: bool,
    progress: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// The peer has not answered yet.
    Asked,
    /// The peer said at this time that it sends.
    Tried(Instant),
    /// The attempt was counted.
    Done,
}

impl<K: Copy + Ord> Proof<K> {
    /// A mapping of which nothing is known but its outer address. The port of this node is `port`.
    #[must_use]
    pub fn new(external: SocketAddr, port: u16, now: Instant) -> Self {
        Self {
            external,
            is_same_port: external.port() == port,
            made: now,
            proven: None,
            asked: BTreeMap::new(),
            next: now,
            attempts: 0,
            doubted: None,
            failures: 0,
            has_provers: false,
        }
    }

    /// When a datagram last arrived through the mapping.
    #[must_use]
    pub fn proven(&self) -> Option<Instant> {
        self.proven
    }

    /// Whether peers are told of the mapping: if it works, or if nobody could show it yet. Without that, two nodes behind routers
    /// that have no other common peer would never send the first datagram.
    #[must_use]
    pub fn is_offered(&self) -> bool {
        self.proven.is_some() || (!self.has_provers && self.failures == 0)
    }

    /// Whether peers tried in vain for so long that the mapping cannot work.
    #[must_use]
    pub fn is_dead(&self, now: Instant) -> bool {
        let since = self.doubted.map(|at| now.saturating_duration_since(at));
        self.failures >= LEAST_FAILURES && since.is_some_and(|since| since >= DOUBTED_FOR)
    }

    /// The network has changed: the next proof is asked for at once.
    pub fn handle_network_changed(&mut self, now: Instant) {
        self.next = now;
        self.attempts = 0;
    }

    /// `peer` sees this node at `seen` on a path on which its last datagram arrived at `heard`.
    pub fn handle_seen(&mut self, peer: &K, seen: SocketAddr, heard: Instant) {
        if seen != self.external || heard < self.made || self.proven.is_some_and(|at| at >= heard) {
            return;
        }
        // Without the mapping a router shows the same port only to a peer to which this node sent. It did not send to a peer
        // behind a relay before that one tried.
        let was_relayed = |asked: &Asked| asked.is_relayed && asked.at <= heard;
        if self.is_same_port && !self.asked.get(peer).is_some_and(was_relayed) {
            return;
        }
        self.proven = Some(heard);
        (self.doubted, self.failures, self.attempts) = (None, 0, 0);
        self.next = heard + PROVE_INTERVAL;
        for asked in self.asked.values_mut() {
            asked.progress = Progress::Done;
        }
    }

    /// `peer` sends to the mapping, as it was asked.
    pub fn handle_tried(&mut self, peer: &K, now: Instant) {
        if let Some(asked) = self.asked.get_mut(peer)
            && asked.progress == Progress::Asked
            && now.saturating_duration_since(asked.at) < ANSWER_WITHIN
        {
            asked.progress = Progress::Tried(now);
        }
    }

    /// The peers whose paths are read until the datagram has arrived.
    pub fn awaited(&self, now: Instant) -> impl Iterator<Item = K> {
        let is_young = move |asked: &Asked| {
            let age = now.saturating_duration_since(asked.at);
            asked.progress != Progress::Done && age < ANSWER_WITHIN
        };
        let asked = self.asked.iter();
        asked.filter_map(move |(peer, asked)| is_young(asked).then_some(*peer))
    }

    /// Returns the peer that is to be asked now to send first. The caller does that at once.
    pub fn poll(&mut self, provers: &[Prover<K>], now: Instant) -> Option<K> {
        for asked in self.asked.values_mut() {
            if let Progress::Tried(at) = asked.progress
                && now.saturating_duration_since(at) >= ARRIVES_WITHIN
            {
                asked.progress = Progress::Done;
                self.failures = self.failures.saturating_add(1);
                self.doubted.get_or_insert(asked.at);
            }
        }
        let provers = provers.iter().filter(|prover| self.can_prove(prover));
        // The one that was asked longest ago, or never.
        let rank = |prover: &&Prover<K>| {
            let asked = self.asked.get(&prover.peer).map(|asked| asked.at);
            (asked, !prover.is_relayed)
        };
        let next = provers.min_by_key(rank).copied();
        self.has_provers = next.is_some();
        if self.next > now {
            return None;
        }
        let Some(prover) = next else {
            let is_young = now.saturating_duration_since(self.made) < YOUNG_FOR;
            self.next = now + IDLE_PAUSES[usize::from(!is_young)];
            return None;
        };
        let pause = FIRST_PAUSE * 2u32.saturating_pow(self.attempts);
        self.next = now + pause.min(LAST_PAUSE);
        self.attempts = self.attempts.saturating_add(1);
        if self.asked.len() >= MAX_ASKED && !self.asked.contains_key(&prover.peer) {
            let oldest = self.asked.iter().min_by_key(|(_, asked)| asked.at);
            if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                self.asked.remove(&oldest);
            }
        }
        let asked = Asked {
            at: now,
            is_relayed: prover.is_relayed,
            progress: Progress::Asked,
        };
        self.asked.insert(prover.peer, asked);
        Some(prover.peer)
    }

    /// When [`Proof::poll`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        let asked = self.asked.values();
        let arrivals = asked.filter_map(|asked| match asked.progress {
            Progress::Tried(at) => Some(at + ARRIVES_WITHIN),
            Progress::Asked | Progress::Done => None,
        });
        let death = self.doubted.map(|at| at + DOUBTED_FOR);
        let death = death.filter(|_| self.failures >= LEAST_FAILURES);
        let all = arrivals.chain(death).chain([self.next]);
        all.min().unwrap_or(self.next)
    }

    /// Whether an attempt of this peer says something about the mapping.
    fn can_prove(&self, prover: &Prover<K>) -> bool {
        match prover.seen {
            None => prover.is_relayed,
            // A peer in this node's own network sees a private address; most routers do not lead their own network back. A peer that
            // sees the outer address already has a translation, which would let it in without the mapping.
            Some(seen) => is_public(seen.ip()) && seen != self.external && !self.is_same_port,
        }
    }
}
