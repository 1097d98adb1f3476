//! The control stream to a coordinator.

use std::time::Duration;

use super::seconds;
use crate::os::audit::{Event, Text, Transition, What, Who};
use crate::os::log::TRANSITION;

/// A transition of the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) enum LinkChange {
    /// It is open for the first time since the start.
    Connected { url: String },
    /// It is lost, or the first attempt to open it failed.
    Away { url: String, why: String },
    /// It is open again, after so long.
    Back { url: String, away: Duration },
}

impl Transition for LinkChange {
    fn log(&self) {
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

    fn event(&self) -> Option<Event> {
        let what = match self {
            Self::Connected { url } => What::CoordinatorConnected {
                url: Text::from(url.as_str()),
            },
            Self::Away { url, why } => What::CoordinatorAway {
                url: Text::from(url.as_str()),
                reason: Text::from(why.as_str()),
            },
            Self::Back { url, away } => What::CoordinatorBack {
                url: Text::from(url.as_str()),
                away_seconds: away.as_secs(),
            },
        };
        Some(Event::done(Who::Daemon, what))
    }
}
