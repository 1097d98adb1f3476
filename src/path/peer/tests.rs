//! A peer in a simulated world: each path has a round trip, or loses everything.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::model::NodeAddress;
use crate::model::path::MAX_PATHS;
use crate::path::budget::{Budget, PROBES, PROBES_TO_ADDRESS};
use crate::path::link::{BURST, Evidence};
use crate::protocol::path_messages::ByeReason;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn direct(host: u8) -> Path {
    Path::Direct(([192, 0, 2, host], 51820).into())
}

fn relay(n: u8) -> Path {
    Path::Relay(NodeAddress(Ipv4Addr::new(10, 210, n, 1)))
}

fn host(path: Path) -> Candidate {
    Candidate {
        path,
        evidence: Evidence::Host,
    }
}

/// The network and the data plane of this node. Time passes in steps of a millisecond.
struct World {
    start: Instant,
    now: u64,
    peer: PeerPaths,
    budget: Budget<u8>,
    /// The round trip of each path that works, in milliseconds.
    trips: BTreeMap<Path, u64>,
    report: Report,
    due: Option<Instant>,
    /// The answers under way: when each arrives, and the path and time of its probe.
    answers: Vec<(u64, Path, u64)>,
    watched: (Duration, bool, bool),
    is_silence_reported: bool,
    /// Everything that was asked for, with its time.
    log: Vec<(u64, Action)>,
}

impl World {
    fn new(candidates: &[Candidate], trips: &[(Path, u64)]) -> Self {
        let start = Instant::now();
        let mut world = Self {
            start,
            now: 0,
            peer: PeerPaths::default(),
            budget: Budget::new(start),
            trips: trips.iter().copied().collect(),
            report: Report {
                is_offered: true,
                ..Report::default()
            },
            due: None,
            answers: Vec::new(),
            watched: (LEAST_PATIENCE, true, true),
            is_silence_reported: false,
            log: Vec::new(),
        };
        world.peer.set_candidates(candidates.to_vec(), start);
        world.poll();
        world
    }

    fn at(&self, now: u64) -> Instant {
        self.start + ms(now)
    }

    fn seen(&mut self, path: Path) -> &mut LinkReport {
        let known = self.report.links.iter().position(|link| link.path == path);
        let at = known.unwrap_or_else(|| {
            if self.report.links.len() >= MAX_PATHS {
                // The data plane makes room as well.
                let links = self.report.links.iter().enumerate();
                let others = links.filter(|(_, link)| Some(link.path) != self.report.primary);
                let least = others.min_by_key(|(_, link)| link.heard);
                let least = least.map_or(0, |(at, _)| at);
                self.report.links.remove(least);
            }
            self.report.links.push(LinkReport {
                path,
                heard: None,
                answered: None,
                sample: None,
                answers: 0,
            });
            self.report.links.len() - 1
        });
        &mut self.report.links[at]
    }

    fn poll(&mut self) {
        let now = self.at(self.now);
        for action in self.peer.poll(|path| self.budget.take(1, path, now), now) {
            match &action {
                Action::Offer(paths, _) => {
                    self.report.primary = self.report.primary.or(paths.first().copied());
                }
                Action::Open => {
                    let answering = self.trips.iter().map(|(path, trip)| (*trip, *path)).min();
                    if let Some((trip, path)) = answering {
                        self.answers.push((self.now + trip, path, u64::MAX));
                    }
                }
                Action::Probe(path) => {
                    if let Some(trip) = self.trips.get(path) {
                        self.answers.push((self.now + trip, *path, self.now));
                    }
                }
                Action::Use(path, _) => {
                    self.report.primary = Some(*path);
                    self.report.waits_since = None;
                    self.is_silence_reported = false;
                }
                Action::Watch(patience, heard, sent) => self.watched = (*patience, *heard, *sent),
            }
            self.log.push((self.now, action));
        }
        self.due = self.peer.poll_timeout();
    }

    /// The data plane tells that there is news.
    fn tell(&mut self) {
        let report = self.report.clone();
        let now = self.at(self.now);
        (self.watched.1, self.watched.2) = (false, false);
        self.peer.handle_report(&report, now);
        self.poll();
    }

    fn hear(&mut self, path: Path) {
        let now = self.at(self.now);
        self.seen(path).heard = Some(now);
        self.report.heard = Some(now);
        let is_first = self.seen(path).answers == 0;
        let primary = self.report.primary;
        if primary.is_none_or(|primary| self.seen(primary).heard.is_none()) {
            self.report.primary = Some(path);
        }
        if self.report.primary == Some(path) {
            self.report.waits_since = None;
            self.is_silence_reported = false;
        }
        if self.watched.1 || (is_first && self.report.primary != Some(path)) {
            self.tell();
        }
    }

    /// A probe of the peer arrives, after which the data plane goes on waiting.
    fn hear_probe(&mut self, path: Path) {
        let waits = (self.report.waits_since, self.is_silence_reported);
        self.hear(path);
        if waits.0.is_some() {
            (self.report.waits_since, self.is_silence_reported) = waits;
        }
    }

    fn send(&mut self) {
        let now = self.at(self.now);
        self.report.sent = Some(now);
        self.report.waits_since.get_or_insert(now);
        if self.watched.2 {
            self.tell();
        }
    }

