//! Limits how often a setting is restored that other programs change: immediately at first, and more slowly the more often they change
//! it. This module is pure: the clock is an argument.

use std::time::{Duration, Instant};

/// The number of times that a setting is restored immediately.
const FREE: u32 = 5;
/// The longest pause between two times.
const LONGEST: Duration = Duration::from_secs(15);
/// After this long without a change by others, the count starts again.
const QUIET: Duration = Duration::from_secs(60);

/// Counts how often a setting was restored.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    times: u32,
    last: Option<Instant>,
}

impl Pace {
    /// Handles that a setting was restored which another program had changed. Returns whether to log that: only the first times of a
    /// contest are logged.
    pub(crate) fn handle_put_back(&mut self, now: Instant) -> bool {
        if !self.is_recent(now) {
            self.times = 0;
        }
        self.times = self.times.saturating_add(1);
        self.last = Some(now);
        self.times <= FREE + 1
    }

    /// Returns how long to wait before the setting is compared again.
    #[must_use]
    pub(crate) fn rest(&self, now: Instant) -> Duration {
        let Some(last) = self.last.filter(|_| self.is_contested(now)) else {
            return Duration::ZERO;
        };
        let over = self.times.saturating_sub(FREE + 1).min(8);
        let whole = Duration::from_secs(1 << over).min(LONGEST);
        whole.saturating_sub(now.saturating_duration_since(last))
    }

    /// Whether another program changes the setting again and again.
    #[must_use]
    pub(crate) fn is_contested(&self, now: Instant) -> bool {
        self.times > FREE && self.is_recent(now)
    }

    fn is_recent(&self, now: Instant) -> bool {
        self.last
            .is_some_and(|last| now.saturating_duration_since(last) < QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_is_changed_a_few_times_is_restored_at_once() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.rest(now), Duration::ZERO);
        for n in 0..FREE {
            assert!(pace.handle_put_back(now + Duration::from_secs(n.into())));
        }
        let now = now + Duration::from_secs(FREE.into());
        assert_eq!(pace.rest(now), Duration::ZERO);
        assert!(!pace.is_contested(now));
    }

    #[test]
    fn a_contest_is_slowed_down_and_logged_once() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let (mut rests, mut lines) = (Vec::new(), 0);
        for _ in 0..20 {
            lines += u32::from(pace.handle_put_back(now));
            let rest = pace.rest(now);
            rests.push(rest.as_secs());
            now += rest;
        }
        assert_eq!(lines, FREE + 1);
        assert_eq!(&rests[..12], [0, 0, 0, 0, 0, 1, 2, 4, 8, 15, 15, 15]);
        assert!(rests.iter().all(|rest| *rest <= 15));
        assert!(pace.is_contested(now));
    }

    #[test]
    fn a_contest_that_ended_is_forgotten() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for _ in 0..20 {
            pace.handle_put_back(now);
        }
        let later = now + QUIET;
        assert!(!pace.is_contested(later));
        assert_eq!(pace.rest(later), Duration::ZERO);
        assert!(pace.handle_put_back(later));
        assert_eq!(pace.rest(later), Duration::ZERO);
    }
}
