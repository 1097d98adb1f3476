//! When two nodes behind address translators open a direct path to each other. Pure.
//!
//! Both must send before either one's datagrams get through, and a datagram that arrives before the receiver has sent can spoil
//! the translation at the receiver's router. So the nodes agree by messages over the path that works, most often a relay:
//!
//! ```text
//! A: paths{punch}   ->   B: opens its router for A, and answers
//!                   <-   paths
//! A: opens its router for B, answers, and probes all candidates of B
//!                   ->   paths
//!                        B: probes all candidates of A
//! ```
//!
//! To open its router, a node sends one empty datagram with so few hops that it ends on the way. Nobody knows how many hops that
//! are, so each attempt takes another number. A datagram that reached the peer's router too early spoils the attempts that follow soon
//! as well, because each of them renews what that router remembers. So the attempts after a longer pause, which find the routers as
//! they were, have a turn of their own. A peer that messages do not reach is not asked, because both ends have to count the same
//! attempts.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::budget::Budget;
use super::counts::PUNCH_BOUNDS;
use super::peer::retry_pause;
use crate::model::Path;
use crate::os::metrics::Durations;

/// The hops of the datagram that opens the router, in the order of the attempts.
const HOPS: [u8; 3] = [4, 2, 8];
/// The same for the attempts after a pause in which routers forget the last attempt. These attempts are rare, so the number that is most
/// often right is the first one. A datagram with the largest number reaches the peer's router in most networks.
const HOPS_AFTER_PAUSE: [u8; 4] = [4, 2, 4, 8];
/// A router forgets a datagram that nobody answered after so long. Linux waits 30 s.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);
/// How long an answer is waited for, and a message belongs to the one before.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The least time between two answers to one peer. A peer asks less often.
const ANSWER_INTERVAL: Duration = Duration::from_millis(500);

/// The attempts with all peers. `K` names a peer.
#[derive(Debug)]
pub struct Punching<K> {
    attempts: BTreeMap<K, Attempt>,
    /// How many routers may be opened: a member may name the address of somebody else as its own.
    budget: Option<Budget<K>>,
    /// How long those took that ended with a direct path.
    times: Durations,
}

