//! The calls of this node and of members, by which nodes meet that have no path and no common relay: over a coordinator, or by way of a
//! peer that both reach.

use std::time::{Duration, Instant};

use crate::model::PublicKey;
use crate::model::rate::{Bucket, Quota, Rate};
use crate::model::time::{Now, unix_milliseconds};
use crate::path::call_log::CallLog;
use crate::path::calls::{Calls, MAX_DIFFERENCE};
use crate::path::punch::Punching;

/// How often this node calls others. Together with its answers this is somewhat less than a coordinator passes on.
const CALLS: Rate = Rate {
    per_second: 2.5,
    burst: 28.0,
};
/// How often this node answers the calls of all members. They have a rate of their own, so that no number of calls keeps this node from
/// calling others.
const ANSWERS: Rate = Rate {
    per_second: 2.0,
    burst: 28.0,
};
/// How often this node answers one member. A member that is not reached calls after 1, 2, 4 .. 64 s and then every five minutes.
const ANSWERS_TO_ONE: Rate = Rate {
    per_second: 0.1,
    burst: 6.0,
};
/// The maximum number of members whose answers are counted. While there are more, others are not answered.
const MAX_ANSWERED: usize = 4096;

/// The calls of this node and of members.
pub(super) struct Calling {
    /// The attempts with each peer that is called.
    pub(super) punching: Punching<PublicKey>,
    /// The calls of members that are followed and passed on.
    pub(super) received: Calls<PublicKey>,
    /// What became of calls.
    pub(super) log: CallLog<PublicKey>,
    sent: Bucket,
    answered: Quota<PublicKey>,
    /// The time of the last call, and when it was sent.
    last: Option<(u64, Instant)>,
}

impl Calling {
    pub(super) fn new(now: Now) -> Self {
        Self {
            punching: Punching::default(),
            received: Calls::new(now.monotonic),
            log: CallLog::default(),
            sent: Bucket::full(CALLS, now.monotonic),
            answered: Quota::new(ANSWERS_TO_ONE, MAX_ANSWERED, ANSWERS, now.monotonic),
            last: None,
        }
    }

    /// The time of a call that is sent now, or none if there were too many.
    pub(super) fn send(&mut self, now: Now) -> Option<u64> {
        self.sent.take(now.monotonic).then(|| self.time(now))
    }

    /// The time of an answer to a call of `caller` that is sent now, or none if there were too many.
    pub(super) fn answer(&mut self, caller: PublicKey, now: Now) -> Option<u64> {
        let is_allowed = self.answered.take(caller, now.monotonic);
        is_allowed.then(|| self.time(now))
    }

    /// The time of the next call, which is that of the clock. Members refuse calls that are not newer than the last one. So after a clock is
    /// set back, the time goes on from that of the last call, unless it is then so far ahead that members refuse it for that.
    fn time(&mut self, now: Now) -> u64 {
        let wall = unix_milliseconds(now.wall);
        let counted = self.last.map_or(wall, |(last, sent)| {
            let elapsed = now.monotonic.saturating_duration_since(sent).as_millis();
            last.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX).max(1))
        });
        let ahead = Duration::from_millis(counted.saturating_sub(wall));
        let at = if ahead > MAX_DIFFERENCE {
            wall
        } else {
            counted.max(wall)
        };
        self.last = Some((at, now.monotonic));
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::clock;

    /// So many milliseconds later by one clock, and by the other one.
    fn later(start: Now, monotonic: u64, wall: u64) -> Now {
        Now {
            monotonic: start.monotonic + Duration::from_millis(monotonic),
            wall: start.wall + Duration::from_millis(wall),
        }
    }

    #[test]
    fn calls_are_in_order_and_bounded() {
        let now = clock::now();
        let mut calling = Calling::new(now);
        let times = (0..20_000u64).filter_map(|ms| {
            let at = calling.send(later(now, ms, ms))?;
            assert_eq!(at, unix_milliseconds(now.wall + Duration::from_millis(ms)));
            Some(at)
        });
        let times: Vec<u64> = times.collect();
        assert!(times.is_sorted());
        assert!((70..=79).contains(&times.len()), "{}", times.len());
    }

    #[test]
    fn the_time_of_calls_follows_a_clock_that_is_set_and_does_not_go_back_by_an_hour_or_less() {
        const HOUR: u64 = 3_600_000;
        let start = clock::now();
        let mut calling = Calling::new(start);
        let mut send = |monotonic, wall| {
            let at = calling.send(later(start, monotonic, wall));
            at.expect("there were few") - unix_milliseconds(start.wall)
        };
        assert_eq!(send(0, 24 * HOUR), 24 * HOUR);
        assert_eq!(send(0, 24 * HOUR), 24 * HOUR + 1, "a copy is refused");
        // The machine was suspended, or its clock was wrong when it started.
        assert_eq!(send(1000, 32 * HOUR), 32 * HOUR);
        // Somebody sets the clock back.
        assert_eq!(send(2000, 31 * HOUR + 1000), 32 * HOUR + 1000);
        assert_eq!(send(3000, 31 * HOUR + 2000), 32 * HOUR + 2000);
        // Members refuse what is further ahead, so an older time does no more harm.
        assert_eq!(send(4000, 20 * HOUR), 20 * HOUR);
    }

    #[test]
    fn members_that_call_without_end_keep_this_node_neither_from_calling_nor_from_answering_others()
    {
        let now = clock::now();
        let mut calling = Calling::new(now);
        let caller = |n: u8| PublicKey([n; 32]);
        let at = |ms| later(now, ms, ms);
        let mut answers = 0;
        for ms in (0..20_000).step_by(500) {
            for n in 0..4 {
                answers += u32::from(calling.answer(caller(n), at(ms)).is_some());
            }
        }
        assert!((24..=32).contains(&answers), "{answers}");
        let others = (4..8).filter(|n| calling.answer(caller(*n), at(20_000)).is_some());
        assert_eq!(others.count(), 4);
        let calls = (0..28).filter(|_| calling.send(at(20_000)).is_some());
        assert_eq!(calls.count(), 28);
    }
}
