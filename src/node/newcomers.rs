//! Which memberships that are new to this node it accepts from its coordinator. Pure: the clock is an argument.
//!
//! A ledger has no clock: by its rules a membership of a token that ended long ago holds, if it bears a date from before
//! that. Whoever has such a token, or found one, and a coordinator that does not look at the date, could add a node years
//! later. So a node compares the date with what it knows itself. It keeps on disk when it was last in step with a
//! coordinator: a node that was admitted before then, it would know. A membership that is dated well before, and is new all
//! the same, is held back until a peer vouches for it.
//!
//! A peer vouches only for memberships that it received when they were made. One that it accepted on trust, with all that
//! it received at its own join or after a long absence, it does not know to be true, so one deceived node deceives no other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::model::record::{Membership, Record, Token};
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey};
use crate::wire::Envelope;
use crate::wire::local::Problem;

/// How far the clocks of two machines and of a coordinator may differ, together with the time that a join takes.
const TOLERANCE: Duration = Duration::from_secs(600);
/// A clock that is behind the newest membership by more is wrong.
const CLOCK_LAG: Duration = Duration::from_secs(24 * 3600);
/// Memberships held back at most. Each was signed with a token's key.
const MAX_HELD: usize = 512;
/// The same of one token.
const MAX_HELD_OF_TOKEN: usize = 32;
/// Octets of a membership that is held back, or vouched for, at most. One with 32 tags has less than 3 KiB.
pub(super) const MAX_OCTETS: usize = 4096;
/// Peers are asked in turn without a pause for this long, and in one turn a minute from then on.
const EAGER: Duration = Duration::from_secs(300);
/// What is held back for this long is a problem: most peers had their turn.
const PROBLEM_AFTER: Duration = Duration::from_secs(15);
/// The time in step is written to disk when it is older by this.
const WRITE_EVERY: u64 = 60;
/// Nodes that are named in a problem at most.
const MAX_NAMED: usize = 8;

/// What of it is on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    /// When this node was last in step with a coordinator, by its own clock.
    pub(super) in_step: Option<UnixSeconds>,
}

/// The lists that go with it. They change seldom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredLists {
    /// Memberships that are held back.
    #[serde(default)]
    pub(super) held_back: Vec<Envelope>,
    /// Nodes whose memberships this node accepted without knowing when they were made.
    #[serde(default)]
    pub(super) on_trust: BTreeSet<PublicKey>,
}

/// What is to be done with a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is new: this node can vouch for it.
    Witnessed,
    /// It is as old as what this node did not see.
    OnTrust,
    /// This node would know it.
    HeldBack,
}

/// What the ledger knows that matters for a membership.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances<'a> {
    /// Its token, if it is known.
    pub(super) token: Option<&'a Token>,
    /// Whether that was revoked.
    pub(super) is_revoked: bool,
    /// Whether another node has its name.
    pub(super) is_name_taken: bool,
}

#[derive(Debug)]
struct HeldBack {
    envelope: Envelope,
    token: PublicKey,
    name: Label,
    since: Instant,
}

/// The state.
#[derive(Debug)]
pub(super) struct Newcomers {
    /// None before the first time.
    in_step: Option<UnixSeconds>,
    written: Option<UnixSeconds>,
    /// The revision from which on this node is in step with the coordinator it is connected to.
    target: Option<u64>,
    held: BTreeMap<PublicKey, HeldBack>,
    on_trust: BTreeSet<PublicKey>,
    /// Whether the lists are as on disk.
    is_kept: bool,
    /// Tokens of which one was left out for want of room.
    overflowed: BTreeSet<PublicKey>,
}

impl Newcomers {
    /// From what is on disk.
    pub(super) fn new(stored: Stored, lists: StoredLists, now: Instant) -> Self {
        let held = lists.held_back.into_iter().filter_map(|envelope| {
            let membership = membership_in(&envelope)?;
            Some((membership.id, HeldBack::new(envelope, &membership, now)))
        });
        Self {
            in_step: stored.in_step,
            written: stored.in_step,
            target: None,
            held: held.take(MAX_HELD).collect(),
            on_trust: lists.on_trust,
            is_kept: true,
            overflowed: BTreeSet::new(),
        }
    }

