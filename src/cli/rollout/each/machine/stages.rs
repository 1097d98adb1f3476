//! The stages of a rollout that look at the mesh, and decide whether it goes on.

use std::time::{Duration, Instant};

use super::super::super::ANSWER_LIFETIME;
use super::super::super::acknowledged::{DRAIN_TIMEOUT, SILENCE_TIMEOUT};
use super::super::super::resolvers::Resolver;
use super::super::course::{Entry, Version};
use super::super::events::Event;
use super::super::view::{Own, View};
use super::{Machine, Stage};
use crate::model::Label;
use crate::model::text::listed;

/// How long a node may not answer, or a changed node may be unreachable, before that is a failure. A path may be replaced meanwhile.
const AWAY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the other nodes may take until they reach the new instances and have received their records.
const SEEN_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum number of nodes that a reason names.
const MAX_NAMED: usize = 5;

impl Machine {
    pub(super) fn check(&mut self, view: &View, since: Instant, now: Instant) {
        let is_late = now.saturating_duration_since(since) >= AWAY_TIMEOUT;
        if !self.course.is_back() {
            let lost = self
                .course
                .with_version(Version::New)
                .find(|node| !view.usable.contains(*node))
                .cloned();
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
        let drained = self.course.drained();
        let own = self.group.iter().filter(|node| drained.contains(*node));
        self.own_drains = own.cloned().collect();
        for node in self.group.clone() {
            self.note(Entry::Drain { node });
        }
        self.tell(Event::Draining {
            nodes: self.group.clone(),
        });
        self.stage = Stage::Drain;
    }

    /// Whether a usable instance is left on another node. If not, the rollout stops.
    pub(super) fn is_guarded(&mut self, view: &View) -> bool {
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

    pub(super) fn acknowledge(&mut self, view: &View, since: Instant, now: Instant) {
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

    pub(super) fn await_healthy(
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

    pub(super) fn await_seen(&mut self, view: &View, since: Instant, now: Instant) {
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

    pub(super) fn soak(
        &mut self,
        view: &View,
        until: Instant,
        away_since: Option<Instant>,
        now: Instant,
    ) {
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