impl<K> Default for Punching<K> {
    fn default() -> Self {
        Self {
            attempts: BTreeMap::new(),
            budget: None,
            times: Durations::new(&PUNCH_BOUNDS),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Attempt {
    /// The number of attempts that this node or the peer began, and when the last one did.
    tries: u32,
    began: Option<Instant>,
    /// When it begins the next one.
    next: Option<Instant>,
    /// When it asked, until the peer has answered.
    asked: Option<Instant>,
    /// When it answered, until the peer has answered that.
    answered: Option<Instant>,
    /// When it last answered.
    last_answer: Option<Instant>,
    /// The number of times that the router was opened for attempts of the peer alone.
    opened: usize,
    /// The number of attempts after a pause in which routers forget.
    rested: usize,
    /// The hops of the last attempt.
    hops: u8,
}

/// What follows from a message of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Steps {
    /// Send an empty datagram with so many hops to each candidate of the peer.
    pub open: Option<u8>,
    /// Answer with this node's own candidates.
    pub answer: bool,
    /// Probe the candidates of the peer.
    pub probe: bool,
}

impl<K: Copy + Ord + Hash> Punching<K> {
    /// Returns those of the peers `relayed` that are to be asked now. These are all peers that are reached through a relay; what
    /// was known of the others is forgotten. `is_heard` says whether messages to one of them arrive. If they do not, the peer is asked
    /// later. `is_direct` says whether a peer that is not among them is reached without a relay.
    pub fn poll(
        &mut self,
        relayed: &[K],
        is_heard: impl Fn(&K) -> bool,
        is_direct: impl Fn(&K) -> bool,
        now: Instant,
    ) -> Vec<K> {
        let times = &mut self.times;
        self.attempts.retain(|peer, attempt| {
            let is_relayed = relayed.contains(peer);
            if !is_relayed {
                let began = attempt.began.filter(|_| is_direct(peer));
                if let Some(began) = began.filter(|at| is_within(*at, ANSWER_WITHIN, now)) {
                    times.note(now.saturating_duration_since(began));
                }
                attempt.begin_anew();
            }
            let answer = attempt.last_answer;
            is_relayed || answer.is_some_and(|at| is_within(at, ANSWER_WITHIN, now))
        });
        let mut ask = Vec::new();
        for peer in relayed {
            let attempt = self.attempts.entry(*peer).or_default();
            if attempt.next.is_none_or(|at| at <= now) {
                if !is_heard(peer) {
                    // The peer is asked by the first call of this method after messages to it arrive again.
                    attempt.next = None;
                    continue;
                }
                attempt.begin(now);
                attempt.asked = Some(now);
                ask.push(*peer);
            }
        }
        ask
    }

    /// When [`Punching::poll`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.attempts
            .values()
            .filter_map(|attempt| attempt.next)
            .min()
    }

    /// How long the attempts took that ended with a direct path, each one from when it was agreed on.
    #[must_use]
    pub fn times(&self) -> &Durations {
        &self.times
    }

    /// The network of this node has changed: all peers are asked again at once.
    pub fn handle_network_change(&mut self) {
        self.attempts.values_mut().for_each(Attempt::begin_anew);
    }

    /// Whether a datagram that opens the router for `peer` may be sent to `to`. It is counted if so.
    pub fn may_open(&mut self, peer: K, to: SocketAddr, now: Instant) -> bool {
        let budget = self.budget.get_or_insert_with(|| Budget::new(now));
        budget.take(peer, &Path::Direct(to), now)
    }

    /// `peer` has sent its candidates. With `punch` it asks this node to open its router for them and to answer, but not to probe yet.
    /// Without, its message may be the answer that this node waits for.
    pub fn handle_paths(&mut self, peer: K, punch: bool, now: Instant) -> Steps {
        let attempt = self.attempts.entry(peer).or_default();
        let is_fresh = |at: Option<Instant>| at.is_some_and(|at| is_within(at, ANSWER_WITHIN, now));
        if punch {
            if attempt
                .last_answer
                .is_some_and(|at| is_within(at, ANSWER_INTERVAL, now))
            {
                return Steps::default();
            }
            attempt.answered = Some(now);
            attempt.last_answer = Some(now);
            attempt.join(now);
            return Steps {
                open: Some(attempt.hops()),
                answer: true,
                probe: false,
            };
        }
        if is_fresh(attempt.asked.take()) {
            // If both have asked, the peer probes when it has the answer that was sent before.
            let answer = !is_fresh(attempt.answered);
            if answer {
                attempt.last_answer = Some(now);
            }
            return Steps {
                open: Some(attempt.hops()),
                answer,
                probe: true,
            };
        }
        let probe = is_fresh(attempt.answered.take());
        Steps {
            probe,
            ..Steps::default()
        }
    }
}

impl Attempt {
    /// The peer begins an attempt, which is one of this node as well: so between two attempts there is a pause in which neither end
    /// sends to the other's router, and a router that took a port for a stray datagram forgets that.
    fn join(&mut self, now: Instant) {
        let began = self.began.filter(|_| self.tries > 0);
        if began.is_some_and(|at| !is_within(at, ANSWER_INTERVAL, now)) {
            self.begin(now);
        }
    }

    /// The next attempt is like the first one.
    fn begin_anew(&mut self) {
        (self.tries, self.rested) = (0, 0);
        (self.began, self.next) = (None, None);
    }

    fn begin(&mut self, now: Instant) {
        let is_recent = |at: Instant| is_within(at, FORGOTTEN_AFTER, now);
        self.hops = if self.began.is_some_and(is_recent) {
            turn(&HOPS, self.tries as usize)
        } else {
            self.rested = self.rested.wrapping_add(1);
            turn(&HOPS_AFTER_PAUSE, self.rested.wrapping_sub(1))
        };
        self.next = Some(now + retry_pause(self.tries));
        self.tries = self.tries.saturating_add(1);
        self.began = Some(now);
    }

