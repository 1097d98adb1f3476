//! The data threads: how many there are, and what each does.
//!
//! A pair of threads has some queues of the device, and sockets of its own on the common port. Its first thread serves both
//! directions: it reads an answer that the kernel makes at once without waking another thread, while two threads that take
//! turns on one core evict each other's cache lines. When both directions have more work than one thread can do, it
//! hands the outbound direction off to the second thread, which returns it when there was nothing to send for a while. With
//! one core there is no second thread; with many cores there are several pairs.
//!
//! The kernel passes all datagrams from one address to the same sockets. It steers the packets of a flow to the queue into
//! which the other direction of the flow is written. So each peer belongs to one pair, and each flow is read by one pair.

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::inbound::Inbound;
use super::outbound::Outbound;
use super::sched_slice;
use super::shared::Shared;
use crate::os::readable;
use crate::os::watchdog::Progress;

/// The maximum number of pairs, unless the configuration says otherwise: one pair can do the cryptography of one fast peer, and
/// a server has other work.
const MAX_PAIRS: usize = 4;
/// After so many rounds in a row with more work in both directions, the outbound direction is handed off.
const BUSY_ROUNDS: u32 = 8;
/// After so long with nothing to send, the outbound direction is returned.
const IDLE: Duration = Duration::from_millis(10);

/// What a data thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It serves both directions, as long as it can.
    Both,
    /// It serves the direction from the device to the peers while that is handed off.
    Out,
}

/// A data thread: its role, and the number of its pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Worker {
    pub(super) role: Role,
    pub(super) pair: usize,
}

/// The data threads for a machine with so many `cores`, or as many as are `wanted`.
pub(super) fn workers(wanted: Option<usize>, cores: usize) -> Vec<Worker> {
    let threads = wanted.unwrap_or_else(|| cores.min(2 * MAX_PAIRS)).max(1);
    (0..threads.div_ceil(2))
        .flat_map(|pair| [Role::Both, Role::Out].map(|role| Worker { role, pair }))
        .take(threads)
        .collect()
}

/// The state that the threads of a pair share.
pub(super) struct WorkerPair {
    outbound: Mutex<Outbound>,
    /// Whether the second thread serves the outbound direction.
    handed_off: AtomicBool,
    has_second: bool,
}

impl WorkerPair {
    /// The state of the pair with this number.
    pub(super) fn new(pair: usize, has_second: bool) -> Self {
        Self {
            outbound: Mutex::new(Outbound::new(pair)),
            handed_off: AtomicBool::new(false),
            has_second,
        }
    }

