//! Detects whether the other nodes accept this node's own records. Pure: the clock is an argument.
//!
//! Two things can keep the others from using a record of this node, and the node would not notice either of them. First, a
//! record that is signed with this node's key, and that this node did not make, may have a higher version: another machine
//! has the keys, or the state directory is older than the last published record. The node then publishes its own record
//! again with a higher version. It makes a pause between two such publications, which starts with [`MIN_PAUSE`], so that two
//! machines with the same keys do not answer each other at full speed. Second, a coordinator may refuse a record. The node
//! then offers it again.
//!
//! Both are reported as problems. The problem of a refused record quotes the coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::model::time::retry_pause;
use crate::model::{Label, PublicKey, WireGuardKey};
use crate::protocol::control::{RefusedReason, RefusedRecord};
use crate::protocol::local::Problem;
use crate::records::kinds::{Record, RecordKey, Service};

/// The pause after this node has published above a record of another machine. It doubles if that happens again within
/// [`QUIET`].
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// After this time without such a publication the pause is the shortest again.
const QUIET: Duration = Duration::from_secs(600);
/// The pause before a refused record is offered again. The pause doubles with each further refusal.
const MIN_AGAIN: Duration = Duration::from_secs(5);
const MAX_AGAIN: Duration = Duration::from_secs(300);
/// How long a record that another machine made stays a problem after it was last received.
const SHOWN: Duration = Duration::from_secs(24 * 3600);
/// How long a record stays a problem that this node seems to have made before its state directory was restored.
const SHOWN_OLDER: Duration = Duration::from_secs(600);
/// The maximum number of another machine's records that are kept. A ledger holds as many records of one node.
const MAX_FOREIGN: usize = 4096;
/// The maximum number of publications without an answer that are kept.
const MAX_OFFERED: usize = 1024;
/// The maximum number of refused records that get a problem of their own.
const MAX_NAMED: usize = 4;
/// A coordinator that has not answered the first publication for this long is a problem.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A record that is signed with this node's key and that this node did not make.
#[derive(Debug)]
struct Foreign {
    version: u64,
    /// The name and project of a service, so that it can be withdrawn if this node has no such service.
    service: Option<(Label, Option<Label>)>,
    overtaken: bool,
}

#[derive(Debug)]
struct Refusal {
    why: String,
    reason: RefusedReason,
    failures: u32,
    again: Instant,
}

/// A refused record that is to be offered again.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::node) struct Due {
    pub key: RecordKey,
    pub reason: RefusedReason,
    /// How often it was refused.
    pub failures: u32,
}

/// The answer of the coordinator about this node's node record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) enum NodeRecord {
    /// It has not answered yet.
    Unanswered,
    /// It accepted the record.
    Accepted,
    /// It refused the record with this message.
    Refused(String),
}

/// The records of other machines with this node's key, and the records of this node that were refused.
#[derive(Debug)]
pub struct Acceptance {
    node: RecordKey,
    /// The version that a record gets which is made when this program starts.
    started: u64,
    foreign: BTreeMap<RecordKey, Foreign>,
    /// What is reported about records of another machine. None until such a record was received.
    shown: Option<Shown>,
    pause: Duration,
    overtaken_at: Option<Instant>,
    offered: BTreeMap<u64, Vec<RecordKey>>,
    refused: BTreeMap<RecordKey, Refusal>,
    node_record: NodeRecord,
    opened: Option<Instant>,
}

/// What a problem reports about another machine's records.
#[derive(Debug)]
struct Shown {
    seen: Instant,
    /// Whether one of the records was made after this program started.
    is_live: bool,
    /// The largest version among the records.
    version: u64,
    what: String,
}

impl Acceptance {
    /// Creates the state of the node `id`. `started` is the version that a record gets which is made now.
    pub(in crate::node) fn new(id: &PublicKey, started: u64) -> Self {
        Self {
            node: RecordKey::Node(*id),
            started,
            foreign: BTreeMap::new(),
            shown: None,
            pause: MIN_PAUSE,
            overtaken_at: None,
            offered: BTreeMap::new(),
            refused: BTreeMap::new(),
            node_record: NodeRecord::Unanswered,
            opened: None,
        }
    }