    /// Lets time pass. A packet is sent every `every` milliseconds, if any, and the peer answers it if its path works.
    fn run(&mut self, until: u64, every: Option<u64>) {
        while self.now < until {
            self.now += 1;
            let now = self.now;
            if every.is_some_and(|every| now.is_multiple_of(every)) {
                self.send();
                let primary = self.report.primary;
                // Without a session nothing is answered.
                let works = |path: &Path| self.trips.contains_key(path);
                if let Some(path) = primary.filter(works)
                    && self.seen(path).heard.is_some()
                {
                    self.hear(path);
                }
            }
            let arrived: Vec<_> = self
                .answers
                .iter()
                .filter(|(at, ..)| *at <= now)
                .copied()
                .collect();
            self.answers.retain(|(at, ..)| *at > now);
            for (_, path, sent) in arrived {
                let at = self.at(now);
                if sent == u64::MAX {
                    self.hear(path);
                    continue;
                }
                let seen = self.seen(path);
                seen.answered = Some(at);
                seen.answers += 1;
                seen.sample = Some((at, ms(now - sent)));
                self.hear(path);
                self.tell();
            }
            let silent = self.report.waits_since.map(|since| since + self.watched.0);
            if silent.is_some_and(|at| at <= self.at(now)) && !self.is_silence_reported {
                self.is_silence_reported = true;
                self.tell();
            }
            if self.due.is_some_and(|at| at <= self.at(now)) {
                self.tell();
            }
        }
    }

    /// The times of the probes by `path` after `from`.
    fn probes(&self, path: Path, from: u64) -> Vec<u64> {
        let log = self.log.iter().filter(|(at, _)| *at >= from);
        log.filter(|(_, action)| *action == Action::Probe(path))
            .map(|(at, _)| *at)
            .collect()
    }

    /// The paths that were chosen after `from`, with their times.
    fn used(&self, from: u64) -> Vec<(u64, Path)> {
        let log = self.log.iter().filter(|(at, _)| *at >= from);
        log.filter_map(|(at, action)| match action {
            Action::Use(path, _) => Some((*at, *path)),
            _ => None,
        })
        .collect()
    }
}

/// A peer with a direct path of 10 ms and a relay of 20 ms, which is open and in use.
fn open() -> World {
    let (a, b) = (direct(1), relay(1));
    let mut world = World::new(&[host(a), host(b)], &[(a, 10), (b, 20)]);
    world.run(2000, Some(20));
    assert_eq!(world.report.primary, Some(a));
    assert_eq!(world.peer.state(), State::Open);
    assert_eq!(world.peer.links().standby(world.at(2000)), Some(b));
    world
}

#[test]
fn a_cold_peer_is_left_alone_until_a_packet_is_sent_to_it() {
    let mut world = World::new(&[host(direct(1))], &[(direct(1), 10)]);
    world.run(100_000, None);
    assert_eq!(world.peer.state(), State::Cold);
    let quiet =
        |(_, action): &(u64, Action)| matches!(action, Action::Offer(..) | Action::Watch(..));
    assert!(world.log.iter().all(quiet), "{:?}", world.log);
    world.run(100_020, Some(20));
    assert!(world.log.iter().any(|(_, action)| *action == Action::Open));
}

#[test]
fn initiations_go_to_known_endpoints_and_two_relays_and_never_to_observed_ones() {
    let observed = |path| Candidate {
        path,
        evidence: Evidence::Observed,
    };
    let mapped = Candidate {
        path: direct(2),
        evidence: Evidence::Mapped,
    };
    let relays = [host(relay(1)), host(relay(2)), host(relay(3))];
    let mut candidates = vec![observed(direct(9)), host(direct(1)), mapped];
    candidates.extend(relays);
    let mut world = World::new(&candidates, &[]);
    world.run(200_000, Some(20));
    let offered: Vec<&Vec<Path>> = world
        .log
        .iter()
        .filter_map(|(_, action)| match action {
            Action::Offer(_, opens) => Some(opens),
            _ => None,
        })
        .collect();
    assert_eq!(offered, [&vec![direct(2), direct(1), relay(1), relay(2)]]);
    assert_eq!(world.probes(direct(9), 0), [0; 0]);
    assert!(!world.probes(direct(1), 0).is_empty());
    // With the consent of the peer, there is one burst.
    let now = world.at(world.now);
    world.peer.handle_consent(&[direct(9)], now);
    world.poll();
    world.run(201_000, None);
    assert_eq!(world.probes(direct(9), 0).len(), BURST.len());
}

#[test]
fn handshakes_follow_the_consent_of_a_peer_without_a_session_for_some_seconds() {
    let observed = Candidate {
        path: direct(9),
        evidence: Evidence::Observed,
    };
    let mut world = World::new(&[observed, host(direct(1))], &[]);
    world.run(60_000, Some(20));
    let before = world.log.len();
    world.peer.handle_consent(&[direct(9)], world.at(world.now));
    world.poll();
    world.run(90_000, Some(20));
    let log = world.log[before..].iter();
    let offers = log.filter_map(|(at, action)| match action {
        Action::Offer(_, opens) => Some((*at, opens.contains(&direct(9)))),
        _ => None,
    });
    assert_eq!(
        offers.collect::<Vec<_>>(),
        [(60_000, true), (68_000, false)]
    );
    let is_opened = |(at, action): &(u64, Action)| *at == 60_000 && *action == Action::Open;
    assert!(world.log[before..].iter().any(is_opened));
    // The peer answers, and the path becomes the one in use.
    world.peer.handle_consent(&[direct(9)], world.at(world.now));
    world.hear(direct(9));
    assert_eq!(world.peer.state(), State::Open);
}

