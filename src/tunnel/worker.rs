//! The data threads: how many there are, and what each does.
//!
//! A pair of threads has some queues of the device, its lanes, and sockets of its own on the common port. Its first
//! thread serves both directions: an answer that the kernel makes at once is then read without waking anybody, and two
//! threads that take turns on one core only cost each other the cache. When both directions have more than it can do, it lends what
//! leaves to the second thread, which gives it back when there was nothing to send for a while. On one core there is no
//! second thread; with many cores there are several pairs.
//!
//! The kernel gives what comes from one address always to the same sockets, and steers a flow that leaves to the lane
//! into which its other direction is written: so a pair has its own peers, and nobody else reads a flow.

use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use nix::sys::eventfd::EventFd;

use super::device::Shared;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::sched_slice;
use crate::os::watchdog::Progress;

/// Pairs of threads chosen unasked at most: what one peer's crypto needs is one pair, and a server has other work.
const PAIRS: usize = 4;
/// Rounds in a row with more to do in both directions, after which what leaves is lent.
const BUSY_ROUNDS: u32 = 8;
/// Milliseconds with nothing to send, after which it is given back.
const IDLE_MS: i32 = 10;

/// What a data thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duty {
    /// Both directions, as long as that is enough.
    Both,
    /// From the device to the peers, while it is lent.
    Out,
}

/// A data thread: its duty, and whose lanes and sockets it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Worker {
    pub(super) duty: Duty,
    pub(super) queue: usize,
}

/// The data threads for a machine of `cores`, unless `wanted` says how many there are to be.
pub(super) fn workers(wanted: Option<usize>, cores: usize) -> Vec<Worker> {
    let threads = wanted.unwrap_or_else(|| cores.min(2 * PAIRS)).max(1);
    (0..threads.div_ceil(2))
        .flat_map(|queue| [Duty::Both, Duty::Out].map(|duty| Worker { duty, queue }))
        .take(threads)
        .collect()
}

/// What the threads of a pair share.
pub(super) struct Pair {
    outbound: Mutex<Outbound>,
    /// Whether the second thread has what leaves.
    lent: AtomicBool,
    /// Whether there is a second thread.
    lends: bool,
    /// Wakes the first thread and the second one.
    wakes: [EventFd; 2],
}

impl Pair {
    pub(super) fn new(queue: usize, lends: bool) -> nix::Result<Self> {
        use nix::sys::eventfd::EfdFlags;
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self {
            outbound: Mutex::new(Outbound::new(queue)),
            lent: AtomicBool::new(false),
            lends,
            wakes: [event()?, event()?],
        })
    }

    /// Has both threads look around.
    pub(super) fn wake(&self) {
        for event in &self.wakes {
            let _ = event.write(1);
        }
    }

    fn outbound(&self) -> MutexGuard<'_, Outbound> {
        self.outbound
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn descriptor(&self, which: usize) -> RawFd {
        self.wakes[which].as_fd().as_raw_fd()
    }
}

/// Runs until the tunnel stops.
pub(super) fn run(shared: &Shared, worker: Worker, progress: &Progress) {
    sched_slice::request_longer_slice();
    let pair = &shared.pairs[worker.queue];
    match worker.duty {
        Duty::Both => both(shared, pair, worker.queue, progress),
        Duty::Out => out(shared, pair, worker.queue, progress),
    }
}

fn both(shared: &Shared, pair: &Pair, queue: usize, progress: &Progress) {
    let mut inbound = Inbound::new(queue, shared);
    let mut busy = 0;
    while !shared.stopping() {
        progress.raise();
        let group = shared.sockets.load_full();
        let sockets = &group[queue];
        let [v4, v6] = sockets.descriptors();
        let device = shared.device.load_full();
        // A removed device is ready for ever; whoever replaces it wakes this thread.
        let tun = match pair.lent.load(Ordering::Acquire) || device.is_gone() {
            true => -1,
            false => device.queues[queue].descriptor(),
        };
        let Some(ready) = wait([v4, v6, tun, pair.descriptor(0)], -1) else {
            continue;
        };
        if ready[3] {
            let _ = pair.wakes[0].read();
        }
        // In turn, so that no direction waits for another to end.
        let mut more = [ready[0], ready[1], ready[2]];
        while more != [false; 3] && !shared.stopping() {
            progress.raise();
            for (more, fd) in more.iter_mut().zip([v4, v6]) {
                *more = *more && inbound.batch(shared, sockets, fd);
            }
            more[2] = more[2] && pair.outbound().batch(shared);
            busy = if more[2] && (more[0] || more[1]) {
                busy + 1
            } else {
                0
            };
            if busy >= BUSY_ROUNDS && pair.lends {
                (busy, more[2]) = (0, false);
                pair.lent.store(true, Ordering::Release);
                let _ = pair.wakes[1].write(1);
            }
        }
    }
}

fn out(shared: &Shared, pair: &Pair, queue: usize, progress: &Progress) {
    while !shared.stopping() {
        progress.raise();
        if !pair.lent.load(Ordering::Acquire) {
            if wait([pair.descriptor(1), -1, -1, -1], -1).is_some() {
                let _ = pair.wakes[1].read();
            }
            continue;
        }
        let device = shared.device.load_full();
        let tun = match device.is_gone() {
            true => -1,
            false => device.queues[queue].descriptor(),
        };
        if wait([tun, -1, -1, -1], IDLE_MS).is_some() {
            let mut outbound = pair.outbound();
            while !shared.stopping() && outbound.batch(shared) {
                progress.raise();
            }
        } else {
            pair.lent.store(false, Ordering::Release);
            let _ = pair.wakes[0].write(1);
        }
    }
}

/// Waits until one of `descriptors` can be read, `limit` milliseconds at most if that is not negative, and gives which
/// can; negative ones are passed over.
fn wait(descriptors: [RawFd; 4], limit: i32) -> Option<[bool; 4]> {
    let mut polled = descriptors.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: `polled` is an array of so many valid entries.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, limit) };
    (ready > 0).then(|| polled.map(|entry| entry.revents != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(wanted: Option<usize>, cores: usize) -> Vec<(Duty, usize)> {
        workers(wanted, cores)
            .into_iter()
            .map(|worker| (worker.duty, worker.queue))
            .collect()
    }

    #[test]
    fn a_core_has_one_thread_and_two_have_one_more_for_a_direction() {
        assert_eq!(shape(None, 1), [(Duty::Both, 0)]);
        assert_eq!(shape(None, 2), [(Duty::Both, 0), (Duty::Out, 0)]);
    }

    #[test]
    fn more_cores_have_more_pairs_up_to_a_bound() {
        assert_eq!(
            shape(None, 4),
            [
                (Duty::Both, 0),
                (Duty::Out, 0),
                (Duty::Both, 1),
                (Duty::Out, 1)
            ]
        );
        assert_eq!(workers(None, 128).len(), 2 * PAIRS);
    }

    #[test]
    fn what_is_configured_holds() {
        assert_eq!(shape(Some(1), 64), [(Duty::Both, 0)]);
        assert_eq!(shape(Some(0), 64), [(Duty::Both, 0)]);
        assert_eq!(
            shape(Some(3), 1),
            [(Duty::Both, 0), (Duty::Out, 0), (Duty::Both, 1)]
        );
    }
}
