//! Which relays a node names in its record, and through which relay two nodes reach each other. Pure.
//!
//! A node measures the round trip to each peer that offers to relay. It names the best of them in its record, so that a peer without
//! a path to the node knows where to begin. The names change rarely, because each change is a signed record that the whole mesh
//! receives.
//!
//! Two nodes use the relay with the smallest sum of both round trips. They need not choose the same one: each node accepts
//! what arrives through any relay.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::records::kinds::MAX_RELAYS;

/// The least time between two changes of the relays in a node record.
const CHANGE_INTERVAL: Duration = Duration::from_secs(60);
/// How many measurements in a row must show that another relay is better.
const BETTER_FOR: u8 = 3;
/// A relay is better than another one if its round trip is shorter by this part of the other's.
const BETTER_BY: f64 = 0.2;
/// A relay is better than another one if its round trip is shorter by this time.
const BETTER_BY_TIME: Duration = Duration::from_millis(2);

/// A peer that offers to relay, as it was measured. `K` names a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeasuredRelay<K> {
    /// The relay.
    pub relay: K,
    /// The round trip to it.
    pub rtt: Duration,
    /// How much of its capacity it uses: 0 is nothing, 255 is all.
    pub load: u8,
}

impl<K> MeasuredRelay<K> {
    /// The round trip, up to twice as long for a relay that is busy.
    fn cost(&self) -> Duration {
        self.rtt.mul_f64(1.0 + f64::from(self.load) / 255.0)
    }
}

/// The relays that a node names in its record.
#[derive(Debug, Clone)]
pub struct OwnRelays<K> {
    chosen: Vec<K>,
    changed: Option<Instant>,
    /// The relay that is better than the worst of the chosen ones, and in how many measurements in a row.
    rising: Option<(K, u8)>,
}

impl<K> Default for OwnRelays<K> {
    fn default() -> Self {
        Self {
            chosen: Vec::new(),
            changed: None,
            rising: None,
        }
    }
}

impl<K: Copy + Ord> OwnRelays<K> {
    /// The relays to name, best first.
    #[must_use]
    pub fn chosen(&self) -> &[K] {
        &self.chosen
    }

    /// The peers that offer to relay and answer were measured again. Returns whether the relays to name have changed.
    ///
    /// A relay that does not answer any more is replaced, and a better one takes the place of the worst after some measurements. The
    /// order changes only together with the relays.
    pub fn handle_measured(&mut self, measured: &[MeasuredRelay<K>], now: Instant) -> bool {
        let since = self.changed.map(|at| now.saturating_duration_since(at));
        let mut best: Vec<&MeasuredRelay<K>> = measured.iter().collect();
        best.sort_by_key(|relay| (relay.cost(), relay.relay));
        let mut seen = BTreeSet::new();
        best.retain(|relay| seen.insert(relay.relay));
        let (mut stay, others): (Vec<_>, Vec<_>) = best
            .into_iter()
            .partition(|relay| self.chosen.contains(&relay.relay));
        let mut others = others.into_iter();
        if stay.len() == MAX_RELAYS {
            self.rising = rising(self.rising, stay.last().copied(), others.next());
            let Some((relay, BETTER_FOR..)) = self.rising else {
                return false;
            };
            stay.pop();
            stay.extend(best_of(measured, relay));
        } else {
            self.rising = None;
            stay.extend(others.take(MAX_RELAYS - stay.len()));
        }
        stay.sort_by_key(|relay| (relay.cost(), relay.relay));
        let wanted: Vec<K> = stay.iter().map(|relay| relay.relay).collect();
        let same = wanted.len() == self.chosen.len()
            && wanted.iter().all(|relay| self.chosen.contains(relay));
        if same || since.is_some_and(|since| since < CHANGE_INTERVAL) {
            return false;
        }
        self.chosen = wanted;
        self.changed = Some(now);
        self.rising = None;
        true
    }
}

/// The measurement of `relay` with the lowest cost.
fn best_of<K: Copy + Eq>(measured: &[MeasuredRelay<K>], relay: K) -> Option<&MeasuredRelay<K>> {
    let of_relay = measured.iter().filter(|other| other.relay == relay);
    of_relay.min_by_key(|other| other.cost())
}

