//! How many conversations others may begin with this node. Pure: the clock is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::PublicKey;

/// Under way at most.
const MOST: usize = 64;
/// Of one peer under way at most.
const MOST_OF_ONE: usize = 2;
/// Of one peer at once, after a pause.
const BURST: u32 = 20;
/// And one more each time this has passed.
const REFILL: Duration = Duration::from_millis(250);

#[derive(Debug)]
struct Guest {
    open: usize,
    left: u32,
    since: Instant,
}

/// The gate. It knows as many guests as there are members at most: nobody else is asked about.
#[derive(Debug, Default)]
pub(super) struct Gate {
    guests: BTreeMap<PublicKey, Guest>,
    open: usize,
}

impl Gate {
    /// Whether a conversation of `peer` may begin; then [`Gate::handle_ended`] is owed.
    pub(super) fn admit(&mut self, peer: PublicKey, now: Instant) -> bool {
        let guest = self.guests.entry(peer).or_insert(Guest {
            open: 0,
            left: BURST,
            since: now,
        });
        let elapsed = now.saturating_duration_since(guest.since);
        let more = u32::try_from(elapsed.as_millis() / REFILL.as_millis()).unwrap_or(u32::MAX);
        if more > 0 {
            guest.left = guest.left.saturating_add(more).min(BURST);
            guest.since = now;
        }
        if self.open >= MOST || guest.open >= MOST_OF_ONE || guest.left == 0 {
            return false;
        }
        guest.left -= 1;
        guest.open += 1;
        self.open += 1;
        true
    }

    /// A conversation of `peer` ended.
    pub(super) fn handle_ended(&mut self, peer: &PublicKey) {
        self.open = self.open.saturating_sub(1);
        if let Some(guest) = self.guests.get_mut(peer) {
            guest.open = guest.open.saturating_sub(1);
        }
    }

    /// Forgets all but these.
    pub(super) fn retain(&mut self, is_peer: impl Fn(&PublicKey) -> bool) {
        self.guests
            .retain(|id, guest| guest.open > 0 || is_peer(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_asks_too_often_waits_and_keeps_nobody_else_out() {
        let now = Instant::now();
        let mut gate = Gate::default();
        let (a, b) = (PublicKey([1; 32]), PublicKey([2; 32]));
        assert!(gate.admit(a, now) && gate.admit(a, now));
        assert!(!gate.admit(a, now));
        assert!(gate.admit(b, now));
        gate.handle_ended(&a);
        let admitted = (0..100).filter(|_| {
            let admitted = gate.admit(a, now);
            if admitted {
                gate.handle_ended(&a);
            }
            admitted
        });
        assert_eq!(admitted.count(), BURST as usize - 2);
        assert!(gate.admit(a, now + REFILL));
        gate.retain(|_| false);
        assert!(gate.guests.contains_key(&a));
    }
}
