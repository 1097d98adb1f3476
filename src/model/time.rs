//! Times, as state machines take them and as records contain them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The present time by both clocks. State machines take it as an argument, so that tests can set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The clock that never goes back, for durations and deadlines.
    pub monotonic: Instant,
    /// The clock that people set, for dates in records.
    pub wall: SystemTime,
}

/// Whole seconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixSeconds(pub u64);

impl UnixSeconds {
    /// Returns the whole seconds of `time`; 0 if the clock is set before 1970.
    #[must_use]
    pub fn from_system(time: SystemTime) -> Self {
        Self(
            time.duration_since(UNIX_EPOCH)
                .unwrap_or(Duration::ZERO)
                .as_secs(),
        )
    }

    /// Returns the time that is `duration` later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_secs()))
    }
}

/// Returns the next version of a record: one more than the last version, and at least the time in milliseconds. So a node whose state
/// was restored from an old copy still makes versions above those that it published before.
#[must_use]
pub fn next_version(last: u64, now: SystemTime) -> u64 {
    last.saturating_add(1).max(unix_milliseconds(now))
}

/// Returns the time at which a record was made, by its version from [`next_version`]. None if the version is no time in the past: the
/// clock of its signer may have been wrong.
#[must_use]
pub fn made_at(version: u64, now: SystemTime) -> Option<SystemTime> {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(version))?;
    (version >= FIRST_VERSION && at <= now).then_some(at)
}

/// The first millisecond of the year 2020. Versions below it are no times.
const FIRST_VERSION: u64 = 1_577_836_800_000;

/// The milliseconds since 1970, or 0 before.
#[must_use]
pub fn unix_milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The last second of the year 9999. Later dates have more digits.
const LAST_SECOND: u64 = 253_402_300_799;

/// Returns the time in UTC with milliseconds, in the form of RFC 3339: `2026-11-30T13:27:44.123Z`. All such texts have the same length,
/// so they can be compared as texts.
#[must_use]
pub fn utc(time: SystemTime) -> String {
    let milliseconds = unix_milliseconds(time).min(LAST_SECOND * 1000);
    let date = ::time::OffsetDateTime::from(UNIX_EPOCH + Duration::from_millis(milliseconds));
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        date.hour(),
        date.minute(),
        date.second(),
        date.millisecond()
    )
}

/// Returns the pause before the next attempt, after an attempt failed and `earlier` others before it in a row: `first`, doubled for
/// each of the earlier ones, and at most `longest`.
#[must_use]
pub fn retry_pause(first: Duration, earlier: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << earlier.min(10)).min(longest)
}

/// Parses a duration such as `500ms`, `5s`, `2m`, `1h` or `7d`, and returns it in milliseconds.
#[must_use]
pub fn milliseconds(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(at);
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(milliseconds_of(unit)?)
}

/// Parses a duration as [`milliseconds`] does, also one with a fraction, such as `1.5s`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let Some((whole, rest)) = text.split_once('.') else {
        return milliseconds(text).map(Duration::from_millis);
    };
    let at = rest.find(|c: char| !c.is_ascii_digit())?;
    let (fraction, unit) = rest.split_at(at);
    // Three digits are enough for every unit, and no number of this size overflows.
    let is_short = (1..=3).contains(&fraction.len());
    let fraction = fraction.parse::<u64>().ok().filter(|_| is_short)?;
    let factor = milliseconds_of(unit)?;
    let parts = match at {
        1 => 10,
        2 => 100,
        _ => 1000,
    };
    let whole = milliseconds(&format!("{whole}{unit}"))?;
    let milliseconds = whole.checked_add(fraction.checked_mul(factor)? / parts)?;
    Some(Duration::from_millis(milliseconds))
}

fn milliseconds_of(unit: &str) -> Option<u64> {
    Some(match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_record_tells_when_it_was_made_unless_it_is_no_time_in_the_past() {
        let now = UNIX_EPOCH + Duration::from_millis(1_790_000_000_000);
        assert_eq!(made_at(next_version(0, now), now), Some(now));
        for version in [0, 7, 1_790_000_000_001, u64::MAX] {
            assert_eq!(made_at(version, now), None, "{version}");
        }
    }

    #[test]
    fn versions_grow_even_when_the_clock_jumps_back() {
        let noon = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let first = next_version(0, noon);
        let second = next_version(first, noon - Duration::from_secs(3600));
        assert_eq!(first, 1_800_000_000_000);
        assert_eq!(second, first + 1);
    }

    #[test]
    fn a_time_is_a_text_of_one_length_whatever_the_clock_says() {
        let at = |milliseconds| utc(UNIX_EPOCH + Duration::from_millis(milliseconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(1_709_164_800_000), "2024-02-29T00:00:00.000Z");
        assert_eq!(at(1_796_045_264_123), "2026-11-30T13:27:44.123Z");
        assert_eq!(at(u64::MAX / 2_000), "9999-12-31T23:59:59.000Z");
        assert_eq!(utc(UNIX_EPOCH - Duration::from_secs(1)), at(0));
    }

    #[test]
    fn durations_have_a_unit_and_may_have_a_fraction() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("5s", 5_000),
            ("1.5s", 1_500),
            ("0.25h", 900_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for wrong in [
            "",
            "5",
            "s",
            "-1h",
            "1.s",
            ".5s",
            "1.2345s",
            "1.5",
            "1w",
            "99999999999999999999d",
        ] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_pause_between_attempts_doubles_up_to_the_longest_one() {
        let seconds = Duration::from_secs;
        let pauses =
            [0, 1, 2, u32::MAX].map(|earlier| retry_pause(seconds(15), earlier, seconds(50)));
        assert_eq!(pauses, [15, 30, 50, 50].map(seconds));
    }
}