    fn outbound(&self) -> MutexGuard<'_, Outbound> {
        self.outbound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until the tunnel stops.
pub(super) fn run(shared: &Shared, pair: &WorkerPair, worker: Worker, progress: &Progress) {
    sched_slice::request_longer_slice();
    match worker.role {
        Role::Both => run_both(shared, pair, worker.pair, progress),
        Role::Out => run_out(shared, pair, worker.pair, progress),
    }
}

fn run_both(shared: &Shared, pair: &WorkerPair, number: usize, progress: &Progress) {
    let wakes = &shared.wakes.pairs[number];
    let mut inbound = Inbound::new(number, shared);
    let mut busy = 0;
    let mut more = [false; 3];
    while !shared.stopping() {
        progress.raise();
        let group = shared.sockets.load_full();
        let sockets = &group[number];
        let descriptors = sockets.descriptors();
        let device = shared.device.load_full();
        // A removed device is always ready. The thread that replaces it wakes this one.
        let has_device = !pair.handed_off.load(Ordering::Acquire) && !device.is_gone();
        let tun = has_device.then(|| device.pairs[number].descriptor());
        let [v4, v6] = descriptors;
        let limit = (more != [false; 3]).then_some(Duration::ZERO);
        let waited = readable::wait([v4, v6, tun, Some(wakes.first.as_fd())], limit);
        let ready = waited.unwrap_or_default();
        if ready[3] {
            let _ = wakes.first.read();
        }
        more = with_work(more, ready, has_device);
        // One batch of each direction in turn, so that no direction waits until another one has no more work.
        inbound.streams(shared, sockets);
        for (more, socket) in more.iter_mut().zip(descriptors) {
            *more = *more && socket.is_some_and(|socket| inbound.batch(shared, sockets, socket));
        }
        more[2] = more[2] && pair.outbound().batch(shared);
        busy = if more[2] && (more[0] || more[1]) {
            busy + 1
        } else {
            0
        };
        if busy >= BUSY_ROUNDS && pair.has_second {
            (busy, more[2]) = (0, false);
            pair.handed_off.store(true, Ordering::Release);
            let _ = wakes.second.write(1);
        }
    }
}

/// Which of both sockets and the device have work: those that had more after their last batch, and those that are ready. A direction
/// without work in the last round has perhaps got some while the other one worked, so `ready` is asked for in each round.
fn with_work(more: [bool; 3], ready: [bool; 4], has_device: bool) -> [bool; 3] {
    let [v4, v6, device] = more;
    [
        v4 || ready[0],
        v6 || ready[1],
        has_device && (device || ready[2]),
    ]
}

fn run_out(shared: &Shared, pair: &WorkerPair, number: usize, progress: &Progress) {
    let wakes = &shared.wakes.pairs[number];
    while !shared.stopping() {
        progress.raise();
        if !pair.handed_off.load(Ordering::Acquire) {
            if readable::wait([Some(wakes.second.as_fd())], None).is_some() {
                let _ = wakes.second.read();
            }
            continue;
        }
        let device = shared.device.load_full();
        let tun = (!device.is_gone()).then(|| device.pairs[number].descriptor());
        if readable::wait([tun], Some(IDLE)).is_some() {
            let mut outbound = pair.outbound();
            while !shared.stopping() && outbound.batch(shared) {
                progress.raise();
            }
        } else {
            pair.handed_off.store(false, Ordering::Release);
            let _ = wakes.first.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads_of(wanted: Option<usize>, cores: usize) -> Vec<(Role, usize)> {
        workers(wanted, cores)
            .into_iter()
            .map(|worker| (worker.role, worker.pair))
            .collect()
    }

    #[test]
    fn a_direction_that_gets_work_is_served_while_the_other_one_has_more() {
        let (v4, device) = ([true, false, false], [false, false, true]);
        let ready = [true, false, true, false];
        assert_eq!(with_work(device, ready, true), [true, false, true]);
        assert_eq!(with_work(v4, ready, true), [true, false, true]);
        assert_eq!(with_work(v4, [false; 4], true), v4);
        assert_eq!(with_work(device, ready, false), v4, "it is handed off");
        assert_eq!(with_work([false; 3], [false; 4], true), [false; 3]);
    }

    #[test]
    fn one_core_has_one_thread_and_two_cores_have_a_second_one_for_the_outbound_direction() {
        assert_eq!(threads_of(None, 1), [(Role::Both, 0)]);
        assert_eq!(threads_of(None, 2), [(Role::Both, 0), (Role::Out, 0)]);
    }

    #[test]
    fn more_cores_have_more_pairs_up_to_a_limit() {
        assert_eq!(
            threads_of(None, 4),
            [
                (Role::Both, 0),
                (Role::Out, 0),
                (Role::Both, 1),
                (Role::Out, 1)
            ]
        );
        assert_eq!(workers(None, 128).len(), 2 * MAX_PAIRS);
    }

    #[test]
    fn a_configured_number_of_threads_is_started() {
        assert_eq!(threads_of(Some(1), 64), [(Role::Both, 0)]);
        assert_eq!(threads_of(Some(0), 64), [(Role::Both, 0)]);
        assert_eq!(
            threads_of(Some(3), 1),
            [(Role::Both, 0), (Role::Out, 0), (Role::Both, 1)]
        );
    }
}
