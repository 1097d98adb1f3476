//! The allowance of each member: how much work the coordinator does for it. The allowance belongs to the node and not to a
//! stream, so that new streams do not renew it. This module is pure: the clock is an argument.
//!
//! The coordinator refuses nothing because of an allowance. It waits before it reads more, so that a node that sends much
//! takes longer and loses nothing. A record that the store already holds costs only its bytes, since it causes no other work.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::model::PublicKey;
use crate::model::rate::{Bucket, Rate};

/// The rate of records that the node itself signed. Each is verified, written, and sent to every other node.
const OWN: Rate = Rate {
    per_second: 20.0,
    burst: 100.0,
};
/// The rate of records that others signed. Each can be new only once, so the burst may be large: it is the number of records
/// that one node may have. So an emptied store is refilled without a wait.
const OTHERS: Rate = Rate {
    per_second: 20.0,
    burst: 4096.0,
};
/// The rate of bytes of messages. Each message is decrypted, parsed, and compared with the records held. The burst is as large
/// as everything that a node of a large mesh offers to a store that is new to the node.
const BYTES: Rate = Rate {
    per_second: 512.0 * 1024.0,
    burst: 16.0 * 1024.0 * 1024.0,
};
/// The rate of new streams. A node that often loses its connection has to wait once the burst is used up.
const STREAMS: Rate = Rate {
    per_second: 0.2,
    burst: 20.0,
};
/// The rate of calls to other members. A node that is started in a mesh where nobody has a public address calls all others.
const CALLS: Rate = Rate {
    per_second: 5.0,
    burst: 64.0,
};
/// A smaller message is charged as if it had this many bytes.
const MIN_MESSAGE: usize = 1024;
/// The maximum number of nodes whose allowances are stored. A node whose allowance is full again needs no entry.
const MAX_NODES: usize = 16_384;

/// The allowances of all members, shared by their streams.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowances(Arc<Mutex<HashMap<PublicKey, Allowance>>>);

#[derive(Debug)]
struct Allowance {
    own: Bucket,
    others: Bucket,
    bytes: Bucket,
    streams: Bucket,
    calls: Bucket,
}

/// The signer of a record, seen from its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signer {
    /// The node that sends the record.
    Itself,
    /// A node other than the sender, a token, or the mesh key.
    Another,
}

impl Allowances {
    /// Whether the node may open one more stream.
    pub(super) fn open(&self, node: PublicKey, now: Instant) -> bool {
        self.with(node, now, |allowance| allowance.streams.take(now))
    }

    /// Whether a call of the node to another member is passed on.
    pub(super) fn call(&self, node: PublicKey, now: Instant) -> bool {
        self.with(node, now, |allowance| allowance.calls.take(now))
    }

    /// Charges a message that was received. Returns when the next one may be read.
    pub(super) fn handle_message(&self, node: PublicKey, bytes: usize, now: Instant) -> Instant {
        let cost = bytes.max(MIN_MESSAGE) as f64;
        self.with(node, now, |allowance| {
            allowance.bytes.charge(cost, now);
            allowance.bytes.ready(0.0)
        })
    }

    /// Spends the cost of one record, if the allowance covers it now.
    ///
    /// # Errors
    /// The time from which the allowance covers it.
    pub(super) fn take(
        &self,
        node: PublicKey,
        signer: Signer,
        now: Instant,
    ) -> Result<(), Instant> {
        self.with(node, now, |allowance| {
            let bucket = match signer {
                Signer::Itself => &mut allowance.own,
                Signer::Another => &mut allowance.others,
            };
            if bucket.take(now) {
                Ok(())
            } else {
                Err(bucket.ready(1.0))
            }
        })
    }

    /// Charges other work that costs as much as a record of the node's own. Returns when the next message may be read.
    pub(super) fn charge(&self, node: PublicKey, now: Instant) -> Instant {
        self.with(node, now, |allowance| {
            allowance.own.charge(1.0, now);
            allowance.own.ready(0.0)
        })
    }

