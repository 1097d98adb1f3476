//! The reachability of peers. The data plane reports when a datagram of each peer was last received. This decides which peers to
//! probe and which endpoints to try, and whether a peer is reachable.
//!
//! A peer is *heard* when any authentic datagram of it is received. A peer that is wanted (it serves names), or to which packets
//! were sent since it was heard, is probed after a silence of [`PROBE_INTERVAL`], and is unreachable after a silence of
//! [`UNREACHABLE_AFTER`] in spite of probes. A peer that is not wanted is probed rarely, which costs next to nothing; its
//! state is then less certain. While a peer is silent, its candidate endpoints are tried in turn. An endpoint that works is
//! never replaced by another.
//!
//! At the start, and after a pause of the machine, silence counts against no peer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::model::PublicKey;

/// The silence after which a wanted peer is probed.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// The silence after which a peer that is not wanted is probed.
pub const IDLE_PROBE_INTERVAL: Duration = Duration::from_secs(20);
/// The least number of seconds between two keepalives to a peer, and how many there may be more.
const KEEPALIVE: (u8, u8) = (17, 3);
/// The silence, in spite of probes, after which a peer is unreachable: three lost probes and a margin.
pub const UNREACHABLE_AFTER: Duration = Duration::from_secs(7);
/// How long one candidate endpoint of a silent peer is tried before the next one.
pub const CANDIDATE_TRY: Duration = Duration::from_secs(3);
/// How long a probe may stay unanswered before the peer no longer counts as connected: until the next probe is due.
pub const ANSWER_LIMIT: Duration = PROBE_INTERVAL;
/// A delay of a poll after which the machine must have slept, so that silence shows nothing.
const PAUSE: Duration = Duration::from_secs(5);

/// An action of the data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a probe, whose answer is heard like any datagram.
    Probe(PublicKey),
    /// Send to this endpoint from now on, and start a handshake with it.
    Try(PublicKey, SocketAddr),
}

/// Whether a peer is reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The peer is silent, but not for long enough.
    Unknown,
    /// The peer was heard recently.
    Reachable,
    /// The peer is silent in spite of probes.
    Unreachable,
}

#[derive(Debug)]
struct Peer {
    candidates: Vec<SocketAddr>,
    current: usize,
    wanted: bool,
    heard: Option<Instant>,
    /// When a packet was last sent to the peer.
    sent: Option<Instant>,
    probed: Option<Instant>,
    /// The start of the silence: the first probe after the peer was last heard.
    silent_since: Option<Instant>,
    tried_at: Instant,
}

/// The seconds between two keepalives to `id`. Many address translators forget a path that was silent for 30 s. A keepalive comes before
/// [`IDLE_PROBE_INTERVAL`], so a peer that is kept alive is not probed as well, and one that is silent is noticed soon. It is another time
/// for each peer, so that a node does not send all keepalives at once.
#[must_use]
pub fn keepalive_seconds(id: &PublicKey) -> u16 {
    let (least, more) = KEEPALIVE;
    let [first, ..] = id.0;
    u16::from(least + first % more)
}

/// The state machine of all peers. It reads no clock: each call passes the time.
#[derive(Debug, Default)]
pub struct Watch {
    peers: BTreeMap<PublicKey, Peer>,
    /// When the next poll was due after the last one.
    expected: Option<Instant>,
    /// Whether any peer was heard since the start, including those that were removed since.
    any_heard: bool,
}

