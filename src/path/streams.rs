//! When this node opens streams to relays, and to which ones. Pure.
//!
//! A stream passes where UDP does not, and costs more than UDP. So a node opens streams only if UDP reaches none of the relays that
//! offer streams, or to a relay that nothing else reaches. It keeps them as long as that lasts or one of them is in use. A stream
//! that cannot be opened or that ends is tried again, with pauses that become longer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::peer::retry_pause;

/// After so long without an answer by UDP, streams are opened. An answer takes a round trip. A first datagram that is lost is sent
/// again only after seconds, so some nodes open a stream that they close again: that is cheaper than to wait for seconds.
pub const BLOCKED_AFTER: Duration = Duration::from_millis(500);
/// The maximum number of streams. A peer without UDP has as many, and the two need one relay in common.
pub const MAX_STREAMS: usize = 3;
/// A stream that is of no more use is closed after this time.
pub const UNUSED_FOR: Duration = Duration::from_secs(30);
/// A stream that was open for so long worked, and the pauses begin with the first one again.
const STEADY: Duration = Duration::from_secs(60);

/// A relay that offers streams, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownRelay<K> {
    pub relay: K,
    /// A number that other nodes have in another order: so the nodes spread over the relays.
    pub rank: u64,
    /// Whether it is reached by UDP.
    pub by_udp: bool,
    /// Whether it is not reached at all, though that was tried for some time.
    pub is_lost: bool,
    /// Whether a peer that is not reached names it in its record.
    pub is_named: bool,
    /// Whether packets to a peer are sent by the stream to it.
    pub is_used: bool,
}

/// Something to do with the stream to a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<K> {
    /// Open it.
    Open(K),
    /// Close it.
    Close(K),
}

/// The streams of this node to relays. `K` names a relay.
#[derive(Debug)]
pub struct Streams<K> {
    blocked_since: Option<Instant>,
    streams: BTreeMap<K, Stream>,
    next: Option<Instant>,
}

/// The stream to one relay.
#[derive(Debug, Clone, Copy)]
struct Stream {
    state: State,
    /// How often it could not be opened, or ended soon.
    tries: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Opening,
    Open {
        since: Instant,
        /// Since when it is of no use.
        unused: Option<Instant>,
    },
    Closed {
        again: Instant,
    },
}

impl<K> Default for Streams<K> {
    fn default() -> Self {
        Self {
            blocked_since: None,
            streams: BTreeMap::new(),
            next: None,
        }
    }
}

impl<K: Copy + Ord> Streams<K> {
    /// Whether UDP reaches none of the relays that offer streams, and that was so for long enough.
    #[must_use]
    pub fn is_blocked(&self, now: Instant) -> bool {
        let since = self.blocked_since;
        since.is_some_and(|since| now.saturating_duration_since(since) >= BLOCKED_AFTER)
    }

    /// The relays to which a stream is open.
    pub fn open(&self) -> impl Iterator<Item = K> {
        let streams = self.streams.iter();
        streams
            .filter(|(_, stream)| matches!(stream.state, State::Open { .. }))
            .map(|(relay, _)| *relay)
    }

    /// The stream to a relay is open.
    pub fn handle_opened(&mut self, relay: &K, now: Instant) {
        if let Some(stream) = self.streams.get_mut(relay) {
            stream.state = State::Open {
                since: now,
                unused: None,
            };
        }
    }

    /// The stream to a relay could not be opened, or has ended.
    pub fn handle_closed(&mut self, relay: &K, now: Instant) {
        let Some(stream) = self.streams.get_mut(relay) else {
            return;
        };
        if let State::Open { since, .. } = stream.state
            && now.saturating_duration_since(since) >= STEADY
        {
            stream.tries = 0;
        }
        let again = now + retry_pause(stream.tries);
        stream.tries = stream.tries.saturating_add(1);
        stream.state = State::Closed { again };
    }

    /// The network of this node has changed: what did not work before may work now.
    pub fn handle_network_changed(&mut self, now: Instant) {
        for stream in self.streams.values_mut() {
            stream.tries = 0;
            if let State::Closed { again } = &mut stream.state {
                *again = now;
            }
        }
    }

