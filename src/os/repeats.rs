//! Bounds how often one place in the code writes to the log. Pure.
//!
//! Without this limit a lasting fault would fill the log, and a remote sender that causes a fault could write as many lines
//! as it sends packets. A place may write a number of lines at once. After that it may write one line in each interval,
//! together with the number of lines that were suppressed.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The maximum number of lines that one place may write at once.
pub const BURST: u32 = 50;
/// How long until a place may write another line.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// What the places wrote lately.
#[derive(Debug)]
pub struct Repeats<P> {
    places: HashMap<P, Place>,
}

#[derive(Debug)]
struct Place {
    /// Lines that it may write.
    left: u32,
    /// When the last one was added to those.
    filled: Instant,
    left_out: u64,
}

impl<P> Default for Repeats<P> {
    fn default() -> Self {
        Self {
            places: HashMap::new(),
        }
    }
}

impl<P: Eq + Hash> Repeats<P> {
    /// Whether `place` may write a line; gives how many of its lines were left out before this one.
    pub fn admit(&mut self, place: P, now: Instant) -> Option<u64> {
        let place = self.places.entry(place).or_insert(Place {
            left: BURST,
            filled: now,
            left_out: 0,
        });
        let intervals =
            now.saturating_duration_since(place.filled).as_millis() / INTERVAL.as_millis();
        if intervals > 0 {
            let intervals = u32::try_from(intervals).unwrap_or(u32::MAX);
            place.left = place.left.saturating_add(intervals).min(BURST);
            place.filled = now;
        }
        if place.left == 0 {
            place.left_out += 1;
            return None;
        }
        place.left -= 1;
        Some(std::mem::take(&mut place.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_writes_for_ever_is_bounded_and_what_was_left_out_is_counted() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let lines: Vec<u64> = (0..6000)
            .filter_map(|n| repeats.admit("place", start + Duration::from_millis(100) * n))
            .collect();
        // 600 s with ten lines in each.
        assert_eq!(lines.len(), BURST as usize + 59);
        let left_out: u64 = lines.iter().sum();
        assert!(left_out + lines.len() as u64 > 6000 - 100);
    }

    #[test]
    fn places_do_not_spend_each_others_lines_and_a_quiet_one_has_all_again() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let mut written = |place, now| (0..1000).filter_map(|_| repeats.admit(place, now)).count();
        let burst = BURST as usize;
        assert_eq!(written("a", start), burst);
        assert_eq!(written("b", start), burst);
        assert_eq!(written("a", start + INTERVAL), 1);
        assert_eq!(written("a", start + INTERVAL * 1000), burst);
    }
}
