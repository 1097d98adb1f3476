//! Which calls of members are followed and passed on (`protocol::call`). Pure.
//!
//! A call is valid for 30 s, and clocks of two nodes may differ by an hour. So its time is compared with three things:
//!
//! - with the clock of this node: it may differ by an hour, and 30 s.
//! - with the last call of the same member: it must be newer. So neither a coordinator nor a peer can deliver a call twice, and of
//!   several copies of a call the first one is followed.
//! - with the quickest call of the same member: the difference between the two clocks is at most what it was for that one, and a call
//!   that took 30 s longer is refused. So nobody can keep a call back, except the first one of a member.
//!
//! The times of the last calls are kept on disk, or else who passed on a call could deliver it once more after a restart of this node, as
//! the first one of its member. The differences between the clocks are not kept, since the clock of this node may be set meanwhile.
//!
//! If the clock of this node is set, the differences change with it. The time of a member's calls does not go back while its program runs.
//! Only after a restart of the member with a clock that was set back, its calls are refused until the clock has caught up. If the clocks of
//! both nodes were wrong before, that may never be, so a time is forgotten after two hours: a call of that time is refused for its time
//! from then on.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::model::rate::{Quota, Rate};

/// How long a call is valid.
const VALID_FOR: Duration = Duration::from_secs(30);
/// How far the clocks of two nodes may differ.
pub const MAX_DIFFERENCE: Duration = Duration::from_secs(3600);
/// A clock was set if it has moved by more than this against the one that nobody sets.
const CLOCK_STEP: Duration = Duration::from_secs(1);
/// How long the last call of a member is remembered: older calls are refused for their time from then on.
const REMEMBERED_FOR: Duration = Duration::from_secs(2 * 3600 + 60);
/// The maximum number of members that are remembered. The one that did not call for the longest time is forgotten.
const MAX_CALLERS: usize = 1024;
/// The maximum number of peers, and of callers, whose calls are counted. While there are more, the calls of others are not accepted.
const MAX_COUNTED: usize = 4096;
/// The calls of all members that are verified. A signature takes about 50 µs. Those that peers pass on have a rate of their own, so that
/// no peer keeps out those that come over a coordinator. Both rates have a part for each of those who can use them up: a coordinator
/// knows which member calls, and a peer may pass on calls in the name of anybody.
const VERIFIED: Rate = Rate {
    per_second: 50.0,
    burst: 200.0,
};
/// The calls of one member that are verified, of those that come over a coordinator.
const VERIFIED_OF_MEMBER: Rate = Rate {
    per_second: 2.0,
    burst: 16.0,
};
/// The calls that are verified, of those that one peer passes on.
const VERIFIED_BY_PEER: Rate = Rate {
    per_second: 10.0,
    burst: 64.0,
};
/// The calls of one member that this node passes on to others: as many as a coordinator passes on.
const PASSED_OF_MEMBER: Rate = Rate {
    per_second: 5.0,
    burst: 64.0,
};
/// The calls of all members that this node passes on.
const PASSED: Rate = Rate {
    per_second: 50.0,
    burst: 200.0,
};

/// The calls of members. `K` names a member.
#[derive(Debug)]
pub struct Calls<K> {
    callers: BTreeMap<K, Caller>,
    by_coordinators: Quota<K>,
    by_peers: Quota<K>,
    passed: Quota<K>,
    /// The times of the last calls before this program started.
    earlier: BTreeMap<K, u64>,
    started: Instant,
    /// What this node's clock showed when this program started, in milliseconds, as it is set now.
    wall_at_start: Option<i128>,
    /// Whether the file with the times of the last calls is out of date.
    is_unwritten: bool,
}

#[derive(Debug, Clone, Copy)]
struct Caller {
    /// The time of its last call, by its own clock.
    last: u64,
    /// This node's clock minus the time of the call, for its quickest call, in milliseconds.
    least: i128,
    handled: Instant,
}