    /// What is to be done now. `relays` are all that offer streams.
    pub fn poll(&mut self, relays: &[KnownRelay<K>], now: Instant) -> Vec<Step<K>> {
        let is_blocked = !relays.is_empty() && relays.iter().all(|relay| !relay.by_udp);
        self.blocked_since = self.blocked_since.or(Some(now)).filter(|_| is_blocked);
        let wanted = self.wanted(relays, now);
        let mut steps = Vec::new();
        self.streams.retain(|relay, stream| {
            let known = relays.iter().find(|known| known.relay == *relay);
            let is_used = wanted.contains(relay) || known.is_some_and(|known| known.is_used);
            let closes = match &mut stream.state {
                State::Closed { .. } => return known.is_some() && wanted.contains(relay),
                _ if known.is_none() => true,
                State::Opening => !is_used,
                State::Open { unused, .. } => {
                    *unused = unused.or(Some(now)).filter(|_| !is_used);
                    unused.is_some_and(|since| now.saturating_duration_since(since) >= UNUSED_FOR)
                }
            };
            if closes {
                steps.push(Step::Close(*relay));
            }
            !closes
        });
        for relay in wanted {
            let stream = self.streams.entry(relay).or_insert(Stream {
                state: State::Closed { again: now },
                tries: 0,
            });
            if matches!(stream.state, State::Closed { again } if again <= now) {
                stream.state = State::Opening;
                steps.push(Step::Open(relay));
            }
        }
        self.next = self.deadline(now);
        steps
    }

    /// The relays to which there are to be streams.
    fn wanted(&self, relays: &[KnownRelay<K>], now: Instant) -> Vec<K> {
        let is_blocked = self.is_blocked(now);
        let wanted = relays.iter();
        let mut wanted: Vec<&KnownRelay<K>> = wanted
            .filter(|relay| !relay.by_udp && (is_blocked || relay.is_lost))
            .collect();
        let is_open = |relay: &KnownRelay<K>| {
            let stream = self.streams.get(&relay.relay);
            stream.is_some_and(|stream| matches!(stream.state, State::Open { .. }))
        };
        wanted.sort_by_key(|relay| {
            let order = (!relay.is_used, !relay.is_named, !is_open(relay));
            (order, relay.rank, relay.relay)
        });
        wanted.truncate(MAX_STREAMS);
        wanted.into_iter().map(|relay| relay.relay).collect()
    }

    fn deadline(&self, now: Instant) -> Option<Instant> {
        let blocked = self.blocked_since.map(|since| since + BLOCKED_AFTER);
        let blocked = blocked.filter(|at| *at > now);
        let streams = self
            .streams
            .values()
            .filter_map(|stream| match stream.state {
                State::Opening => None,
                State::Open { unused, .. } => unused.map(|since| since + UNUSED_FOR),
                State::Closed { again } => Some(again),
            });
        streams.chain(blocked).min()
    }

