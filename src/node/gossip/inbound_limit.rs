//! Limits how many conversations peers may begin with this node, and what one peer may cost. Pure: the clock is an
//! argument.
//!
//! A connection comes from a peer's address, and any program on that peer's machine can open one. Until the sender has
//! proved its identity, the connection is counted as unproven, and it may stay so only for a short time. There are few
//! places for unproven connections from one address, and the newest connection takes the place of the oldest. So
//! connections that prove nothing never block others. After the proof the connection counts as the conversation of the
//! peer. A peer has one conversation.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::PublicKey;
use crate::model::rate::{Bucket, Rate};

/// How long a connection may take until its sender has proved its identity.
pub(super) const PROOF_TIMEOUT: Duration = Duration::from_secs(4);
/// The maximum number of unproven connections at once.
const MAX_UNPROVEN: usize = 64;
/// The maximum number of unproven connections from one peer's address.
const MAX_UNPROVEN_OF_ONE: usize = 4;
/// The maximum number of conversations at once with peers that have proved their identity.
const MAX_PROVEN: usize = 64;

/// The rate of connections from one peer's address.
const CONNECTIONS: Rate = rate(64, 32);
/// The rate of conversations that one peer begins.
const CONVERSATIONS: Rate = rate(20, 4);
/// The rate of bytes that one peer sends.
const BYTES: Rate = rate(8 * 1024 * 1024, 256 * 1024);
/// The rate of signatures that are verified for one peer. One takes about 70 µs, so that a peer costs at most 2 % of a core.
const SIGNATURES: Rate = rate(8192, 300);
/// The rate of messages of one peer that change the ledger: each change is written to disk, and the zone is rebuilt.
const WRITES: Rate = rate(64, 5);
/// The longest single wait of a conversation. The time limit of the conversation ends it before.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A rate of `burst` at once after a pause, and `per_second` in each second.
const fn rate(burst: u32, per_second: u32) -> Rate {
    Rate {
        per_second: per_second as f64,
        burst: burst as f64,
    }
}

/// Spends `count`, which may be more than the bucket holds. Returns how long to wait until the debt is paid.
fn spend(bucket: &mut Bucket, count: u64, now: Instant) -> Duration {
    bucket.charge(count as f64, now);
    bucket.limit_debt(MAX_WAIT);
    let wait = bucket.ready(0.0).saturating_duration_since(now);
    wait.min(MAX_WAIT)
}

/// The cost of one message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) bytes: u64,
    pub(super) signatures: u64,
    pub(super) writes: u64,
}

#[derive(Debug)]
struct PeerQuota {
    connections: Bucket,
    conversations: Bucket,
    bytes: Bucket,
    signatures: Bucket,
    writes: Bucket,
}

impl PeerQuota {
    fn new(now: Instant) -> Self {
        Self {
            connections: Bucket::full(CONNECTIONS, now),
            conversations: Bucket::full(CONVERSATIONS, now),
            bytes: Bucket::full(BYTES, now),
            signatures: Bucket::full(SIGNATURES, now),
            writes: Bucket::full(WRITES, now),
        }
    }

    /// Whether it can be forgotten, since each rate allows the full burst again.
    fn is_fresh(&mut self, now: Instant) -> bool {
        let all = [
            &mut self.connections,
            &mut self.conversations,
            &mut self.bytes,
            &mut self.signatures,
            &mut self.writes,
        ];
        all.into_iter().all(|bucket| bucket.is_full(now))
    }
}

/// A connection that was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Admitted {
    /// The number of the connection.
    pub(super) number: u64,
    /// The number of the connection that ends because this one takes its place.
    pub(super) ends: Option<u64>,
}

/// The decision about a connection whose sender has proved its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proved {
    /// The conversation goes on. The earlier conversation of the peer ends, if there is one.
    GoesOn { ends: Option<u64> },
    /// The peer begins conversations too often, or too many peers have one.
    Refused,
}

/// The limit. It has a quota for each member at most, since connections from other addresses are not admitted.
#[derive(Debug, Default)]
pub(super) struct InboundLimit {
    quotas: BTreeMap<PublicKey, PeerQuota>,
    /// The unproven connections by number, and so in the order in which they came.
    unproven: BTreeMap<u64, PublicKey>,
    proven: BTreeMap<PublicKey, u64>,
    last: u64,
}

