//! The connection to the container engine.

use crate::os::log::TRANSITION;

/// A transition of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) enum EngineChange<'a> {
    Connected { version: &'a str, podman: bool },
    Lost { why: &'a str },
}

impl EngineChange<'_> {
    pub(in crate::node) fn log(&self) {
        match self {
            Self::Connected { version, podman } => {
                tracing::info!(target: TRANSITION, version, podman, "container engine connected");
            }
            Self::Lost { why } => {
                tracing::warn!(target: TRANSITION, reason = why, "container engine lost; containers stay as they are");
            }
        }
    }
}