    /// Whether `membership`, which is new to this node and comes from its coordinator, is accepted.
    pub(super) fn judge<'c>(
        &self,
        membership: &Membership,
        wall: UnixSeconds,
        circumstances: impl FnOnce() -> Circumstances<'c>,
    ) -> Verdict {
        let issued = membership.issued_at.plus(TOLERANCE);
        // A machine without a clock of its own starts in the past.
        if issued >= self.in_step.map_or(wall, |in_step| in_step.max(wall)) {
            return Verdict::Witnessed;
        }
        let Some(in_step) = self.in_step else {
            return Verdict::OnTrust;
        };
        if issued >= in_step {
            return Verdict::OnTrust;
        }
        // Whoever has a token that holds could as well sign a membership of today. Only the name goes by the date.
        let circumstances = circumstances();
        let holds = circumstances
            .token
            .is_some_and(|token| wall.max(in_step) < token.expires_at);
        let could_be_of_today = holds && !circumstances.is_revoked && !circumstances.is_name_taken;
        if issued >= in_step || could_be_of_today {
            Verdict::OnTrust
        } else {
            Verdict::HeldBack
        }
    }

    /// Holds a membership back. Gives whether it is the first of its node.
    pub(super) fn hold_back(
        &mut self,
        envelope: &Envelope,
        membership: &Membership,
        now: Instant,
    ) -> bool {
        if let Some(held) = self.held.get(&membership.id)
            && held.envelope == *envelope
        {
            return false;
        }
        let is_first = !self.held.contains_key(&membership.id);
        if envelope.payload.len() > MAX_OCTETS {
            return false;
        }
        let of_token = self.count_of(&membership.token);
        if is_first && (self.held.len() >= MAX_HELD || of_token >= MAX_HELD_OF_TOKEN) {
            if self.overflowed.len() < MAX_HELD {
                self.overflowed.insert(membership.token);
            }
            return false;
        }
        self.is_kept = false;
        self.held.insert(
            membership.id,
            HeldBack::new(envelope.clone(), membership, now),
        );
        is_first
    }

    /// Whether the membership of `node` is held back.
    pub(super) fn is_held_back(&self, node: &PublicKey) -> bool {
        self.held.contains_key(node)
    }

    /// Whether this very membership is held back, and `peer` may vouch for it.
    pub(super) fn may_release(&self, envelope: &Envelope, peer: &PublicKey) -> bool {
        self.held
            .iter()
            .any(|(id, held)| id != peer && held.envelope == *envelope)
    }

    /// The ledger has accepted a membership of `node`.
    pub(super) fn handle_accepted(&mut self, node: &PublicKey, witnessed: bool) {
        let changed = if witnessed {
            self.on_trust.remove(node)
        } else {
            self.on_trust.insert(*node)
        };
        let released = self.held.remove(node).is_some();
        self.is_kept &= !(changed || released);
    }

    /// Whether this node vouches for the membership that it holds of `node`.
    pub(super) fn vouches_for(&self, node: &PublicKey) -> bool {
        !self.on_trust.contains(node)
    }

    /// Forgets those that the ledger would not accept whoever vouched.
    pub(super) fn retain(&mut self, mut is_open: impl FnMut(&Envelope, &PublicKey) -> bool) {
        let before = self.held.len();
        self.held.retain(|id, held| is_open(&held.envelope, id));
        self.is_kept &= self.held.len() == before;
    }

    /// The nodes whose memberships peers are to be asked for now.
    pub(super) fn asks(&self, now: Instant) -> Vec<PublicKey> {
        let age = |held: &HeldBack| now.saturating_duration_since(held.since);
        let mut due: Vec<(Instant, PublicKey)> = self
            .held
            .iter()
            .filter(|(_, held)| {
                let age = age(held);
                age < EAGER || age.as_secs() % 60 < super::peers::ROUND.as_secs() + 1
            })
            .map(|(id, held)| (held.since, *id))
            .collect();
        // The newest first: what nobody vouches for must not keep the others out.
        due.sort_by(|a, b| b.cmp(a));
        due.truncate(crate::wire::peers::MAX_ASKED);
        due.into_iter().map(|(_, id)| id).collect()
    }

    fn count_of(&self, token: &PublicKey) -> usize {
        self.held.values().filter(|h| h.token == *token).count()
    }

    /// Whether memberships were left out for want of room, and there is room now: all are asked for again then.
    pub(super) fn take_overflowed(&mut self) -> bool {
        if self.held.len() >= MAX_HELD / 2 {
            return false;
        }
        let mut overflowed = std::mem::take(&mut self.overflowed);
        let before = overflowed.len();
        overflowed.retain(|token| self.count_of(token) >= MAX_HELD_OF_TOKEN / 2);
        self.overflowed = overflowed;
        self.overflowed.len() < before
    }

    /// The stream to a coordinator opened, whose store has `revision`; 0, if it does not take this node for a member.
    pub(super) fn handle_opened(&mut self, revision: u64) {
        self.target = (revision > 0).then_some(revision);
    }

    /// The stream closed.
    pub(super) fn handle_closed(&mut self) {
        self.target = None;
    }

    /// The coordinator was heard, and this node holds its `revision`; `newest` is the date of its newest membership. Gives
    /// what is to be written to disk, if anything.
    pub(super) fn handle_heard(
        &mut self,
        revision: u64,
        wall: UnixSeconds,
        newest: impl FnOnce() -> UnixSeconds,
    ) -> Option<Stored> {
        if self.target.is_none_or(|target| revision < target) {
            return None;
        }
        // A clock that was ahead and is right now is believed, and one that is behind what others wrote is not.
        let went_back = self.in_step.is_some_and(|at| wall < at);
        if went_back && wall.plus(CLOCK_LAG) < newest() {
            return None;
        }
        self.in_step = Some(wall);
        let is_old = self
            .written
            .is_none_or(|at| wall.0.abs_diff(at.0) >= WRITE_EVERY);
        is_old.then(|| {
            self.written = Some(wall);
            Stored {
                in_step: Some(wall),
            }
        })
    }

    /// The lists, if they are not as on disk.
    pub(super) fn unwritten(&self) -> Option<StoredLists> {
        (!self.is_kept).then(|| StoredLists {
            held_back: self.held.values().map(|h| h.envelope.clone()).collect(),
            on_trust: self.on_trust.clone(),
        })
    }

    /// The lists are on disk.
    pub(super) fn handle_written(&mut self) {
        self.is_kept = true;
    }

    /// What is held back, once peers had time to vouch.
    pub(super) fn problem(&self, now: Instant) -> Option<Problem> {
        let held: Vec<&HeldBack> = self
            .held
            .values()
            .filter(|held| now.saturating_duration_since(held.since) >= PROBLEM_AFTER)
            .collect();
        if held.is_empty() {
            return None;
        }
        let mut names: Vec<&str> = held.iter().map(|held| held.name.as_str()).collect();
        names.sort_unstable();
        let more = names.len().saturating_sub(MAX_NAMED);
        names.truncate(MAX_NAMED);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        Some(Problem {
            what: format!(
                "{} node(s) are not let in here, since no peer vouches for them: {}{more}",
                held.len(),
                names.join(", ")
            ),
            why: "the coordinator sends memberships that are dated before this node was last in step with it, so this node should have known them: a clock is wrong, or somebody who has the coordinator and an old token adds nodes".into(),
            fix: "compare the clocks of this machine, of those nodes and of the coordinator; join a node that is wanted again with a new token, remove one that is not with `meshctl node remove`".into(),
        })
    }
}

impl HeldBack {
    fn new(envelope: Envelope, membership: &Membership, since: Instant) -> Self {
        Self {
            envelope,
            token: membership.token,
            name: membership.name.clone(),
            since,
        }
    }
}

/// The membership in `envelope`, if it is one. Nothing is verified.
pub(super) fn membership_in(envelope: &Envelope) -> Option<Membership> {
    match Record::parse(&envelope.payload) {
        Ok((_, Record::Membership(membership))) => Some(membership),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
