//! Decides which memberships that are new to this node are accepted from its coordinator. Pure: the clock is an argument.
//!
//! A ledger has no clock. By its rules a membership by a token that expired long ago is valid if its date is before the
//! expiry. An attacker who has such a token, and a coordinator that does not check the date, could therefore add a node
//! years later. So a node compares the date with its own knowledge. It stores on disk when it was last in step with a
//! coordinator, and it should have received every membership that was issued before that time. A membership that is dated
//! well before that time, and is nevertheless new to the node, is held back until a peer vouches for it.
//!
//! A peer vouches only for memberships that it received when they were issued. It does not vouch for memberships that it
//! accepted on trust, at its own join or after a long absence, because it cannot verify their dates. So one deceived node
//! deceives no other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::model::text::listed;
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey};
use crate::protocol::local::Problem;
use crate::records::Envelope;
use crate::records::kinds::{Membership, Record, Token};

/// The allowed difference between the clocks of two nodes and of a coordinator, including the time that a join takes.
const TOLERANCE: Duration = Duration::from_secs(600);
/// A clock that is behind the newest membership by more than this is wrong.
const CLOCK_LAG: Duration = Duration::from_secs(24 * 3600);
/// The maximum number of memberships that are held back. Each of them was signed with a token's key.
const MAX_HELD: usize = 512;
/// The maximum number of memberships by one token that are held back.
const MAX_HELD_OF_TOKEN: usize = 32;
/// The maximum size, in bytes, of a membership that is held back or vouched for. A membership with 32 tags has less than 3 KiB.
pub(in crate::node) const MAX_MEMBERSHIP_BYTES: usize = 4096;
/// For this long, peers are asked about a membership in each round. From then on, they are asked in one round a minute.
const EAGER_PERIOD: Duration = Duration::from_secs(300);
/// A membership that is held back for this long is a problem, since several peers were asked about it by then.
const PROBLEM_AFTER: Duration = Duration::from_secs(15);
/// The time in step is written to disk when it differs from the time on disk by this many seconds.
const WRITE_INTERVAL_SECONDS: u64 = 60;
/// The maximum number of nodes that a problem names.
const MAX_NAMED: usize = 8;

/// The part of the state on disk that changes often.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InStep {
    /// When this node was last in step with a coordinator, by its own clock.
    pub in_step: Option<UnixSeconds>,
}

/// The part of the state on disk that changes seldom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewcomerLists {
    /// Memberships that are held back.
    #[serde(default)]
    pub held_back: Vec<Envelope>,
    /// Nodes whose memberships this node accepted without knowing when they were issued.
    #[serde(default)]
    pub on_trust: BTreeSet<PublicKey>,
}

/// The decision about a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum Verdict {
    /// It was issued just now. It is accepted, and this node vouches for it.
    Witnessed,
    /// It may have been issued while this node was not in step. It is accepted, but this node does not vouch for it.
    OnTrust,
    /// This node should have received it earlier. It is held back.
    HeldBack,
}

/// What the ledger knows that matters for a membership.
#[derive(Debug, Clone, Copy)]
pub(in crate::node) struct Circumstances<'a> {
    /// The token of the membership, if the ledger holds it.
    pub token: Option<&'a Token>,
    /// Whether the token was revoked.
    pub is_revoked: bool,
    /// Whether another node has the name that the membership asks for.
    pub is_name_taken: bool,
}

#[derive(Debug)]
struct HeldBack {
    envelope: Envelope,
    token: PublicKey,
    name: Label,
    since: Instant,
}

/// The memberships that were held back or accepted on trust, and when this node was last in step with a coordinator.
#[derive(Debug)]
pub struct Newcomers {
    /// When this node was last in step. None if it never was.
    in_step: Option<UnixSeconds>,
    written: Option<UnixSeconds>,
    /// The revision from which on this node is in step with the coordinator to which it is connected.
    target: Option<u64>,
    held: BTreeMap<PublicKey, HeldBack>,
    on_trust: BTreeSet<PublicKey>,
    /// Counts the changes of the lists.
    revision: u64,
    /// The revision of the lists on disk.
    written_revision: u64,
    /// The tokens of memberships that were left out because there was no room for them.
    overflowed: BTreeSet<PublicKey>,
}