    /// A record was received and verified that is signed with this node's key. It is newer than the record that this node
    /// holds under `key`, or it has the same version and another text. Returns a line for the log if it is the first such
    /// record, or the first that was made after this program started.
    pub(in crate::node) fn handle_foreign(
        &mut self,
        key: RecordKey,
        record: &Record,
        version: u64,
        own: Option<WireGuardKey>,
        now: Instant,
    ) -> Option<String> {
        let known = self.foreign.get(&key);
        if known.is_some_and(|known| known.version > version)
            || known.is_some_and(|known| known.version == version && known.overtaken)
        {
            return None;
        }
        let what = match record {
            Record::Node(node) => match own.filter(|own| *own != node.wireguard_key) {
                Some(own) => format!(
                    "{} (WireGuard key {}; this machine has {own})",
                    name_of(&key),
                    node.wireguard_key
                ),
                None => name_of(&key),
            },
            _ => name_of(&key),
        };
        let service = match record {
            Record::Service(service) => Some((service.name.clone(), service.project.clone())),
            _ => None,
        };
        if known.is_some() || self.foreign.len() < MAX_FOREIGN {
            let foreign = Foreign {
                version,
                service,
                overtaken: false,
            };
            self.foreign.insert(key, foreign);
        }
        // A version is the time in milliseconds at which the record was made, or one more than the last version.
        let is_live = version >= self.started;
        let before = self.shown.take();
        let is_first = before
            .as_ref()
            .is_none_or(|shown| is_live && !shown.is_live);
        self.shown = Some(match before {
            Some(before) if before.version > version => Shown {
                seen: now,
                ..before
            },
            _ => Shown {
                seen: now,
                is_live,
                version,
                what: what.clone(),
            },
        });
        is_first.then(|| format!("{what}, version {version}"))
    }

    /// The version that the next record of this node under `key` has to exceed. `held` is the version of its own record.
    pub fn last_version(&self, key: &RecordKey, held: u64) -> u64 {
        self.foreign
            .get(key)
            .map_or(held, |foreign| foreign.version.max(held))
    }

    /// Whether this node's own record under `key` is to be published again although it did not change.
    pub fn is_overruled(&self, key: &RecordKey, now: Instant) -> bool {
        self.may_overtake(now) && self.foreign.get(key).is_some_and(Foreign::is_open)
    }

    /// The services that another machine published with this node's key, except those in `known`, without instances.
    pub fn foreign_services(
        &self,
        id: &PublicKey,
        known: &BTreeSet<String>,
        now: Instant,
    ) -> Vec<Service> {
        if !self.may_overtake(now) {
            return Vec::new();
        }
        let open = self.foreign.iter().filter(|(_, foreign)| foreign.is_open());
        let unknown = open.filter(|(key, _)| !known.contains(&*key.id()));
        unknown
            .filter_map(|(key, foreign)| {
                let (name, project) = foreign.service.clone()?;
                Some(Service {
                    id: key.id().into_owned(),
                    version: 0,
                    node: *id,
                    name,
                    project,
                    service_address: None,
                    instances: Vec::new(),
                })
            })
            .collect()
    }

    fn may_overtake(&self, now: Instant) -> bool {
        self.overtaken_at
            .is_none_or(|at| now.saturating_duration_since(at) >= self.pause)
    }

    /// Whether this node is to publish now above a record of another machine.
    pub(in crate::node) fn is_due(&self, now: Instant) -> bool {
        self.may_overtake(now) && self.foreign.values().any(Foreign::is_open)
    }

    /// This node published its record under `key` with `version`.
    pub(in crate::node) fn handle_published(
        &mut self,
        key: &RecordKey,
        version: u64,
        now: Instant,
    ) {
        let Some(foreign) = self.foreign.get_mut(key) else {
            return;
        };
        if version <= foreign.version || foreign.overtaken {
            return;
        }
        foreign.overtaken = true;
        self.slow_down(now);
    }

    /// This node's own ledger refused a record that was to be published. The node tries again after a pause.
    pub(in crate::node) fn handle_unpublished(&mut self, now: Instant) {
        if self.is_due(now) {
            self.slow_down(now);
        }
    }

