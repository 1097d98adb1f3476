//! The calls of this node and of members, by which nodes meet that have no path and no common relay: over a coordinator, or by way of a
//! peer that both reach.

use std::time::Instant;

use crate::model::PublicKey;
use crate::model::rate::{Bucket, Quota, Rate};
use crate::model::time::{Now, unix_milliseconds};
use crate::path::call_log::CallLog;
use crate::path::calls::Calls;
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
    /// From when the time of calls is counted, so that they are in order whoever sets the clock.
    started: Now,
}

impl Calling {
    pub(super) fn new(now: Now) -> Self {
        Self {
            punching: Punching::default(),
            received: Calls::new(now.monotonic),
            log: CallLog::default(),
            sent: Bucket::full(CALLS, now.monotonic),
            answered: Quota::new(ANSWERS_TO_ONE, MAX_ANSWERED, ANSWERS, now.monotonic),
            started: now,
        }
    }

    /// The time of a call that is sent now, or none if there were too many.
    pub(super) fn send(&mut self, now: Instant) -> Option<u64> {
        self.sent.take(now).then(|| self.time(now))
    }

    /// The time of an answer to a call of `caller` that is sent now, or none if there were too many.
    pub(super) fn answer(&mut self, caller: PublicKey, now: Instant) -> Option<u64> {
        self.answered.take(caller, now).then(|| self.time(now))
    }

    fn time(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started.monotonic);
        unix_milliseconds(self.started.wall + elapsed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::os::clock;

    #[test]
    fn calls_are_in_order_and_bounded() {
        let now = clock::now();
        let mut calling = Calling::new(now);
        let times = (0..20_000u64).filter_map(|ms| {
            let at = calling.send(now.monotonic + Duration::from_millis(ms))?;
            assert_eq!(at, unix_milliseconds(now.wall + Duration::from_millis(ms)));
            Some(at)
        });
        let times: Vec<u64> = times.collect();
        assert!(times.is_sorted());
        assert!((70..=79).contains(&times.len()), "{}", times.len());
    }

    #[test]
    fn members_that_call_without_end_keep_this_node_neither_from_calling_nor_from_answering_others()
    {
        let now = clock::now();
        let mut calling = Calling::new(now);
        let caller = |n: u8| PublicKey([n; 32]);
        let at = |ms| now.monotonic + Duration::from_millis(ms);
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
