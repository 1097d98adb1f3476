//! Decides which peers are dialled, and when. Pure: the clock is an argument.
//!
//! A conversation with a peer is due in three cases:
//! - This node has published records that the coordinator has not confirmed.
//! - The peer is reached again while the coordinator is away.
//! - The peer has its turn. While the coordinator is away, one peer has its turn in every [`ROUND`]. So a record reaches all
//!   nodes within a few rounds, even if some nodes do not reach each other.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{Duration, Instant};

use crate::model::PublicKey;
use crate::model::time::retry_pause;

/// The time between the turns of two peers.
pub(super) const ROUND: Duration = Duration::from_secs(5);
/// The maximum number of conversations at once that this node has begun.
const MAX_CONVERSATIONS: usize = 32;
/// The pause after a failure. It doubles with each further one, up to [`MAX_RETRY_PAUSE`].
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Peer {
    due: Option<Instant>,
    /// A conversation is under way.
    busy: bool,
    failures: u32,
    reachable: bool,
}

/// The conversations that are due with each peer.
#[derive(Debug, Default)]
pub(super) struct SyncSchedule {
    peers: BTreeMap<PublicKey, Peer>,
    /// The peer that had its turn last.
    last: Option<PublicKey>,
    /// When the last turn was.
    turned: Option<Instant>,
}

impl SyncSchedule {
    /// Sets the peers.
    pub(super) fn set_peers(&mut self, peers: impl Iterator<Item = PublicKey>) {
        let mut old = std::mem::take(&mut self.peers);
        self.peers = peers
            .map(|id| (id, old.remove(&id).unwrap_or_default()))
            .collect();
    }

    /// This node has published records, so each peer is due.
    pub(super) fn handle_news(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.due = Some(now);
            peer.failures = 0;
        }
    }

    /// The coordinator has stored all records of this node and sends them to all nodes, so no peer is due.
    pub(super) fn handle_confirmed(&mut self) {
        for peer in self.peers.values_mut() {
            peer.due = None;
        }
    }

    /// Whether the peer `id` is reached now. `away` is whether the coordinator is away.
    pub(super) fn handle_reach(
        &mut self,
        id: &PublicKey,
        reachable: bool,
        away: bool,
        now: Instant,
    ) {
        if let Some(peer) = self.peers.get_mut(id) {
            if reachable && !peer.reachable && (away || peer.due.is_some()) {
                peer.due = Some(now);
                peer.failures = 0;
            }
            peer.reachable = reachable;
        }
    }

    /// A conversation with the peer `id` ended. `succeeded` is whether it came to its end.
    pub(super) fn handle_ended(&mut self, id: &PublicKey, succeeded: bool, now: Instant) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.busy = false;
            peer.failures = if succeeded { 0 } else { peer.failures + 1 };
            if !succeeded && peer.due.is_none() {
                let pause = retry_pause(RETRY_PAUSE, peer.failures - 1, MAX_RETRY_PAUSE);
                peer.due = Some(now + pause);
            }
        }
    }

    /// The peers that are to be dialled now. `away` is whether the coordinator is away.
    pub(super) fn poll(&mut self, away: bool, now: Instant) -> Vec<PublicKey> {
        if away
            && self
                .turned
                .is_none_or(|at| now.saturating_duration_since(at) >= ROUND)
        {
            self.turned = Some(now);
            if let Some(peer) = self.next_in_turn().and_then(|id| self.peers.get_mut(&id)) {
                peer.due.get_or_insert(now);
            }
        }
        let busy = self.peers.values().filter(|peer| peer.busy).count();
        let mut due: Vec<(bool, PublicKey)> = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.busy && peer.due.is_some_and(|at| at <= now))
            .map(|(id, peer)| (!peer.reachable, *id))
            .collect();
        // Peers that are not reached come last: each of them occupies a conversation until it times out.
        due.sort();
        due.truncate(MAX_CONVERSATIONS.saturating_sub(busy));
        for (_, id) in &due {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.busy = true;
                peer.due = None;
            }
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// The peer whose turn is next, among those that are reached.
    fn next_in_turn(&mut self) -> Option<PublicKey> {
        let from = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let ahead = self.peers.range((from, Bound::Unbounded));
        let next = ahead
            .chain(self.peers.iter())
            .find(|(_, peer)| peer.reachable)
            .map(|(id, _)| *id);
        self.last = next;
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn rounds(count: u8) -> SyncSchedule {
        let mut rounds = SyncSchedule::default();
        rounds.set_peers((1..=count).map(id));
        rounds
    }

    #[test]
    fn news_go_to_all_peers_at_once_and_again_to_those_where_that_failed() {
        let now = Instant::now();
        let mut rounds = rounds(3);
        rounds.handle_news(now);
        assert_eq!(rounds.poll(false, now), [id(1), id(2), id(3)]);
        assert!(rounds.poll(false, now).is_empty());
        rounds.handle_ended(&id(1), true, now);
        rounds.handle_ended(&id(2), false, now);
        // More news come while one conversation is still under way.
        rounds.handle_news(now);
        assert_eq!(rounds.poll(false, now), [id(1), id(2)]);
        rounds.handle_ended(&id(3), true, now);
        assert_eq!(rounds.poll(false, now), [id(3)]);
        rounds.handle_ended(&id(2), false, now);
        assert!(rounds.poll(false, now).is_empty());
        assert_eq!(rounds.poll(false, now + RETRY_PAUSE), [id(2)]);
        rounds.handle_ended(&id(2), false, now);
        rounds.handle_confirmed();
        assert!(rounds.poll(false, now + MAX_RETRY_PAUSE).is_empty());
    }

    #[test]
    fn each_peer_that_is_reached_has_its_turn_while_the_coordinator_is_away() {
        let mut now = Instant::now();
        let mut rounds = rounds(3);
        for n in [1, 3] {
            rounds.handle_reach(&id(n), true, false, now);
        }
        assert!(rounds.poll(false, now).is_empty());
        let mut turns = Vec::new();
        for _ in 0..3 {
            let due = rounds.poll(true, now);
            due.iter().for_each(|id| rounds.handle_ended(id, true, now));
            turns.extend(due);
            assert!(rounds.poll(true, now).is_empty());
            now += ROUND;
        }
        assert_eq!(turns, [id(1), id(3), id(1)]);
        // One that comes back is due at once.
        rounds.turned = Some(now);
        rounds.handle_reach(&id(2), true, true, now);
        assert_eq!(rounds.poll(true, now), [id(2)]);
    }

    #[test]
    fn peers_that_are_reached_are_dialled_before_the_others() {
        let now = Instant::now();
        let mut rounds = rounds(3);
        rounds.handle_reach(&id(3), true, false, now);
        rounds.handle_news(now);
        assert_eq!(rounds.poll(false, now), [id(3), id(1), id(2)]);
    }

    #[test]
    fn the_number_of_conversations_at_once_is_limited() {
        let now = Instant::now();
        let mut rounds = rounds(200);
        rounds.handle_news(now);
        let first = rounds.poll(true, now);
        assert_eq!(first.len(), MAX_CONVERSATIONS);
        assert!(rounds.poll(true, now).is_empty());
        rounds.handle_ended(&first[0], true, now);
        assert_eq!(rounds.poll(true, now).len(), 1);
    }
}
