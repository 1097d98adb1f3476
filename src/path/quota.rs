//! What members may cost this node: each of them, and all of them together. Pure.

use std::hash::Hash;
use std::time::Instant;

use crate::model::rate::{Bucket, Buckets, Rate};

/// The maximum number of members that are counted. While there are more, the others have nothing.
const MAX_MEMBERS: usize = 4096;

/// The quota of each member, and that of all of them together. `K` names a member.
#[derive(Debug)]
pub struct Quota<K> {
    each: Buckets<K>,
    all: Bucket,
}

impl<K: Eq + Hash> Quota<K> {
    pub(crate) fn new(each: Rate, all: Rate, now: Instant) -> Self {
        Self {
            each: Buckets::new(each, MAX_MEMBERS, now),
            all: Bucket::full(all, now),
        }
    }

    /// Whether `member` may have one more. It is counted if so.
    pub fn take(&mut self, member: K, now: Instant) -> bool {
        let each = self.each.of(member, now);
        each.is_some_and(|bucket| bucket.take(now)) && self.all.take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const EACH: Rate = Rate {
        per_second: 5.0,
        burst: 10.0,
    };
    const ALL: Rate = Rate {
        per_second: 20.0,
        burst: 100.0,
    };

    #[test]
    fn a_member_that_asks_without_end_leaves_the_others_their_quotas() {
        let start = Instant::now();
        let mut quota = Quota::new(EACH, ALL, start);
        let flood = (0..10_000).filter(|ms| quota.take(1, start + Duration::from_millis(*ms)));
        assert!((58..=61).contains(&flood.count()));
        let later = start + Duration::from_secs(10);
        assert_eq!((0..100).filter(|_| quota.take(2, later)).count(), 10);
    }

    #[test]
    fn many_members_together_have_no_more_than_the_quota_of_all() {
        let now = Instant::now();
        let mut quota = Quota::new(EACH, ALL, now);
        let taken = (0..10_000).filter(|n| quota.take(n % 1000, now));
        assert_eq!(taken.count(), 100);
    }
}
