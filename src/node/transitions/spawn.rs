//! Containers that callers spawn.

use crate::model::ContainerId;
use crate::os::audit::{Event, Outcome, Text, Transition, What, Who};
use crate::os::log::TRANSITION;
use crate::spawn::Entry;

/// What happened to a spawned container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum SpawnTurn<'a> {
    Created,
    /// Its caller removed it.
    Removed,
    /// Its time was over.
    Expired,
    /// It did not exist any more.
    Gone,
    /// Its caller starts a further process in it.
    Exec {
        command: &'a str,
    },
    /// Its caller started it.
    Started,
    /// Its caller stopped it.
    Stopped,
    /// Its caller sent a signal to its first process.
    Killed {
        signal: &'a str,
    },
}

/// Something happened to a spawned container.
#[derive(Debug)]
pub(in crate::node) struct SpawnedChange<'a> {
    pub entry: &'a Entry,
    pub by: &'a Who,
    pub turn: SpawnTurn<'a>,
}

/// A call about spawned containers was refused.
#[derive(Debug)]
pub(in crate::node) struct SpawnRefused<'a> {
    pub by: &'a Who,
    /// What the call was to do.
    pub what: &'static str,
    pub reason: &'a str,
}

/// A container with the label of spawned ones had no entry, and was removed.
#[derive(Debug)]
pub(in crate::node) struct OrphanRemoved<'a> {
    pub container: &'a ContainerId,
}

impl SpawnTurn<'_> {
    /// Why a container does not exist any more, as the log has it. None if it exists.
    fn end(self) -> Option<&'static str> {
        match self {
            Self::Created
            | Self::Exec { .. }
            | Self::Started
            | Self::Stopped
            | Self::Killed { .. } => None,
            Self::Removed => Some("removed"),
            Self::Expired => Some("expired"),
            Self::Gone => Some("gone"),
        }
    }
}

impl Transition for SpawnedChange<'_> {
    fn log(&self) {
        let Entry {
            template,
            owner,
            engine_name: container,
            image,
            ..
        } = self.entry;
        match (self.turn.end(), self.turn) {
            (Some(why), _) => {
                tracing::info!(target: TRANSITION, %template, %owner, container, why, "a spawned container ended");
            }
            // A caller can repeat these without end, so the log may leave some of them out.
            (None, SpawnTurn::Exec { command }) => {
                tracing::info!(%template, %owner, container, command, "a process was started in a spawned container");
            }
            (None, SpawnTurn::Started) => {
                tracing::info!(%template, %owner, container, "a spawned container was started");
            }
            (None, SpawnTurn::Stopped) => {
                tracing::info!(%template, %owner, container, "a spawned container was stopped");
            }
            (None, SpawnTurn::Killed { signal }) => {
                tracing::info!(%template, %owner, container, signal, "a spawned container received a signal");
            }
            (None, _) => {
                tracing::info!(target: TRANSITION, %template, %owner, container, image, "a container was spawned");
            }
        }
    }

    fn event(&self) -> Option<Event> {
        let template = self.entry.template.clone();
        let owner = Text::of(&self.entry.owner);
        let container = Text::from(self.entry.engine_name.as_str());
        let what = match (self.turn.end(), self.turn) {
            (Some("expired"), _) => What::SpawnExpired {
                template,
                owner,
                container,
            },
            (Some(reason), _) => What::SpawnRemoved {
                template,
                owner,
                container,
                reason,
            },
            (None, SpawnTurn::Exec { command }) => What::SpawnExec {
                template,
                owner,
                container,
                command: Text::from(command),
            },
            (None, SpawnTurn::Started) => What::SpawnStarted {
                template,
                owner,
                container,
            },
            (None, SpawnTurn::Stopped) => What::SpawnStopped {
                template,
                owner,
                container,
            },
            (None, SpawnTurn::Killed { signal }) => What::SpawnKilled {
                template,
                owner,
                container,
                signal: Text::from(signal),
            },
            (None, _) => What::Spawned {
                template,
                owner,
                container,
                image: Text::from(self.entry.image.as_str()),
            },
        };
        Some(Event::done(self.by.clone(), what))
    }
}

impl Transition for SpawnRefused<'_> {
    fn log(&self) {
        let source = match self.by {
            Who::ApiCaller { address, .. } => Some(tracing::field::display(address)),
            _ => None,
        };
        let (call, reason) = (self.what, self.reason);
        tracing::warn!(call, source, reason, "spawning refused");
    }

    fn event(&self) -> Option<Event> {
        let what = What::SpawnRefused {
            call: Text::from(self.what),
        };
        let result = Outcome::Refused(Text::from(self.reason));
        Some(Event {
            result,
            ..Event::done(self.by.clone(), what)
        })
    }
}

impl Transition for OrphanRemoved<'_> {
    fn log(&self) {
        let container = self.container.short();
        tracing::warn!(target: TRANSITION, container, "a container with the label of spawned ones was nobody's, and was removed");
    }

    fn event(&self) -> Option<Event> {
        let what = What::SpawnOrphanRemoved {
            container: Text::from(self.container.short()),
        };
        Some(Event::done(Who::Daemon, what))
    }
}
