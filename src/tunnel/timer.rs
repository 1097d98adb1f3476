//! The `timer` thread: retries, rekeys and keepalives of the peers that have a session or want one.
//!
//! Only the peers of [`super::live`] are looked at. While there is none, the thread sleeps without a timeout.

use std::time::{Duration, Instant};

use super::drops::DropReason;
use super::noise::{HANDSHAKE, Message, Ticked, room_for};
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
    let mut silences = Silences::default();
    let mut next = Instant::now();
    while !shared.stopping() {
        progress.raise();
        shared.live.take(&mut live);
        let now = Instant::now();
        silences.report(shared, now);
        if now < next && !live.is_empty() {
            std::thread::park_timeout(silences.sleep(next, now));
            continue;
        }
        next = now + TICK;
        // The table is loaded after the list, so that it contains all peers of the list that were not removed.
        let table = shared.table.load();
        let group = shared.sockets.load();
        let sockets = &group[0];
        live.retain(|peer| {
            let stays = tick(shared, &table, *peer, &mut sender, now);
            silences.look_at(shared, &table, *peer, now);
            sender.flush_if_full(sockets, &shared.drops);
            stays
        });
        sender.flush(sockets, &shared.drops);
        drop((table, group));
        if live.is_empty() {
            std::thread::park();
        } else {
            std::thread::park_timeout(silences.sleep(next, now));
        }
    }
}

/// The peers by whose path packets are sent without an answer, and when that has to be reported. The patience with a path is longer
/// than a tick, so each of them is found in time.
#[derive(Default)]
struct Silences(Vec<(Instant, u32)>);

impl Silences {
    /// Looks at one peer.
    fn look_at(&mut self, shared: &Shared, table: &Table, index: u32, now: Instant) {
        let Some(peer) = table.by_index.get(&index) else {
            return;
        };
        let (is_due, deadline) = peer.lock().paths.handle_time(now);
        if is_due {
            shared.wakes.news.add(peer.member);
        }
        if let Some(at) = deadline.filter(|at| *at < now + TICK) {
            self.0.push((at, index));
        }
    }

    /// Reports those that are due.
    fn report(&mut self, shared: &Shared, now: Instant) {
        if self.0.iter().all(|(at, _)| *at > now) {
            return;
        }
        let table = shared.table.load();
        for (at, index) in std::mem::take(&mut self.0) {
            if at <= now {
                self.look_at(shared, &table, index, now);
            } else {
                self.0.push((at, index));
            }
        }
    }

    /// How long to sleep: until the first of them is due, and at most until `next`.
    fn sleep(&self, next: Instant, now: Instant) -> Duration {
        let first = self.0.iter().map(|(at, _)| *at).min();
        first
            .map_or(next, |at| at.min(next))
            .saturating_duration_since(now)
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
    let mut message = [0; room_for(HANDSHAKE)];
    let Some(noise) = &mut state.noise else {
        state.is_live = false;
        return false;
    };
    let length = match noise.tick(&mut message, now) {
        Ticked::Send(length) => Some(length),
        Ticked::Nothing => None,
        // A peer that is configured to be kept alive is tried without an end.
        Ticked::Expired if state.config.persistent_keepalive.is_some_and(|s| s > 0) => {
            noise.initiate(&mut message)
        }
        Ticked::Expired => {
            state.is_live = false;
            None
        }
    };
    shared
        .drops
        .add_many(DropReason::NoAnswer, noise.take_lost());
    let message = &message[..length.unwrap_or(0)];
    let initiates = Message::parse(message) == Ok(Message::Initiation);
    if initiates {
        state.paths.handle_initiation();
    }
    if let Some(endpoint) = state.endpoint() {
        if initiates {
            shared.send_initiation((peer, state), message, endpoint, sender, now);
        } else if !message.is_empty() {
            peer.count_tx(sender.add(message, endpoint));
        }
    }
    state.is_live
}
