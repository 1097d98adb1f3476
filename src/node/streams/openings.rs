//! How often each member may open its stream to this node. Pure.
//!
//! A stream that is opened takes the place of the member's stream before, and costs a TLS handshake and a signature. A member that is
//! refused goes on as if the relay could not be reached: it tries again with pauses that become longer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::model::PublicKey;
use crate::model::rate::{Buckets, Rate};

/// A member whose stream fails opens it again after 1, 2, 4 .. 64 seconds, which is seven times in two minutes, and begins anew when its
/// network changes.
const RATE: Rate = Rate {
    per_second: 0.1,
    burst: 10.0,
};
/// The maximum number of members that are counted. While there are more, no others are admitted.
const MAX_MEMBERS: usize = 4096;

/// The streams that members opened lately.
#[derive(Debug)]
pub(super) struct Openings {
    members: Mutex<Buckets<PublicKey>>,
    refused: AtomicU64,
}

impl Openings {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            members: Mutex::new(Buckets::new(RATE, MAX_MEMBERS, now)),
            refused: AtomicU64::new(0),
        }
    }

    /// Whether a member that has proved its identity may open a stream now. It is counted in either case.
    pub(super) fn admit(&self, member: PublicKey, now: Instant) -> bool {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = members.of(member, now);
        let is_admitted = bucket.is_some_and(|bucket| bucket.take(now));
        if !is_admitted {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        is_admitted
    }

    /// How many were refused so far.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testbed::records::id;

    #[test]
    fn a_member_that_opens_its_stream_again_and_again_is_refused_and_others_are_not() {
        let start = Instant::now();
        let openings = Openings::new(start);
        let minute = (0..60).filter(|second| {
            let now = start + Duration::from_secs(*second);
            openings.admit(id(1), now)
        });
        assert_eq!(minute.count(), 15);
        assert_eq!(openings.refused(), 45);
        assert!(openings.admit(id(2), start + Duration::from_secs(60)));
        assert_eq!(openings.refused(), 45);
    }

    #[test]
    fn a_member_whose_stream_fails_each_time_is_not_refused() {
        let start = Instant::now();
        let openings = Openings::new(start);
        let mut at = start;
        for tries in 0..20 {
            assert!(openings.admit(id(1), at), "{tries}");
            at += crate::path::peer::retry_pause(tries);
        }
        assert_eq!(openings.refused(), 0);
    }
}
