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
//! node does not answer. Each change of the lasting state is an entry of the journal, from which another machine continues.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::ANSWER_LIFETIME;
use super::super::acknowledged::{DRAIN_TIMEOUT, SILENCE_TIMEOUT};
use super::super::resolvers::{Expect, Resolver};
use super::course::{Course, Entry, Failure, Version};
use super::events::Event;
use super::order::Order;
use super::view::{Own, View};
use crate::model::Label;
use crate::model::text::listed;

/// How long a node may not answer, or a changed node may be unreachable, before that is a failure. A path may be replaced meanwhile.
const AWAY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the other nodes may take until they reach the new instances and have received their records.
const SEEN_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum number of nodes that a reason names.
const MAX_NAMED: usize = 5;

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
    pub(super) fn handle_drained(&mut self, results: &Results, now: Instant) {
        match first_failure(results) {
            Some((node, why)) => self.stop(Some(node), format!("it was not drained: {why}")),
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

    /// Handles a fault of this machine, such as a journal that cannot be written.
    pub(super) fn handle_fault(&mut self, why: String) {
        if self.stage != Stage::Ended {
            self.stop(None, why);
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
        let mut groups = self.order.groups().map(|group| {
            let open = group
                .iter()
                .filter(|node| course.version(node) != Version::New);
            open.cloned().collect::<Vec<Label>>()
        });
        let next = groups.find(|open| !open.is_empty());
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
                let is_drained = self.course.drained().contains(&node);
                self.group = vec![node];
                self.stage = Stage::Check { since: now };
                if is_drained {
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
        if self.course.is_back() {
            for node in std::mem::take(&mut self.group) {
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

/// The stages that look at the mesh.
impl Machine {
    fn check(&mut self, view: &View, since: Instant, now: Instant) {
        let is_late = now.saturating_duration_since(since) >= AWAY_TIMEOUT;
        if !self.course.is_back() {
            let mut changed = self.course.with_version(Version::New);
            let lost = changed.find(|node| !view.usable.contains(*node)).cloned();
            if let Some(node) = lost {
                if is_late {
                    let why = "it does not serve any more since it was changed".to_owned();
                    self.stop(Some(node), why);
                }
                return;
            }
        }
        let away = self.group.iter().find_map(|node| match view.own.get(node) {
            Some(Own::Away(why)) => Some((node.clone(), why.clone())),
            _ => None,
        });
        if let Some((node, why)) = away {
            if is_late {
                self.stop(Some(node), why);
            }
            return;
        }
        self.is_at_risk = self.group.iter().any(|node| {
            let is_healthy = matches!(view.own.get(node), Some(Own::Healthy(_)));
            view.usable.contains(node) || (is_healthy && self.course.drained().contains(node))
        });
        if !self.is_guarded(view) {
            return;
        }
        for node in self.group.clone() {
            self.note(Entry::Drain { node });
        }
        self.tell(Event::Draining {
            nodes: self.group.clone(),
        });
        self.stage = Stage::Drain;
    }

    /// Whether a usable instance is left on another node. If not, the rollout stops.
    fn is_guarded(&mut self, view: &View) -> bool {
        let is_left = view.usable.iter().any(|node| !self.group.contains(node));
        if !self.is_at_risk || self.order.way.force || is_left {
            return true;
        }
        let (service, group) = (&self.order.service, listed(&self.group, MAX_NAMED));
        let why = format!(
            "no other node has a healthy instance of {service}, so replacing those of {group} would stop the service; start it on another node first, or use --force"
        );
        self.stop(None, why);
        false
    }

    fn acknowledge(&mut self, view: &View, since: Instant, now: Instant) {
        if !self.is_guarded(view) {
            return;
        }
        let waited = now.saturating_duration_since(since);
        let behind = of_state(view, Resolver::Behind);
        let silent = of_state(view, Resolver::Silent);
        if behind.is_empty() && (silent.is_empty() || waited >= SILENCE_TIMEOUT) {
            let resolvers = view.resolvers.len() - silent.len();
            self.tell(Event::Drained {
                nodes: self.group.clone(),
                resolvers,
                silent,
            });
            self.tell(Event::Waiting {
                seconds: ANSWER_LIFETIME.as_secs(),
            });
            let until = now + ANSWER_LIFETIME;
            self.stage = Stage::Expire { until };
        } else if waited >= DRAIN_TIMEOUT {
            let why = format!(
                "{} still sends clients after {} s; look at `meshctl status` there",
                listed(&behind, MAX_NAMED),
                DRAIN_TIMEOUT.as_secs()
            );
            self.stop(self.group.first().cloned(), why);
        }
    }

    fn await_healthy(
        &mut self,
        view: &View,
        since: Instant,
        steady_since: Option<Instant>,
        now: Instant,
    ) {
        match steady_time(&self.group, view) {
            Ok(steady) => {
                let steady_since = steady_since.unwrap_or(now);
                self.stage = if now.saturating_duration_since(steady_since) >= steady {
                    Stage::Publish
                } else {
                    Stage::Healthy {
                        since,
                        steady_since: Some(steady_since),
                    }
                };
            }
            Err((node, why)) => {
                let limit = self.order.timeout();
                if now.saturating_duration_since(since) >= limit {
                    let why = format!("not healthy within {} s: {why}", limit.as_secs());
                    return self.stop(Some(node), why);
                }
                self.stage = Stage::Healthy {
                    since,
                    steady_since: None,
                };
            }
        }
    }

    fn await_seen(&mut self, view: &View, since: Instant, now: Instant) {
        let waited = now.saturating_duration_since(since);
        let behind = of_state(view, Resolver::Behind);
        let silent = of_state(view, Resolver::Silent);
        let is_seen = behind.is_empty() && (silent.is_empty() || waited >= SILENCE_TIMEOUT);
        let missing = self.group.iter().find(|node| !view.usable.contains(*node));
        if is_seen && missing.is_none() {
            return self.finish_group();
        }
        if waited < SEEN_TIMEOUT {
            return;
        }
        let node = missing.or(self.group.first()).cloned();
        let why = if behind.is_empty() {
            "it was published, and is not healthy or not reached any more".to_owned()
        } else {
            format!(
                "its instances are not reached from {}; run `meshctl why` there",
                listed(&behind, MAX_NAMED)
            )
        };
        self.stop(node, why);
    }

    fn finish_group(&mut self) {
        let is_back = self.course.is_back();
        for node in std::mem::take(&mut self.group) {
            if is_back {
                self.note(Entry::Reverted { node: node.clone() });
                self.tell(Event::Reverted { node });
            } else {
                self.note(Entry::Changed { node: node.clone() });
                let done = self.course.with_version(Version::New).count();
                let of = self.order.nodes.len();
                self.tell(Event::Changed { node, done, of });
            }
        }
        self.stage = Stage::Choose;
    }

    fn soak(&mut self, view: &View, until: Instant, away_since: Option<Instant>, now: Instant) {
        let canaries = self.order.canaries();
        let sick = canaries.iter().find_map(|node| match view.own.get(node) {
            Some(Own::Waiting(why)) => Some((node.clone(), why.clone())),
            _ => None,
        });
        if let Some((node, why)) = sick {
            let why = format!("it did not stay healthy while it was watched: {why}");
            return self.stop(Some(node), why);
        }
        let away = canaries.iter().find(|node| !view.usable.contains(*node));
        if let Some(node) = away.cloned() {
            let away_since = away_since.unwrap_or(now);
            if now.saturating_duration_since(away_since) >= AWAY_TIMEOUT {
                let why = "it did not stay reachable while it was watched".to_owned();
                return self.stop(Some(node), why);
            }
            self.stage = Stage::Soak {
                until,
                away_since: Some(away_since),
            };
        } else if now >= until {
            self.note(Entry::Soaked);
            self.tell(Event::Soaked);
            self.stage = Stage::Choose;
        } else {
            self.stage = Stage::Soak {
                until,
                away_since: None,
            };
        }
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

/// The time for which `nodes` have to stay healthy. An error names a node that is not, with the reason.
fn steady_time(nodes: &[Label], view: &View) -> Result<Duration, (Label, String)> {
    let mut longest = Duration::ZERO;
    for node in nodes {
        match view.own.get(node) {
            Some(Own::Healthy(steady)) => longest = longest.max(*steady),
            Some(Own::Waiting(why) | Own::Away(why)) => return Err((node.clone(), why.clone())),
            None => return Err((node.clone(), "it does not answer".to_owned())),
        }
    }
    Ok(longest)
}

fn of_state(view: &View, state: Resolver) -> Vec<Label> {
    let resolvers = view.resolvers.iter();
    resolvers
        .filter(|(_, own)| **own == state)
        .map(|(node, _)| node.clone())
        .collect()
}

#[cfg(test)]
mod tests;
