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
}
