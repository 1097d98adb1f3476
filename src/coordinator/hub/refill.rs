//! The refill: the time in which a coordinator whose store has lost records waits for its nodes to offer them. The store came
//! from a backup, went back in time, or was emptied. This module is pure: the clock is an argument.
//!
//! The store may lack joins (which spent tokens and leased blocks), removals and revocations. The nodes hold these records,
//! and each node offers all that it holds to a store that it does not know. A node can become a member in two ways. Both are
//! limited during the refill:
//!
//! - A join is refused at first, while the members reconnect. After that, a join needs a token that was issued since the loss,
//!   because the store knows all uses of such a token. Joins are permitted as usual once every member has offered its records,
//!   or once one has and the time for the others is over.
//! - A membership that comes on a stream is signed by the token's key, and whoever holds that key may have dated it back. So
//!   the store accepts it if a member sends it, which vouches for it, or if a mark of its node proves that the node was a
//!   member of the lost store. A mark counts only after the first wait, when removals and revocations have been offered. All
//!   other memberships wait until the members have offered their records, and then have to be valid by the coordinator's clock.
//!
//! If no member connects in all that time, nobody can vouch. Nodes of a version without marks, whose coordinator was emptied,
//! are in this state, so their memberships are then accepted without proof.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::model::PublicKey;

/// How long no node is admitted after the start. It is twice the longest wait between two connection attempts of a node.
pub(super) const NOBODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Members that have not offered their records after this time are assumed to be offline.
pub(super) const MAX_REFILL: Duration = Duration::from_secs(300);

/// Which members have offered all records that they hold.
#[derive(Debug)]
pub(super) struct Refill {
    since: Instant,
    fully_offered: HashSet<PublicKey>,
}

/// Who may be admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody, for the given time.
    Nobody(Duration),
    /// Only nodes with a token issued since the loss. The members have the given time to reconnect.
    NewTokens(Duration),
    /// The same nodes. The store has no members, and none has connected in time.
    Alone,
    /// Everybody.
    Over,
}

/// The node that sends a membership which is new to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bringer {
    /// A member.
    Member,
    /// A node that sends its own membership, is not a member, and was one according to its mark.
    Former,
    /// Any other node.
    Unproven,
}

/// The terms on which the store accepts a membership that is new to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Terms {
    /// It is refused now, and may be sent again after the given time.
    Later(Duration),
    /// It is accepted even if its token is expired or revoked by now.
    Vouched,
    /// It is accepted if its token admits nodes now, by the coordinator's clock.
    ByClock,
}

impl Refill {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            fully_offered: HashSet::new(),
        }
    }

    /// Notes that a member has offered all records that it holds.
    pub(super) fn handle_fully_offered(&mut self, node: PublicKey) {
        self.fully_offered.insert(node);
    }

    /// The phase at `now`, given all members that are not removed.
    pub(super) fn phase(&self, members: impl Iterator<Item = PublicKey>, now: Instant) -> Phase {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < NOBODY_TIMEOUT {
            return Phase::Nobody(NOBODY_TIMEOUT - elapsed);
        }
        let (mut offered, mut silent) = (0, 0);
        for member in members {
            if self.fully_offered.contains(&member) {
                offered += 1;
            } else {
                silent += 1;
            }
        }
        if offered > 0 && (silent == 0 || elapsed >= MAX_REFILL) {
            Phase::Over
        } else if elapsed >= MAX_REFILL && silent == 0 {
            Phase::Alone
        } else {
            Phase::NewTokens(MAX_REFILL.saturating_sub(elapsed))
        }
    }
}

/// The terms on which a membership from `bringer` is accepted; `phase` is absent if the store is not being refilled.
pub(super) fn terms(phase: Option<Phase>, bringer: Bringer) -> Terms {
    match (phase, bringer) {
        (None | Some(Phase::Over), Bringer::Member | Bringer::Unproven) => Terms::ByClock,
        (None | Some(Phase::Over | Phase::NewTokens(_)), Bringer::Former) => Terms::Vouched,
        (Some(_), Bringer::Member) | (Some(Phase::Alone), _) => Terms::Vouched,
        (Some(Phase::Nobody(left)), _) | (Some(Phase::NewTokens(left)), Bringer::Unproven) => {
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
        refill.handle_fully_offered(node(1));
        assert_eq!(
            refill.phase(members(), start + NOBODY_TIMEOUT - SECOND),
            Phase::Nobody(SECOND)
        );
        assert_eq!(
            refill.phase(members(), start + NOBODY_TIMEOUT),
            Phase::NewTokens(MAX_REFILL - NOBODY_TIMEOUT)
        );
        assert_eq!(refill.phase(members(), start + MAX_REFILL), Phase::Over);
        refill.handle_fully_offered(node(2));
        assert_eq!(refill.phase(members(), start + NOBODY_TIMEOUT), Phase::Over);
    }

    #[test]
    fn old_tokens_admit_nobody_while_no_member_has_offered_anything() {
        let start = Instant::now();
        let mut refill = Refill::new(start);
        refill.handle_fully_offered(node(9));
        let phase =
            |members: &[PublicKey], after| refill.phase(members.iter().copied(), start + after);
        for members in [&[][..], &[node(1)]] {
            assert_eq!(
                phase(members, MAX_REFILL - SECOND),
                Phase::NewTokens(SECOND)
            );
        }
        assert_eq!(phase(&[], MAX_REFILL * 9), Phase::Alone);
        assert_eq!(
            phase(&[node(1)], MAX_REFILL * 9),
            Phase::NewTokens(Duration::ZERO),
            "a member that is offline may still vouch"
        );
    }

    #[test]
    fn only_members_and_marks_stand_for_a_membership_and_marks_not_before_removals_are_offered() {
        let left = SECOND;
        let of = |phase| {
            [Bringer::Member, Bringer::Former, Bringer::Unproven].map(|by| terms(phase, by))
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