impl InboundLimit {
    fn quota(&mut self, peer: PublicKey, now: Instant) -> &mut PeerQuota {
        self.quotas
            .entry(peer)
            .or_insert_with(|| PeerQuota::new(now))
    }

    /// Admits a connection from the address of `peer`, if its rate allows that. The caller calls [`InboundLimit::handle_ended`] when an
    /// admitted connection ends.
    pub(super) fn admit(&mut self, peer: PublicKey, now: Instant) -> Option<Admitted> {
        if !self.quota(peer, now).connections.take(now) {
            return None;
        }
        let count = |of: &PublicKey| self.unproven.values().filter(|id| *id == of).count();
        let from = if count(&peer) >= MAX_UNPROVEN_OF_ONE {
            Some(peer)
        } else if self.unproven.len() >= MAX_UNPROVEN {
            // The address with the most connections loses its oldest one.
            let from_newest = self.unproven.values().rev();
            from_newest.max_by_key(|id| count(id)).copied()
        } else {
            None
        };
        let ends = from.and_then(|from| {
            let mut oldest = self.unproven.iter();
            oldest.find(|(_, id)| **id == from).map(|(n, _)| *n)
        });
        if let Some(ends) = ends {
            self.unproven.remove(&ends);
        }
        self.last += 1;
        self.unproven.insert(self.last, peer);
        Some(Admitted {
            number: self.last,
            ends,
        })
    }

    /// The sender of the connection has proved that it is `peer`.
    pub(super) fn prove(&mut self, number: u64, peer: PublicKey, now: Instant) -> Proved {
        self.unproven.remove(&number);
        let before = self.proven.get(&peer).copied();
        if before.is_none() && self.proven.len() >= MAX_PROVEN
            || !self.quota(peer, now).conversations.take(now)
        {
            return Proved::Refused;
        }
        self.proven.insert(peer, number);
        Proved::GoesOn { ends: before }
    }

    /// Whether a conversation is open that `peer` began.
    #[cfg(test)]
    pub(super) fn has_proven(&self, peer: &PublicKey) -> bool {
        self.proven.contains_key(peer)
    }

    /// Whether the connection with this number is admitted and has not ended.
    pub(super) fn is_open(&self, number: u64) -> bool {
        self.unproven.contains_key(&number) || self.proven.values().any(|held| *held == number)
    }

    /// A connection ended.
    pub(super) fn handle_ended(&mut self, number: u64) {
        self.unproven.remove(&number);
        self.proven.retain(|_, held| *held != number);
    }

    /// A message of `peer` was processed. Returns how long to wait before the next one is read.
    pub(super) fn charge(&mut self, peer: PublicKey, cost: Cost, now: Instant) -> Duration {
        let quota = self.quota(peer, now);
        let bytes = spend(&mut quota.bytes, cost.bytes, now);
        let signatures = spend(&mut quota.signatures, cost.signatures, now);
        let writes = spend(&mut quota.writes, cost.writes, now);
        bytes.max(signatures).max(writes)
    }

