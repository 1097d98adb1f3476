//! What a coordinator that came from a backup waits for before it admits nodes as usual. Pure: the clock is an argument.
//!
//! Between the backup and its restoration nodes may have joined: tokens were spent and blocks leased that the store
//! knows nothing of. Nodes tell: each offers all it holds to a store it does not know. So at first nobody is admitted,
//! while those that are there come back; then only by tokens issued since, whose uses are all known; and as before once
//! every member has told, or one has and the others had time to.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::model::PublicKey;

/// Nobody is admitted for this long after the start: twice the longest wait between two attempts of a node.
pub(super) const FIRST: Duration = Duration::from_secs(30);
/// Members that have told nothing by then are taken to be away.
pub(super) const MOST: Duration = Duration::from_secs(300);

/// Who has told.
#[derive(Debug)]
pub(super) struct Refill {
    since: Instant,
    told: HashSet<PublicKey>,
}

/// Who may be admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody, for so long.
    Nobody(Duration),
    /// Who has a token issued since.
    NewTokens,
    /// Everybody.
    Over,
}

impl Refill {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            told: HashSet::new(),
        }
    }

    /// A member has offered all it holds.
    pub(super) fn handle_told(&mut self, node: PublicKey) {
        self.told.insert(node);
    }

    /// Where things stand, given all members that are not removed.
    pub(super) fn phase(&self, members: impl Iterator<Item = PublicKey>, now: Instant) -> Phase {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < FIRST {
            return Phase::Nobody(FIRST - elapsed);
        }
        let (mut told, mut silent) = (0, 0);
        for member in members {
            if self.told.contains(&member) {
                told += 1;
            } else {
                silent += 1;
            }
        }
        if told > 0 && (silent == 0 || elapsed >= MOST) {
            Phase::Over
        } else {
            Phase::NewTokens
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    #[test]
    fn admission_opens_by_steps() {
        let start = Instant::now();
        let mut refill = Refill::new(start);
        let members = || [node(1), node(2)].into_iter();
        let second = Duration::from_secs(1);
        refill.handle_told(node(1));
        assert_eq!(
            refill.phase(members(), start + FIRST - second),
            Phase::Nobody(second)
        );
        assert_eq!(refill.phase(members(), start + FIRST), Phase::NewTokens);
        assert_eq!(refill.phase(members(), start + MOST), Phase::Over);
        refill.handle_told(node(2));
        assert_eq!(refill.phase(members(), start + FIRST), Phase::Over);
    }

    #[test]
    fn old_tokens_admit_nobody_while_no_member_has_told_anything() {
        let start = Instant::now();
        let mut refill = Refill::new(start);
        refill.handle_told(node(9));
        for members in [vec![], vec![node(1)]] {
            assert_eq!(
                refill.phase(members.into_iter(), start + MOST * 9),
                Phase::NewTokens
            );
        }
    }
}