/// Counts how often in a row `best` was better than `worst`.
fn rising<K: Copy + Eq>(
    before: Option<(K, u8)>,
    worst: Option<&MeasuredRelay<K>>,
    best: Option<&MeasuredRelay<K>>,
) -> Option<(K, u8)> {
    let best = best.filter(|best| worst.is_some_and(|worst| is_better(best.cost(), worst.cost())));
    let relay = best?.relay;
    let before = before.filter(|(rising, _)| *rising == relay);
    Some((
        relay,
        before.map_or(1, |(_, count)| count.saturating_add(1)),
    ))
}

/// Whether a round trip is so much shorter than another one that a change is worth it.
fn is_better(this: Duration, other: Duration) -> bool {
    this < clearly_below(other)
}

/// A round trip that is shorter than this one is so much shorter than `other` that a change is worth it.
fn clearly_below(other: Duration) -> Duration {
    let by_time = other.saturating_sub(BETTER_BY_TIME);
    by_time.min(other.mul_f64(1.0 - BETTER_BY))
}

/// A relay of the peer, by the peer's record or message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRelay<K> {
    /// The relay.
    pub relay: K,
    /// The peer's round trip to it, if the peer has said so.
    pub rtt: Option<Duration>,
}

/// The relays through which to reach a peer, best first: those that both ends can use, by the sum of the round trips, then those
/// that only this node has. What the peer says about its round trips is a hint, because of which no relay is left out. A relay of
/// `current`, those that were chosen before, comes after another one only if that one is clearly better.
#[must_use]
pub fn shared_relays<K: Copy + Ord>(
    own: &[MeasuredRelay<K>],
    theirs: &[PeerRelay<K>],
    current: &[K],
) -> Vec<K> {
    let rank = |relay: &MeasuredRelay<K>| {
        let their = theirs.iter().find(|their| their.relay == relay.relay);
        let their_trip = their.map(|their| their.rtt.unwrap_or(relay.cost()));
        let cost = relay.cost() + their_trip.unwrap_or_default();
        let is_chosen = current.contains(&relay.relay);
        let cost = if is_chosen { clearly_below(cost) } else { cost };
        // One that was chosen stays before another one that is only just so much better.
        (their.is_none(), cost, !is_chosen, relay.relay)
    };
    let mut order: Vec<_> = own.iter().map(rank).collect();
    order.sort_unstable();
    let mut seen = BTreeSet::new();
    let relays = order.into_iter().map(|(.., relay)| relay);
    relays.filter(|relay| seen.insert(*relay)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn relay(relay: u8, ms: u64) -> MeasuredRelay<u8> {
        MeasuredRelay {
            relay,
            rtt: Duration::from_millis(ms),
            load: 0,
        }
    }

    fn their(relay: u8, ms: u64) -> PeerRelay<u8> {
        PeerRelay {
            relay,
            rtt: Some(Duration::from_millis(ms)),
        }
    }

    #[test]
    fn the_three_nearest_are_named_and_one_that_is_gone_is_replaced() {
        let start = Instant::now();
        let mut own = OwnRelays::default();
        assert!(!own.handle_measured(&[], start));
        let four = [relay(1, 40), relay(2, 10), relay(3, 30), relay(4, 20)];
        assert!(own.handle_measured(&four, start));
        assert_eq!(own.chosen(), [2, 4, 3]);
        assert!(!own.handle_measured(&four, start));
        let without = [four[0], four[2], four[3]];
        assert!(!own.handle_measured(&without, start + Duration::from_secs(59)));
        assert!(own.handle_measured(&without, start + Duration::from_secs(60)));
        assert_eq!(own.chosen(), [4, 3, 1]);
    }

    #[test]
    fn a_better_relay_takes_the_place_of_the_worst_only_if_it_is_clearly_better_for_some_time() {
        let start = Instant::now();
        let mut own = OwnRelays::default();
        let three = [relay(1, 10), relay(2, 20), relay(3, 30)];
        own.handle_measured(&three, start);
        let with = |other| [three[0], three[1], three[2], other];
        let mut now = start + Duration::from_secs(120);
        for _ in 0..10 {
            assert!(
                !own.handle_measured(&with(relay(4, 25)), now),
                "by 5 ms of 30"
            );
        }
        assert!(!own.handle_measured(&with(relay(4, 15)), now));
        assert!(!own.handle_measured(&with(relay(4, 15)), now));
        assert!(
            !own.handle_measured(&with(relay(4, 29)), now),
            "begin again"
        );
        for _ in 0..2 {
            now += Duration::from_secs(10);
            assert!(!own.handle_measured(&with(relay(4, 15)), now));
        }
        assert!(own.handle_measured(&with(relay(4, 15)), now));
        assert_eq!(own.chosen(), [1, 4, 2]);
    }

    #[test]
    fn a_busy_relay_counts_as_one_that_is_farther_away() {
        let busy = MeasuredRelay {
            load: 255,
            ..relay(1, 20)
        };
        assert_eq!(shared_relays(&[busy, relay(2, 30)], &[], &[]), [2, 1]);
    }

    #[test]
    fn two_nodes_use_the_relay_with_the_smallest_sum_and_both_find_the_same() {
        let a = [relay(1, 5), relay(2, 30), relay(3, 20)];
        let b = [relay(1, 60), relay(2, 10), relay(3, 15)];
        let told = |of: &[MeasuredRelay<u8>]| {
            let told = of.iter().map(|relay| PeerRelay {
                relay: relay.relay,
                rtt: Some(relay.rtt),
            });
            told.collect::<Vec<_>>()
        };
        assert_eq!(shared_relays(&a, &told(&b), &[]), [3, 2, 1]);
        assert_eq!(shared_relays(&b, &told(&a), &[]), [3, 2, 1]);
    }

    #[test]
    fn a_relay_that_the_peer_names_comes_before_those_that_only_this_node_has() {
        let own = [relay(1, 5), relay(2, 6), relay(3, 90)];
        let theirs = [their(9, 50), their(3, 40)];
        assert_eq!(shared_relays(&own, &theirs, &[]), [3, 1, 2]);
        let record = [8, 2].map(|relay| PeerRelay { relay, rtt: None });
        assert_eq!(shared_relays(&own, &record, &[]), [2, 1, 3]);
        assert_eq!(shared_relays::<u8>(&[], &[], &[]), [0; 0]);
    }

    #[test]
    fn the_relays_that_were_chosen_stay_unless_another_one_is_clearly_better() {
        let own = [relay(1, 10), relay(2, 11)];
        let theirs = [their(1, 10), their(2, 11)];
        assert_eq!(shared_relays(&own, &theirs, &[2]), [2, 1]);
        let theirs = [their(1, 10), their(2, 40)];
        assert_eq!(shared_relays(&own, &theirs, &[2]), [1, 2]);
        // One that the peer cannot use is left for one that it can.
        assert_eq!(shared_relays(&own, &theirs[..1], &[2]), [1, 2]);
    }

    #[test]
    fn round_trips_that_vary_a_little_change_none_of_the_relays_that_nobody_names() {
        let jitter = |n: u64, relay: u64| (n * 7 + relay * 3) % 5;
        let mut chosen: Vec<u8> = vec![];
        for n in 0..50 {
            let own: Vec<_> = (1..=6)
                .map(|of| relay(of, 20 + jitter(n, of.into())))
                .collect();
            let mut order = shared_relays(&own, &[], &chosen);
            order.truncate(MAX_RELAYS);
            order.sort_unstable();
            assert!(n == 0 || order == chosen, "{n}: {order:?}, {chosen:?}");
            chosen = order;
        }
        let mut own: Vec<_> = (1..=6).map(|of| relay(of, 20)).collect();
        let other = own.iter_mut().find(|of| !chosen.contains(&of.relay));
        let other = other.expect("three are not chosen");
        other.rtt = Duration::from_millis(15);
        let better = other.relay;
        assert_eq!(shared_relays(&own, &[], &chosen)[0], better);
    }

    proptest! {
        #[test]
        fn the_names_change_at_most_once_a_minute(rounds in vec((vec((0u8..8, 0u64..100), 0..8), 0u64..40), 1..100)) {
            let mut now = Instant::now();
            let mut own = OwnRelays::default();
            let mut last: Option<Instant> = None;
            for (measured, seconds) in rounds {
                now += Duration::from_secs(seconds);
                let measured: Vec<_> = measured.into_iter().map(|(n, ms)| relay(n, ms)).collect();
                let before = own.chosen().to_vec();
                if own.handle_measured(&measured, now) {
                    prop_assert!(last.is_none_or(|last| now - last >= CHANGE_INTERVAL));
                    prop_assert_ne!(&before, own.chosen());
                    last = Some(now);
                    prop_assert!(own.chosen().iter().all(|n| measured.iter().any(|m| m.relay == *n)));
                } else {
                    prop_assert_eq!(&before, own.chosen());
                }
                prop_assert!(own.chosen().len() <= MAX_RELAYS);
            }
        }
    }
}
