//! Waiting until a descriptor can be read (poll(2)).

use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};

/// Waits until one of `descriptors` can be read or has an error, for at most `limit` if one is given, and returns for each
/// whether it is. Absent descriptors are never ready. Returns none if the time is over or a signal arrived.
#[inline]
pub fn wait<const N: usize>(
    descriptors: [Option<BorrowedFd<'_>>; N],
    limit: Option<Duration>,
) -> Option<[bool; N]> {
    // A `PollFd` always has a descriptor. An absent one is represented by another one with no events to wait for.
    let present = descriptors.iter().flatten().next();
    let Some(present) = present else {
        std::thread::sleep(limit.unwrap_or_default());
        return None;
    };
    let mut polled = descriptors.map(|descriptor| match descriptor {
        Some(descriptor) => PollFd::new(descriptor, PollFlags::POLLIN),
        None => PollFd::new(*present, PollFlags::empty()),
    });
    let timeout = limit.map_or(PollTimeout::NONE, |limit| {
        // poll(2) counts whole milliseconds: one more, so that the time is over when it returns.
        let whole = limit.as_millis() + u128::from(limit.subsec_nanos() % 1_000_000 != 0);
        PollTimeout::try_from(whole).unwrap_or(PollTimeout::MAX)
    });
    let ready = nix::poll::poll(&mut polled, timeout).unwrap_or(0);
    (ready > 0).then(|| {
        std::array::from_fn(|index| {
            let is_present = descriptors.get(index).is_some_and(Option::is_some);
            is_present
                && polled
                    .get(index)
                    .is_some_and(|entry| entry.any() != Some(false))
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn only_present_descriptors_with_something_to_read_are_ready() {
        let (a, b) = UnixDatagram::pair().expect("two sockets");
        let limit = Some(Duration::from_millis(1));
        let waits = || wait([None, Some(a.as_fd()), None, Some(b.as_fd())], limit);
        assert_eq!(waits(), None);
        b.send(b"x").expect("connected");
        assert_eq!(waits(), Some([false, true, false, false]));
        assert_eq!(wait([None, None], limit), None);
    }

    #[test]
    fn the_limit_is_over_when_the_call_returns() {
        let (a, _b) = UnixDatagram::pair().expect("two sockets");
        for limit in [Duration::from_micros(100), Duration::from_millis(2)] {
            let began = std::time::Instant::now();
            assert_eq!(wait([Some(a.as_fd())], Some(limit)), None);
            assert!(began.elapsed() >= limit);
        }
    }
}
