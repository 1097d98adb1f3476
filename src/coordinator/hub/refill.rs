//! What a coordinator whose store misses something waits for before it admits nodes as usual: the store came from a
//! backup, went back in time, or was emptied. Pure: the clock is an argument.
//!
//! What the store misses are joins (tokens were spent, blocks leased), removals and revocations. The nodes tell: each
//! offers all it holds to a store it does not know. There are two ways to become a member, and both wait:
//!
//! - A join is refused at first, while the members come back. Then it takes a token issued since, whose uses are all known.
//!   It is as before once every member has told, or one has and the others had time to.
//! - A membership that comes on a stream is nobody's word but that of whoever holds the token, who may have dated it back.
//!   So a member has to vouch for it, by bringing it; or its node was a member of the lost store by its mark, which waits
//!   until removals and revocations have been told. Others wait until the members have told, and are then held to
//!   the coordinator's clock.
//!
//! If there is no member in all that time, there is none who could vouch: nodes of a version without marks, whose
//! coordinator was emptied, are believed as they come.

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
    /// Who has a token issued since. For so long the members that were there may come back.
    NewTokens(Duration),
    /// The same, in a store without members, to which none has come in time.
    Alone,
    /// Everybody.
    Over,
}

/// Who brings a membership that is new to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bringer {
    /// A member.
    Member,
    /// A node that is no member, and was one by its mark. It brings its own.
    Former,
    /// Anybody else.
    Stranger,
}

/// On what terms a membership is taken that is new to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Terms {
    /// Not yet; it may be brought again after so long.
    Later(Duration),
    /// Whatever became of its token.
    Vouched,
    /// If its token admits nodes now, by the coordinator's clock.
    ByClock,
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
        } else if elapsed >= MOST && silent == 0 {
            Phase::Alone
        } else {
            Phase::NewTokens(MOST.saturating_sub(elapsed))
        }
    }
}

/// On what terms `bringer` may bring a membership; `phase` is absent in a store that misses nothing.
pub(super) fn terms(phase: Option<Phase>, bringer: Bringer) -> Terms {
    match (phase, bringer) {
        (None | Some(Phase::Over), Bringer::Member | Bringer::Stranger) => Terms::ByClock,
        (None | Some(Phase::Over | Phase::NewTokens(_)), Bringer::Former) => Terms::Vouched,
        (Some(_), Bringer::Member) | (Some(Phase::Alone), _) => Terms::Vouched,
        (Some(Phase::Nobody(left)), _) | (Some(Phase::NewTokens(left)), Bringer::Stranger) => {
            Terms::Later(left)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn admission_opens_by_steps() {
        let start = Instant::now();
        let mut refill = Refill::new(start);
        let members = || [node(1), node(2)].into_iter();
        refill.handle_told(node(1));
        assert_eq!(
            refill.phase(members(), start + FIRST - SECOND),
            Phase::Nobody(SECOND)
        );
        assert_eq!(
            refill.phase(members(), start + FIRST),
            Phase::NewTokens(MOST - FIRST)
        );
        assert_eq!(refill.phase(members(), start + MOST), Phase::Over);
        refill.handle_told(node(2));
        assert_eq!(refill.phase(members(), start + FIRST), Phase::Over);
    }

    #[test]
    fn old_tokens_admit_nobody_while_no_member_has_told_anything() {
        let start = Instant::now();
        let mut refill = Refill::new(start);
        refill.handle_told(node(9));
        let phase =
            |members: &[PublicKey], after| refill.phase(members.iter().copied(), start + after);
        for members in [&[][..], &[node(1)]] {
            assert_eq!(phase(members, MOST - SECOND), Phase::NewTokens(SECOND));
        }
        assert_eq!(phase(&[], MOST * 9), Phase::Alone);
        assert_eq!(
            phase(&[node(1)], MOST * 9),
            Phase::NewTokens(Duration::ZERO),
            "a member that stays away may still vouch"
        );
    }

    #[test]
    fn only_members_and_marks_stand_for_a_membership_and_marks_not_before_removals_are_told() {
        let left = SECOND;
        let of = |phase| {
            [Bringer::Member, Bringer::Former, Bringer::Stranger].map(|by| terms(phase, by))
        };
        let (later, vouched, by_clock) = (Terms::Later(left), Terms::Vouched, Terms::ByClock);
        assert_eq!(of(Some(Phase::Nobody(left))), [vouched, later, later]);
        assert_eq!(of(Some(Phase::NewTokens(left))), [vouched, vouched, later]);
        assert_eq!(of(Some(Phase::Alone)), [vouched, vouched, vouched]);
        for over in [None, Some(Phase::Over)] {
            assert_eq!(of(over), [by_clock, vouched, by_clock]);
        }
    }
}
