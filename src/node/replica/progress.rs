//! The position of this node in the changes of the coordinator's store, and requests for all records.

use std::time::{Duration, Instant};

use super::position::Position;

/// The position, and the requests for all records.
#[derive(Debug)]
pub(super) struct Progress {
    position: Position,
    /// Whether this node may need records that are before the position: some were refused that it may accept later.
    is_incomplete: bool,
    /// Set if all records are to be requested. The request is made when the last one is this long ago.
    wanted: Option<Duration>,
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
            is_incomplete: false,
            wanted: None,
            requested_at: None,
            is_requesting: false,
        }
    }

    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    /// The position to write to disk. A node that restarts receives all records again if it may need one before its position.
    pub(super) fn stored_position(&self) -> Position {
        let mut position = self.position.clone();
        if self.is_incomplete || self.wanted.is_some() {
            position.revision = 0;
        }
        position
    }

    /// The revision up to which this node has received all changes. None while it waits for all records.
    pub(super) fn reached(&self) -> Option<u64> {
        (!self.is_requesting && self.wanted.is_none()).then_some(self.position.revision)
    }

    /// Sets whether this node may need records that are before the position. Returns whether this is a change.
    pub(super) fn set_incomplete(&mut self, is_incomplete: bool) -> bool {
        std::mem::replace(&mut self.is_incomplete, is_incomplete) != is_incomplete
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

    /// Requests all records as soon as the last request was made at least `pause` ago.
    pub(super) fn request_all(&mut self, pause: Duration) {
        self.wanted = Some(self.wanted.map_or(pause, |wanted| wanted.min(pause)));
    }

    /// Whether all records are to be requested now. If so, the position goes back to revision 0.
    pub(super) fn poll_request(&mut self, is_connected: bool, now: Instant) -> bool {
        let last = self.requested_at;
        let is_over = |pause| last.is_none_or(|at| now.saturating_duration_since(at) >= pause);
        if self.wanted.take_if(|pause| is_over(*pause)).is_none() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_reached_no_revision_while_it_waits_for_all_records() {
        let mut progress = Progress::new(Position {
            revision: 5,
            ..Position::default()
        });
        assert_eq!(progress.reached(), Some(5));
        progress.request_all(Duration::ZERO);
        assert_eq!(progress.reached(), None, "they are to be requested");
        assert!(progress.poll_request(true, Instant::now()));
        assert_eq!(progress.reached(), None, "they are requested");
        progress.handle_closed();
        assert_eq!(progress.reached(), Some(0));
    }
}
