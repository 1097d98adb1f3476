//! Whether what this node says of itself counts elsewhere. Pure: the clock is an argument.
//!
//! Two things keep a node's own record from counting, and both would be silent. A record that is signed with this node's
//! keys and that this node did not make may have a higher version than its own: another machine has the keys, or the state
//! directory is older than what this node once published. The node then publishes its own record again with a version
//! above, no faster than [`MIN_PAUSE`] allows, so that two machines with the same keys do not answer each other at full
//! speed. And a coordinator may refuse a record: the node offers it again.
//!
//! Both are problems, with what the coordinator says where it says something.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::model::record::{Record, RecordKey, Service};
use crate::model::{Label, PublicKey, WireGuardKey};
use crate::wire::control::{RefusedReason, RefusedRecord};
use crate::wire::local::Problem;

use super::own_records::name_of;

/// The pause after this node has published above a record of another machine. It doubles each time that follows soon.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// After a time this long without such a record the pause is the shortest again.
const QUIET: Duration = Duration::from_secs(600);
/// The pause before a refused record is offered again; it doubles with each further refusal.
const MIN_AGAIN: Duration = Duration::from_secs(5);
const MAX_AGAIN: Duration = Duration::from_secs(300);
/// How long a record that another machine made stays a problem after it was seen last.
const SHOWN: Duration = Duration::from_secs(24 * 3600);
/// The same for one that this node itself seems to have made before its state directory was restored.
const SHOWN_OLDER: Duration = Duration::from_secs(600);
/// Records of another machine that are remembered at most: as many as the mesh keeps of one node.
const MAX_FOREIGN: usize = 4096;
/// Publications without an answer that are remembered at most.
const MAX_OFFERED: usize = 1024;
/// Refused records that are named one by one at most.
const MAX_NAMED: usize = 4;
/// How long a coordinator may take to answer the first publication before that is a problem.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A record signed with this node's keys, that this node did not make.
#[derive(Debug)]
struct Foreign {
    version: u64,
    /// What a service is called, so that it can be withdrawn where this node has none of that name.
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
pub(super) struct Due {
    pub(super) key: RecordKey,
    pub(super) reason: RefusedReason,
    /// How often it was refused.
    pub(super) failures: u32,
}

/// Whether the coordinator has this node's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taken {
    /// It did not answer yet.
    NotYet,
    /// It has it.
    Yes,
    /// It refuses it, in these words.
    Refused(String),
}

/// The state.
#[derive(Debug)]
pub(super) struct OwnWord {
    node: RecordKey,
    /// The version of a record that was made when this program started.
    started: u64,
    foreign: BTreeMap<RecordKey, Foreign>,
    /// Set once another machine's record was seen: when, and whether that machine speaks now.
    shown: Option<Shown>,
    pause: Duration,
    overtaken_at: Option<Instant>,
    offered: BTreeMap<u64, Vec<RecordKey>>,
    refused: BTreeMap<RecordKey, Refusal>,
    taken: Taken,
    opened: Option<Instant>,
}

/// What is said of another machine's records.
#[derive(Debug)]
struct Shown {
    seen: Instant,
    /// One was made after this program started.
    is_live: bool,
    /// The largest version.
    version: u64,
    what: String,
}

impl OwnWord {
    /// Of the node `id`; `started` is the version that a record has which is made now.
    pub(super) fn new(id: &PublicKey, started: u64) -> Self {
        Self {
            node: RecordKey {
                kind: "node".to_owned(),
                id: id.to_string(),
            },
            started,
            foreign: BTreeMap::new(),
            shown: None,
            pause: MIN_PAUSE,
            overtaken_at: None,
            offered: BTreeMap::new(),
            refused: BTreeMap::new(),
            taken: Taken::NotYet,
            opened: None,
        }
    }

