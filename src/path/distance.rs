//! The distance of each peer: smoothed round trips, and the groups by which the nearest instances of a name are answered first.
//!
//! The estimate follows RFC 6298: a smoothed round trip and its variation. Two things differ, since probes are rare and delays
//! only make a sample too large. The first samples are averaged. A sample far above the estimate is limited by the variation, so
//! that one delayed probe changes little, and the estimate follows a path that became longer within some probes.
//!
//! A peer is measured again after [`MEASURE_INTERVAL`] if it serves names or packets are sent to it, otherwise after
//! [`IDLE_MEASURE_INTERVAL`]. While its samples differ from the estimate in one direction, it is measured every
//! [`UNSTEADY_INTERVAL`]. One poll returns at most [`MAX_PROBES`] peers, those with the oldest sample first, so the cost does not
//! grow with the mesh.
//!
//! A group is a range of round trips, each twice as wide as the one before. A peer leaves its group only when its estimate is
//! clearly outside. Groups are published together and rarely, since each publication rebuilds the zone.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::{Path, PublicKey};

/// How often a peer is measured if it serves names or packets are sent to it.
pub const MEASURE_INTERVAL: Duration = Duration::from_secs(30);
/// How often any other peer is measured.
pub const IDLE_MEASURE_INTERVAL: Duration = Duration::from_secs(120);
/// How often a peer is measured while its samples disagree.
pub const UNSTEADY_INTERVAL: Duration = Duration::from_secs(1);
/// The largest number of probes in one poll.
pub const MAX_PROBES: usize = 4;
/// A peer that was silent for longer is not measured: it is probed for its reachability, and that probe measures it.
const HEARD_LATELY: Duration = Duration::from_secs(5);
/// A peer counts as in use for this long after a packet was sent to it.
const IN_USE: Duration = Duration::from_secs(60);
/// The number of samples before an estimate counts as steady.
const STEADY_SAMPLES: u32 = 4;
/// The part of the estimate (1/n) by which a sample of a steady path may differ. It is smaller than what a change of group
/// takes, so that no estimate stops on its way to another group.
const AGREEMENT: u32 = 10;
/// The part of the estimate (1/n) by which it must be outside its group to leave it.
const HYSTERESIS: u32 = 5;
/// Smaller differences come from the scheduler, not from the path.
const GRANULARITY: Duration = Duration::from_micros(500);
/// How long a change of groups waits for others before it is published.
pub const DEBOUNCE: Duration = Duration::from_secs(1);
/// The shortest time between two publications.
pub const PUBLISH_INTERVAL: Duration = Duration::from_secs(10);
/// Round trips below this are one group. Each further group is twice as wide.
const NEAREST: Duration = Duration::from_micros(500);

/// The state of a peer as the data plane reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The path in use.
    pub path: Option<Path>,
    /// When the last authentic datagram was received.
    pub heard: Option<Instant>,
    /// When a packet was last sent to it.
    pub sent: Option<Instant>,
    /// Whether the peer serves names.
    pub serves: bool,
    /// The last round trip: when it ended, and how long it took.
    pub round_trip: Option<(Instant, Duration)>,
}

#[derive(Debug)]
struct Peer {
    seen: Seen,
    estimate: Option<Estimate>,
    group: Option<u8>,
    /// When it was last measured, or returned by a poll.
    measured: Option<Instant>,
}

/// The smoothed round trip (RFC 6298 section 2).
#[derive(Debug, Clone, Copy)]
struct Estimate {
    smoothed: Duration,
    variation: Duration,
    samples: u32,
    /// How the last sample compared with the estimate before it. `Equal` if they agreed.
    last: Ordering,
    steady: bool,
}

impl Estimate {
    fn first(sample: Duration) -> Self {
        Self {
            smoothed: sample,
            variation: sample / 2,
            samples: 1,
            last: Ordering::Equal,
            steady: false,
        }
    }

    fn take(&mut self, sample: Duration) {
        let agrees = sample.abs_diff(self.smoothed) <= (self.smoothed / AGREEMENT).max(GRANULARITY);
        let compared = match agrees {
            true => Ordering::Equal,
            false => sample.cmp(&self.smoothed),
        };
        // The samples of a path that varies are above and below the estimate in turn. Those of a path that changed stay on one side.
        let varies = self.last != Ordering::Equal && self.last != compared;
        self.last = compared;
        let most = self.smoothed + (self.variation * 4).max(GRANULARITY);
        let sample = sample.min(most);
        // Section 2.3: beta is 1/4 and alpha is 1/8. The first samples are averaged.
        self.variation = (self.variation * 3 + sample.abs_diff(self.smoothed)) / 4;
        self.samples = self.samples.saturating_add(1);
        let weight = self.samples.min(8);
        self.smoothed = (self.smoothed * (weight - 1) + sample) / weight;
        self.steady = (agrees || varies) && self.samples >= STEADY_SAMPLES;
    }
}

