//! Which coordinator is tried next, and after which pause. Pure: random numbers are arguments.

use std::time::Duration;

use crate::protocol::url::CoordinatorUrl;

/// The first pause after a failure is up to this long. The bound doubles with each further failure.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// No pause is longer.
const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// How long a copy of another machine waits: when a coordinator comes back, the original has to be there first.
const COPY_PAUSE: Duration = Duration::from_secs(60);
/// A stream that was open for longer is no failure.
const STABLE: Duration = Duration::from_secs(60);

/// The attempts to open a stream.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    failures: u32,
    /// The coordinator that was tried last.
    last: Option<CoordinatorUrl>,
}

impl Attempts {
    /// The coordinator that is tried now: any of `urls` except the last one, if there are others.
    pub(super) fn next(&mut self, urls: &[CoordinatorUrl], random: u64) -> Option<CoordinatorUrl> {
        let last = self.last.as_ref();
        let others: Vec<&CoordinatorUrl> = urls.iter().filter(|url| Some(*url) != last).collect();
        let next = match others.len() {
            0 => urls.first(),
            count => others.get(below(random, count as u64) as usize).copied(),
        };
        self.last = next.cloned();
        self.last.clone()
    }

    /// A stream ended, `lasted` after the attempt to open it began. Returns the pause before the next attempt. It has full
    /// jitter: it is anything from nothing to a bound that doubles with each failure.
    pub(super) fn handle_ended(&mut self, lasted: Duration, copied: bool, random: u64) -> Duration {
        self.failures = if lasted > STABLE {
            0
        } else {
            self.failures.saturating_add(1)
        };
        if copied {
            return COPY_PAUSE;
        }
        let bound = FIRST_BACKOFF
            .saturating_mul(1u32 << self.failures.saturating_sub(1).min(10))
            .min(MAX_BACKOFF);
        let milliseconds = bound.as_millis().try_into().unwrap_or(u64::MAX);
        Duration::from_millis(below(random, milliseconds))
    }
}

/// Maps a random number to a number below `bound`. It is 0 if `bound` is 0.
fn below(random: u64, bound: u64) -> u64 {
    random.checked_rem(bound).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn any_coordinator_but_the_one_that_failed_is_next() {
        let urls: Vec<CoordinatorUrl> = ["https://a", "https://b", "https://c"]
            .map(|url| url.parse().expect("a literal"))
            .to_vec();
        let picked = |count: usize, last: Option<usize>| -> BTreeSet<Option<CoordinatorUrl>> {
            let attempts = |_| Attempts {
                failures: 0,
                last: last.map(|n| urls[n].clone()),
            };
            let mut random = 0..200;
            let next = random.by_ref();
            next.map(|n| attempts(n).next(&urls[..count], n)).collect()
        };
        let [a, b, c] = [0, 1, 2].map(|n| Some(urls[n].clone()));
        assert_eq!(picked(0, None), [None].into());
        assert_eq!(picked(1, Some(0)), [a.clone()].into());
        assert_eq!(picked(3, None), [a.clone(), b, c.clone()].into());
        assert_eq!(picked(3, Some(1)), [a, c].into());
        let mut attempts = Attempts::default();
        let [first, second] = [0, 0].map(|n| attempts.next(&urls, n));
        assert_ne!(first, second);
    }

    #[test]
    fn pauses_grow_up_to_a_bound_and_start_again_after_a_stream_that_lasted() {
        let mut attempts = Attempts::default();
        let mut longest = Vec::new();
        for _ in 0..40 {
            // The largest number that the bound leaves.
            let bound = [500, 1000, 2000, 4000, 8000, 15_000][longest.len().min(5)];
            let pause = attempts.handle_ended(Duration::ZERO, false, bound - 1);
            assert_eq!(pause, Duration::from_millis(bound - 1));
            longest.push(pause);
        }
        let stable = STABLE + Duration::from_millis(1);
        for (lasted, random, pause) in
            [(STABLE, 14_999, 14_999), (stable, 501, 1), (stable, 501, 1)]
        {
            let found = attempts.handle_ended(lasted, false, random);
            assert_eq!(found, Duration::from_millis(pause), "{lasted:?}");
        }
        assert_eq!(attempts.handle_ended(Duration::ZERO, true, 7), COPY_PAUSE);
    }
}
