//! Durations that are counted by their length. Pure.

use std::time::Duration;

/// Durations that are counted by their length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durations {
    bounds: &'static [Duration],
    /// The number of those up to each bound and above the one before, and of those above all bounds.
    counts: Vec<u64>,
    sum: Duration,
}

impl Durations {
    /// No durations yet. `bounds` are the upper bounds of those that are counted together, in ascending order.
    #[must_use]
    pub fn new(bounds: &'static [Duration]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: Duration::ZERO,
        }
    }

    /// Counts a duration.
    pub fn note(&mut self, took: Duration) {
        let at = self.bounds.iter().position(|bound| took <= *bound);
        if let Some(count) = self.counts.get_mut(at.unwrap_or(self.bounds.len())) {
            *count += 1;
        }
        self.sum = self.sum.saturating_add(took);
    }

    /// The number of durations up to each bound, then that of all.
    pub(super) fn cumulated(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = self.bounds.iter().copied().map(Some).chain([None]);
        let sums = self.counts.iter().scan(0, |below, count| {
            *below += count;
            Some(*below)
        });
        bounds.zip(sums)
    }

    /// The number of durations in each bucket, the last of which has no bound.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The sum of all durations.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_for_the_first_bound_that_it_does_not_exceed() {
        const BOUNDS: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(250)];
        let mut times = Durations::new(&BOUNDS);
        for ms in [80, 100, 101, 700, 30_000] {
            times.note(Duration::from_millis(ms));
        }
        let counted: Vec<_> = times.cumulated().collect();
        let [first, second] = BOUNDS.map(Some);
        assert_eq!(counted, [(first, 2), (second, 3), (None, 5)]);
        assert_eq!(times.sum(), Duration::from_millis(30_981));
    }
}