impl<K: Copy + Ord + Hash> Calls<K> {
    /// No calls yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            callers: BTreeMap::new(),
            by_coordinators: Quota::new(VERIFIED_OF_MEMBER, MAX_COUNTED, VERIFIED, now),
            by_peers: Quota::new(VERIFIED_BY_PEER, MAX_COUNTED, VERIFIED, now),
            passed: Quota::new(PASSED_OF_MEMBER, MAX_COUNTED, PASSED, now),
            earlier: BTreeMap::new(),
            started: now,
            wall_at_start: None,
            is_unwritten: false,
        }
    }

    /// Takes over the times of the last calls that were followed before this program started.
    pub fn restore(&mut self, earlier: BTreeMap<K, u64>) {
        self.earlier = earlier.into_iter().take(MAX_CALLERS).collect();
    }

    /// The time of the last call of each member, if its file is out of date.
    #[must_use]
    pub fn unwritten(&self) -> Option<BTreeMap<K, u64>> {
        self.is_unwritten.then(|| self.last_calls())
    }

    /// These times were written to disk.
    pub fn handle_written(&mut self, written: &BTreeMap<K, u64>) {
        self.is_unwritten &= *written != self.last_calls();
    }

    fn last_calls(&self) -> BTreeMap<K, u64> {
        let callers = self.callers.iter();
        let mut last: BTreeMap<K, u64> = callers.map(|(caller, of)| (*caller, of.last)).collect();
        for (caller, at) in &self.earlier {
            if last.len() >= MAX_CALLERS {
                break;
            }
            last.entry(*caller).or_insert(*at);
        }
        last
    }

    /// Whether the signature of one more call is verified that is said to be of `caller`. `by` is the peer that passes it on, or none if
    /// a coordinator does.
    pub fn may_verify(&mut self, caller: K, by: Option<K>, now: Instant) -> bool {
        match by {
            None => self.by_coordinators.take(caller, now),
            Some(peer) => self.by_peers.take(peer, now),
        }
    }

    /// Whether a call of `caller` with the time `at` is newer than its last one. Otherwise it is a copy that came by another way, or was
    /// delivered again, and needs no verification.
    #[must_use]
    pub fn is_newer(&self, caller: &K, at: u64, now: Instant) -> bool {
        let before = self.callers.get(caller);
        let before = before.filter(|of| is_remembered(of.handled, now));
        let earlier = self.earlier.get(caller).copied();
        let earlier = earlier.filter(|_| is_remembered(self.started, now));
        let last = before.map(|of| of.last).max(earlier);
        last.is_none_or(|last| at > last)
    }

    /// Whether one more call of `caller` is passed on to another member.
    pub fn may_pass_on(&mut self, caller: K, now: Instant) -> bool {
        self.passed.take(caller, now)
    }

    /// Whether an authentic call of `caller` with the time `at` is followed. This node's clock shows `wall`. Both are in
    /// milliseconds.
    pub fn admit(&mut self, caller: K, at: u64, wall: u64, now: Instant) -> bool {
        self.callers.retain(|_, of| is_remembered(of.handled, now));
        if !is_remembered(self.started, now) {
            self.earlier.clear();
        }
        self.follow_clock(wall, now);
        let late = i128::from(wall) - i128::from(at);
        let most = (MAX_DIFFERENCE + VALID_FOR).as_millis();
        if late.unsigned_abs() > most || !self.is_newer(&caller, at, now) {
            return false;
        }
        let before = self.callers.get(&caller).copied();
        if let Some(before) = before {
            let delay = late - before.least;
            if delay > VALID_FOR.as_millis() as i128 {
                return false;
            }
        }
        if before.is_none() && self.callers.len() >= MAX_CALLERS {
            let oldest = self.callers.iter().min_by_key(|(_, of)| of.handled);
            if let Some(oldest) = oldest.map(|(caller, _)| *caller) {
                self.callers.remove(&oldest);
            }
        }
        let caller_of = Caller {
            last: at,
            least: before.map_or(late, |before| before.least.min(late)),
            handled: now,
        };
        self.callers.insert(caller, caller_of);
        self.is_unwritten = true;
        true
    }
}

impl<K> Calls<K> {
    /// This node's clock shows `wall`. If it was set since the call before, its differences from the clocks of members have changed as much.
    /// While a machine is suspended, the other clock stands, so a call may be late by that time once.
    fn follow_clock(&mut self, wall: u64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.started).as_millis() as i128;
        let wall_at_start = i128::from(wall) - elapsed;
        let moved = wall_at_start - *self.wall_at_start.get_or_insert(wall_at_start);
        if moved.unsigned_abs() > CLOCK_STEP.as_millis() {
            self.wall_at_start = Some(wall_at_start);
            self.callers.values_mut().for_each(|of| of.least += moved);
        }
    }
}

