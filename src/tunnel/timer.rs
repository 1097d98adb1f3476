//! The `timer` thread: retries, rekeys and keepalives of the peers that have a session or want one.
//!
//! A peer is live from the moment its Noise state is asked for until its timers rest. Only live peers are looked at,
//! and while there is none the thread sleeps without an end: peers that nobody talks to cost nothing.

use std::sync::{Mutex, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::device::{Shared, Table};
use super::drops::DropReason;
use super::noise::{Message, Ticked};
use super::udp::Sender;
use crate::os::watchdog::Progress;

/// How often timers run.
const TICK: Duration = Duration::from_millis(200);

/// Peers that became live and that the thread does not know yet, by index. A peer is added under its own lock when its
/// `is_live` becomes true, so it is in here or with the thread at most once.
#[derive(Default)]
pub(super) struct Live {
    added: Mutex<Vec<u32>>,
    thread: OnceLock<Thread>,
}

impl Live {
    /// Has the timers of this peer run.
    pub(super) fn add(&self, peer: u32) {
        let mut added = self
            .added
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        added.push(peer);
        // The first one wakes the thread, which takes all that have come by then.
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

    fn take(&self, into: &mut Vec<u32>) {
        let mut added = self
            .added
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        into.append(&mut added);
    }
}

/// Runs until the tunnel stops.
pub(super) fn run(shared: &Shared, progress: &Progress) {
    // Before the first look: whoever adds a peer after it finds a thread to wake.
    shared.live.thread.get_or_init(std::thread::current);
    let mut sender = Sender::new_small();
    let mut live = Vec::new();
    while !shared.stopping() {
        progress.raise();
        shared.live.take(&mut live);
        let now = Instant::now();
        // Loaded after the list: a peer in it was in a table before.
        let table = shared.table.load();
        let group = shared.sockets.load();
        let sockets = &group[0];
        live.retain(|peer| {
            let stays = tick(shared, &table, *peer, &mut sender, now);
            sender.flush_if_full(sockets, &shared.drops);
            stays
        });
        sender.flush(sockets, &shared.drops);
        drop((table, group));
        if live.is_empty() {
            std::thread::park();
        } else {
            std::thread::park_timeout(TICK);
        }
    }
}

/// Runs the timers of one peer; gives whether they go on.
fn tick(shared: &Shared, table: &Table, peer: u32, sender: &mut Sender, now: Instant) -> bool {
    // A peer that was removed is in no table.
    let Some(peer) = table.by_index.get(&peer) else {
        return false;
    };
    let mut state = peer.lock();
    let state = &mut *state;
    let Some(noise) = &mut state.noise else {
        state.is_live = false;
        return false;
    };
    let mut initiates = false;
    let length = match noise.tick(sender.space(), now) {
        Ticked::Send(length) => {
            initiates = Message::parse(&sender.space()[..length]) == Ok(Message::Initiation);
            Some(length)
        }
        Ticked::Nothing => None,
        // Whoever must be heard regularly is tried for ever.
        Ticked::Expired if state.config.persistent_keepalive.is_some_and(|s| s > 0) => {
            initiates = true;
            noise.initiate(sender.space())
        }
        Ticked::Expired => {
            state.is_live = false;
            None
        }
    };
    shared
        .drops
        .add_many(DropReason::NoAnswer, noise.take_lost());
    if initiates {
        state.note_initiation();
    }
    if let (Some(length), Some(endpoint)) = (length, state.endpoint()) {
        peer.count_tx(length);
        sender.commit(length, endpoint);
    }
    state.is_live
}