/// The state machine of all peers. It reads no clock: each call passes the time.
#[derive(Debug, Default)]
pub struct Distances {
    peers: BTreeMap<PublicKey, Peer>,
    published: BTreeMap<PublicKey, u8>,
    /// When the groups began to differ from those that were published.
    changed: Option<Instant>,
    published_at: Option<Instant>,
}

impl Distances {
    /// Removes all peers that are not `known`.
    pub fn retain(&mut self, known: impl Fn(&PublicKey) -> bool) {
        self.peers.retain(|id, _| known(id));
        self.published.retain(|id, _| known(id));
    }

    /// The data plane reported the state of `id`. A round trip that was reported before is not counted again.
    pub fn handle_seen(&mut self, id: PublicKey, seen: Seen) {
        let peer = self.peers.entry(id).or_insert_with(|| Peer {
            seen: Seen {
                round_trip: None,
                ..seen
            },
            estimate: None,
            group: None,
            measured: None,
        });
        if seen.path != peer.seen.path {
            // The estimate of another path begins again. The old group stays valid until then.
            peer.estimate = None;
            peer.measured = None;
        }
        if let Some((at, took)) = seen.round_trip
            && seen.round_trip != peer.seen.round_trip
        {
            match &mut peer.estimate {
                Some(estimate) => estimate.take(took),
                None => peer.estimate = Some(Estimate::first(took)),
            }
            peer.measured = peer.measured.max(Some(at));
            peer.regroup();
        }
        peer.seen = seen;
    }

    /// The peers to probe now: at most [`MAX_PROBES`].
    pub fn poll(&mut self, now: Instant) -> Vec<PublicKey> {
        let mut due: Vec<(Option<Instant>, PublicKey)> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_due(now))
            .map(|(id, peer)| (peer.measured, *id))
            .collect();
        due.sort_unstable_by_key(|(measured, _)| {
            Reverse(
                measured
                    .map(|at| now.saturating_duration_since(at))
                    .unwrap_or(Duration::MAX),
            )
        });
        due.truncate(MAX_PROBES);
        for (_, id) in &due {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.measured = Some(now);
            }
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// When a peer is to be measured or groups are to be published, as far as that is known. A peer that is silent is not
    /// measured before it is heard.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let measured = self.peers.values().filter_map(|peer| peer.next(now));
        let rested = self.published_at.map(|at| at + PUBLISH_INTERVAL);
        let published = self.changed.map(|since| since + DEBOUNCE);
        let published = published.map(|at| rested.map_or(at, |rested| at.max(rested)));
        measured.chain(published).min()
    }

    /// Publishes the groups if they changed for a peer that serves names and are due. Returns whether they were published.
    pub fn publish(&mut self, now: Instant) -> bool {
        let differs = self.peers.iter().any(|(id, peer)| {
            peer.seen.serves
                && peer.group.is_some()
                && peer.group.as_ref() != self.published.get(id)
        });
        if !differs {
            self.changed = None;
            return false;
        }
        let since = *self.changed.get_or_insert(now);
        let rests = |at: Instant| now.saturating_duration_since(at) < PUBLISH_INTERVAL;
        if now.saturating_duration_since(since) < DEBOUNCE || self.published_at.is_some_and(rests) {
            return false;
        }
        let groups = self.peers.iter();
        self.published = groups.filter_map(|(id, p)| Some((*id, p.group?))).collect();
        self.changed = None;
        self.published_at = Some(now);
        true
    }

    /// The groups as they were last published. Peers with equal numbers are equally near; a smaller number is nearer.
    #[must_use]
    pub fn groups(&self) -> &BTreeMap<PublicKey, u8> {
        &self.published
    }

    /// The smoothed round trip to `id`.
    #[must_use]
    pub fn round_trip(&self, id: &PublicKey) -> Option<Duration> {
        Some(self.peers.get(id)?.estimate?.smoothed)
    }
}

impl Peer {
    fn is_due(&self, now: Instant) -> bool {
        let within = |at: Option<Instant>, limit| {
            at.is_some_and(|at| now.saturating_duration_since(at) < limit)
        };
        within(self.seen.heard, HEARD_LATELY) && !within(self.measured, self.interval(now))
    }