impl Watch {
    /// Sets the peers: for each its candidate endpoints, the best one first, and whether it is wanted. The state of peers that
    /// stay does not change.
    pub fn set_peers(
        &mut self,
        peers: impl IntoIterator<Item = (PublicKey, Vec<SocketAddr>, bool)>,
        now: Instant,
    ) {
        let mut old = std::mem::take(&mut self.peers);
        for (id, candidates, wanted) in peers {
            let peer = match old.remove(&id) {
                Some(mut peer) => {
                    if peer.candidates != candidates {
                        let in_use = peer.candidates.get(peer.current);
                        peer.current = candidates
                            .iter()
                            .position(|c| Some(c) == in_use)
                            .unwrap_or(0);
                        peer.candidates = candidates;
                        peer.tried_at = now;
                    }
                    if wanted && !peer.wanted {
                        peer.silent_since = None;
                    }
                    Peer { wanted, ..peer }
                }
                None => Peer {
                    candidates,
                    current: 0,
                    wanted,
                    heard: None,
                    sent: None,
                    probed: None,
                    silent_since: None,
                    tried_at: now,
                },
            };
            self.peers.insert(id, peer);
        }
    }

    /// The endpoint in use for `id`.
    #[must_use]
    pub fn endpoint(&self, id: &PublicKey) -> Option<SocketAddr> {
        let peer = self.peers.get(id)?;
        peer.candidates.get(peer.current).copied()
    }

    /// The data plane reports that `id` was last heard at `at`.
    pub fn handle_heard(&mut self, id: &PublicKey, at: Instant) {
        if let Some(peer) = self.peers.get_mut(id)
            && peer.heard.is_none_or(|before| at > before)
        {
            peer.heard = Some(at);
            peer.silent_since = None;
            self.any_heard = true;
        }
    }

    /// The data plane reports that a packet was last sent to `id` at `at`. Probes and keepalives do not count.
    pub fn handle_sent(&mut self, id: &PublicKey, at: Instant) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.sent = peer.sent.max(Some(at));
        }
    }

    /// Whether any peer was heard since the start.
    #[must_use]
    pub fn any_heard(&self) -> bool {
        self.any_heard
    }

    /// When `id` was last heard.
    #[must_use]
    pub fn heard(&self, id: &PublicKey) -> Option<Instant> {
        self.peers.get(id)?.heard
    }

    /// Whether probes to `id` were not answered for [`ANSWER_LIMIT`].
    #[must_use]
    pub fn is_silent(&self, id: &PublicKey, now: Instant) -> bool {
        let since = self.peers.get(id).and_then(|peer| peer.silent_since);
        since.is_some_and(|at| now.duration_since(at) >= ANSWER_LIMIT)
    }

    /// The actions that are due.
    pub fn poll(&mut self, now: Instant) -> Vec<Action> {
        let paused = self
            .expected
            .is_some_and(|at| now.saturating_duration_since(at) > PAUSE);
        let mut actions = Vec::new();
        for (id, peer) in &mut self.peers {
            if paused {
                peer.silent_since = None;
                peer.tried_at = now;
            }
            let interval = peer.interval();
            let due =
                |last: Option<Instant>| last.is_none_or(|at| now.duration_since(at) >= interval);
            if due(peer.heard) && due(peer.probed) {
                peer.probed = Some(now);
                peer.silent_since.get_or_insert(now);
                actions.push(Action::Probe(*id));
            }
            let silent = peer
                .silent_since
                .is_some_and(|at| now.duration_since(at) >= CANDIDATE_TRY);
            if silent
                && peer.candidates.len() > 1
                && now.duration_since(peer.tried_at) >= CANDIDATE_TRY
            {
                peer.current = (peer.current + 1) % peer.candidates.len();
                peer.tried_at = now;
                if let Some(endpoint) = peer.candidates.get(peer.current) {
                    actions.push(Action::Try(*id, *endpoint));
                }
            }
        }
        self.expected = self.poll_timeout(now);
        actions
    }

    /// When [`Watch::poll`] is due, or the answer of [`Watch::reach`] may change, unless a datagram is heard before.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let peers = self.peers.values();
        peers.map(|peer| peer.next(now)).min()
    }

    /// Whether a packet that is sent to `id` changes when it is probed.
    #[must_use]
    pub fn is_idle(&self, id: &PublicKey) -> bool {
        let peer = self.peers.get(id);
        peer.is_some_and(|peer| peer.interval() == IDLE_PROBE_INTERVAL)
    }

    /// Whether `id` is reachable.
    #[must_use]
    pub fn reach(&self, id: &PublicKey, now: Instant) -> Reach {
        let Some(peer) = self.peers.get(id) else {
            return Reach::Unreachable;
        };
        match (peer.silent_since, peer.heard) {
            (Some(since), _) if now.duration_since(since) + PROBE_INTERVAL >= UNREACHABLE_AFTER => {
                Reach::Unreachable
            }
            (None, Some(_)) => Reach::Reachable,
            (Some(_), Some(heard)) if now.duration_since(heard) < UNREACHABLE_AFTER => {
                Reach::Reachable
            }
            _ => Reach::Unknown,
        }
    }
}

