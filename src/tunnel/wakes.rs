//! The events by which the threads of a tunnel wake each other.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::endpoint::Endpoint;
use super::guard::Denials;
use super::news::News;
use super::streams::Streams;
use super::stun_requests::Requests;

/// The maximum number of refused endpoints that are remembered. For the others, another datagram will be refused.
pub(super) const MAX_REFUSED: usize = 64;

fn event() -> io::Result<EventFd> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    Ok(EventFd::from_flags(flags)?)
}

/// The events of one tunnel.
pub(super) struct Wakes {
    /// Written to once for each device that the kernel removes.
    pub(super) device_removed: EventFd,
    /// One for each pair of data threads.
    pub(super) pairs: Vec<PairWakes>,
    pub(super) recheck: Arc<Recheck>,
    /// The streams, whose data threads they wake.
    pub(super) streams: Arc<Streams>,
    /// The members of whose paths there is news.
    pub(super) news: News,
    /// The requests to STUN servers. An answer is news as well.
    pub(super) stun: Requests,
    /// The packets that the policy denied. The first one of a pair of addresses is news as well.
    pub(super) denials: Mutex<Denials>,
}

impl Wakes {
    /// The events for so many pairs of data threads.
    pub(super) fn new(
        pairs: usize,
        recheck: Arc<Recheck>,
        streams: Arc<Streams>,
    ) -> io::Result<Self> {
        let pair = || {
            Ok(PairWakes {
                first: event()?,
                second: event()?,
            })
        };
        Ok(Self {
            device_removed: event()?,
            pairs: (0..pairs).map(|_| pair()).collect::<io::Result<_>>()?,
            recheck,
            streams,
            news: News::new(event()?),
            stun: Requests::default(),
            denials: Mutex::new(Denials::new(Instant::now())),
        })
    }

    /// Wakes all data threads.
    pub(super) fn wake_workers(&self) {
        for pair in &self.pairs {
            let _ = pair.first.write(1);
            let _ = pair.second.write(1);
        }
    }
}

/// The events that wake the threads of one pair.
pub(super) struct PairWakes {
    pub(super) first: EventFd,
    pub(super) second: EventFd,
}

/// Wakes the `routes` thread, and passes the endpoints to it whose source the kernel refused.
#[derive(Debug)]
pub(super) struct Recheck {
    event: EventFd,
    refused: Mutex<Vec<Endpoint>>,
}

impl Recheck {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            event: event()?,
            refused: Mutex::new(Vec::with_capacity(MAX_REFUSED)),
        }))
    }

    /// Reports that the kernel refused the source of `endpoint`, while it sends to the address from another source.
    pub(super) fn refuse(&self, endpoint: Endpoint) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < MAX_REFUSED && !refused.contains(&endpoint) {
            refused.push(endpoint);
            let _ = self.event.write(1);
        }
    }

    /// Wakes the thread.
    pub(super) fn wake(&self) {
        let _ = self.event.write(1);
    }

    /// Readable when the thread has something to do.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Resets the event and moves the refused endpoints to `into`.
    pub(super) fn take(&self, into: &mut Vec<Endpoint>) {
        let _ = self.event.read();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        into.append(&mut refused);
    }

    /// The refused endpoints, for tests of the code that reports them.
    #[cfg(test)]
    pub(super) fn refused(&self) -> Vec<Endpoint> {
        let mut refused = Vec::new();
        self.take(&mut refused);
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_endpoints_are_passed_once_and_bounded() {
        let recheck = Recheck::new().expect("an event");
        for n in 0..1000u16 {
            let address = std::net::SocketAddr::from(([192, 0, 2, 1], n / 2));
            recheck.refuse(address.into());
        }
        assert_eq!(recheck.refused().len(), MAX_REFUSED);
        assert_eq!(recheck.refused(), []);
    }
}
