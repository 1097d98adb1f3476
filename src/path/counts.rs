//! Counts of what happened with the paths to all peers, for the metrics. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{Path, PublicKey};

/// The kinds of paths, in the order of [`Path::kind`].
pub const KINDS: [&str; 3] = ["direct", "relay", "stream"];
/// The upper bounds of the durations of a punch that are counted together. A punch takes about two round trips over the relay.
pub const PUNCH_BOUNDS: [Duration; 7] = [
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// How often packets to a peer took another path.
#[derive(Debug, Default)]
pub struct PathChanges {
    current: BTreeMap<PublicKey, Path>,
    counts: [u64; KINDS.len()],
}

impl PathChanges {
    /// Removes the peers that are not known any more.
    pub fn retain(&mut self, is_known: impl Fn(&PublicKey) -> bool) {
        self.current.retain(|id, _| is_known(id));
    }

    /// Packets to a peer take this path now. The first one is no change.
    pub fn handle_path(&mut self, id: PublicKey, path: Option<Path>) {
        let Some(path) = path else { return };
        let before = self.current.insert(id, path);
        if before.is_some_and(|before| before != path)
            && let Some(count) = self.counts.get_mut(usize::from(path.kind()))
        {
            *count += 1;
        }
    }

    /// The path that packets to a peer take.
    #[must_use]
    pub fn current(&self, id: &PublicKey) -> Option<Path> {
        self.current.get(id).copied()
    }

    /// The number of changes to each kind of path.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.into_iter().zip(self.counts)
    }
}

/// How long the punches took that ended with a direct path.
#[derive(Debug, Default)]
pub struct PunchTimes {
    /// The number of those up to each bound and above the one before, and of those above all bounds.
    counts: [u64; PUNCH_BOUNDS.len() + 1],
    sum: Duration,
}

impl PunchTimes {
    /// A punch took so long.
    pub fn handle_punch(&mut self, took: Duration) {
        let at = PUNCH_BOUNDS.iter().position(|bound| took <= *bound);
        if let Some(count) = self.counts.get_mut(at.unwrap_or(PUNCH_BOUNDS.len())) {
            *count += 1;
        }
        self.sum += took;
    }

    /// The number of punches in each bucket, the last of which has no bound.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// How long all of them took together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodeAddress;

    #[test]
    fn a_change_counts_for_the_kind_of_the_new_path_and_the_first_path_is_none() {
        let direct = |port| Path::Direct(([192, 0, 2, 1], port).into());
        let node = NodeAddress([10, 210, 1, 1].into());
        let mut changes = PathChanges::default();
        let id = PublicKey([1; 32]);
        for path in [
            None,
            Some(Path::Relay(node)),
            Some(Path::Relay(node)),
            Some(direct(1)),
            None,
            Some(direct(2)),
            Some(Path::Stream(node)),
        ] {
            changes.handle_path(id, path);
        }
        let counts: Vec<_> = changes.counts().collect();
        assert_eq!(counts, [("direct", 2), ("relay", 0), ("stream", 1)]);
        assert_eq!(changes.current(&id), Some(Path::Stream(node)));
        changes.retain(|_| false);
        assert_eq!(changes.current(&id), None);
    }

    #[test]
    fn punches_are_counted_by_how_long_they_took() {
        let mut times = PunchTimes::default();
        for ms in [80, 100, 101, 700, 30_000] {
            times.handle_punch(Duration::from_millis(ms));
        }
        assert_eq!(times.counts(), [2, 1, 0, 1, 0, 0, 0, 1]);
        assert_eq!(times.sum(), Duration::from_millis(30_981));
    }
}
