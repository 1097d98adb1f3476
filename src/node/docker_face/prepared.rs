//! How many commands are prepared in a container and not started. Docker keeps such a command, in memory, for as long as its container
//! exists, so a caller that prepares them without an end would use up the memory of the machine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::containers::control::ExecId;
use crate::model::ContainerId;

/// The maximum number of commands of a container that are prepared and not started.
pub(super) const MAX_OF_CONTAINER: usize = 64;
/// The number of containers after which all counts begin again. It is more than exist at a time, and most of them are gone by then.
const MAX_COUNTED: usize = 2048;

/// The commands that were not started yet. A clone refers to the same ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Prepared(Arc<Mutex<HashMap<ContainerId, Vec<ExecId>>>>);

impl Prepared {
    /// Whether a further command may be prepared in a container.
    pub(super) fn has_place(&self, container: &ContainerId) -> bool {
        let commands = self.commands();
        let count = commands.get(container).map_or(0, Vec::len);
        count < MAX_OF_CONTAINER
    }

    /// A command was prepared.
    pub(super) fn insert(&self, container: &ContainerId, id: ExecId) {
        let mut commands = self.commands();
        if commands.len() >= MAX_COUNTED {
            commands.clear();
        }
        commands.entry(container.clone()).or_default().push(id);
    }

    /// A command was started, or could not be started and never will be.
    pub(super) fn remove(&self, container: &ContainerId, id: &ExecId) {
        let mut commands = self.commands();
        if let Some(own) = commands.get_mut(container) {
            own.retain(|other| other != id);
            if own.is_empty() {
                commands.remove(container);
            }
        }
    }

    fn commands(&self) -> MutexGuard<'_, HashMap<ContainerId, Vec<ExecId>>> {
        // A panic under the lock leaves at most a wrong count.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_some_commands_that_were_not_started_and_each_start_makes_room() {
        let prepared = Prepared::default();
        let container = ContainerId::parse("aaaa").expect("hexadecimal digits");
        let other = ContainerId::parse("bbbb").expect("hexadecimal digits");
        let id = |n: usize| ExecId::parse(&format!("{n:064x}")).expect("hexadecimal digits");
        for n in 0..MAX_OF_CONTAINER {
            assert!(prepared.has_place(&container), "{n}");
            prepared.insert(&container, id(n));
        }
        assert!(!prepared.has_place(&container));
        assert!(prepared.has_place(&other));
        prepared.remove(&container, &id(MAX_OF_CONTAINER));
        assert!(!prepared.has_place(&container), "nobody prepared that one");
        prepared.remove(&container, &id(0));
        assert!(prepared.has_place(&container));
    }

    #[test]
    fn the_counts_of_containers_that_are_gone_need_no_more_memory_than_a_bound() {
        let prepared = Prepared::default();
        let id = ExecId::parse("aaaa").expect("hexadecimal digits");
        for n in 0..3 * MAX_COUNTED {
            let container = ContainerId::parse(&format!("{n:064x}"));
            prepared.insert(&container.expect("hexadecimal digits"), id.clone());
        }
        assert!(prepared.commands().len() <= MAX_COUNTED);
    }
}
