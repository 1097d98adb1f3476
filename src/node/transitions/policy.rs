//! Policies that come into force, and those that do not.

use crate::os::audit::{Event, Text, Transition, What, Who};
use crate::os::log::TRANSITION;

/// A transition of the policy in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) enum PolicyChange {
    /// The policy with this version is in force.
    InForce { version: u64 },
    /// The policy in the record with this version is tried from now on. Nothing is denied by it.
    Tried { version: u64 },
    /// The record with this version has a policy that is to be tried, and this node does not understand it.
    NotTried { version: u64, why: String },
    /// This node does not understand the policy with this version, and keeps to an earlier one.
    Ignored {
        version: u64,
        in_force: u64,
        why: String,
    },
    /// This node does not understand the policy with this version, and has no earlier one: only control traffic passes.
    Closed { version: u64, why: String },
}

impl Transition for PolicyChange {
    fn log(&self) {
        match self {
            Self::InForce { version } => {
                tracing::info!(target: TRANSITION, version, "policy in force");
            }
            Self::Tried { version } => {
                tracing::info!(target: TRANSITION, version, "policy tried, nothing is denied by it");
            }
            Self::NotTried { version, why } => {
                tracing::warn!(target: TRANSITION, version, reason = why, "policy not tried");
            }
            Self::Ignored {
                version,
                in_force,
                why,
            } => {
                tracing::warn!(target: TRANSITION, version, in_force, reason = why, "policy not understood, the one before stays in force");
            }
            Self::Closed { version, why } => {
                tracing::warn!(target: TRANSITION, version, reason = why, "policy not understood, only control traffic passes");
            }
        }
    }

    fn event(&self) -> Option<Event> {
        let what = match self {
            Self::InForce { version } => What::PolicyInForce { version: *version },
            Self::Tried { version } => tried(*version),
            Self::NotTried { version, why } => {
                let result = Err::<(), _>(why);
                return Some(Event::of_result(Who::Daemon, tried(*version), &result));
            }
            Self::Ignored {
                version,
                in_force,
                why,
            } => What::PolicyNotUnderstood {
                version: *version,
                in_force: Some(*in_force),
                reason: Text::from(why.as_str()),
            },
            Self::Closed { version, why } => What::PolicyNotUnderstood {
                version: *version,
                in_force: None,
                reason: Text::from(why.as_str()),
            },
        };
        Some(Event::done(Who::Daemon, what))
    }
}

fn tried(version: u64) -> What {
    What::PolicyTried {
        version,
        digest: None,
        in_force: None,
    }
}
