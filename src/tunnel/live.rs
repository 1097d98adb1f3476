//! The list of live peers: those whose timers run.
//!
//! A peer is live from the moment its Noise state is asked for until its timers rest. The timer thread looks only at live
//! peers, and sleeps while there is none, so that an idle peer costs nothing.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;

/// The peers that became live and that the timer thread does not know yet, by index. A peer is added under its own lock
/// when its `is_live` becomes true, so it is at most once in here or with the thread.
#[derive(Default)]
pub(super) struct Live {
    added: Mutex<Vec<u32>>,
    thread: OnceLock<Thread>,
}

impl Live {
    /// Makes the calling thread the one that is woken. It has to do so before it takes peers for the first time: a peer that
    /// is added later wakes it.
    pub(super) fn set_thread(&self) {
        self.thread.get_or_init(std::thread::current);
    }

    /// Starts the timers of a peer.
    pub(super) fn add(&self, peer: u32) {
        let mut added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        added.push(peer);
        // The first peer wakes the thread, which takes all that were added by then.
        if added.len() == 1 {
            self.wake();
        }
    }

    /// Wakes the timer thread.
    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Moves the peers that were added to `into`.
    pub(super) fn take(&self, into: &mut Vec<u32>) {
        let mut added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        into.append(&mut added);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_taken_once_in_the_order_in_which_they_were_added() {
        let live = Live::default();
        let mut taken = Vec::new();
        for peer in [3, 1, 2] {
            live.add(peer);
        }
        live.take(&mut taken);
        live.take(&mut taken);
        assert_eq!(taken, [3, 1, 2]);
    }
}
