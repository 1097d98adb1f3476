//! The control stream to a coordinator.

use std::time::Duration;

use super::seconds;
use crate::os::log::TRANSITION;

/// A transition of the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) enum LinkChange<'a> {
    /// It is open for the first time since the start.
    Connected { url: &'a str },
    /// It is lost, or the first attempt to open it failed.
    Away { url: &'a str, why: &'a str },
    /// It is open again, after so long.
    Back { url: &'a str, away: Duration },
}

impl LinkChange<'_> {
    pub(in crate::node) fn log(&self) {
        match self {
            Self::Connected { url } => {
                tracing::info!(target: TRANSITION, url, "coordinator connected");
            }
            Self::Away { url, why } => {
                tracing::warn!(target: TRANSITION, url, reason = why, "coordinator away; names and tunnels go on");
            }
            Self::Back { url, away } => {
                let away_seconds = seconds(*away);
                tracing::info!(target: TRANSITION, url, away_seconds, "coordinator back");
            }
        }
    }
}