#[test]
fn an_observed_endpoint_that_the_peer_then_names_as_its_own_is_probed_as_such() {
    let observed = Candidate {
        path: direct(9),
        evidence: Evidence::Observed,
    };
    let mut world = World::new(&[observed, host(relay(1))], &[(relay(1), 20)]);
    world.run(2000, Some(20));
    assert_eq!(world.probes(direct(9), 0), [0; 0]);
    let now = world.at(world.now);
    world
        .peer
        .set_candidates(vec![host(direct(9)), host(relay(1))], now);
    world.poll();
    world.run(3000, Some(20));
    assert_eq!(world.probes(direct(9), 2000).len(), BURST.len());
    let offers = world.log.iter().filter_map(|(_, action)| match action {
        Action::Offer(_, opens) => Some(opens.contains(&direct(9))),
        _ => None,
    });
    assert_eq!(offers.collect::<Vec<_>>(), [false, true]);
}

#[test]
fn the_first_packet_leaves_over_the_first_path_that_answers_and_a_direct_one_replaces_it_when_proven()
 {
    let (far, near) = (direct(1), relay(1));
    let mut world = World::new(&[host(far), host(near)], &[(far, 60), (near, 20)]);
    world.run(400, Some(5));
    let used = world.used(0);
    assert_eq!(
        used.iter().map(|(_, path)| *path).collect::<Vec<_>>(),
        [far]
    );
    assert!((80..=100).contains(&used[0].0), "{used:?}");
}

#[test]
fn a_burst_by_each_new_path_is_at_0_40_80_160_320_640_ms_and_then_there_is_quiet() {
    let (works, dead) = (direct(1), direct(2));
    let mut world = World::new(&[host(works), host(dead)], &[(works, 10)]);
    world.run(60_000, Some(20));
    let probes = world.probes(dead, 0);
    let first = probes[0];
    let since: Vec<u64> = probes.iter().map(|at| at - first).collect();
    assert_eq!(since, [0, 40, 80, 160, 320, 640]);
    assert_eq!(
        world.probes(works, 0).len() as u64,
        3,
        "three answers are enough, and there is no standby"
    );
}

#[test]
fn a_path_that_only_sends_is_probed_once_in_400_ms_and_stays_open() {
    let mut world = open();
    for _ in 0..5000 {
        let now = world.now + 1;
        world.send();
        world.run(now, None);
    }
    let probes = world.probes(direct(1), 2000);
    // Two of them are those of the path in use beside the standby.
    assert!((10..=14).contains(&probes.len()), "{probes:?}");
    assert_eq!(world.used(2000), []);
    assert!(world.probes(relay(1), 2000).len() <= 1);
}

#[test]
fn a_direct_path_that_fails_is_left_for_the_relay_in_less_than_700_ms() {
    let mut world = open();
    world.trips.remove(&direct(1));
    world.run(4000, Some(5));
    let used = world.used(2000);
    assert_eq!(used[0].1, relay(1));
    let took = used[0].0 - 2000;
    assert!((640..700).contains(&took), "{took} ms");
    assert_eq!(used.len(), 1);
    let suspect = world.probes(direct(1), 2000);
    assert_eq!(suspect[1] - suspect[0], 80);
    assert_eq!(suspect[2] - suspect[1], 80);
}

#[test]
fn the_patience_grows_with_the_round_trip_and_the_failure_takes_three_of_them() {
    let (a, b) = (direct(1), relay(1));
    let mut world = World::new(&[host(a), host(b)], &[(a, 200), (b, 300)]);
    world.run(5000, Some(20));
    assert_eq!(world.watched.0, ms(800));
    world.trips.remove(&a);
    world.run(10_000, Some(20));
    let used = world.used(5000);
    let took = used[0].0 - 5000;
    assert!((1400..1450).contains(&took), "{took} ms");
}

#[test]
fn a_short_silence_changes_nothing() {
    let mut world = open();
    world.trips.remove(&direct(1));
    world.run(2550, Some(5));
    world.trips.insert(direct(1), 10);
    world.run(30_000, Some(5));
    assert_eq!(world.used(2000), []);
    assert_eq!(world.peer.state(), State::Open);
}

#[test]
fn without_a_standby_all_paths_are_probed_and_the_one_that_answers_is_used() {
    let (a, b) = (direct(1), direct(2));
    let mut world = World::new(&[host(a), host(b)], &[(a, 10)]);
    world.run(2000, Some(20));
    world.trips.remove(&a);
    world.trips.insert(b, 30);
    world.run(4000, Some(5));
    let used = world.used(2000);
    assert_eq!(used.iter().map(|(_, path)| *path).collect::<Vec<_>>(), [b]);
    assert!(used[0].0 - 2000 < 800, "{used:?}");
}

#[test]
fn the_standby_is_probed_every_10_s_while_packets_are_sent_and_for_30_s_after() {
    let mut world = open();
    world.run(62_000, Some(20));
    assert_eq!(world.probes(relay(1), 2000).len(), 6);
    world.run(200_000, None);
    assert_eq!(world.probes(relay(1), 62_000).len(), 3, "it rests");
    world.run(230_000, Some(20));
    assert!(world.probes(relay(1), 200_000).len() >= 2, "it goes on");
    assert_eq!(world.used(2000), []);
}