    fn interval(&self, now: Instant) -> Duration {
        let is_used = self
            .seen
            .sent
            .is_some_and(|at| now.saturating_duration_since(at) < IN_USE);
        let wanted = self.seen.serves || is_used;
        match (wanted, self.estimate.is_some_and(|e| e.steady)) {
            (true, false) => UNSTEADY_INTERVAL,
            (true, true) => MEASURE_INTERVAL,
            (false, _) => IDLE_MEASURE_INTERVAL,
        }
    }

    /// When it is to be measured, if it was heard lately.
    fn next(&self, now: Instant) -> Option<Instant> {
        let heard = self.seen.heard?;
        let is_late = now.saturating_duration_since(heard) >= HEARD_LATELY;
        let due = self.measured.map_or(now, |at| at + self.interval(now));
        (!is_late).then_some(due)
    }

    fn regroup(&mut self) {
        let Some(estimate) = self.estimate else {
            return;
        };
        let round_trip = estimate.smoothed;
        let stays = self.group.is_some_and(|group| {
            let margin = round_trip / HYSTERESIS;
            // The estimate is within the group, or outside by less than the margin.
            (group_of(round_trip - margin)..=group_of(round_trip + margin)).contains(&group)
        });
        if !stays {
            self.group = Some(group_of(round_trip));
        }
    }
}