impl Newcomers {
    /// Restores the state from the disk.
    pub fn new(stored: InStep, lists: NewcomerLists, now: Instant) -> Self {
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
            revision: 0,
            written_revision: 0,
            overflowed: BTreeSet::new(),
        }
    }

    /// Starts without the lists on disk, which cannot be read. All `members` count as accepted on trust, and the lists are written
    /// again.
    pub(in crate::node) fn with_unknown_lists(
        stored: InStep,
        members: BTreeSet<PublicKey>,
    ) -> Self {
        Self {
            in_step: stored.in_step,
            written: stored.in_step,
            target: None,
            held: BTreeMap::new(),
            on_trust: members,
            revision: 1,
            written_revision: 0,
            overflowed: BTreeSet::new(),
        }
    }

    /// Decides whether `membership` is accepted, which is new to this node and was sent by its coordinator.
    pub(in crate::node) fn judge<'c>(
        &self,
        membership: &Membership,
        wall: UnixSeconds,
        circumstances: impl FnOnce() -> Circumstances<'c>,
    ) -> Verdict {
        let issued = membership.issued_at.plus(TOLERANCE);
        // A machine without a battery-backed clock starts with a time in the past, so the later of the two times counts.
        if issued >= self.in_step.map_or(wall, |in_step| in_step.max(wall)) {
            return Verdict::Witnessed;
        }
        let Some(in_step) = self.in_step else {
            return Verdict::OnTrust;
        };
        if issued >= in_step {
            return Verdict::OnTrust;
        }
        // The holder of a valid token can also sign a membership with today's date. An earlier date helps it only to get a
        // name before another node.
        let circumstances = circumstances();
        let holds = circumstances
            .token
            .is_some_and(|token| wall.max(in_step) < token.expires_at);
        let could_be_of_today = holds && !circumstances.is_revoked && !circumstances.is_name_taken;
        if could_be_of_today {
            Verdict::OnTrust
        } else {
            Verdict::HeldBack
        }
    }

    /// Holds a membership back if there is room. Returns whether it is the first one of its node that is held back.
    pub(in crate::node) fn hold_back(
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
        let before = self.held.get(&membership.id);
        let is_first = before.is_none();
        let is_first_of_token = before.is_none_or(|held| held.token != membership.token);
        if envelope.payload.len() > MAX_MEMBERSHIP_BYTES {
            return false;
        }
        let of_token = self.count_of(&membership.token);
        let is_over = is_first && self.held.len() >= MAX_HELD
            || is_first_of_token && of_token >= MAX_HELD_OF_TOKEN;
        if is_over {
            if self.overflowed.len() < MAX_HELD {
                self.overflowed.insert(membership.token);
            }
            return false;
        }
        // A further membership of the same node does not postpone the problem.
        let since = self.held.get(&membership.id).map_or(now, |held| held.since);
        self.revision += 1;
        self.held.insert(
            membership.id,
            HeldBack::new(envelope.clone(), membership, since),
        );
        is_first
    }

    /// Whether any membership is held back, or was left out because there was no room for it.
    pub(in crate::node) fn is_holding(&self) -> bool {
        !self.held.is_empty() || !self.overflowed.is_empty()
    }

    /// Whether the membership of `node` is held back.
    pub(in crate::node) fn is_held_back(&self, node: &PublicKey) -> bool {
        self.held.contains_key(node)
    }

    /// Whether exactly this membership is held back, and `peer` may vouch for it. No node vouches for itself.
    pub(in crate::node) fn may_release(&self, envelope: &Envelope, peer: &PublicKey) -> bool {
        self.held
            .iter()
            .any(|(id, held)| id != peer && held.envelope == *envelope)
    }

    /// The ledger has accepted a membership of `node`.
    pub(in crate::node) fn handle_accepted(&mut self, node: &PublicKey, witnessed: bool) {
        let changed = if witnessed {
            self.on_trust.remove(node)
        } else {
            self.on_trust.insert(*node)
        };
        let released = self.held.remove(node).is_some();
        self.revision += u64::from(changed || released);
    }

    /// Whether this node vouches for the membership that it holds of `node`.
    pub(in crate::node) fn vouches_for(&self, node: &PublicKey) -> bool {
        !self.on_trust.contains(node)
    }

    /// Keeps only the memberships for which `is_open` returns true. The ledger would refuse the others even if a peer vouched
    /// for them.
    pub(in crate::node) fn retain(
        &mut self,
        mut is_open: impl FnMut(&Envelope, &PublicKey) -> bool,
    ) {
        let before = self.held.len();
        self.held.retain(|id, held| is_open(&held.envelope, id));
        self.revision += u64::from(self.held.len() != before);
    }

    /// Forgets which memberships were accepted on trust, for nodes that `is_member` does not know.
    pub(in crate::node) fn retain_members(&mut self, is_member: impl Fn(&PublicKey) -> bool) {
        let before = self.on_trust.len();
        self.on_trust.retain(is_member);
        self.revision += u64::from(self.on_trust.len() != before);
    }

    /// The nodes about whose memberships peers are to be asked now.
    pub(in crate::node) fn asks(&self, now: Instant) -> Vec<PublicKey> {
        let age = |held: &HeldBack| now.saturating_duration_since(held.since);
        let mut due: Vec<(Instant, PublicKey)> = self
            .held
            .iter()
            .filter(|(_, held)| {
                let age = age(held);
                age < EAGER_PERIOD || age.as_secs() % 60 < super::schedule::ROUND.as_secs() + 1
            })
            .map(|(id, held)| (held.since, *id))
            .collect();
        // The newest come first, so that memberships for which no peer vouches do not displace the others.
        due.sort_by(|a, b| b.cmp(a));
        due.truncate(crate::protocol::gossip::MAX_ASKED);
        due.into_iter().map(|(_, id)| id).collect()
    }

    fn count_of(&self, token: &PublicKey) -> usize {
        self.held.values().filter(|h| h.token == *token).count()
    }

    /// Whether memberships were left out because there was no room, and there is room for them now. The caller then requests
    /// all records again.
    pub(in crate::node) fn take_overflowed(&mut self) -> bool {
        if self.held.len() >= MAX_HELD / 2 {
            return false;
        }
        let mut overflowed = std::mem::take(&mut self.overflowed);
        let before = overflowed.len();
        overflowed.retain(|token| self.count_of(token) >= MAX_HELD_OF_TOKEN / 2);
        self.overflowed = overflowed;
        self.overflowed.len() < before
    }

    /// The stream to a coordinator opened. Its store has `revision`, which is 0 if this node is not a member in that store.
    pub(in crate::node) fn handle_opened(&mut self, revision: u64) {
        self.target = (revision > 0).then_some(revision);
    }

    /// The stream closed.
    pub(in crate::node) fn handle_closed(&mut self) {
        self.target = None;
    }

    /// A message of the coordinator was received, and this node holds the records up to `revision`. `newest` returns the date
    /// of the newest membership. Returns the time to write to disk, if the time on disk is too old.
    pub(in crate::node) fn handle_heard(
        &mut self,
        revision: u64,
        wall: UnixSeconds,
        newest: impl FnOnce() -> UnixSeconds,
    ) -> Option<InStep> {
        if self.target.is_none_or(|target| revision < target) {
            return None;
        }
        // A clock that went back was ahead before and is right now, unless it is behind the dates that others wrote.
        let went_back = self.in_step.is_some_and(|at| wall < at);
        if went_back && wall.plus(CLOCK_LAG) < newest() {
            return None;
        }
        self.in_step = Some(wall);
        let is_old = self
            .written
            .is_none_or(|at| wall.0.abs_diff(at.0) >= WRITE_INTERVAL_SECONDS);
        is_old.then(|| {
            self.written = Some(wall);
            InStep {
                in_step: Some(wall),
            }
        })
    }

    /// Whether the lists on disk are up to date.
    pub(in crate::node) fn is_written(&self) -> bool {
        self.written_revision == self.revision
    }

    /// Returns the lists with their revision, if those on disk are out of date.
    pub(in crate::node) fn unwritten(&self) -> Option<(u64, NewcomerLists)> {
        (!self.is_written()).then(|| {
            let lists = NewcomerLists {
                held_back: self.held.values().map(|h| h.envelope.clone()).collect(),
                on_trust: self.on_trust.clone(),
            };
            (self.revision, lists)
        })
    }

    /// The lists of this revision were written to disk.
    pub(in crate::node) fn handle_written(&mut self, revision: u64) {
        self.written_revision = revision;
    }

    /// The problem of memberships that are held back although peers had time to vouch for them.
    pub(in crate::node) fn problem(&self, now: Instant) -> Option<Problem> {
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
        Some(Problem {
            what: format!(
                "this node does not accept {} node(s), since no peer vouches for them: {}",
                held.len(),
                listed(names, MAX_NAMED)
            ),
            why: "the coordinator sends memberships that are dated before this node was last in step with it, so this node should have received them earlier: a clock is wrong, or an attacker who has the coordinator and an old token adds nodes".into(),
            fix: "compare the clocks of this machine, of those nodes and of the coordinator; if a node is wanted, let it join again with a new token; otherwise remove it with `meshctl node remove`".into(),
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

/// The membership in `envelope`, if its payload is one. No signature is verified.
pub(in crate::node) fn membership_in(envelope: &Envelope) -> Option<Membership> {
    match Record::parse(&envelope.payload) {
        Ok((_, Record::Membership(membership))) => Some(membership),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