    /// The hops of a datagram that opens the router. All of one attempt have the same number, so that each number is tried after
    /// a pause.
    fn hops(&mut self) -> u8 {
        if self.tries > 0 {
            return self.hops;
        }
        self.opened = self.opened.wrapping_add(1);
        turn(&HOPS, self.opened.wrapping_sub(1))
    }
}

/// The hops of the attempt with this number.
fn turn<const N: usize>(hops: &[u8; N], number: usize) -> u8 {
    hops.get(number % N).copied().unwrap_or_default()
}

fn is_within(at: Instant, time: Duration, now: Instant) -> bool {
    now.saturating_duration_since(at) < time
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(open: u8, answer: bool, probe: bool) -> Steps {
        Steps {
            open: Some(open).filter(|hops| *hops > 0),
            answer,
            probe,
        }
    }

    #[test]
    fn both_routers_are_opened_before_either_end_probes() {
        let now = Instant::now();
        let (mut a, mut b) = (Punching::default(), Punching::default());
        assert_eq!(a.poll(&['b'], |_| true, |_| false, now), ['b']);
        assert_eq!(b.handle_paths('a', true, now), steps(4, true, false));
        assert_eq!(a.handle_paths('b', false, now), steps(4, true, true));
        assert_eq!(b.handle_paths('a', false, now), steps(0, false, true));
        assert_eq!(a.handle_paths('b', false, now), Steps::default());
        assert_eq!(b.handle_paths('a', false, now), Steps::default());
    }

    #[test]
    fn two_nodes_that_ask_at_once_both_probe() {
        let now = Instant::now();
        let (mut a, mut b) = (Punching::default(), Punching::default());
        a.poll(&['b'], |_| true, |_| false, now);
        b.poll(&['a'], |_| true, |_| false, now);
        assert_eq!(a.handle_paths('b', true, now), steps(4, true, false));
        assert_eq!(b.handle_paths('a', true, now), steps(4, true, false));
        assert_eq!(a.handle_paths('b', false, now), steps(4, false, true));
        assert_eq!(b.handle_paths('a', false, now), steps(4, false, true));
    }

    #[test]
    fn an_attempt_of_either_end_is_one_of_both_so_that_the_pauses_are_those_of_both() {
        let start = Instant::now();
        let (mut a, mut b) = (Punching::default(), Punching::default());
        let mut asked = Vec::new();
        // The second one notices three seconds later that it needs a relay. Messages take no time.
        for ms in (0..130_000).step_by(10) {
            let now = start + Duration::from_millis(ms);
            if !a.poll(&['b'], |_| true, |_| false, now).is_empty() {
                b.handle_paths('a', true, now);
                asked.push(ms);
            }
            if ms >= 2500 && !b.poll(&['a'], |_| true, |_| false, now).is_empty() {
                a.handle_paths('b', true, now);
                asked.push(ms);
            }
        }
        let pauses: Vec<u64> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.iter().any(|pause| *pause >= 32_000), "{asked:?}");
        assert!(asked.len() <= 12, "{asked:?}");
        let late = pauses.iter().skip(6);
        assert!(late.clone().all(|pause| *pause >= 8000), "{asked:?}");
    }

    #[test]
    fn a_peer_that_does_not_hear_this_node_is_asked_when_it_does_so_that_both_ends_count_the_same_attempts()
     {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (mut a, mut b) = (Punching::default(), Punching::default());
        // The first handshake gets lost, and the next one follows five seconds later.
        for ms in (0..5000).step_by(100) {
            assert!(a.poll(&['b'], |_| false, |_| false, at(ms)).is_empty());
        }
        assert_eq!(a.poll_timeout(), None);
        assert_eq!(b.poll(&['a'], |_| true, |_| false, at(5000)), ['a']);
        assert_eq!(a.poll(&['b'], |_| true, |_| false, at(5000)), ['b']);
        assert_eq!(a.handle_paths('b', true, at(5050)), steps(4, true, false));
        assert_eq!(b.handle_paths('a', true, at(5050)), steps(4, true, false));
        // An attempt that is due while nothing arrives is made up for once.
        assert!(a.poll(&['b'], |_| false, |_| false, at(6000)).is_empty());
        assert_eq!(a.poll(&['b'], |_| true, |_| false, at(7500)), ['b']);
        assert!(a.poll(&['b'], |_| true, |_| false, at(7600)).is_empty());
        assert_eq!(a.poll_timeout(), Some(at(9500)));
    }