#[test]
fn a_direct_path_is_looked_for_after_1_2_4_up_to_64_s_and_then_every_5_minutes() {
    let (dead, works) = (direct(1), relay(1));
    let mut world = World::new(&[host(dead), host(works)], &[(works, 20)]);
    world.run(1_000_000, Some(100));
    let probes = world.probes(dead, 0);
    let starts: Vec<u64> = probes.chunks(BURST.len()).map(|burst| burst[0]).collect();
    let pauses: Vec<u64> = starts
        .windows(2)
        .map(|two| (two[1] - two[0] + 500) / 1000)
        .collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 300, 300]);
    let minute: Vec<&u64> = probes.iter().filter(|at| **at > 60_000).collect();
    assert!(
        minute.len() as u64 * 1000 < 940_000,
        "less than one a second"
    );
    // At once when the network changes.
    let now = world.at(world.now);
    world.peer.handle_network_changed(now);
    world.poll();
    assert_eq!(world.probes(dead, 1_000_000)[0], 1_000_000);
}

#[test]
fn a_faster_path_of_the_same_kind_is_used_after_three_samples_and_only_if_it_is_clearly_faster() {
    for (other, is_used) in [(70, true), (79, true), (85, false), (100, false)] {
        let (a, b) = (direct(1), direct(2));
        let mut world = World::new(&[host(a)], &[(a, 100)]);
        world.run(2000, Some(20));
        world.trips.insert(b, other);
        let now = world.at(world.now);
        world.peer.set_candidates(vec![host(a), host(b)], now);
        world.poll();
        world.run(4000, Some(20));
        let used: Vec<Path> = world.used(2000).iter().map(|(_, path)| *path).collect();
        assert_eq!(used, if is_used { vec![b] } else { vec![] }, "{other} ms");
        if is_used {
            let gap = Some(ms(100 - other) / 2);
            assert!(
                world
                    .log
                    .iter()
                    .any(|(_, action)| *action == Action::Use(b, gap))
            );
        }
    }
    // A gain below the least one: 2 ms.
    let (a, b) = (direct(1), direct(2));
    let mut world = World::new(&[host(a)], &[(a, 3)]);
    world.run(2000, Some(20));
    world.trips.insert(b, 1);
    let now = world.at(world.now);
    world.peer.set_candidates(vec![host(a), host(b)], now);
    world.poll();
    world.run(4000, Some(20));
    assert_eq!(world.used(2000), []);
}

#[test]
fn a_direct_path_is_not_used_if_it_is_much_slower_than_a_relay() {
    let (slow, fast) = (direct(1), relay(1));
    for (trip, is_used) in [(59, true), (60, true), (61, false), (200, false)] {
        let mut world = World::new(&[host(slow), host(fast)], &[(slow, trip), (fast, 20)]);
        // Above 2 x 20 ms + 20 ms a relay is better.
        world.run(3000, Some(20));
        let uses_slow = world.report.primary == Some(slow);
        assert_eq!(uses_slow, is_used, "{trip} ms");
    }
}

#[test]
fn a_stream_gives_way_to_a_relay_that_works_again_though_its_round_trip_is_shorter() {
    let stream = Path::Stream(NodeAddress([10, 210, 9, 1].into()));
    let mut world = World::new(&[host(stream), host(relay(1))], &[(stream, 10)]);
    world.run(10_000, Some(20));
    assert_eq!(world.report.primary, Some(stream));
    world.trips.insert(relay(1), 30);
    world.run(40_000, Some(20));
    assert_eq!(world.report.primary, Some(relay(1)));
}

#[test]
fn a_lossy_direct_path_gives_way_to_a_relay() {
    let mut world = open();
    // The path loses every second probe, and packets of the peer still arrive by it.
    let mut now = world.now;
    for n in 0..40 {
        if n % 2 == 0 {
            world.trips.remove(&direct(1));
        } else {
            world.trips.insert(direct(1), 10);
        }
        now += 10_000;
        while world.now < now {
            let next = world.now + 100;
            world.send();
            world.hear(direct(1));
            world.run(next, None);
        }
    }
    assert!(world.used(2000).iter().any(|(_, path)| *path == relay(1)));
}

#[test]
fn a_path_that_failed_is_left_alone_while_a_relay_answers_late_and_tried_when_the_relay_is_dead() {
    let mut world = World::new(&[host(relay(1))], &[(relay(1), 20)]);
    world.run(2000, Some(20));
    // The peer is heard through its router, which then gives it another port.
    world.trips.insert(direct(9), 10);
    world.hear(direct(9));
    world.run(4000, Some(20));
    assert_eq!(world.report.primary, Some(direct(9)));
    world.trips.remove(&direct(9));
    world.run(6000, Some(20));
    assert_eq!(world.report.primary, Some(relay(1)));
    world.trips.remove(&relay(1));
    world.run(6520, Some(20));
    assert!(matches!(world.peer.state(), State::Suspect { .. }));
    world.trips.insert(relay(1), 20);
    world.run(8000, Some(20));
    assert_eq!(world.peer.state(), State::Open);
    assert_eq!(world.probes(direct(9), 6000), [0; 0]);
    world.trips.clear();
    world.run(9000, Some(20));
    assert!(!world.probes(direct(9), 8000).is_empty());
}

#[test]
fn a_lost_peer_is_tried_again_with_pauses_that_grow() {
    let mut world = open();
    world.trips.clear();
    world.run(1_000_000, Some(20));
    assert!(matches!(world.peer.state(), State::Lost { .. }));
    let opens = world
        .log
        .iter()
        .filter(|(at, action)| *at > 2000 && *action == Action::Open);
    let mut opens: Vec<u64> = opens.map(|(at, _)| *at).collect();
    // The first one is sent while the path is suspect.
    assert!(opens.remove(0) - 2000 < 1000);
    let pauses: Vec<u64> = opens
        .windows(2)
        .map(|two| (two[1] - two[0]) / 1000)
        .collect();
    assert_eq!(pauses[..7], [2, 4, 8, 16, 32, 64, 300]);
    assert!(opens[0] - 2000 < 9000, "{opens:?}");
    // One datagram is enough.
    world.trips.insert(direct(1), 10);
    world.hear(direct(1));
    assert_eq!(world.peer.state(), State::Open);
}