    /// A record came that is signed with this node's key, verified, and newer than what this node holds under `key`, or
    /// another text of the same version. Gives a line for the log, if it is the first after a while.
    pub(super) fn handle_foreign(
        &mut self,
        key: RecordKey,
        record: &Record,
        version: u64,
        own: WireGuardKey,
        now: Instant,
    ) -> Option<String> {
        let known = self.foreign.get(&key);
        if known.is_some_and(|known| known.version > version)
            || known.is_some_and(|known| known.version == version && known.overtaken)
        {
            return None;
        }
        let what = match record {
            Record::Node(node) if node.wireguard_key != own => format!(
                "{} (WireGuard key {}; this machine has {own})",
                name_of(&key),
                node.wireguard_key
            ),
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
        // A version is the time in milliseconds at which it was made, or one more than the last.
        let is_live = version >= self.started;
        let before = self.shown.take();
        let was_live = before.as_ref().is_some_and(|shown| shown.is_live);
        let is_first = before
            .as_ref()
            .is_none_or(|shown| is_live && !shown.is_live);
        self.shown = Some(match before {
            Some(before) if before.version > version => Shown {
                seen: now,
                is_live: was_live || is_live,
                ..before
            },
            _ => Shown {
                seen: now,
                is_live: was_live || is_live,
                version,
                what: what.clone(),
            },
        });
        is_first.then(|| format!("{what}, version {version}"))
    }

    /// The version that a record of this node has to exceed: `held` is that of its own.
    pub(super) fn last_version(&self, key: &RecordKey, held: u64) -> u64 {
        self.foreign
            .get(key)
            .map_or(held, |foreign| foreign.version.max(held))
    }

    /// Whether this node's own record under `key` is to be published again though nothing of it changed.
    pub(super) fn is_overruled(&self, key: &RecordKey, now: Instant) -> bool {
        self.may_overtake(now) && self.foreign.get(key).is_some_and(Foreign::is_open)
    }

    /// Services under this node's name that another machine published, besides those in `known`.
    pub(super) fn foreign_services(
        &self,
        id: &PublicKey,
        known: &BTreeSet<String>,
        now: Instant,
    ) -> Vec<Service> {
        if !self.may_overtake(now) {
            return Vec::new();
        }
        let open = self.foreign.iter().filter(|(_, foreign)| foreign.is_open());
        let unknown = open.filter(|(key, _)| !known.contains(&key.id));
        unknown
            .filter_map(|(key, foreign)| {
                let (name, project) = foreign.service.clone()?;
                Some(Service {
                    id: key.id.clone(),
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

    /// Whether something of another machine is to be overtaken now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.may_overtake(now) && self.foreign.values().any(Foreign::is_open)
    }

    /// This node has published a record.
    pub(super) fn handle_published(&mut self, key: &RecordKey, version: u64, now: Instant) {
        let Some(foreign) = self.foreign.get_mut(key) else {
            return;
        };
        if version <= foreign.version || foreign.overtaken {
            return;
        }
        foreign.overtaken = true;
        self.slow_down(now);
    }

    /// This node's own ledger refused what it wants to publish: it tries again later.
    pub(super) fn handle_unpublished(&mut self, now: Instant) {
        if self.is_due(now) {
            self.slow_down(now);
        }
    }

    fn slow_down(&mut self, now: Instant) {
        match self.overtaken_at {
            // One round overtakes all that there is.
            Some(at) if at == now => {}
            Some(at) if now.saturating_duration_since(at) < QUIET => {
                self.pause = (self.pause * 2).min(MAX_PAUSE);
            }
            _ => self.pause = MIN_PAUSE,
        }
        self.overtaken_at = Some(now);
    }

    /// The stream opened; what this node said is offered anew.
    pub(super) fn handle_opened(&mut self, now: Instant) {
        self.offered.clear();
        self.opened = Some(now);
    }

    /// The stream closed: what was not answered will not be.
    pub(super) fn handle_closed(&mut self) {
        self.offered.clear();
        self.opened = None;
    }

    /// These records were published with `sequence`, and no others.
    pub(super) fn handle_offered(&mut self, sequence: u64, keys: Vec<RecordKey>) {
        if self.offered.len() >= MAX_OFFERED {
            self.offered.pop_first();
        }
        self.offered.insert(sequence, keys);
    }

    /// The coordinator has answered. Gives a line for the log for each record that it did not refuse like this before.
    pub(super) fn handle_answer(
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
            // Which of them the coordinator does not say.
            let why = texts.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>();
            let why = (why.join("; "), RefusedReason::Other);
            named.extend(keys.iter().map(|key| (key.clone(), why.clone())));
        }
        let mut lines = Vec::new();
        for key in keys {
            match named.remove(&key) {
                // Another machine's record was in the way, and this node has published above it since.
                Some((_, RefusedReason::Stale)) if self.has_overtaken(&key) => {}
                None => {
                    if key == self.node {
                        self.taken = Taken::Yes;
                    }
                    self.refused.remove(&key);
                }
                Some((why, reason)) => {
                    if key == self.node {
                        self.taken = Taken::Refused(why.clone());
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
        let pause = MIN_AGAIN.saturating_mul(1 << failures.min(10));
        let line = is_new.then(|| format!("{}: {why}", name_of(&key)));
        let refusal = Refusal {
            why,
            reason,
            failures: failures + 1,
            again: now + pause.min(MAX_AGAIN),
        };
        self.refused.insert(key, refusal);
        line
    }

    /// The refused records that are to be offered again now.
    pub(super) fn poll_again(&mut self, now: Instant) -> Vec<Due> {
        let due = self.refused.iter_mut().filter(|(_, r)| r.again <= now);
        due.map(|(key, refusal)| {
            // The coordinator's answer says when the next time is; there may be none.
            refusal.again = now + MAX_AGAIN;
            Due {
                key: key.clone(),
                reason: refusal.reason,
                failures: refusal.failures,
            }
        })
        .collect()
    }

    /// Forgets refusals of records that this node does not have any more.
    pub(super) fn retain(&mut self, mut is_held: impl FnMut(&RecordKey) -> bool) {
        self.refused.retain(|key, _| is_held(key));
    }

    /// Whether the coordinator has this node's record.
    pub(super) fn taken(&self) -> &Taken {
        &self.taken
    }

    /// What is wrong, with remedies.
    pub(super) fn problems(&self, now: Instant) -> Vec<Problem> {
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
                why: "they are refused as well".into(),
                fix: "mend the others first".into(),
            });
        }
        if let (Taken::NotYet, Some(opened)) = (&self.taken, self.opened)
            && now.saturating_duration_since(opened) >= ANSWER_LIMIT
        {
            problems.push(Problem {
                what: "the coordinator has not confirmed where this node is reached".into(),
                why: "it is connected, and does not answer what this node publishes".into(),
                fix: "look at the log of mesh-coordinator; its disk may be slow or full".into(),
            });
        }
        problems
    }
}

impl Foreign {
    /// Whether this node has yet to publish above it. Nothing is above the largest version.
    fn is_open(&self) -> bool {
        !self.overtaken && self.version < u64::MAX
    }
}

impl Shown {
    fn another_machine(&self, hopeless: bool) -> Problem {
        let outcome = if hopeless {
            "no version is above it, so this node cannot speak for itself any more"
        } else {
            "this node publishes its own again"
        };
        Problem {
            what: "another machine speaks with this node's keys".into(),
            why: format!(
                "a record that this node did not make is signed with its key: {}, version {}; {outcome}",
                self.what, self.version
            ),
            fix: "find the copy of this machine's disk or state directory and stop meshd there; if the keys were stolen, run `meshctl leave` here and join again with a new token, so that the old keys are worth nothing".into(),
        }
    }

    fn older(&self) -> Problem {
        Problem {
            what: "this node's state directory is older than what it published".into(),
            why: format!(
                "the mesh has a newer record with this node's keys: {}, version {}; this node publishes its own again",
                self.what, self.version
            ),
            fix: "nothing, if the state directory or this machine was restored from a copy; otherwise another machine has this node's keys: run `meshctl leave` here and join again with a new token".into(),
        }
    }
}

fn remedy(reason: RefusedReason) -> &'static str {
    match reason {
        RefusedReason::Block => {
            "another node has these addresses; this node asks the coordinator for its lease again: if that does not help, find that node in `meshctl node list`, or run `meshctl leave` here and join again with a new token"
        }
        RefusedReason::Stale => {
            "nothing at first: this node asks for the newer record and publishes above it; if it stays, another machine has this node's keys"
        }
        RefusedReason::Other => {
            "it is offered again by itself; if it stays refused, look at the log of mesh-coordinator, or upgrade the older of the two"
        }
    }
}

#[cfg(test)]
mod tests;
