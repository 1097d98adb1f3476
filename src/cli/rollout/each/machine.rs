//! Decides which step of a rollout comes next, given what was observed. Pure.
//!
//! Each group of nodes takes this way. The way back of a rollback is the same, with one node in each group:
//!
//! ```text
//! check -> drain -> acknowledge -> expire -> run -> healthy -> publish -> seen -> choose the next group
//! ```
//!
//! Before a group is drained, and until its command runs, a usable instance must be left on another node. After the first failure the
//! machine publishes what still runs, and then takes back the changed nodes, newest first. It ends with no node drained, unless a
//! node does not answer. A node that was drained before, perhaps by a rollout on another machine, is neither changed nor published.
//! Each change of the lasting state is an entry of the journal, from which another machine continues.

mod stages;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::super::resolvers::Expect;
use super::course::{Course, Entry, Failure, Version};
use super::events::Event;
use super::order::Order;
use super::view::View;
use crate::model::Label;

/// What the shell has to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Look at the mesh, and call [`Machine::handle_view`].
    Look(Look),
    /// Drain these nodes, and call [`Machine::handle_drained`].
    Drain(Vec<Label>),
    /// Run the command or the rollback for these nodes, and call [`Machine::handle_ran`].
    Run { nodes: Vec<Label>, rollback: bool },
    /// Publish these nodes, and call [`Machine::handle_published`].
    Publish(Vec<Label>),
    /// There is nothing more to do.
    End(End),
}

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Look {
    /// The nodes whose instances are looked at.
    pub(super) nodes: Vec<Label>,
    /// What the DNS of all nodes is to answer for them. None if no DNS is queried.
    pub(super) expect: Option<Expect>,
}

/// How a rollout ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// All nodes have the new version.
    Done,
    /// It has stopped, for this reason.
    Failed(Failure),
    /// It was interrupted, and can be resumed.
    Paused,
}

/// The result of a step for each node.
pub(super) type Results = BTreeMap<Label, Result<(), String>>;

/// The result of a call that drains a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Drain {
    /// It is drained since this call.
    Done,
    /// It was drained before.
    Before,
    /// It is not drained, or nobody knows, for this reason.
    Failed(String),
}

/// What does not work on the machine from which the nodes are changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LocalFault {
    /// The journal cannot be written, for this reason.
    Journal(String),
    /// meshd does not answer, for this reason.
    Meshd(String),
}

/// Where the present group is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Choose,
    Check {
        since: Instant,
    },
    Drain,
    Acknowledge {
        since: Instant,
    },
    Expire {
        until: Instant,
    },
    Run,
    Healthy {
        since: Instant,
        steady_since: Option<Instant>,
    },
    Publish,
    Seen {
        since: Instant,
    },
    Soak {
        until: Instant,
        away_since: Option<Instant>,
    },
    /// After a failure or an interrupt: publish what still runs.
    Release,
    Ended,
}

/// A rollout.
#[derive(Debug)]
pub(super) struct Machine {
    order: Order,
    course: Course,
    stage: Stage,
    /// The nodes that are changed or taken back at present.
    group: Vec<Label>,
    /// The nodes of the group that this rollout had drained before, so that it may find them drained.
    own_drains: BTreeSet<Label>,
    /// The drained nodes to which no client is sent any more, and for which earlier answers have expired.
    quiet: BTreeSet<Label>,
    /// Whether the group had an instance that clients could use, which must not be the last one.
    is_at_risk: bool,
    is_pausing: bool,
    /// The nodes that could not be published, with the reasons.
    stuck: BTreeMap<Label, String>,
    entries: Vec<Entry>,
    events: Vec<Event>,
}

impl Machine {
    /// A machine that continues from `course`.
    pub(super) fn new(order: Order, course: Course) -> Self {
        let events = vec![Event::Started {
            service: order.service.clone(),
            nodes: order.nodes.clone(),
            resumed: course != Course::default(),
        }];
        Self {
            order,
            course,
            stage: Stage::Choose,
            group: Vec::new(),
            own_drains: BTreeSet::new(),
            quiet: BTreeSet::new(),
            is_at_risk: false,
            is_pausing: false,
            stuck: BTreeMap::new(),
            entries: Vec::new(),
            events,
        }
    }

