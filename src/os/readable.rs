//! Waiting until a descriptor can be read: in a thread (poll(2)), and in a task.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor in non-blocking mode that a task reads from.
#[derive(Debug)]
pub struct AsyncReadable(AsyncFd<OwnedFd>);

impl AsyncReadable {
    /// Registers a descriptor with the runtime.
    ///
    /// # Errors
    /// The runtime cannot wait for this kind of descriptor.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` keeps its descriptor open for as long as it exists, and nothing replaces it inside the
        // `AsyncFd`. tokio has no safe function for this, because a type other than `OwnedFd` could close its
        // descriptor or return another one.
        let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Calls `read` whenever the descriptor is readable, until the call returns something other than `WouldBlock`.
    ///
    /// # Errors
    /// The error of `read`, or the runtime is shutting down.
    pub async fn read<T>(
        &self,
        mut read: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let interest = Interest::READABLE;
        self.0.async_io(interest, |fd| read(fd.as_fd())).await
    }
}

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

    #[tokio::test]
    async fn a_task_reads_once_there_is_something_to_read() {
        let (a, b) = UnixDatagram::pair().expect("two sockets");
        a.set_nonblocking(true).expect("a socket");
        let readable = AsyncReadable::new(a.into()).expect("a socket can be registered");
        let read = readable.read(|socket| {
            let mut bytes = [0; 8];
            let count = nix::unistd::read(socket, &mut bytes)?;
            Ok(bytes[..count].to_vec())
        });
        let (bytes, ()) = tokio::join!(read, async {
            tokio::task::yield_now().await;
            b.send(b"x").expect("connected");
        });
        assert_eq!(bytes.expect("it is readable"), b"x");
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
