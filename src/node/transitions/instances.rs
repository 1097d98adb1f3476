//! The instances of this node's services: published, healthy or not, and withdrawn.

use crate::model::{Label, ServiceName};
use crate::os::audit::{Event, Text, Transition, What, Who};
use crate::os::log::TRANSITION;
use crate::records::kinds::{Health, Instance};

/// A transition of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum InstanceTurn {
    /// It is in the answers to names from now on, with this health.
    Published(Health),
    /// It has another health than before.
    Health(Health),
    /// It is not published any more.
    Withdrawn,
}

/// The transitions between two records of one service: those of the instances that were published, then those of new ones.
pub(in crate::node) fn turns<'a>(
    before: &'a [Instance],
    after: &'a [Instance],
) -> Vec<(&'a Instance, InstanceTurn)> {
    let find = |instances: &'a [Instance], id: &Label| instances.iter().find(|i| i.id == *id);
    let held = before
        .iter()
        .filter_map(|held| match find(after, &held.id) {
            None => Some((held, InstanceTurn::Withdrawn)),
            Some(now) if now.health != held.health => Some((now, InstanceTurn::Health(now.health))),
            Some(_) => None,
        });
    let new = after
        .iter()
        .filter(|instance| find(before, &instance.id).is_none())
        .map(|instance| (instance, InstanceTurn::Published(instance.health)));
    held.chain(new).collect()
}

/// The line of a transition.
#[derive(Debug)]
pub(in crate::node) struct InstanceChange<'a> {
    pub service: &'a ServiceName,
    pub instance: &'a Instance,
    pub turn: InstanceTurn,
    /// Why it is unhealthy, draining or withdrawn, as far as that is known.
    pub why: Option<&'a str>,
}

impl Transition for InstanceChange<'_> {
    fn event(&self) -> Option<Event> {
        let service = Text::of(self.service);
        let instance = self.instance.id.clone();
        let reason = self.why.map(Text::from);
        let what = match self.turn {
            InstanceTurn::Published(health) => What::ServicePublished {
                service,
                instance,
                health: health.as_str(),
                source: self.instance.source.as_str(),
            },
            InstanceTurn::Health(health) => What::ServiceHealth {
                service,
                instance,
                health: health.as_str(),
                reason,
            },
            InstanceTurn::Withdrawn => What::ServiceWithdrawn {
                service,
                instance,
                reason,
            },
        };
        Some(Event::done(Who::Daemon, what))
    }

    fn log(&self) {
        let Self { service, why, .. } = self;
        let instance = &self.instance.id;
        match self.turn {
            InstanceTurn::Published(health) => {
                let health = health.as_str();
                let source = self.instance.source.as_str();
                tracing::info!(target: TRANSITION, %service, %instance, health, source, "service published");
            }
            InstanceTurn::Withdrawn => {
                tracing::info!(target: TRANSITION, %service, %instance, reason = why, "service withdrawn");
            }
            InstanceTurn::Health(Health::Unhealthy) => {
                tracing::warn!(target: TRANSITION, %service, %instance, reason = why, "service unhealthy");
            }
            InstanceTurn::Health(Health::Draining) => {
                tracing::info!(target: TRANSITION, %service, %instance, reason = why, "service draining");
            }
            InstanceTurn::Health(Health::Healthy) => {
                tracing::info!(target: TRANSITION, %service, %instance, "service healthy");
            }
            InstanceTurn::Health(Health::Starting) => {
                tracing::info!(target: TRANSITION, %service, %instance, "service starting");
            }
            InstanceTurn::Health(Health::Unknown) => {
                tracing::info!(target: TRANSITION, %service, %instance, "service not checked");
            }
        }
    }
}