    fn slow_down(&mut self, now: Instant) {
        match self.overtaken_at {
            // All records of one round count as one publication.
            Some(at) if at == now => {}
            Some(at) if now.saturating_duration_since(at) < QUIET => {
                self.pause = (self.pause * 2).min(MAX_PAUSE);
            }
            _ => self.pause = MIN_PAUSE,
        }
        self.overtaken_at = Some(now);
    }

    /// The stream opened. This node's records are offered again.
    pub(in crate::node) fn handle_opened(&mut self, now: Instant) {
        self.offered.clear();
        self.opened = Some(now);
    }

    /// The stream closed. The open publications get no answer.
    pub(in crate::node) fn handle_closed(&mut self) {
        self.offered.clear();
        self.opened = None;
    }

    /// Exactly these records were published with the number `sequence`.
    pub(in crate::node) fn handle_offered(&mut self, sequence: u64, keys: Vec<RecordKey>) {
        if self.offered.len() >= MAX_OFFERED {
            self.offered.pop_first();
        }
        self.offered.insert(sequence, keys);
    }

    /// The coordinator answered the publication `sequence`. Returns a line for the log for each record that it refused for a
    /// new reason.
    pub(in crate::node) fn handle_answer(
        &mut self,
        sequence: u64,
        texts: &[String],
        records: Vec<RefusedRecord>,
        now: Instant,
    ) -> Vec<String> {
        let Some(keys) = self.offered.remove(&sequence) else {
            return Vec::new();
        };
        let mut named: BTreeMap<RecordKey, (String, RefusedReason)> = records
            .into_iter()
            .filter(|refused| keys.contains(&refused.key))
            .map(|refused| (refused.key, (refused.message, refused.reason)))
            .collect();
        if named.is_empty() && !texts.is_empty() {
            // The coordinator does not name the refused records, so all records of the publication count as refused.
            let why = texts.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>();
            let why = (why.join("; "), RefusedReason::Other);
            named.extend(keys.iter().map(|key| (key.clone(), why.clone())));
        }
        let mut lines = Vec::new();
        for key in keys {
            match named.remove(&key) {
                // The refusal is out of date: this node has since published above the other machine's record.
                Some((_, RefusedReason::Stale)) if self.has_overtaken(&key) => {}
                None => {
                    if key == self.node {
                        self.node_record = NodeRecord::Accepted;
                    }
                    self.refused.remove(&key);
                }
                Some((why, reason)) => {
                    if key == self.node {
                        self.node_record = NodeRecord::Refused(why.clone());
                    }
                    lines.extend(self.refuse(key, why, reason, now));
                }
            }
        }
        lines
    }

    fn has_overtaken(&self, key: &RecordKey) -> bool {
        self.foreign
            .get(key)
            .is_some_and(|foreign| foreign.overtaken)
    }

    fn refuse(
        &mut self,
        key: RecordKey,
        why: String,
        reason: RefusedReason,
        now: Instant,
    ) -> Option<String> {
        let held = self.refused.get(&key);
        let failures = held.map_or(0, |held| held.failures);
        let is_new = held.is_none_or(|held| held.why != why);
        let line = is_new.then(|| format!("{}: {why}", name_of(&key)));
        let refusal = Refusal {
            why,
            reason,
            failures: failures + 1,
            again: now + retry_pause(MIN_AGAIN, failures, MAX_AGAIN),
        };
        self.refused.insert(key, refusal);
        line
    }

    /// Whether the coordinator refused this node's record under `key` for `reason`.
    pub(in crate::node) fn is_refused_for(&self, key: &RecordKey, reason: RefusedReason) -> bool {
        self.refused.get(key).is_some_and(|r| r.reason == reason)
    }

    /// The refused records that are to be offered again now.
    pub(in crate::node) fn poll_again(&mut self, now: Instant) -> Vec<Due> {
        let due = self.refused.iter_mut().filter(|(_, r)| r.again <= now);
        due.map(|(key, refusal)| {
            // An answer of the coordinator sets the next time. There may be no answer.
            refusal.again = now + MAX_AGAIN;
            Due {
                key: key.clone(),
                reason: refusal.reason,
                failures: refusal.failures,
            }
        })
        .collect()
    }

    /// Forgets refusals of records that this node no longer has.
    pub(in crate::node) fn retain(&mut self, mut is_held: impl FnMut(&RecordKey) -> bool) {
        self.refused.retain(|key, _| is_held(key));
    }

