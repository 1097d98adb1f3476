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
    let less = other.saturating_sub(this);
    less > BETTER_BY_TIME && less > other.mul_f64(BETTER_BY)
}

/// A relay of the peer, by the peer's record or message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRelay<K> {
    /// The relay.
    pub relay: K,
    /// The peer's round trip to it, if the peer has said so.
    pub rtt: Option<Duration>,
}

/// The relays through which to reach a peer, best first: those that both ends have measured, by the sum of the round trips, then those
/// that only the peer names, then those that only this node has. `current` is the one in use; it stays first unless another one is
/// clearly better. None of them is left out because of the round trips: what the peer says is a hint.
#[must_use]
pub fn shared_relays<K: Copy + Ord>(
    own: &[MeasuredRelay<K>],
    theirs: &[PeerRelay<K>],
    current: Option<K>,
) -> Vec<K> {
    let mut order: Vec<(Rank, K)> = own
        .iter()
        .map(|relay| {
            let their = theirs.iter().find(|their| their.relay == relay.relay);
            let rank = match their {
                Some(their) => Rank::Shared(relay.cost() + their.rtt.unwrap_or(relay.cost())),
                None => Rank::Own(relay.cost()),
            };
            (rank, relay.relay)
        })
        .collect();
    for their in theirs {
        if !own.iter().any(|relay| relay.relay == their.relay) {
            let rank = Rank::Theirs(their.rtt.unwrap_or(Duration::MAX));
            order.push((rank, their.relay));
        }
    }
    order.sort_unstable();
    let mut seen = BTreeSet::new();
    order.retain(|(_, relay)| seen.insert(*relay));
    let used = order.iter().position(|(_, relay)| Some(*relay) == current);
    if let (Some(at @ 1..), Some((best, _))) = (used, order.first().copied()) {
        let (rank, _) = order[at];
        if rank.is_worth_keeping(best) {
            let used = order.remove(at);
            order.insert(0, used);
        }
    }
    order.into_iter().map(|(_, relay)| relay).collect()
}

/// How good a relay is between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Both ends can use it: the sum of the round trips.
    Shared(Duration),
    /// The peer can use it, and this node has not measured it.
    Theirs(Duration),
    /// This node can use it, and the peer does not name it.
    Own(Duration),
}

impl Rank {
    /// Whether a relay with this rank stays in use though `best` is first.
    fn is_worth_keeping(self, best: Self) -> bool {
        match (self, best) {
            (Self::Shared(this), Self::Shared(best))
            | (Self::Theirs(this), Self::Theirs(best))
            | (Self::Own(this), Self::Own(best)) => !is_better(best, this),
            _ => false,
        }
    }
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
        assert_eq!(shared_relays(&[busy, relay(2, 30)], &[], None), [2, 1]);
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
        assert_eq!(shared_relays(&a, &told(&b), None), [3, 2, 1]);
        assert_eq!(shared_relays(&b, &told(&a), None), [3, 2, 1]);
    }

    #[test]
    fn without_a_shared_relay_those_of_the_peer_come_first() {
        let own = [relay(1, 5), relay(2, 6)];
        assert_eq!(
            shared_relays(&own, &[their(9, 50), their(8, 40)], None),
            [8, 9, 1, 2]
        );
        let record = [8, 2].map(|relay| PeerRelay { relay, rtt: None });
        assert_eq!(shared_relays(&own, &record, None), [2, 8, 1]);
        assert_eq!(shared_relays::<u8>(&[], &[], None), [0; 0]);
    }

    #[test]
    fn the_relay_in_use_stays_unless_another_one_is_clearly_better() {
        let own = [relay(1, 10), relay(2, 11)];
        let theirs = [their(1, 10), their(2, 11)];
        assert_eq!(shared_relays(&own, &theirs, Some(2)), [2, 1]);
        let theirs = [their(1, 10), their(2, 40)];
        assert_eq!(shared_relays(&own, &theirs, Some(2)), [1, 2]);
        // One that the peer cannot use is left for one that it can.
        assert_eq!(shared_relays(&own, &theirs[..1], Some(2)), [1, 2]);
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