    /// Forgets nodes that are no longer peers, once each rate allows them the full burst again.
    pub(super) fn retain(&mut self, is_peer: impl Fn(&PublicKey) -> bool, now: Instant) {
        self.quotas
            .retain(|id, quota| is_peer(id) || !quota.is_fresh(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn number(limit: &mut InboundLimit, peer: u8, now: Instant) -> u64 {
        limit.admit(id(peer), now).expect("a place").number
    }

    #[test]
    fn silent_connections_from_a_nodes_address_keep_its_own_conversation_out_for_no_moment() {
        let now = Instant::now();
        let mut limit = InboundLimit::default();
        let silent: Vec<u64> = (0..10).map(|_| number(&mut limit, 1, now)).collect();
        let own = limit.admit(id(1), now).expect("a place");
        assert_eq!(own.ends, Some(silent[10 - MAX_UNPROVEN_OF_ONE]));
        assert_eq!(
            limit.prove(own.number, id(1), now),
            Proved::GoesOn { ends: None }
        );
        // Silent connections that come afterwards do not end it.
        for _ in 0..10 {
            let admitted = limit.admit(id(1), now).expect("a place");
            assert_ne!(admitted.ends, Some(own.number));
        }
        assert_eq!(limit.proven.get(&id(1)), Some(&own.number));
    }

    #[test]
    fn a_peer_has_one_conversation_and_the_newest_is_the_one() {
        let now = Instant::now();
        let mut limit = InboundLimit::default();
        let first = number(&mut limit, 1, now);
        assert_eq!(
            limit.prove(first, id(1), now),
            Proved::GoesOn { ends: None }
        );
        let second = number(&mut limit, 1, now);
        assert_eq!(
            limit.prove(second, id(1), now),
            Proved::GoesOn { ends: Some(first) }
        );
        limit.handle_ended(first);
        assert_eq!(limit.proven.get(&id(1)), Some(&second));
        assert!(limit.is_open(second) && !limit.is_open(first));
        limit.handle_ended(second);
        assert!(limit.proven.is_empty() && !limit.is_open(second));
    }

    #[test]
    fn unproven_connections_from_many_addresses_take_nothing_from_one_that_has_few() {
        let now = Instant::now();
        let mut limit = InboundLimit::default();
        for peer in 1..=200 {
            for _ in 0..MAX_UNPROVEN_OF_ONE {
                number(&mut limit, peer, now);
            }
        }
        assert_eq!(limit.unproven.len(), MAX_UNPROVEN);
        let honest = limit.admit(id(250), now).expect("a place");
        assert!(honest.ends.is_some());
        // Each further connection ends one from an address that has more of them.
        for peer in 201..230 {
            let admitted = limit.admit(id(peer), now).expect("a place");
            assert_ne!(admitted.ends, Some(honest.number));
        }
    }

    #[test]
    fn a_peer_that_asks_too_often_waits_and_keeps_nobody_else_out() {
        let now = Instant::now();
        let mut limit = InboundLimit::default();
        let mut begun = |peer, now| {
            let begun = (0..200).filter(|_| {
                let Some(admitted) = limit.admit(id(peer), now) else {
                    return false;
                };
                let goes_on = limit.prove(admitted.number, id(peer), now) != Proved::Refused;
                limit.handle_ended(admitted.number);
                goes_on
            });
            begun.count() as u64
        };
        assert_eq!(begun(1, now), CONVERSATIONS.burst as u64);
        assert_eq!(begun(2, now), CONVERSATIONS.burst as u64);
        let later = now + Duration::from_secs(2);
        assert_eq!(begun(1, later), 2 * CONVERSATIONS.per_second as u64);
        limit.retain(|_| false, later);
        assert!(limit.quotas.contains_key(&id(1)), "it has spent");
        limit.retain(|_| false, later + Duration::from_secs(60));
        assert!(limit.quotas.is_empty());
    }

    #[test]
    fn what_a_peer_sends_is_bounded_in_signatures_bytes_and_writes() {
        for (cost, rate) in [
            (
                Cost {
                    signatures: 256,
                    ..Cost::default()
                },
                SIGNATURES,
            ),
            (
                Cost {
                    bytes: 64 * 1024,
                    ..Cost::default()
                },
                BYTES,
            ),
            (
                Cost {
                    writes: 1,
                    ..Cost::default()
                },
                WRITES,
            ),
        ] {
            let unit = cost.signatures + cost.bytes + cost.writes;
            let mut limit = InboundLimit::default();
            let start = Instant::now();
            let (mut now, mut spent) = (start, 0);
            let minute = Duration::from_secs(60);
            while now < start + minute {
                now += limit.charge(id(1), cost, now);
                spent += unit;
            }
            let most = rate.burst as u64 + 61 * rate.per_second as u64 + 2 * unit;
            assert!(spent <= most, "{spent} of {most}");
            assert!(
                spent >= rate.burst as u64 + 50 * rate.per_second as u64,
                "{spent}"
            );
            // Another peer has its own rates.
            assert_eq!(limit.charge(id(2), cost, now), Duration::ZERO);
        }
        // The wait is bounded for any cost.
        let (mut limit, now) = (InboundLimit::default(), Instant::now());
        let cost = Cost {
            bytes: u64::MAX,
            ..Cost::default()
        };
        for _ in 0..10 {
            assert!(limit.charge(id(1), cost, now) <= MAX_WAIT);
        }
    }
}
