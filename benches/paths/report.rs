//! Figures of several runs, and lines with the goal beside what was measured.

use std::time::Duration;

/// The durations of several runs.
#[derive(Debug, Default)]
pub(crate) struct Times {
    sorted: Vec<Duration>,
    /// The number of runs in which it did not happen.
    pub(crate) missing: usize,
}

impl Times {
    /// A run without a time is one in which it did not happen.
    pub(crate) fn add(&mut self, time: Option<Duration>) {
        match time {
            Some(time) => {
                let at = self.sorted.partition_point(|other| *other <= time);
                self.sorted.insert(at, time);
            }
            None => self.missing += 1,
        }
    }

    /// The least time that so many of 100 runs do not exceed. A run in which it did not happen took for ever.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let runs = self.sorted.len() + self.missing;
        let rank = (runs * percent).div_ceil(100).max(1) - 1;
        self.sorted.get(rank).copied().unwrap_or(Duration::MAX)
    }

    pub(crate) fn shown(&self) -> String {
        let ms = |percent| match self.percentile(percent) {
            Duration::MAX => "never".to_owned(),
            time => format!("{:.0} ms", time.as_secs_f64() * 1000.0),
        };
        let runs = self.sorted.len() + self.missing;
        format!(
            "p50 {}, p90 {}, p99 {}, {} of {runs}",
            ms(50),
            ms(90),
            ms(99),
            self.sorted.len()
        )
    }
}

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Prints what was measured, the goal, and whether it is met.
pub(crate) fn print(line: &str, what: &str, measured: &str, goal: &str, is_met: bool) {
    let verdict = if is_met { "met" } else { "MISSED" };
    println!("{line:<4} {what:<52} {measured}\n     goal: {goal}: {verdict}");
}

/// Prints a figure that has no goal of its own.
pub(crate) fn note(line: &str, what: &str, measured: &str) {
    println!("{line:<4} {what:<52} {measured}");
}
