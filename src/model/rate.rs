//! Token buckets. This module is pure: the clock is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The rate at which a bucket fills, and the maximum that it holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate {
    /// Tokens that are added each second.
    pub per_second: f64,
    /// Tokens in a full bucket.
    pub burst: f64,
}

/// A token bucket. Its tokens may become negative, because a cost that is known only afterwards is charged in full.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            tokens: rate.burst,
            at: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.rate.per_second).min(self.rate.burst);
        self.at = self.at.max(now);
    }

    /// Takes one token. Returns false if the bucket has none.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let has_token = self.tokens >= 1.0;
        if has_token {
            self.tokens -= 1.0;
        }
        has_token
    }

    /// Takes `cost` tokens. Returns false if the bucket has fewer, and takes none.
    pub(crate) fn take_all(&mut self, cost: f64, now: Instant) -> bool {
        self.fill(now);
        let has_tokens = self.tokens >= cost;
        if has_tokens {
            self.tokens -= cost;
        }
        has_tokens
    }

    /// Takes `cost` tokens, even if the bucket has fewer.
    pub(crate) fn charge(&mut self, cost: f64, now: Instant) {
        self.fill(now);
        self.tokens -= cost;
    }

    /// Limits a negative number of tokens, so that the bucket is no longer than `wait` below zero.
    pub(crate) fn limit_debt(&mut self, wait: Duration) {
        self.tokens = self.tokens.max(-wait.as_secs_f64() * self.rate.per_second);
    }

    /// Returns a token that was taken.
    pub(crate) fn give_back(&mut self) {
        self.tokens = (self.tokens + 1.0).min(self.rate.burst);
    }

    /// Returns the time at which the bucket will hold `tokens`.
    pub(crate) fn ready(&self, tokens: f64) -> Instant {
        let missing = (tokens - self.tokens).max(0.0) / self.rate.per_second;
        self.at + Duration::try_from_secs_f64(missing).unwrap_or(Duration::MAX / 4)
    }

    /// Whether the bucket holds so many tokens.
    pub(crate) fn holds(&mut self, tokens: f64, now: Instant) -> bool {
        self.fill(now);
        self.tokens >= tokens
    }

    /// Whether the bucket holds its full burst.
    pub(crate) fn is_full(&mut self, now: Instant) -> bool {
        self.holds(self.rate.burst, now)
    }
}

/// How often the keys whose buckets are full again are forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// Buckets of one rate: one for each key that used it lately. A key without a bucket has a full one.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    rate: Rate,
    most: usize,
    buckets: HashMap<K, Bucket>,
    swept: Instant,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Buckets of `rate`, for at most `most` keys.
    pub(crate) fn new(rate: Rate, most: usize, now: Instant) -> Self {
        Self {
            rate,
            most,
            buckets: HashMap::new(),
            swept: now,
        }
    }

    /// The bucket of `key`. None if there are too many other keys.
    pub(crate) fn of(&mut self, key: K, now: Instant) -> Option<&mut Bucket> {
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        if self.buckets.len() >= self.most && !self.buckets.contains_key(&key) {
            return None;
        }
        let full = Bucket::full(self.rate, now);
        Some(self.buckets.entry(key).or_insert(full))
    }

    /// The number of keys that have a bucket.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.buckets.len()
    }
}

/// A bucket for each key, and one for all keys together.
#[derive(Debug)]
pub(crate) struct Quota<K> {
    each: Buckets<K>,
    all: Bucket,
}

impl<K: Eq + Hash> Quota<K> {
    /// The rate `each` for each of at most `most` keys, and the rate `all` for all of them together.
    pub(crate) fn new(each: Rate, most: usize, all: Rate, now: Instant) -> Self {
        Self {
            each: Buckets::new(each, most, now),
            all: Bucket::full(all, now),
        }
    }

    /// Takes one token for `key`. Returns false if its bucket or that of all keys has none, or if there are too many other keys.
    pub(crate) fn take(&mut self, key: K, now: Instant) -> bool {
        let each = self.each.of(key, now);
        each.is_some_and(|bucket| bucket.take(now)) && self.all.take(now)
    }

    /// The number of keys that have a bucket.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.each.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 2.0,
        burst: 3.0,
    };
    const EACH: Rate = Rate {
        per_second: 5.0,
        burst: 10.0,
    };
    const ALL: Rate = Rate {
        per_second: 20.0,
        burst: 100.0,
    };

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(RATE, start);
        let taken = (0..10).filter(|_| bucket.take(start)).count();
        assert_eq!(taken, 3);
        assert_eq!(bucket.ready(1.0), start + Duration::from_millis(500));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..10).filter(|_| bucket.take(later)).count(), 2);
        let much_later = start + Duration::from_secs(1000);
        assert!(bucket.is_full(much_later));
        assert_eq!((0..10).filter(|_| bucket.take(much_later)).count(), 3);
    }

    #[test]
    fn a_debt_is_waited_for_and_a_clock_that_stands_still_or_goes_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut bucket = Bucket::full(RATE, start);
        bucket.charge(13.0, start);
        assert_eq!(bucket.ready(0.0), start + Duration::from_secs(5));
        assert!(!bucket.take(start - Duration::from_secs(5)));
        assert!(!bucket.take(start));
        bucket.give_back();
        assert_eq!(bucket.ready(1.0), start + Duration::from_secs(5));
    }

    #[test]
    fn each_key_has_its_own_bucket_and_their_number_is_bounded() {
        let start = Instant::now();
        let mut buckets = Buckets::new(RATE, 10, start);
        let mut take = |key: u32, now| buckets.of(key, now).is_some_and(|of| of.take(now));
        assert_eq!((0..10).filter(|_| take(1, start)).count(), 3);
        assert_eq!((2..100).filter(|key| take(*key, start)).count(), 9);
        let later = start + Duration::from_secs(10);
        assert_eq!((2..100).filter(|key| take(*key, later)).count(), 10);
        assert_eq!(buckets.len(), 10);
    }

    #[test]
    fn a_key_that_asks_without_end_leaves_the_others_their_quotas() {
        let start = Instant::now();
        let mut quota = Quota::new(EACH, 4096, ALL, start);
        let flood = (0..10_000).filter(|ms| quota.take(1, start + Duration::from_millis(*ms)));
        assert!((58..=61).contains(&flood.count()));
        let later = start + Duration::from_secs(10);
        assert_eq!((0..100).filter(|_| quota.take(2, later)).count(), 10);
    }

    #[test]
    fn many_keys_together_have_no_more_than_the_quota_of_all() {
        let now = Instant::now();
        let mut quota = Quota::new(EACH, 4096, ALL, now);
        let taken = (0..10_000).filter(|n| quota.take(n % 1000, now));
        assert_eq!(taken.count(), 100);
    }
}