    /// What to do next. The entries of the journal have to be written before it is done.
    pub(super) fn poll(&mut self, now: Instant) -> Step {
        if self.stage == Stage::Choose {
            if self.course.has_ended() {
                self.stage = Stage::Ended;
            } else if self.course.is_back() {
                self.choose_back(now);
            } else {
                self.choose_forward(now);
            }
        }
        let group = self.group.clone();
        let look = |nodes, expect| Step::Look(Look { nodes, expect });
        match self.stage {
            Stage::Choose | Stage::Ended => Step::End(match self.course.failure() {
                _ if self.is_pausing => End::Paused,
                Some(failure) => End::Failed(failure.clone()),
                None => End::Done,
            }),
            Stage::Check { .. } | Stage::Expire { .. } | Stage::Healthy { .. } => look(group, None),
            Stage::Acknowledge { .. } => look(group, Some(Expect::Drained)),
            Stage::Seen { .. } => look(group, Some(Expect::Published)),
            Stage::Soak { .. } => look(self.order.canaries().to_vec(), None),
            Stage::Drain => Step::Drain(group),
            Stage::Run => Step::Run {
                nodes: group,
                rollback: self.course.is_back(),
            },
            Stage::Publish => Step::Publish(group),
            Stage::Release => Step::Publish(self.releasable()),
        }
    }

    /// The entries for the journal and the events since the last call.
    pub(super) fn take_news(&mut self) -> (Vec<Entry>, Vec<Event>) {
        (
            std::mem::take(&mut self.entries),
            std::mem::take(&mut self.events),
        )
    }

    /// How far the rollout is.
    pub(super) fn course(&self) -> &Course {
        &self.course
    }

    /// Handles what was seen of the mesh.
    pub(super) fn handle_view(&mut self, view: &View, now: Instant) {
        match self.stage {
            Stage::Check { since } => self.check(view, since, now),
            Stage::Acknowledge { since } => self.acknowledge(view, since, now),
            Stage::Expire { until } => {
                if self.is_guarded(view) && now >= until {
                    self.quiet.extend(self.group.iter().cloned());
                    self.begin_run();
                }
            }
            Stage::Healthy {
                since,
                steady_since,
            } => self.await_healthy(view, since, steady_since, now),
            Stage::Seen { since } => self.await_seen(view, since, now),
            Stage::Soak { until, away_since } => self.soak(view, until, away_since, now),
            Stage::Choose
            | Stage::Drain
            | Stage::Run
            | Stage::Publish
            | Stage::Release
            | Stage::Ended => {}
        }
    }

    /// Handles that the nodes of the group were drained, or why not.
    pub(super) fn handle_drained(&mut self, results: &BTreeMap<Label, Drain>, now: Instant) {
        let mut failure = None;
        for (node, result) in results {
            let why = match result {
                Drain::Failed(why) => format!("it was not drained: {why}"),
                Drain::Before if !self.order.way.force && !self.own_drains.contains(node) => {
                    self.note(Entry::Foreign { node: node.clone() });
                    "it is drained already, perhaps for a rollout on another machine; wait until that has ended, or run `meshctl service undrain` there"
                        .to_owned()
                }
                Drain::Done | Drain::Before => continue,
            };
            failure = failure.or(Some((node.clone(), why)));
        }
        match failure {
            Some((node, why)) => self.stop(Some(node), why),
            None => self.stage = Stage::Acknowledge { since: now },
        }
    }

    /// Handles how the commands of the group have ended.
    pub(super) fn handle_ran(&mut self, results: &Results, now: Instant) {
        if let Some((node, why)) = first_failure(results) {
            return self.stop(Some(node), why);
        }
        self.tell(Event::Checking {
            nodes: self.group.clone(),
        });
        self.stage = Stage::Healthy {
            since: now,
            steady_since: None,
        };
    }

    /// Handles that nodes were published, or why not.
    pub(super) fn handle_published(&mut self, results: &Results, now: Instant) {
        let is_release = self.stage == Stage::Release;
        let mut released = Vec::new();
        for (node, result) in results {
            // It may have clients again even if the answer to the call was lost.
            self.quiet.remove(node);
            match result {
                Ok(()) => {
                    self.note(Entry::Published { node: node.clone() });
                    released.push(node.clone());
                }
                Err(why) if is_release => {
                    self.stuck.insert(node.clone(), why.clone());
                    self.tell(Event::StillDrained {
                        node: node.clone(),
                        why: why.clone(),
                    });
                }
                Err(_) => {}
            }
        }
        if is_release {
            if !released.is_empty() {
                self.tell(Event::Released { nodes: released });
            }
            self.stage = after_release(self.is_pausing);
        } else if let Some((node, why)) = first_failure(results) {
            self.stop(Some(node), format!("it was not published: {why}"));
        } else {
            self.stage = Stage::Seen { since: now };
        }
    }

    /// Handles that the person wants to stop: all drained nodes are published, and the rollout can be resumed.
    pub(super) fn handle_interrupt(&mut self) {
        if self.stage != Stage::Ended {
            self.is_pausing = true;
            self.release();
        }
    }