impl Peer {
    /// How long the peer may be silent before it is probed.
    fn interval(&self) -> Duration {
        if self.wanted || self.sent > self.heard {
            PROBE_INTERVAL
        } else {
            IDLE_PROBE_INTERVAL
        }
    }

    /// When the next probe or try is due, or the reachability may change.
    fn next(&self, now: Instant) -> Instant {
        let last = self.heard.max(self.probed);
        let probe = last.map_or(now, |at| at + self.interval());
        let Some(silent) = self.silent_since else {
            return probe;
        };
        let heard = self.heard.map(|at| at + UNREACHABLE_AFTER);
        let tries = self.candidates.len() > 1;
        let next_try = tries.then(|| silent.max(self.tried_at) + CANDIDATE_TRY);
        let turns = [
            heard,
            next_try,
            Some(silent + ANSWER_LIMIT),
            Some(silent + (UNREACHABLE_AFTER - PROBE_INTERVAL)),
        ];
        let turns = turns.into_iter().flatten().filter(|at| *at > now);
        turns.fold(probe, Instant::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn endpoint(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 51820))
    }

    /// Polls every half second from `from` for `seconds`, and returns the actions with their times.
    fn run(watch: &mut Watch, from: Instant, seconds: u64) -> Vec<(u64, Action)> {
        (0..seconds * 2)
            .flat_map(|half| {
                let now = from + Duration::from_millis(half * 500);
                watch.poll(now).into_iter().map(move |a| (half / 2, a))
            })
            .collect()
    }

