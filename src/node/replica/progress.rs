//! The position of this node in the changes of the coordinator's store, and requests for all records.

use std::time::{Duration, Instant};

use super::position::Position;

/// The position, and the requests for all records.
#[derive(Debug)]
pub(super) struct Progress {
    position: Position,
    /// When all records were last requested.
    requested_at: Option<Instant>,
    /// Whether all records were requested and the stream has not closed since. The messages that this stream still brings do
    /// not change the position, or the request would be lost.
    is_requesting: bool,
}

impl Progress {
    pub(super) fn new(position: Position) -> Self {
        Self {
            position,
            requested_at: None,
            is_requesting: false,
        }
    }

    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    /// Whether the position is in another store than `store`.
    pub(super) fn is_of_another(&self, store: &str) -> bool {
        self.position.store.as_deref() != Some(store)
    }

    /// A message brought this node to `position`. Returns whether the position changes.
    pub(super) fn handle_changes(&mut self, position: Position) -> bool {
        if !self.is_requesting {
            self.position = position;
        }
        !self.is_requesting
    }

    /// Requests all records, unless the last request was made less than `pause` ago. Returns whether it does.
    pub(super) fn request_all(
        &mut self,
        pause: Duration,
        is_connected: bool,
        now: Instant,
    ) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < pause;
        if self.requested_at.is_some_and(is_recent) {
            return false;
        }
        self.requested_at = Some(now);
        self.is_requesting = is_connected;
        self.position.revision = 0;
        true
    }

    /// The stream closed.
    pub(super) fn handle_closed(&mut self) {
        self.is_requesting = false;
    }
}
