//! The calls of this node and of members, by which nodes meet that have no path and no common relay: over a coordinator, or by way of a
//! peer that both reach.

use std::time::Instant;

use crate::model::PublicKey;
use crate::model::rate::{Bucket, Rate};
use crate::model::time::{Now, unix_milliseconds};
use crate::path::call_log::CallLog;
use crate::path::calls::Calls;
use crate::path::punch::Punching;

/// How often this node calls others. A coordinator passes somewhat more on.
const SENT: Rate = Rate {
    per_second: 4.0,
    burst: 48.0,
};

/// The calls of this node and of members.
pub(super) struct Calling {
    /// The attempts with each peer that is called.
    pub(super) punching: Punching<PublicKey>,
    /// The calls of members that are followed and passed on.
    pub(super) received: Calls<PublicKey>,
    /// What became of calls.
    pub(super) log: CallLog<PublicKey>,
    sent: Bucket,
    /// From when the time of calls is counted, so that they are in order whoever sets the clock.
    started: Now,
}

impl Calling {
    pub(super) fn new(now: Now) -> Self {
        Self {
            punching: Punching::default(),
            received: Calls::new(now.monotonic),
            log: CallLog::default(),
            sent: Bucket::full(SENT, now.monotonic),
            started: now,
        }
    }

    /// The time of a call that is sent now, or none if there were too many.
    pub(super) fn send(&mut self, now: Instant) -> Option<u64> {
        let elapsed = now.saturating_duration_since(self.started.monotonic);
        let is_allowed = self.sent.take(now);
        is_allowed.then(|| unix_milliseconds(self.started.wall + elapsed))
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
        assert!((120..=129).contains(&times.len()), "{}", times.len());
    }
}