/// The peer says good-bye. Returns whether that counts.
fn bye(world: &mut World, reason: ByeReason) -> bool {
    let now = world.at(world.now);
    let counts = world.peer.handle_bye(reason, now);
    world.poll();
    counts
}

#[test]
fn a_peer_that_says_good_bye_is_reached_by_the_standby_at_once() {
    for reason in [ByeReason::Roaming, ByeReason::Stopping] {
        let mut world = open();
        assert!(bye(&mut world, reason));
        assert_eq!(world.used(2000), [(2000, relay(1))]);
    }
}

#[test]
fn a_peer_that_stops_is_tried_again_after_a_second_and_reached_when_it_is_back() {
    let mut world = open();
    world.trips.clear();
    world.run(2010, None);
    bye(&mut world, ByeReason::Stopping);
    world.run(6000, None);
    let is_open = |(at, action): &(u64, Action)| (*action == Action::Open).then_some(*at);
    let opens: Vec<u64> = world.log.iter().filter_map(is_open).collect();
    assert_eq!(opens[opens.len() - 2..], [3010, 5010]);
    world.trips.insert(direct(1), 10);
    world.run(9100, None);
    assert_eq!(world.peer.state(), State::Open);
    assert_eq!(world.report.primary, Some(direct(1)));
}

#[test]
fn good_byes_without_end_are_followed_at_most_every_ten_seconds() {
    let mut world = open();
    let mut followed = 0;
    while world.now < 62_000 {
        followed += u32::from(bye(&mut world, ByeReason::Stopping));
        world.run(world.now + 10, Some(20));
    }
    assert!((2..=7).contains(&followed), "{followed}");
}

#[test]
fn a_relay_that_stops_is_left_for_the_standby_by_those_that_send_through_it() {
    let (a, b) = (relay(1), relay(2));
    let mut world = World::new(&[host(a), host(b)], &[(a, 20), (b, 30)]);
    world.run(2000, Some(20));
    assert_eq!(world.report.primary, Some(a));
    let address = |path: Path| path.relay().expect("a relay");
    let now = world.at(world.now);
    assert!(!world.peer.handle_relay_gone(address(b), now));
    assert!(world.peer.handle_relay_gone(address(a), now));
    world.poll();
    assert_eq!(world.used(2000), [(2000, b)]);
}

#[test]
fn a_peer_that_was_started_again_is_asked_for_a_new_session_when_its_probes_are_not_answered() {
    let mut world = World::new(&[host(direct(1))], &[(direct(1), 10)]);
    world.run(2000, None);
    world.run(2001, Some(1));
    world.run(4000, None);
    assert_eq!(world.peer.state(), State::Open);
    // A probe is not answered without a session.
    world.trips.clear();
    let now = world.at(world.now);
    world.peer.handle_doubt(now);
    world.poll();
    world.run(4200, None);
    assert_eq!(world.probes(direct(1), 4000), [4000, 4080, 4160]);
    world.trips.insert(direct(1), 10);
    world.log.clear();
    world.run(4300, None);
    assert!(world.log.contains(&(4240, Action::Open)), "{:?}", world.log);
    // The data plane tells that a session has begun.
    world.tell();
    assert_eq!(world.peer.state(), State::Open);
}

#[test]
fn probes_of_a_peer_that_has_left_a_path_do_not_keep_it_in_use() {
    let mut world = open();
    // Nothing arrives at the peer by the direct path, which it tests again and again.
    world.trips.remove(&direct(1));
    while world.now < 10_000 {
        world.run(world.now + 50, Some(20));
        world.hear_probe(direct(1));
    }
    let [(at, path)] = world.used(2000)[..] else {
        panic!("{:?}", world.used(2000));
    };
    assert!(path == relay(1) && at <= 2700, "{at} {path}");
}

#[test]
fn a_peer_that_is_heard_by_its_only_path_and_does_not_answer_is_asked_every_two_seconds_and_not_lost()
 {
    let candidates = [host(direct(1)), host(relay(1))];
    let mut world = World::new(&candidates, &[(direct(1), 10)]);
    world.run(2000, Some(20));
    world.trips.clear();
    world.run(2600, Some(20));
    while world.now < 60_000 {
        world.hear_probe(direct(1));
        world.run(world.now + 50, Some(20));
        assert!(!matches!(world.peer.state(), State::Lost { .. }));
    }
    let probes = world.probes(direct(1), 30_000).len();
    assert!((30..=60).contains(&probes), "{probes}");
    let opened = world
        .log
        .iter()
        .filter(|(at, action)| *at > 2000 && *action == Action::Open);
    assert_eq!(opened.count(), 0, "there is a session");
    // A relay that leads to the peer is found soon.
    world.trips.insert(relay(1), 20);
    world.run(63_000, Some(20));
    assert_eq!(world.report.primary, Some(relay(1)));
    assert_eq!(world.peer.state(), State::Open);
}