    #[test]
    fn attempts_after_a_pause_in_which_routers_forget_have_their_own_turn_of_hops() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut punching = Punching::default();
        let mut hops = Vec::new();
        for second in 0..800 {
            if !punching
                .poll(&[1], |_| true, |_| false, at(second))
                .is_empty()
            {
                let steps = punching.handle_paths(1, false, at(second));
                hops.extend(steps.open.map(|hops| (second, hops)));
            }
        }
        let soon = [(0, 4), (1, 2), (3, 8), (7, 4), (15, 2), (31, 8)];
        let rested = [(63, 2), (127, 4), (427, 8), (727, 4)];
        assert_eq!(hops, [&soon[..], &rested[..]].concat());
    }

    #[test]
    fn attempts_become_rarer_and_begin_anew_after_a_direct_path_or_a_change() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut punching = Punching::default();
        let asked: Vec<u64> = (0..600)
            .filter(|second| {
                !punching
                    .poll(&[1], |_| true, |_| false, at(*second))
                    .is_empty()
            })
            .collect();
        assert_eq!(asked, [0, 1, 3, 7, 15, 31, 63, 127, 427]);
        assert_eq!(punching.poll_timeout(), Some(at(727)));
        punching.handle_network_change();
        assert_eq!(punching.poll(&[1], |_| true, |_| false, at(600)), [1]);
        // A peer that is reached directly is not waited for, though its last message may still be answered.
        punching.handle_paths(1, true, at(600));
        assert_eq!(punching.poll(&[], |_| true, |_| false, at(601)), [0; 0]);
        assert_eq!(punching.poll_timeout(), None);
        assert_eq!(punching.poll(&[1], |_| true, |_| false, at(601)), [1]);
    }

    #[test]
    fn an_attempt_that_ends_with_a_direct_path_is_measured() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut punching = Punching::default();
        punching.poll(&[1, 2, 3, 4], |_| true, |_| false, start);
        // The first peer is reached directly at the first attempt, and the second one at the second. The third one is removed.
        punching.poll(&[2, 4], |_| true, |peer| *peer == 1, at(120));
        punching.poll(&[2, 4], |_| true, |peer| *peer == 1, at(1000));
        punching.poll(&[4], |_| true, |peer| *peer < 3, at(1300));
        // Much later, the last one is reached directly for another reason.
        punching.poll(&[], |_| true, |_| true, at(20_000));
        assert_eq!(punching.times().counts(), [0, 1, 1, 0, 0, 0, 0, 0]);
        assert_eq!(punching.times().sum(), Duration::from_millis(420));
    }

    #[test]
    fn members_that_name_the_address_of_a_victim_cause_no_flood() {
        let start = Instant::now();
        let mut punching: Punching<u8> = Punching::default();
        let victim = |ms: u64| SocketAddr::from(([203, 0, 113, 7], ms as u16));
        let sent = (0..10_000).filter(|ms| {
            let now = start + Duration::from_millis(*ms);
            (0..16).any(|peer| punching.may_open(peer, victim(*ms), now))
        });
        assert!((10..=20 * 10).contains(&sent.count()));
    }

    #[test]
    fn a_peer_that_asks_without_end_is_answered_seldom_and_never_probed() {
        let start = Instant::now();
        let mut punching = Punching::default();
        let mut answers = 0;
        for ms in 0..10_000 {
            let steps = punching.handle_paths(1, true, start + Duration::from_millis(ms));
            answers += u32::from(steps.answer);
            assert!(!steps.probe);
        }
        assert_eq!(answers, 20);
        let late = start + Duration::from_secs(30);
        assert_eq!(punching.handle_paths(1, false, late), Steps::default());
    }
}
