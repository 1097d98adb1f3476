//! The `timer` thread: retries, rekeys and keepalives of the peers that have a session or want one.
//!
//! Only the peers of [`super::live`] are looked at. While there is none, the thread sleeps without a timeout.

use std::time::{Duration, Instant};

use super::drops::DropReason;
use super::noise::{Message, Ticked};
use super::shared::Shared;
use super::table::Table;
use super::udp::Sender;
use crate::os::watchdog::Progress;

/// How often timers run.
const TICK: Duration = Duration::from_millis(200);

/// Runs until the tunnel stops.
pub(super) fn run(shared: &Shared, progress: &Progress) {
    shared.live.set_thread();
    let mut sender = Sender::new_small();
    let mut live = Vec::new();
    while !shared.stopping() {
        progress.raise();
        shared.live.take(&mut live);
        let now = Instant::now();
        // The table is loaded after the list, so that it contains all peers of the list that were not removed.
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

/// Runs the timers of one peer. Returns whether they go on.
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
        // A peer that is configured to be kept alive is tried without an end.
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
        state.handle_initiation();
    }
    if let (Some(length), Some(endpoint)) = (length, state.endpoint()) {
        peer.count_tx(length);
        sender.commit(length, endpoint);
    }
    state.is_live
}