#[test]
fn a_peer_that_was_started_again_keeps_its_path_when_its_session_begins_after_the_probes() {
    let mut world = open();
    world.run(4000, None);
    let trips = std::mem::take(&mut world.trips);
    let now = world.at(world.now);
    world.peer.handle_doubt(now);
    world.poll();
    world.run(4200, None);
    assert_eq!(world.probes(direct(1), 4000), [4000, 4080, 4160]);
    // The peer begins a session, and sends by both of its paths.
    world.trips = trips;
    world.hear(direct(1));
    world.hear_probe(relay(1));
    world.tell();
    assert!(matches!(world.peer.state(), State::Suspect { .. }));
    world.run(6000, Some(20));
    assert_eq!(world.peer.state(), State::Open);
    assert_eq!(world.used(4000), []);
    assert!(!world.log.contains(&(4240, Action::Open)));
}

#[test]
fn a_peer_that_sends_packets_and_answers_no_probes_keeps_its_path() {
    let mut world = World::new(&[host(direct(1))], &[(direct(1), 10)]);
    world.run(2000, Some(20));
    world.trips.clear();
    for _ in 0..60 {
        world.run(world.now + 1000, Some(20));
        world.hear(direct(1));
        world.tell();
        assert_eq!(world.peer.state(), State::Open);
    }
    assert_eq!(world.used(2000), []);
}

#[test]
fn a_doubt_about_a_peer_that_answers_costs_a_few_probes() {
    let mut world = open();
    world.run(40_000, None);
    let now = world.at(world.now);
    world.peer.handle_doubt(now);
    world.poll();
    world.run(45_000, None);
    assert!((1..=3).contains(&world.probes(direct(1), 40_000).len()));
    assert_eq!(world.peer.state(), State::Open);
    assert_eq!(world.used(2000), []);
}

#[test]
fn a_peer_that_did_not_answer_through_a_relay_is_tried_again_when_the_relay_is_renewed() {
    let node = relay(1).relay().expect("a relay");
    let mut world = World::new(&[host(relay(1))], &[(relay(1), 20)]);
    world.run(2000, Some(20));
    world.trips.clear();
    world.run(3000, Some(20));
    assert!(matches!(world.peer.state(), State::Suspect { .. }));
    world.trips.insert(relay(1), 20);
    let renew = |world: &mut World| {
        let now = world.at(world.now);
        let is_tried = world.peer.handle_relay_renewed(node, now);
        world.poll();
        world.run(world.now + 100, Some(20));
        assert_eq!(world.peer.state(), State::Open);
        is_tried
    };
    assert!(renew(&mut world));
    assert!(!renew(&mut world), "it works");
    world.trips.clear();
    world.run(60_000, Some(20));
    assert!(matches!(world.peer.state(), State::Lost { .. }));
    world.trips.insert(relay(1), 20);
    assert!(renew(&mut world));
}

#[test]
fn what_was_heard_before_a_peer_was_lost_does_not_open_it_when_a_relay_is_renewed() {
    let node = relay(1).relay().expect("a relay");
    let mut world = World::new(&[host(relay(1))], &[(relay(1), 20)]);
    world.run(2000, Some(20));
    world.trips.clear();
    let rests = |world: &World| {
        let State::Lost { again, .. } = world.peer.state() else {
            return false;
        };
        again > world.at(world.now + 250_000)
    };
    // The pause between two attempts is longer now than the time since the peer was heard.
    while !rests(&world) {
        assert!(world.now < 250_000, "{:?}", world.peer.state());
        world.run(world.now + 1000, Some(20));
    }
    let now = world.at(world.now);
    assert!(world.peer.handle_relay_renewed(node, now));
    world.tell();
    let state = world.peer.state();
    assert!(matches!(state, State::Lost { .. }), "{state:?}");
}

#[test]
fn a_path_by_which_the_peer_is_heard_but_does_not_answer_gives_way_to_one_that_answers() {
    // The first datagram of the peer comes by a path that leads nowhere in the other direction.
    for (heard, other) in [
        (direct(1), direct(2)),
        (relay(1), relay(2)),
        (direct(1), relay(1)),
    ] {
        let mut world = World::new(&[host(other)], &[(other, 30)]);
        world.report.primary = Some(heard);
        world.hear(heard);
        while world.now < 3000 {
            world.send();
            world.hear(heard);
            world.run(world.now + 20, None);
        }
        let used = world.used(0);
        assert_eq!(
            used.iter().map(|(_, path)| *path).collect::<Vec<_>>(),
            [other]
        );
        assert!(used[0].0 < 1000, "{used:?}");
    }
}

#[test]
fn a_path_that_the_data_plane_adopted_is_followed_and_a_new_one_by_which_the_peer_is_heard_is_probed()
 {
    let mut world = open();
    let moved = Path::Direct(SocketAddr::from(([192, 0, 2, 1], 9)));
    world.trips.insert(moved, 10);
    world.hear(moved);
    world.run(2500, Some(20));
    assert_eq!(world.probes(moved, 2000).len(), 3);
    assert_eq!(world.used(2000), [], "it is no better");
    world.report.primary = Some(moved);
    world.tell();
    assert_eq!(world.peer.links().primary(), Some(moved));
}

#[test]
fn a_peer_that_comes_back_at_another_endpoint_is_reached_there_though_nothing_is_sent_to_it() {
    let mut world = open();
    world.run(100_000, None);
    let moved = direct(9);
    world.trips.clear();
    world.trips.insert(moved, 10);
    world.hear(moved);
    world.run(101_000, None);
    let used: Vec<Path> = world.used(100_000).iter().map(|(_, path)| *path).collect();
    assert_eq!(used, [moved]);
}