    fn with<T>(
        &self,
        node: PublicKey,
        now: Instant,
        change: impl FnOnce(&mut Allowance) -> T,
    ) -> T {
        let mut nodes = self.nodes();
        if nodes.len() >= MAX_NODES && !nodes.contains_key(&node) {
            nodes.retain(|_, allowance| !allowance.is_full(now));
            if nodes.len() >= MAX_NODES
                && let Some(other) = nodes.keys().next().copied()
            {
                nodes.remove(&other);
            }
        }
        change(nodes.entry(node).or_insert_with(|| Allowance::full(now)))
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<PublicKey, Allowance>> {
        // A panic under the lock leaves no entry half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Allowance {
    fn full(now: Instant) -> Self {
        Self {
            own: Bucket::full(OWN, now),
            others: Bucket::full(OTHERS, now),
            bytes: Bucket::full(BYTES, now),
            streams: Bucket::full(STREAMS, now),
            calls: Bucket::full(CALLS, now),
        }
    }

    fn is_full(&mut self, now: Instant) -> bool {
        let buckets = [
            &mut self.own,
            &mut self.others,
            &mut self.bytes,
            &mut self.streams,
            &mut self.calls,
        ];
        buckets.into_iter().all(|bucket| bucket.is_full(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    const NODE: PublicKey = PublicKey([1; 32]);
    const OTHER: PublicKey = PublicKey([2; 32]);

    /// How long the node has to wait until `count` records are permitted.
    fn time_of(allowances: &Allowances, signer: Signer, count: usize, start: Instant) -> Duration {
        let mut now = start;
        for _ in 0..count {
            while let Err(later) = allowances.take(NODE, signer, now) {
                assert!(later > now);
                now = later;
            }
        }
        now - start
    }

    #[test]
    fn a_node_writes_100_records_at_once_and_20_a_second() {
        let (allowances, now) = (Allowances::default(), Instant::now());
        assert_eq!(
            time_of(&allowances, Signer::Itself, 100, now),
            Duration::ZERO
        );
        let slow = time_of(&allowances, Signer::Itself, 200, now);
        assert!(
            slow.abs_diff(Duration::from_secs(10)) < Duration::from_millis(1),
            "{slow:?}"
        );
        assert_eq!(allowances.take(OTHER, Signer::Itself, now), Ok(()));
        // Records that others signed have a bucket of their own.
        assert_eq!(
            time_of(&allowances, Signer::Another, 4096, now),
            Duration::ZERO
        );
        assert!(allowances.take(NODE, Signer::Another, now).is_err());
    }

    #[test]
    fn small_messages_and_large_ones_are_charged_for() {
        let (allowances, now) = (Allowances::default(), Instant::now());
        let burst = (0..16 * 1024)
            .map(|_| allowances.handle_message(NODE, 2, now))
            .filter(|next| *next <= now);
        assert_eq!(burst.count(), 16 * 1024);
        let next = allowances.handle_message(NODE, 1024 * 1024, now);
        assert_eq!(next, now + Duration::from_secs(2));
        assert!(allowances.handle_message(OTHER, 2, now) <= now);
    }

    #[test]
    fn a_node_opens_20_streams_at_once_and_one_in_five_seconds() {
        let (allowances, now) = (Allowances::default(), Instant::now());
        assert_eq!((0..100).filter(|_| allowances.open(NODE, now)).count(), 20);
        assert!(allowances.open(OTHER, now));
        assert!(allowances.open(NODE, now + Duration::from_secs(5)));
    }

    #[test]
    fn a_node_calls_64_members_at_once_and_five_in_a_second() {
        let (allowances, now) = (Allowances::default(), Instant::now());
        assert_eq!((0..1000).filter(|_| allowances.call(NODE, now)).count(), 64);
        assert!(allowances.call(OTHER, now));
        let later = now + Duration::from_secs(1);
        assert_eq!(
            (0..1000).filter(|_| allowances.call(NODE, later)).count(),
            5
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (allowances, now) = (Allowances::default(), Instant::now());
        for n in 0..20_000u32 {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_be_bytes());
            allowances.handle_message(PublicKey(key), 2, now);
        }
        assert_eq!(allowances.nodes().len(), MAX_NODES);
        allowances.handle_message(NODE, 2, now + Duration::from_secs(1));
        assert_eq!(allowances.nodes().len(), 1);
    }
}