/// The group of a round trip: 1 for the nearest, and one more for each factor of two. 0 is this node itself.
fn group_of(round_trip: Duration) -> u8 {
    let steps = round_trip.as_micros() / NEAREST.as_micros();
    let group = steps.checked_ilog2().map_or(1, |log| log + 2);
    u8::try_from(group).unwrap_or(u8::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: PublicKey = PublicKey([7; 32]);

    fn seen(now: Instant, round_trip: Option<Duration>) -> Seen {
        Seen {
            path: Some(Path::Direct(([192, 0, 2, 1], 51820).into())),
            heard: Some(now),
            sent: None,
            serves: true,
            round_trip: round_trip.map(|took| (now, took)),
        }
    }

    fn ms(milliseconds: f64) -> Duration {
        Duration::from_secs_f64(milliseconds / 1e3)
    }

    /// Polls every half second for `seconds` and answers each probe after the delay that `path` returns. Returns the number of
    /// probes, and the seconds at which groups were published.
    fn run(
        distances: &mut Distances,
        from: Instant,
        seconds: u64,
        mut path: impl FnMut(u64) -> Duration,
    ) -> (usize, Vec<u64>) {
        let (mut probes, mut published) = (0, Vec::new());
        for half in 0..seconds * 2 {
            let now = from + Duration::from_millis(half * 500);
            distances.handle_seen(
                ID,
                Seen {
                    round_trip: distances.peers.get(&ID).and_then(|p| p.seen.round_trip),
                    ..seen(now, None)
                },
            );
            if !distances.poll(now).is_empty() {
                probes += 1;
                distances.handle_seen(ID, seen(now, Some(path(half / 2))));
            }
            if distances.publish(now) {
                published.push(half / 2);
            }
        }
        (probes, published)
    }

    #[test]
    fn a_peer_that_is_heard_all_the_time_is_measured_again_and_again() {
        let mut distances = Distances::default();
        let (probes, published) = run(&mut distances, Instant::now(), 600, |_| ms(0.25));
        assert_eq!(published, [1], "one group, published once");
        assert!(
            (600 / 30..600 / 30 + 5).contains(&probes),
            "{probes} probes"
        );
        assert_eq!(distances.groups(), &BTreeMap::from([(ID, 1)]));
    }

    #[test]
    fn a_path_that_varies_is_not_measured_all_the_time() {
        let mut distances = Distances::default();
        let mut up = false;
        let (probes, published) = run(&mut distances, Instant::now(), 600, |_| {
            up = !up;
            ms(if up { 50.0 } else { 30.0 })
        });
        assert!(probes < 60, "{probes} probes");
        assert_eq!(published.len(), 1, "{published:?}");
    }

    #[test]
    fn one_delayed_sample_changes_no_group() {
        let mut distances = Distances::default();
        let mut probes = 0;
        let (_, published) = run(&mut distances, Instant::now(), 900, |_| {
            probes += 1;
            ms(if probes == 12 { 13_245.0 } else { 0.25 })
        });
        assert_eq!(published, [1], "only the twelfth probe took 13 s");
        assert!(distances.round_trip(&ID).is_some_and(|rtt| rtt < ms(0.5)));
    }

    #[test]
    fn a_path_that_became_longer_or_shorter_is_followed_within_a_minute_and_a_half() {
        let mut distances = Distances::default();
        let start = Instant::now();
        run(&mut distances, start, 300, |_| ms(1.2));
        let near = distances.groups().clone();
        run(&mut distances, start + Duration::from_secs(300), 90, |_| {
            ms(45.0)
        });
        assert_eq!(near, BTreeMap::from([(ID, 3)]));
        assert_eq!(distances.groups(), &BTreeMap::from([(ID, 8)]));
        run(&mut distances, start + Duration::from_secs(390), 90, |_| {
            ms(1.2)
        });
        assert_eq!(distances.groups(), &near);
    }

    #[test]
    fn a_peer_at_the_edge_between_two_groups_stays_in_one() {
        let mut distances = Distances::default();
        let (_, published) = run(&mut distances, Instant::now(), 3600, |second| {
            if second / 60 % 2 == 0 {
                ms(3.7)
            } else {
                ms(4.3)
            }
        });
        assert_eq!(published.len(), 1, "published at {published:?}");
    }

    #[test]
    fn groups_are_published_at_most_every_ten_seconds_however_the_path_swings() {
        let mut distances = Distances::default();
        let (_, published) = run(&mut distances, Instant::now(), 600, |second| {
            if second % 20 < 10 { ms(0.2) } else { ms(200.0) }
        });
        let apart = published
            .windows(2)
            .all(|pair| matches!(pair, [a, b] if b - a >= 10));
        assert!(apart, "{published:?}");
    }

    #[test]
    fn two_hundred_peers_cost_a_few_probes_a_second_and_each_has_its_turn() {
        let start = Instant::now();
        let mut distances = Distances::default();
        let ids: Vec<PublicKey> = (0..200).map(|n| PublicKey([n; 32])).collect();
        let mut measured = BTreeMap::new();
        for half in 0..240 {
            let now = start + Duration::from_millis(half * 500);
            for id in &ids {
                let last = measured.get(id).map(|at| (*at, ms(1.2)));
                distances.handle_seen(
                    *id,
                    Seen {
                        round_trip: last,
                        ..seen(now, None)
                    },
                );
            }
            let due = distances.poll(now);
            assert!(due.len() <= MAX_PROBES);
            measured.extend(due.into_iter().map(|id| (id, now)));
        }
        assert_eq!(measured.len(), 200);
    }

    #[test]
    fn a_peer_is_not_measured_while_it_is_silent_and_anew_at_another_endpoint() {
        let start = Instant::now();
        let mut distances = Distances::default();
        run(&mut distances, start, 60, |_| ms(0.2));
        let mut later = seen(start + Duration::from_secs(60), None);
        distances.handle_seen(ID, later);
        assert_eq!(
            distances.poll(start + Duration::from_secs(600)),
            [],
            "silent"
        );
        let now = start + Duration::from_secs(601);
        later.heard = Some(now);
        later.path = Some(Path::Direct(([192, 0, 2, 2], 51820).into()));
        distances.handle_seen(ID, later);
        assert_eq!(distances.round_trip(&ID), None);
        assert_eq!(distances.poll(now), [ID]);
        distances.handle_seen(
            ID,
            Seen {
                round_trip: Some((now, ms(9.0))),
                ..later
            },
        );
        assert_eq!(distances.round_trip(&ID), Some(ms(9.0)));
    }

    proptest! {
        #[test]
        fn an_estimate_stays_within_its_samples(samples in proptest::collection::vec(1u64..10_000_000, 1..100)) {
            let mut all = samples.iter().copied().map(Duration::from_micros);
            let mut estimate = Estimate::first(all.next().expect("at least one"));
            all.for_each(|sample| estimate.take(sample));
            let (least, most) = (samples.iter().min(), samples.iter().max());
            let micros = u64::try_from(estimate.smoothed.as_micros()).ok();
            prop_assert!(least.is_some_and(|l| micros.is_some_and(|m| m + 1 >= *l)));
            prop_assert!(most.is_some_and(|l| micros.is_some_and(|m| m <= *l)));
        }

        #[test]
        fn groups_are_ranges_of_round_trips_each_twice_as_wide(micros in 500u64..100_000_000) {
            let group = |micros: u64| group_of(Duration::from_micros(micros));
            prop_assert_eq!(group(micros * 2), group(micros) + 1);
            prop_assert_eq!(group(micros % 500), 1);
        }
    }
}