#[test]
fn an_idle_node_leaves_a_dead_path_when_the_peer_sends_by_another_one() {
    let mut world = open();
    world.run(60_000, None);
    // The router of this node gives it another port, and the peer has moved to the relay.
    world.trips.remove(&direct(1));
    world.hear(relay(1));
    world.tell();
    world.run(62_000, None);
    assert_eq!(
        world.probes(direct(1), 60_000)[..3],
        [60_000, 60_080, 60_160]
    );
    let [(at, path)] = world.used(60_000)[..] else {
        panic!("{:?}", world.used(60_000));
    };
    assert!(path == relay(1) && at <= 60_300, "{at} {path}");
}

#[test]
fn a_peer_that_goes_on_by_another_path_than_the_one_that_works_costs_a_probe_every_ten_seconds() {
    let mut world = open();
    world.run(60_000, None);
    while world.now < 120_000 {
        world.run(world.now + 20, None);
        world.hear(relay(1));
        world.tell();
    }
    let probes = world.probes(direct(1), 60_000).len();
    assert!((1..=6).contains(&probes), "{probes}");
    assert_eq!(world.used(60_000), []);
    assert_eq!(world.peer.state(), State::Open);
}

#[test]
fn a_peer_that_the_data_plane_lost_is_opened_again() {
    let mut world = open();
    world.report = Report::default();
    world.log.clear();
    world.tell();
    assert!(matches!(world.peer.state(), State::Opening { .. }));
    let is_offer = |(_, action): &(u64, Action)| matches!(action, Action::Offer(..));
    assert!(world.log.iter().any(is_offer));
    assert!(world.log.iter().any(|(_, action)| *action == Action::Open));
}

#[test]
fn one_way_loss_moves_to_the_relay_once_and_does_not_flap_in_five_minutes() {
    let mut world = open();
    // Packets to the peer arrive, and nothing of the peer arrives by the direct path.
    world.trips.remove(&direct(1));
    world.run(302_000, Some(20));
    assert_eq!(world.used(2000).len(), 1, "{:?}", world.used(2000));
}

#[test]
fn at_most_sixteen_candidates_are_accepted_and_at_most_twelve_paths_are_known() {
    let candidates: Vec<Candidate> = (0..200).map(|n| host(direct(n))).collect();
    let mut world = World::new(&candidates, &[]);
    world.run(400_000, Some(20));
    assert!(world.peer.links().all().len() <= MAX_PATHS);
    let probed = (0..200).filter(|n| !world.probes(direct(*n), 0).is_empty());
    let probed: Vec<u8> = probed.collect();
    assert_eq!(
        probed,
        (0..16).collect::<Vec<u8>>(),
        "each of the first ones has its turn"
    );
}

#[test]
fn a_peer_that_moves_often_has_room_for_its_new_addresses() {
    let mut world = World::new(&[], &[]);
    for n in 1..=30 {
        // Two addresses at a time, each of which answers.
        let now = world.at(world.now);
        world.trips = BTreeMap::from([(direct(n), 10), (direct(100 + n), 12)]);
        let here = vec![host(direct(n)), host(direct(100 + n))];
        world.peer.set_candidates(here, now);
        world.poll();
        world.run(world.now + 20_000, Some(100));
        let probed = [direct(n), direct(100 + n)].map(|path| world.probes(path, 0).len());
        assert!(probed.iter().all(|probes| *probes > 0), "{n}: {probed:?}");
    }
    // The former addresses are forgotten in the end.
    world.run(world.now + 200_000, Some(100));
    let now = world.at(world.now);
    world.peer.set_candidates(vec![host(direct(200))], now);
    world.tell();
    let mut paths: Vec<Path> = world.peer.links().all().iter().map(|of| of.path).collect();
    paths.sort_unstable();
    let in_use = world.report.primary.expect("a path is in use");
    assert!(paths.len() <= 3, "{paths:?}");
    assert!(paths.contains(&direct(200)) && paths.contains(&in_use));
}

#[test]
fn a_path_to_which_the_peer_consents_takes_the_place_of_one_that_does_not_work_any_more() {
    let mut world = World::new(&[host(direct(1))], &[(direct(1), 10)]);
    world.run(1000, Some(20));
    for n in 50..70 {
        world.hear(direct(n));
    }
    assert_eq!(world.peer.links().all().len(), MAX_PATHS);
    world.run(200_000, Some(100));
    let now = world.at(world.now);
    world.peer.handle_consent(&[direct(80), direct(81)], now);
    world.poll();
    world.run(world.now + 1000, Some(100));
    let probes = [80, 81].map(|n| world.probes(direct(n), 0).len());
    assert_eq!(probes, [BURST.len(); 2]);
    assert_eq!(world.report.primary, Some(direct(1)));
}

#[test]
fn a_suspect_path_does_not_fail_before_the_budget_let_three_probes_through() {
    let mut world = open();
    world.trips.remove(&direct(1));
    // Somebody else uses up the probes to the address for a second.
    while world.now < 3400 {
        while world.budget.take(2, &direct(1), world.at(world.now + 1)) {}
        world.run(world.now + 1, Some(5));
    }
    assert_eq!(world.probes(direct(1), 2000), [0; 0]);
    assert_eq!(world.used(2000), [], "it had no chance to answer");
    let State::Suspect { probes: 0, .. } = world.peer.state() else {
        panic!("{:?}", world.peer.state());
    };
    world.run(6000, Some(5));
    let probes = world.probes(direct(1), 2000);
    assert_eq!(world.used(2000)[0].1, relay(1));
    let used = world.used(2000)[0].0;
    let before = probes.iter().filter(|at| **at < used).count();
    assert_eq!(before, SUSPECT_PROBES as usize, "{probes:?}, {used}");
}

