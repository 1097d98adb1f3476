//! The list of recent changes that streams follow: which record changed at which revision. The contents of a record are looked up
//! when it is sent, so a slow reader receives each record once, in its newest version.

use std::collections::{HashSet, VecDeque};

use crate::records::kinds::RecordKey;

/// The number of changes that are kept for streams that resume.
const RECENT: usize = 16_384;

/// The records that changed recently.
#[derive(Debug)]
pub(super) struct Changes {
    /// In the order of revisions.
    recent: VecDeque<(u64, RecordKey)>,
    /// The list no longer contains changes up to this revision.
    forgotten: u64,
}

impl Changes {
    pub(super) fn new() -> Self {
        Self {
            recent: VecDeque::new(),
            forgotten: 0,
        }
    }

    /// Adds a change; revisions must grow.
    pub(super) fn push(&mut self, revision: u64, key: RecordKey) {
        if self.recent.len() >= RECENT
            && let Some((oldest, _)) = self.recent.pop_front()
        {
            self.forgotten = oldest;
        }
        self.recent.push_back((revision, key));
    }

    /// Whether everything after `revision` is still in the list.
    pub(super) fn reaches_back_to(&self, revision: u64) -> bool {
        revision >= self.forgotten
    }

    /// The records that changed after revision `from` up to `until`, each once, in an order in which a ledger accepts them.
    pub(super) fn between(&self, from: u64, until: u64) -> Vec<&RecordKey> {
        let first = self.recent.partition_point(|(at, _)| *at <= from);
        let mut seen = HashSet::new();
        let mut keys: Vec<&RecordKey> = self
            .recent
            .iter()
            .skip(first)
            .take_while(|(at, _)| *at <= until)
            .map(|(_, key)| key)
            .filter(|key| seen.insert(*key))
            .collect();
        keys.sort_unstable();
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PublicKey;

    fn id(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    #[test]
    fn a_reader_gets_each_record_once_and_what_it_rests_on_first() {
        let mut changes = Changes::new();
        for (revision, key) in [
            (1, RecordKey::Membership(id(1))),
            (2, RecordKey::Node(id(1))),
            (3, RecordKey::parse("weather", "x")),
            (4, RecordKey::Membership(id(1))),
            (5, RecordKey::Node(id(2))),
            (6, RecordKey::Node(id(1))),
            (7, RecordKey::Token(id(3))),
        ] {
            changes.push(revision, key);
        }
        assert_eq!(
            changes.between(1, 7),
            [
                &RecordKey::Token(id(3)),
                &RecordKey::Membership(id(1)),
                &RecordKey::Node(id(1)),
                &RecordKey::Node(id(2)),
                &RecordKey::parse("weather", "x"),
            ]
        );
        assert_eq!(changes.between(6, 7), [&RecordKey::Token(id(3))]);
        assert_eq!(changes.between(1, 2), [&RecordKey::Node(id(1))]);
        assert!(changes.between(7, 7).is_empty());
    }

    #[test]
    fn a_reader_too_far_behind_is_known() {
        let mut changes = Changes::new();
        assert!(changes.reaches_back_to(0));
        for revision in 1..=RECENT as u64 {
            changes.push(revision, RecordKey::Node(id(1)));
        }
        assert!(changes.reaches_back_to(0));
        changes.push(RECENT as u64 + 1, RecordKey::Node(id(2)));
        assert!(!changes.reaches_back_to(0) && changes.reaches_back_to(1));
    }
}