    /// The answer of the coordinator about this node's node record.
    pub(in crate::node) fn node_record(&self) -> &NodeRecord {
        &self.node_record
    }

    /// The problems with this node's own records.
    pub(in crate::node) fn problems(&self, now: Instant) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some(shown) = &self.shown {
            let age = now.saturating_duration_since(shown.seen);
            let hopeless = self.foreign.values().any(|f| f.version == u64::MAX);
            if hopeless || shown.is_live && age < SHOWN {
                problems.push(shown.another_machine(hopeless));
            } else if !shown.is_live && age < SHOWN_OLDER {
                problems.push(shown.older());
            }
        }
        let refused = self.refused.iter().take(MAX_NAMED);
        problems.extend(refused.map(|(key, refusal)| Problem {
            what: format!("the coordinator does not accept {}", name_of(key)),
            why: refusal.why.clone(),
            fix: remedy(refusal.reason).into(),
        }));
        let more = self.refused.len().saturating_sub(MAX_NAMED);
        if more > 0 {
            problems.push(Problem {
                what: format!("the coordinator does not accept {more} more records of this node"),
                why: "the coordinator refuses these records as well".into(),
                fix: "solve the other problems first".into(),
            });
        }
        if let (NodeRecord::Unanswered, Some(opened)) = (&self.node_record, self.opened)
            && now.saturating_duration_since(opened) >= ANSWER_LIMIT
        {
            problems.push(Problem {
                what: "the coordinator has not confirmed where this node is reached".into(),
                why: "a stream to it is open, but it does not answer what this node publishes"
                    .into(),
                fix: "look at the log of mesh-coordinator; its disk may be slow or full".into(),
            });
        }
        problems
    }
}

impl Foreign {
    /// Whether this node still has to publish above it. No version is above the largest one.
    fn is_open(&self) -> bool {
        !self.overtaken && self.version < u64::MAX
    }
}

impl Shown {
    fn another_machine(&self, hopeless: bool) -> Problem {
        let outcome = if hopeless {
            "no version is above it, so this node cannot publish that record any more"
        } else {
            "this node publishes its own record again"
        };
        Problem {
            what: "another machine speaks with this node's keys".into(),
            why: format!(
                "a record that this node did not make is signed with its key: {}, version {}; {outcome}",
                self.what, self.version
            ),
            fix: "find the copy of this machine's disk or state directory and stop meshd there; if the keys were stolen, run `meshctl leave` here and join again with a new token, so that the old keys are of no use".into(),
        }
    }

    fn older(&self) -> Problem {
        Problem {
            what: "this node's state directory is older than what it published".into(),
            why: format!(
                "the mesh has a newer record with this node's keys: {}, version {}; this node publishes its own record again",
                self.what, self.version
            ),
            fix: "do nothing if the state directory or this machine was restored from a copy; otherwise another machine has this node's keys: run `meshctl leave` here and join again with a new token".into(),
        }
    }
}

/// The name of a record in messages for people.
pub(in crate::node) fn name_of(key: &RecordKey) -> String {
    match key {
        RecordKey::Service(id) => format!("the service {} of this node", id.service_name()),
        RecordKey::Node(_) => "where this node is reached".into(),
        RecordKey::Name(_) => "the new name of this node".into(),
        key => format!("this node's record of the kind {}", key.kind()),
    }
}

fn remedy(reason: RefusedReason) -> &'static str {
    match reason {
        RefusedReason::Block => {
            "another node has these addresses; this node asks the coordinator for its lease again: if that does not help, find that node in `meshctl node list`, or run `meshctl leave` here and join again with a new token"
        }
        RefusedReason::Stale => {
            "do nothing at first: this node asks for the newer record and publishes above it; if the problem stays, another machine has this node's keys"
        }
        RefusedReason::Name => {
            "do nothing at first: this node takes another name when it has received the record of the node that has this one; or choose another name with `meshctl rename`"
        }
        RefusedReason::Other => {
            "this node offers the record again by itself; if it stays refused, look at the log of mesh-coordinator, or upgrade the older of the two"
        }
    }
}

#[cfg(test)]
mod tests;