#[test]
fn a_suspect_peer_without_any_budget_is_not_polled_without_a_pause() {
    let mut world = open();
    world.trips.clear();
    while world.now < 12_000 {
        for path in [direct(1), relay(1)] {
            while world.budget.take(2, &path, world.at(world.now + 1)) {}
        }
        world.run(world.now + 1, Some(5));
        assert!(world.due.is_none_or(|at| at > world.at(world.now)));
    }
    assert!(matches!(world.peer.state(), State::Lost { .. }));
}

#[test]
fn another_order_of_the_candidates_changes_nothing_and_a_new_one_is_probed_alone() {
    let relays = [1, 2, 3].map(|n| host(relay(n)));
    let [a, b, c] = relays;
    let mut world = World::new(&[a, b, c, host(direct(1))], &[(relay(1), 20)]);
    world.run(20_000, Some(100));
    assert_eq!(world.peer.state(), State::Open);
    let from = world.now;
    let set = |world: &mut World, candidates: &[Candidate]| {
        let now = world.at(world.now);
        world.peer.set_candidates(candidates.to_vec(), now);
        world.poll();
        world.run(world.now + 1000, Some(100));
    };
    set(&mut world, &[c, host(direct(1)), b, a]);
    assert_eq!(world.probes(relay(2), from), [0; 0]);
    assert_eq!(world.probes(relay(3), from), [0; 0]);
    set(&mut world, &[c, host(direct(1)), b, a, host(direct(2))]);
    assert_eq!(world.probes(direct(2), from).len(), BURST.len());
    assert_eq!(world.probes(relay(2), from), [0; 0]);
    // A lost peer is not tried again because of the order, or because there are fewer candidates.
    world.trips.clear();
    world.run(100_000, Some(100));
    let lost = world.peer.state();
    let State::Lost { again, tries, .. } = lost else {
        panic!("{lost:?}");
    };
    assert!(tries > 3 && again > world.at(world.now + 5000));
    set(&mut world, &[a, c, b, host(direct(1)), host(direct(2))]);
    set(&mut world, &[a, host(direct(1)), b]);
    assert_eq!(world.peer.state(), lost);
    set(&mut world, &[a, host(direct(1)), b, host(direct(3))]);
    let State::Lost { tries, .. } = world.peer.state() else {
        panic!("{:?}", world.peer.state());
    };
    assert!(tries <= 2, "there may be a path now: {tries}");
}

/// Something that happens in a random world.
#[derive(Debug, Clone)]
enum Turn {
    Cut(u8),
    Mend(u8, u64),
    Send(u64),
    Rest(u64),
    Candidates(Vec<u8>),
    Hear(u8),
    Network,
    Bye,
}

fn some_path(n: u8) -> Path {
    match n % 4 {
        3 => relay(n),
        _ => direct(n),
    }
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        any::<u8>().prop_map(|n| Turn::Cut(n % 24)),
        (any::<u8>(), 1u64..400).prop_map(|(n, trip)| Turn::Mend(n % 24, trip)),
        (1u64..3000).prop_map(Turn::Send),
        (1u64..3000).prop_map(Turn::Rest),
        prop::collection::vec(0u8..24, 0..30).prop_map(Turn::Candidates),
        (0u8..24).prop_map(Turn::Hear),
        Just(Turn::Network),
        Just(Turn::Bye),
    ];
    prop::collection::vec(turn, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn whatever_happens_budgets_hold_and_the_peer_is_reached_when_a_path_works(turns in turns()) {
        let mut world = World::new(&[host(some_path(0)), host(some_path(3))], &[(some_path(0), 10)]);
        for turn in turns {
            let now = world.at(world.now);
            match turn {
                Turn::Cut(n) => { world.trips.remove(&some_path(n)); }
                Turn::Mend(n, trip) => { world.trips.insert(some_path(n), trip); }
                Turn::Send(time) => world.run(world.now + time, Some(7)),
                Turn::Rest(time) => world.run(world.now + time, None),
                Turn::Candidates(all) => {
                    let all = all.into_iter().map(|n| host(some_path(n))).collect();
                    world.peer.set_candidates(all, now);
                    world.poll();
                }
                Turn::Hear(n) => world.hear(some_path(n)),
                Turn::Network => { world.peer.handle_network_changed(now); world.poll(); }
                Turn::Bye => { world.peer.handle_bye(ByeReason::Roaming, now); world.poll(); }
            }
            prop_assert!(world.peer.links().all().len() <= MAX_PATHS);
        }
        let probes: Vec<(u64, Path)> = world.log.iter().filter_map(|(at, action)| match action {
            Action::Probe(path) => Some((*at, *path)),
            _ => None,
        }).collect();
        for (from, path) in &probes {
            let second = probes.iter().filter(|(at, _)| (*from..*from + 1000).contains(at));
            let (mut all, mut same) = (0, 0);
            for (_, other) in second {
                all += 1;
                same += u32::from(other == path);
            }
            prop_assert!(all <= PROBES && same <= PROBES_TO_ADDRESS, "{} {}", all, same);
        }
        // Now a candidate works for good, and packets are sent.
        let now = world.at(world.now);
        world.peer.set_candidates(vec![host(some_path(1)), host(some_path(3))], now);
        world.trips.clear();
        world.trips.insert(some_path(1), 20);
        world.poll();
        world.run(world.now + 330_000, Some(50));
        prop_assert_eq!(world.report.primary, Some(some_path(1)));
        prop_assert_eq!(world.peer.state(), State::Open);
        let settled = world.now - 100;
        prop_assert_eq!(world.used(settled), []);
    }
}
