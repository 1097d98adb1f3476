//! How many starts and stops of one container run at once. They continue if their caller hangs up, and a stop may take minutes. So a caller
//! that begins one after the other and hangs up would use up the connections to the engine, and with them the files that meshd may open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::spawn::SpawnId;

/// The maximum number of starts and stops of a container that run at once.
pub(super) const MAX_OF_CONTAINER: usize = 8;

/// The starts and stops that run. A clone refers to the same ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes(Arc<Mutex<HashMap<SpawnId, usize>>>);

/// The place of a start or a stop. It is free again when this is dropped.
#[derive(Debug)]
pub(super) struct ChangePlace {
    changes: Changes,
    container: SpawnId,
}

impl Changes {
    /// Takes a place for a start or a stop of a container. None if there are too many.
    pub(super) fn take(&self, container: &SpawnId) -> Option<ChangePlace> {
        let mut counts = self.counts();
        let count = counts.get(container).copied().unwrap_or_default();
        if count >= MAX_OF_CONTAINER {
            return None;
        }
        counts.insert(container.clone(), count + 1);
        Some(ChangePlace {
            changes: self.clone(),
            container: container.clone(),
        })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<SpawnId, usize>> {
        // A panic under the lock leaves at most a wrong count.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ChangePlace {
    fn drop(&mut self) {
        let mut counts = self.changes.counts();
        if let Some(count) = counts.get_mut(&self.container) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.container);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_some_changes_at_once_and_each_end_makes_room() {
        let changes = Changes::default();
        let (container, other) = (SpawnId::from_bytes([1; 16]), SpawnId::from_bytes([2; 16]));
        let mut places: Vec<ChangePlace> = (0..MAX_OF_CONTAINER)
            .filter_map(|_| changes.take(&container))
            .collect();
        assert_eq!(places.len(), MAX_OF_CONTAINER);
        assert!(changes.take(&container).is_none());
        assert!(changes.take(&other).is_some());
        places.truncate(MAX_OF_CONTAINER - 1);
        assert!(changes.take(&container).is_some());
        drop(places);
        assert!(changes.counts().is_empty(), "what is gone needs no memory");
    }
}