    #[test]
    fn a_peer_that_sends_keepalives_is_not_probed_and_one_that_stops_is_silent_soon() {
        let (start, mut watch) = (Instant::now(), Watch::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        watch.set_peers([(id(1), vec![endpoint(1)], false)], start);
        watch.handle_heard(&id(1), start);
        let mut heard = 0;
        for n in 0..20 {
            assert_eq!(run(&mut watch, at(heard), 19), [], "{n}");
            heard += u64::from(keepalive_seconds(&id(n)));
            watch.handle_heard(&id(1), at(heard));
        }
        let probes = run(&mut watch, at(heard), 22);
        assert_eq!(probes, [(20, Action::Probe(id(1)))]);
        assert!(watch.is_silent(&id(1), at(heard + 22)));
    }

    #[test]
    fn a_wanted_peer_that_stays_silent_is_unreachable_within_seven_seconds() {
        let start = Instant::now();
        let mut watch = Watch::default();
        watch.set_peers([(id(1), vec![endpoint(1)], true)], start);
        watch.handle_heard(&id(1), start);
        let actions = run(&mut watch, start, 8);
        let probes: Vec<u64> = actions.iter().map(|(second, _)| *second).collect();
        assert_eq!(probes, [2, 4, 6]);
        assert_eq!(
            watch.reach(&id(1), start + Duration::from_secs(6)),
            Reach::Reachable
        );
        assert_eq!(
            watch.reach(&id(1), start + Duration::from_secs(7)),
            Reach::Unreachable
        );
    }

    #[test]
    fn one_datagram_makes_a_peer_reachable_again() {
        let start = Instant::now();
        let mut watch = Watch::default();
        watch.set_peers([(id(1), vec![endpoint(1)], true)], start);
        run(&mut watch, start, 20);
        let later = start + Duration::from_secs(20);
        assert_eq!(watch.reach(&id(1), later), Reach::Unreachable);
        watch.handle_heard(&id(1), later);
        assert_eq!(watch.reach(&id(1), later), Reach::Reachable);
    }

    #[test]
    fn the_silence_of_a_new_peer_shows_nothing_at_first() {
        let start = Instant::now();
        let mut watch = Watch::default();
        watch.set_peers([(id(1), vec![endpoint(1)], true)], start);
        watch.poll(start);
        assert_eq!(
            watch.reach(&id(1), start + Duration::from_secs(3)),
            Reach::Unknown
        );
        assert_eq!(
            watch.reach(&id(2), start),
            Reach::Unreachable,
            "an unknown peer"
        );
    }

    #[test]
    fn the_candidates_of_a_silent_peer_are_tried_in_turn() {
        let start = Instant::now();
        let mut watch = Watch::default();
        watch.set_peers(
            [(id(1), vec![endpoint(1), endpoint(2), endpoint(3)], true)],
            start,
        );
        let tried: Vec<(u64, SocketAddr)> = run(&mut watch, start, 11)
            .into_iter()
            .filter_map(|(at, action)| match action {
                Action::Try(_, endpoint) => Some((at, endpoint)),
                Action::Probe(_) => None,
            })
            .collect();
        assert_eq!(
            tried,
            [(3, endpoint(2)), (6, endpoint(3)), (9, endpoint(1))]
        );
    }

    #[test]
    fn an_endpoint_that_works_is_kept() {
        let start = Instant::now();
        let mut watch = Watch::default();
        watch.set_peers([(id(1), vec![endpoint(1), endpoint(2)], true)], start);
        for half in 0..60 {
            let now = start + Duration::from_millis(half * 500);
            watch.handle_heard(&id(1), now);
            assert_eq!(watch.poll(now), []);
        }
        watch.set_peers([(id(1), vec![endpoint(9), endpoint(1)], true)], start);
        assert_eq!(watch.endpoint(&id(1)), Some(endpoint(1)));
    }

    #[test]
    fn silence_shows_nothing_after_the_machine_slept() {
        let start = Instant::now();
        let mut watch = Watch::default();
        watch.set_peers([(id(1), vec![endpoint(1)], true)], start);
        watch.handle_heard(&id(1), start);
        run(&mut watch, start, 3);
        let woke = start + Duration::from_secs(3600);
        watch.poll(woke);
        assert_ne!(watch.reach(&id(1), woke), Reach::Unreachable);
    }

    #[test]
    fn a_peer_that_packets_are_sent_to_is_found_silent_though_it_serves_nothing() {
        let start = Instant::now();
        let mut watch = Watch::default();
        watch.set_peers([(id(1), vec![endpoint(1)], false)], start);
        watch.handle_heard(&id(1), start);
        let at = |seconds| start + Duration::from_secs(seconds);
        run(&mut watch, start, 2);
        assert!(!watch.is_silent(&id(1), at(2)));
        // The peer was heard after the last packet, so no answer is due.
        watch.handle_sent(&id(1), start);
        assert_eq!(run(&mut watch, at(2), 3), []);
        watch.handle_sent(&id(1), at(5));
        run(&mut watch, at(5), 3);
        assert!(
            watch.is_silent(&id(1), at(8)),
            "the probe at 5 s got no answer"
        );
        run(&mut watch, at(8), 2);
        assert_eq!(watch.reach(&id(1), at(10)), Reach::Unreachable);
        watch.handle_heard(&id(1), at(10));
        assert!(!watch.is_silent(&id(1), at(10)));
    }

    #[test]
    fn a_peer_that_is_not_wanted_is_probed_rarely() {
        let start = Instant::now();
        let mut watch = Watch::default();
        watch.set_peers([(id(1), vec![endpoint(1)], false)], start);
        assert_eq!(run(&mut watch, start, 60).len(), 3);
    }
}