    /// Handles a fault of this machine. No other node is changed then. What brings the nodes into a safe state goes on
    /// without a journal.
    pub(super) fn handle_fault(&mut self, fault: LocalFault) {
        let has_ended = self.stage == Stage::Ended;
        let goes_on = has_ended || self.is_pausing || self.course.is_back();
        match fault {
            LocalFault::Journal(why) if goes_on => {
                self.tell(Event::JournalLost { why });
            }
            LocalFault::Journal(why) | LocalFault::Meshd(why) if !has_ended => self.stop(None, why),
            LocalFault::Journal(_) | LocalFault::Meshd(_) => {}
        }
    }

    fn note(&mut self, entry: Entry) {
        self.course.apply(&entry);
        self.entries.push(entry);
    }

    fn tell(&mut self, event: Event) {
        self.events.push(event);
    }
}

/// What comes next.
impl Machine {
    fn choose_forward(&mut self, now: Instant) {
        let course = &self.course;
        let canaries = self.order.canaries();
        let are_new = canaries
            .iter()
            .all(|node| course.version(node) == Version::New);
        if !course.is_soaked() && !canaries.is_empty() && are_new {
            let (nodes, soak) = (canaries.to_vec(), self.order.soak());
            let seconds = soak.as_secs();
            self.tell(Event::Soaking { nodes, seconds });
            self.stage = Stage::Soak {
                until: now + soak,
                away_since: None,
            };
            return;
        }
        let open = |group: &[Label]| -> Vec<Label> {
            let open = group
                .iter()
                .filter(|node| course.version(node) != Version::New);
            open.cloned().collect()
        };
        let next = self.order.groups().map(open).find(|open| !open.is_empty());
        match next {
            Some(group) => {
                self.group = group;
                self.stage = Stage::Check { since: now };
            }
            None => {
                let nodes = self.order.nodes.len();
                self.note(Entry::Ended);
                self.tell(Event::Done { nodes });
                self.stage = Stage::Ended;
            }
        }
    }

    fn choose_back(&mut self, now: Instant) {
        let newest = self.course.newest_changed().cloned();
        match newest.filter(|_| self.order.way.rollback.is_some()) {
            Some(node) => {
                let is_quiet = self.quiet.contains(&node);
                self.group = vec![node];
                self.stage = Stage::Check { since: now };
                if is_quiet {
                    // It has no clients, so there is nothing to wait for.
                    self.begin_run();
                }
            }
            None if !self.releasable().is_empty() => self.stage = Stage::Release,
            None => {
                self.note(Entry::Ended);
                self.stage = Stage::Ended;
            }
        }
    }

    fn begin_run(&mut self) {
        let rollback = self.course.is_back();
        for node in self.group.clone() {
            self.note(if rollback {
                Entry::Revert { node }
            } else {
                Entry::Run { node }
            });
        }
        self.tell(Event::Running {
            nodes: self.group.clone(),
            rollback,
        });
        self.stage = Stage::Run;
    }

    /// Stops the rollout, or gives up the rollback of the present node.
    fn stop(&mut self, node: Option<Label>, why: String) {
        let group = std::mem::take(&mut self.group);
        if self.course.is_back() {
            for node in group {
                self.tell(Event::NotReverted {
                    node: node.clone(),
                    why: why.clone(),
                });
                self.note(Entry::NotReverted {
                    node,
                    why: why.clone(),
                });
            }
        } else {
            self.tell(Event::Failed {
                node: node.clone(),
                why: why.clone(),
            });
            self.note(Entry::Failed { node, why });
        }
        self.release();
    }

    fn release(&mut self) {
        self.stage = if self.releasable().is_empty() {
            after_release(self.is_pausing)
        } else {
            Stage::Release
        };
    }

    /// The drained nodes that get clients again now. A node that is about to be taken back stays drained until then, because its new
    /// version may not work.
    fn releasable(&self) -> Vec<Label> {
        let has_rollback = self.order.way.rollback.is_some() && !self.is_pausing;
        let drained = self.course.drained().iter();
        drained
            .filter(|node| {
                let stays = has_rollback && self.course.is_changed(node);
                !stays && !self.stuck.contains_key(*node)
            })
            .cloned()
            .collect()
    }
}

fn after_release(is_pausing: bool) -> Stage {
    if is_pausing {
        Stage::Ended
    } else {
        Stage::Choose
    }
}

fn first_failure(results: &Results) -> Option<(Label, String)> {
    let failed = results.iter();
    let mut failed = failed.filter_map(|(node, result)| Some((node, result.as_ref().err()?)));
    failed.next().map(|(node, why)| (node.clone(), why.clone()))
}

#[cfg(test)]
mod tests;
