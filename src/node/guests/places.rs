//! The places from which the datagrams of a guest come. Pure.
//!
//! A device has one place, and moves to another one now and then. If two devices have the configuration of one guest and are on at the same
//! time, its datagrams come from two places in turns. Then both lose packets, or a stranger has the key of the guest.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// After this number of returns to the place before the last one, within [`WINDOW`], there are two devices.
const RETURNS: usize = 4;
/// Both devices send several times in this time, since the configuration has a keepalive of 25 s.
const WINDOW: Duration = Duration::from_secs(180);

/// The last two places of a guest.
#[derive(Debug, Default)]
pub(super) struct Places {
    last: Option<SocketAddr>,
    before: Option<SocketAddr>,
    /// When the last returns to the place before the last one were seen.
    returns: VecDeque<Instant>,
}

impl Places {
    /// The last datagram came from `place`.
    pub(super) fn handle(&mut self, place: SocketAddr, now: Instant) {
        if self.last == Some(place) {
            return;
        }
        if self.before == Some(place) {
            if self.returns.len() >= RETURNS {
                self.returns.pop_front();
            }
            self.returns.push_back(now);
        }
        self.before = self.last.replace(place);
    }

    /// The two places, if two devices seem to use one configuration.
    pub(super) fn shared(&self, now: Instant) -> Option<(SocketAddr, SocketAddr)> {
        let first = self.returns.front()?;
        let is_shared =
            self.returns.len() >= RETURNS && now.saturating_duration_since(*first) < WINDOW;
        self.last.zip(self.before).filter(|_| is_shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(n: u8) -> SocketAddr {
        ([192, 0, 2, n], 4000).into()
    }

    /// The places after datagrams from these places, one each so many seconds, and the time of the last one.
    fn after(places: &[u8], seconds: u64) -> (Places, Instant) {
        let mut seen = Places::default();
        let mut now = Instant::now();
        for n in places {
            now += Duration::from_secs(seconds);
            seen.handle(place(*n), now);
        }
        (seen, now)
    }

    #[test]
    fn datagrams_that_come_from_two_places_in_turns_are_those_of_two_devices() {
        let (seen, now) = after(&[1, 2, 1, 2, 1, 2], 12);
        assert_eq!(seen.shared(now), Some((place(2), place(1))));
        assert_eq!(seen.shared(now + WINDOW), None, "one of them is off");
    }

    #[test]
    fn a_device_that_moves_is_one_device() {
        for (places, seconds) in [
            (&[1, 1, 1, 1, 1, 1][..], 12),
            (&[1, 2, 3, 4, 5, 6, 7, 8], 12),
            // Out of the house and back.
            (&[1, 2, 1, 2], 12),
            (&[1, 2, 1, 2, 1, 2], 600),
        ] {
            let (seen, now) = after(places, seconds);
            assert_eq!(seen.shared(now), None, "{places:?}");
        }
    }
}