    /// When [`Streams::poll`] is due, if nothing changes before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(relay: u8) -> KnownRelay<u8> {
        KnownRelay {
            relay,
            rank: relay.into(),
            by_udp: false,
            is_lost: false,
            is_named: false,
            is_used: false,
        }
    }

    fn by_udp(n: u8) -> KnownRelay<u8> {
        KnownRelay {
            by_udp: true,
            ..relay(n)
        }
    }

    struct World {
        streams: Streams<u8>,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            Self {
                streams: Streams::default(),
                start: Instant::now(),
            }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn poll(&mut self, relays: &[KnownRelay<u8>], ms: u64) -> Vec<Step<u8>> {
            let now = self.at(ms);
            self.streams.poll(relays, now)
        }
    }

    #[test]
    fn streams_are_opened_half_a_second_after_udp_reached_no_relay() {
        let mut world = World::new();
        assert_eq!(world.poll(&[], 0), []);
        assert_eq!(world.poll(&[relay(1), relay(2)], 5_000), []);
        assert_eq!(world.streams.poll_timeout(), Some(world.at(5_500)));
        assert_eq!(world.poll(&[relay(1), relay(2)], 5_499), []);
        let opened = [Step::Open(1), Step::Open(2)];
        assert_eq!(world.poll(&[relay(1), relay(2)], 5_500), opened);
        assert_eq!(world.poll(&[relay(1), relay(2)], 5_501), []);
        assert!(world.streams.is_blocked(world.at(5_501)));
    }

    #[test]
    fn a_node_that_reaches_one_relay_by_udp_opens_no_stream() {
        let mut world = World::new();
        for ms in [0, 1_000, 60_000] {
            assert_eq!(world.poll(&[relay(1), by_udp(2)], ms), []);
        }
        assert!(!world.streams.is_blocked(world.at(60_000)));
    }

    #[test]
    fn a_relay_that_nothing_else_reaches_has_a_stream() {
        let mut world = World::new();
        let lost = KnownRelay {
            is_lost: true,
            ..relay(1)
        };
        assert_eq!(world.poll(&[lost, by_udp(2)], 0), [Step::Open(1)]);
    }

    #[test]
    fn the_relays_that_peers_name_come_first_and_there_are_not_many() {
        let mut world = World::new();
        let named = KnownRelay {
            is_named: true,
            ..relay(9)
        };
        let relays = [relay(1), relay(2), relay(3), relay(4), named];
        world.poll(&relays, 0);
        let opened = [Step::Open(9), Step::Open(1), Step::Open(2)];
        assert_eq!(world.poll(&relays, 1_000), opened);
    }

    #[test]
    fn a_stream_that_fails_is_tried_again_with_longer_pauses_and_at_once_in_another_network() {
        let mut world = World::new();
        let relays = [relay(1)];
        world.poll(&relays, 0);
        let mut at = 1_000;
        for pause in [1, 2, 4, 8, 16, 32, 64, 300, 300] {
            assert_eq!(world.poll(&relays, at), [Step::Open(1)]);
            world.streams.handle_closed(&1, world.at(at));
            assert_eq!(world.poll(&relays, at), []);
            at += pause * 1_000;
            assert_eq!(world.streams.poll_timeout(), Some(world.at(at)));
            assert_eq!(world.poll(&relays, at - 1), []);
        }
        assert_eq!(world.poll(&relays, at), [Step::Open(1)]);
        world.streams.handle_closed(&1, world.at(at));
        world.streams.handle_network_changed(world.at(at));
        assert_eq!(world.poll(&relays, at), [Step::Open(1)]);
        // One that was open for a minute begins with the first pause again.
        world.streams.handle_opened(&1, world.at(at));
        world.streams.handle_closed(&1, world.at(at + 60_000));
        world.poll(&relays, at + 60_000);
        assert_eq!(world.streams.poll_timeout(), Some(world.at(at + 61_000)));
    }

    #[test]
    fn a_stream_is_kept_while_it_is_used_and_closed_some_time_after_udp_works_again() {
        let mut world = World::new();
        world.poll(&[relay(1)], 0);
        world.poll(&[relay(1)], 1_000);
        world.streams.handle_opened(&1, world.at(1_100));
        assert_eq!(world.streams.open().collect::<Vec<_>>(), [1]);
        assert_eq!(world.poll(&[relay(1)], 900_000), []);
        let used = KnownRelay {
            is_used: true,
            ..by_udp(1)
        };
        assert_eq!(world.poll(&[used], 901_000), []);
        assert_eq!(world.poll(&[used], 999_000), []);
        assert_eq!(world.poll(&[by_udp(1)], 1_000_000), []);
        assert_eq!(world.streams.poll_timeout(), Some(world.at(1_030_000)));
        assert_eq!(world.poll(&[used], 1_010_000), [], "used once more");
        assert_eq!(world.poll(&[by_udp(1)], 1_020_000), []);
        assert_eq!(world.poll(&[by_udp(1)], 1_050_000), [Step::Close(1)]);
        assert_eq!(world.streams.open().count(), 0);
    }

    #[test]
    fn a_relay_that_offers_no_stream_any_more_loses_it_at_once() {
        let mut world = World::new();
        world.poll(&[relay(1), relay(2)], 0);
        world.poll(&[relay(1), relay(2)], 1_000);
        world.streams.handle_opened(&1, world.at(1_100));
        assert_eq!(world.poll(&[relay(2)], 1_200), [Step::Close(1)]);
        // What is reported of it afterwards changes nothing.
        world.streams.handle_opened(&1, world.at(1_300));
        world.streams.handle_closed(&1, world.at(1_400));
        assert_eq!(world.streams.open().count(), 0);
    }
}
