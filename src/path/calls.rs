//! Which calls of members are followed (`protocol::call`). Pure.
//!
//! A call is valid for 30 s, and clocks of two nodes may differ by an hour. So its time is compared with three things:
//!
//! - with the clock of this node: it may differ by an hour, and 30 s.
//! - with the last call of the same member: it must be newer. So no coordinator can deliver a call twice.
//! - with the quickest call of the same member: the difference between the two clocks is at most what it was for that one, and a call
//!   that took 30 s longer is refused. So no coordinator can keep a call back, except the first one of a member.
//!
//! A member counts the time since the start of its program by a clock that nobody sets. Only after a restart of the member with a
//! clock that was set back, its calls are refused until the clock has caught up, for an hour at most.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::rate::{Bucket, Rate};

/// How long a call is valid.
const VALID_FOR: Duration = Duration::from_secs(30);
/// How far the clocks of two nodes may differ.
const MAX_DIFFERENCE: Duration = Duration::from_secs(3600);
/// How long the last call of a member is remembered: older calls are refused for their time from then on.
const REMEMBERED_FOR: Duration = Duration::from_secs(2 * 3600 + 60);
/// The maximum number of members that are remembered. The one that did not call for the longest time is forgotten.
const MAX_CALLERS: usize = 1024;
/// The calls of all members that are verified. A signature takes about 50 µs.
const VERIFIED: Rate = Rate {
    per_second: 50.0,
    burst: 200.0,
};

/// The calls of members. `K` names a member.
#[derive(Debug)]
pub struct Calls<K> {
    callers: BTreeMap<K, Caller>,
    verified: Bucket,
}

#[derive(Debug, Clone, Copy)]
struct Caller {
    /// The time of its last call, by its own clock.
    last: u64,
    /// This node's clock minus the time of the call, for its quickest call, in milliseconds.
    least: i128,
    handled: Instant,
}

impl<K: Copy + Ord> Calls<K> {
    /// No calls yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            callers: BTreeMap::new(),
            verified: Bucket::full(VERIFIED, now),
        }
    }

    /// Whether the signature of one more call is verified.
    pub fn may_verify(&mut self, now: Instant) -> bool {
        self.verified.take(now)
    }

    /// Whether an authentic call of `caller` with the time `at` is followed. This node's clock shows `wall`. Both are in
    /// milliseconds.
    pub fn admit(&mut self, caller: K, at: u64, wall: u64, now: Instant) -> bool {
        self.callers
            .retain(|_, of| now.saturating_duration_since(of.handled) < REMEMBERED_FOR);
        let late = i128::from(wall) - i128::from(at);
        let most = (MAX_DIFFERENCE + VALID_FOR).as_millis();
        if late.unsigned_abs() > most {
            return false;
        }
        let before = self.callers.get(&caller).copied();
        if let Some(before) = before {
            let delay = late - before.least;
            if at <= before.last || delay > VALID_FOR.as_millis() as i128 {
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
        true
    }
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

        /// A call with this time arrives so many milliseconds after noon.
        fn arrives(&mut self, at: u64, after: u64) -> bool {
            let now = self.start + Duration::from_millis(after);
            self.calls.admit(1, at, NOON + after, now)
        }
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
            calls.may_verify(now)
        });
        assert!((600..=701).contains(&verified.count()));
    }
}
