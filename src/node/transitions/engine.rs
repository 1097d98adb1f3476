//! The connection to the container engine, and containers that are not exposed.

use crate::os::audit::{Event, Text, Transition, What, Who};
use crate::os::log::TRANSITION;

/// A transition of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) enum EngineChange<'a> {
    Connected { version: &'a str, podman: bool },
    Lost { why: &'a str },
}

impl Transition for EngineChange<'_> {
    fn log(&self) {
        match self {
            Self::Connected { version, podman } => {
                tracing::info!(target: TRANSITION, version, podman, "container engine connected");
            }
            Self::Lost { why } => {
                tracing::warn!(target: TRANSITION, reason = why, "container engine lost; containers stay as they are");
            }
        }
    }

    fn event(&self) -> Option<Event> {
        let what = match self {
            Self::Connected { version, .. } => What::EngineConnected {
                version: Text::from(*version),
            },
            Self::Lost { why } => What::EngineLost {
                reason: Text::from(*why),
            },
        };
        Some(Event::done(Who::Daemon, what))
    }
}

/// A container with labels of meshd is not exposed.
#[derive(Debug)]
pub(in crate::node) struct ContainerRefused<'a> {
    pub name: &'a str,
    pub why: &'a str,
}

impl Transition for ContainerRefused<'_> {
    fn log(&self) {
        let (container, reason) = (self.name, self.why);
        tracing::warn!(container, reason, "a container is not exposed");
    }

    fn event(&self) -> Option<Event> {
        let what = What::ContainerRefused {
            container: Text::from(self.name),
            reason: Text::from(self.why),
        };
        Some(Event::done(Who::Daemon, what))
    }
}