/// Whether a time counts that was noted `since` then.
fn is_remembered(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < REMEMBERED_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_700_000_000_000;
    const SECOND: u64 = 1000;
    const HOUR: u64 = 3600 * SECOND;

    struct World {
        calls: Calls<u8>,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            let start = Instant::now();
            Self {
                calls: Calls::new(start),
                start,
            }
        }

        /// Whether a call with this time is newer, so many milliseconds after noon.
        fn is_newer(&self, caller: u8, at: u64, after: u64) -> bool {
            let now = self.start + Duration::from_millis(after);
            self.calls.is_newer(&caller, at, now)
        }

        /// A call with this time arrives so many milliseconds after noon.
        fn arrives(&mut self, at: u64, after: u64) -> bool {
            let now = self.start + Duration::from_millis(after);
            self.calls.admit(1, at, NOON + after, now)
        }
    }

    #[test]
    fn a_clock_of_this_node_that_is_set_keeps_out_no_member_and_lets_no_late_call_in() {
        let mut world = World::new();
        assert!(world.arrives(NOON, 0));
        let mut arrives = |at: u64, after: u64, ahead: i64| {
            let now = world.start + Duration::from_secs(after);
            let wall = (NOON + after * SECOND).saturating_add_signed(ahead * 1000);
            world.calls.admit(1, NOON + at * SECOND, wall, now)
        };
        // It is set forward by ten minutes.
        assert!(arrives(60, 60, 600));
        assert!(!arrives(120, 151, 600), "31 s late");
        // It is set back by twenty minutes.
        assert!(arrives(200, 200, -600));
        assert!(!arrives(210, 241, -600), "31 s late");
        assert!(arrives(250, 279, -600), "29 s late");
    }

    #[test]
    fn times_of_clocks_that_were_wrong_keep_out_no_member_for_longer_than_two_hours() {
        let year = 365 * 24 * HOUR;
        let mut world = World::new();
        world.calls.restore(BTreeMap::from([(1, NOON + year)]));
        assert!(!world.is_newer(1, NOON, 2 * HOUR) && !world.arrives(NOON, 0));
        let later = 2 * HOUR + 120 * SECOND;
        assert!(world.is_newer(1, NOON + later, later));
        assert!(world.arrives(NOON + later, later));
        let written = world.calls.unwritten();
        assert_eq!(written, Some(BTreeMap::from([(1, NOON + later)])));
        // The same while this node runs.
        let mut world = World::new();
        let ahead = NOON + year;
        assert!(world.calls.admit(1, ahead, ahead, world.start));
        assert!(!world.is_newer(1, NOON, HOUR) && world.is_newer(1, NOON, later));
        assert!(world.arrives(NOON + later, later));
    }

    #[test]
    fn clocks_that_differ_by_an_hour_do_no_harm() {
        for at in [NOON - HOUR, NOON, NOON + HOUR] {
            let mut world = World::new();
            assert!(world.arrives(at, 0));
            assert!(world.arrives(at + 60 * SECOND, 60 * SECOND));
        }
        for at in [NOON - 2 * HOUR, NOON + 2 * HOUR, 0, u64::MAX] {
            assert!(!World::new().arrives(at, 0));
        }
    }

    #[test]
    fn a_call_that_is_delivered_twice_or_late_is_refused() {
        let mut world = World::new();
        let skewed = NOON + HOUR;
        assert!(world.arrives(skewed, 0));
        assert!(!world.arrives(skewed, 1), "a second time");
        assert!(!world.is_newer(1, skewed, 1) && world.is_newer(1, skewed + 1, 1));
        assert!(world.is_newer(2, skewed, 1));
        assert!(!world.arrives(skewed - 1, 2), "an older one");
        assert!(
            world.arrives(skewed + 10 * SECOND, 39 * SECOND),
            "29 s late"
        );
        assert!(
            !world.arrives(skewed + 20 * SECOND, 51 * SECOND),
            "31 s late"
        );
        // A call that takes no time shows that those before were late.
        assert!(world.arrives(skewed + 62 * SECOND, 60 * SECOND));
        assert!(!world.arrives(skewed + 63 * SECOND, 92 * SECOND));
    }

    #[test]
    fn an_old_call_is_refused_however_long_ago_its_caller_called() {
        let mut world = World::new();
        assert!(world.arrives(NOON, 0));
        assert!(!world.arrives(NOON, 3 * HOUR));
        assert!(world.arrives(NOON + 3 * HOUR, 3 * HOUR));
    }

    #[test]
    fn a_call_is_followed_once_also_if_this_node_is_started_again() {
        let mut world = World::new();
        assert_eq!(world.calls.unwritten(), None);
        assert!(world.arrives(NOON, 0));
        let written = world.calls.unwritten().expect("there is a call");
        world.calls.handle_written(&written);
        assert_eq!(world.calls.unwritten(), None);
        let mut again = World::new();
        again.calls.restore(written.clone());
        assert!(!again.is_newer(1, NOON, 0) && !again.arrives(NOON, 60 * SECOND));
        // The clock of this node was set meanwhile, which does no harm to the next call.
        assert!(again.arrives(NOON + SECOND, 1800 * SECOND));
        let next = again.calls.unwritten();
        assert_eq!(next, Some(BTreeMap::from([(1, NOON + SECOND)])));
        again.calls.handle_written(&written);
        assert_eq!(
            again.calls.unwritten(),
            next,
            "there was another call meanwhile"
        );
        // A call of another member does not remove the time from the file.
        let mut third = World::new();
        third.calls.restore(written);
        assert!(third.calls.admit(2, NOON, NOON, third.start));
        let both = BTreeMap::from([(1, NOON), (2, NOON)]);
        assert_eq!(third.calls.unwritten(), Some(both));
    }

    #[test]
    fn the_numbers_of_callers_and_of_verified_calls_are_bounded() {
        let start = Instant::now();
        let mut calls = Calls::new(start);
        for n in 0..10_000u64 {
            let now = start + Duration::from_millis(n);
            assert!(calls.admit(n, NOON, NOON, now));
        }
        assert_eq!(calls.callers.len(), MAX_CALLERS);
        let verified = (0..10_000).filter(|ms| {
            let now = start + Duration::from_millis(*ms);
            calls.may_verify(*ms, None, now)
        });
        assert!((600..=701).contains(&verified.count()));
    }

    #[test]
    fn members_that_call_without_end_over_a_coordinator_keep_out_no_other_member() {
        let start = Instant::now();
        let mut calls = Calls::new(start);
        let later = |ms| start + Duration::from_millis(ms);
        let flood = (0..10_000).flat_map(|ms| (0..20).map(move |caller| (ms, caller)));
        let flood = flood.filter(|(ms, caller)| calls.may_verify(*caller, None, later(*ms)));
        assert!((500..=740).contains(&flood.count()));
        for other in 20..30 {
            assert!(calls.may_verify(other, None, later(10_000)), "{other}");
        }
    }

    #[test]
    fn a_peer_that_passes_on_calls_without_end_keeps_out_neither_another_peer_nor_a_coordinator() {
        let start = Instant::now();
        let mut calls = Calls::new(start);
        let flood = (0..10_000).filter(|ms| {
            let now = start + Duration::from_millis(*ms);
            calls.may_verify(9, Some(1), now)
        });
        assert!((160..=165).contains(&flood.count()));
        let later = start + Duration::from_secs(10);
        assert!(calls.may_verify(9, Some(2), later) && calls.may_verify(9, None, later));
        // Whatever all peers do together, calls over a coordinator are verified.
        for peer in 0..100u8 {
            for _ in 0..100 {
                calls.may_verify(9, Some(peer), later);
            }
        }
        assert!(!calls.may_verify(9, Some(200), later));
        assert!(calls.may_verify(9, None, later));
    }

    #[test]
    fn the_calls_that_a_member_has_passed_on_are_as_many_as_over_a_coordinator() {
        let start = Instant::now();
        let mut calls = Calls::new(start);
        let passed = (0..10_000).filter(|ms| {
            let now = start + Duration::from_millis(*ms);
            calls.may_pass_on(1, now)
        });
        assert!((110..=115).contains(&passed.count()));
        let later = start + Duration::from_secs(10);
        assert!(calls.may_pass_on(2, later));
        let all = (0..10_000u32).filter(|n| calls.may_pass_on(10 + n % 1000, later));
        assert!(all.count() <= 200);
    }
}
