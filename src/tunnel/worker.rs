//! The data threads: how many there are, and what each does.
//!
//! One core has one thread for both directions; two cores have one a direction. With more cores there are more pairs.
//! Each pair has a queue of the device and sockets of its own, on the same port. The kernel gives what comes from one
//! address always to the same sockets, and steers a flow that leaves to the queue into which its other direction is
//! written: so a pair has its own peers, and nobody else reads a flow.

use std::os::fd::RawFd;

use super::device::Shared;
use super::inbound::Inbound;
use super::outbound::Outbound;

/// Pairs of threads chosen unasked at most: what one peer's crypto needs is one pair, and a server has other work.
const PAIRS: usize = 4;

/// What a data thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duty {
    /// Both directions.
    Both,
    /// From the device to the peers.
    Out,
    /// From the peers to the device.
    In,
}

/// A data thread: its duty, and the queue that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Worker {
    pub(super) duty: Duty,
    pub(super) queue: usize,
}

/// The data threads for a machine of `cores`, unless `wanted` says how many there are to be.
pub(super) fn workers(wanted: Option<usize>, cores: usize) -> Vec<Worker> {
    let threads = wanted.unwrap_or_else(|| cores.min(2 * PAIRS)).max(1);
    if threads == 1 {
        return vec![Worker {
            duty: Duty::Both,
            queue: 0,
        }];
    }
    (0..threads / 2)
        .flat_map(|queue| [Duty::Out, Duty::In].map(|duty| Worker { duty, queue }))
        .collect()
}

/// Runs until the tunnel stops.
pub(super) fn run(shared: &Shared, worker: Worker, wake: RawFd) {
    let queue = worker.queue;
    let mut outbound = (worker.duty != Duty::In).then(|| Outbound::new(queue));
    let mut inbound = (worker.duty != Duty::Out).then(|| Inbound::new(queue, shared));
    while !shared.stopping() {
        let group = shared.sockets.load_full();
        let sockets = &group[queue];
        let [v4, v6] = match &inbound {
            Some(_) => sockets.descriptors(),
            None => [-1, -1],
        };
        let tun = match &outbound {
            Some(_) => shared.tun[queue].descriptor(),
            None => -1,
        };
        let Some(ready) = wait([v4, v6, tun, wake]) else {
            continue;
        };
        if ready[3] {
            drain(wake);
        }
        // In turn, so that no direction waits for another to end.
        let mut more = [ready[0], ready[1], ready[2]];
        while more != [false; 3] && !shared.stopping() {
            if let Some(inbound) = &mut inbound {
                for (more, fd) in more.iter_mut().zip([v4, v6]) {
                    *more = *more && inbound.batch(shared, sockets, fd);
                }
            }
            if let Some(outbound) = &mut outbound {
                more[2] = more[2] && outbound.batch(shared);
            }
        }
    }
}

/// Waits until one of `descriptors` can be read, and gives which can; negative ones are passed over.
fn wait(descriptors: [RawFd; 4]) -> Option<[bool; 4]> {
    let mut polled = descriptors.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: `polled` is an array of so many valid entries.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
    (ready > 0).then(|| polled.map(|entry| entry.revents != 0))
}

/// Takes the pending wake-up away.
fn drain(event: RawFd) {
    let mut count = 0u64;
    // SAFETY: an eventfd is read in 8 octets, for which there is room.
    unsafe {
        libc::read(event, (&raw mut count).cast(), 8);
    }
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
    fn a_core_has_one_thread_and_two_have_one_a_direction() {
        assert_eq!(shape(None, 1), [(Duty::Both, 0)]);
        assert_eq!(shape(None, 2), [(Duty::Out, 0), (Duty::In, 0)]);
        assert_eq!(shape(None, 3), shape(None, 2));
    }

    #[test]
    fn more_cores_have_more_pairs_up_to_a_bound() {
        assert_eq!(
            shape(None, 4),
            [(Duty::Out, 0), (Duty::In, 0), (Duty::Out, 1), (Duty::In, 1)]
        );
        assert_eq!(workers(None, 128).len(), 2 * PAIRS);
    }

    #[test]
    fn what_is_configured_holds() {
        assert_eq!(shape(Some(1), 64), [(Duty::Both, 0)]);
        assert_eq!(shape(Some(0), 64), [(Duty::Both, 0)]);
        assert_eq!(workers(Some(6), 1).len(), 6);
    }
}
