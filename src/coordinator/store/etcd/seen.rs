//! How far this coordinator has seen the store come. etcd says nothing of a snapshot that its members were restored from: a
//! store of the same name that is behind what was seen is one.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::wire::file::write_atomic;

/// A store's name, and its last revision that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    id: String,
    revision: u64,
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let (id, revision) = text.trim_end().split_once(' ')?;
        Some(Self {
            id: id.to_owned(),
            revision: revision.parse().ok()?,
        })
    }
}

/// What was seen, and the file that outlives this coordinator.
#[derive(Debug)]
pub(super) struct Seen {
    file: Option<PathBuf>,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    now: Option<Mark>,
    saved: Option<Mark>,
}

impl Seen {
    /// What is in `file`. One that is not there, or damaged, has seen nothing.
    pub(super) fn load(file: Option<PathBuf>) -> Self {
        let text = file
            .as_ref()
            .and_then(|file| std::fs::read_to_string(file).ok());
        let mark = text.as_deref().and_then(Mark::parse);
        Self {
            file,
            marks: Mutex::new(Marks {
                now: mark.clone(),
                saved: mark,
            }),
        }
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the store `id` has gone back by being at `revision`.
    pub(super) fn is_behind(&self, id: &str, revision: u64) -> bool {
        let marks = self.marks();
        marks
            .now
            .as_ref()
            .is_some_and(|mark| mark.id == id && mark.revision > revision)
    }

    /// The store `id` is at `revision`.
    pub(super) fn note(&self, id: &str, revision: u64) {
        self.marks().now = Some(Mark {
            id: id.to_owned(),
            revision,
        });
    }

    /// Writes it down. What is seen after the last time is not known at the next start.
    pub(super) fn save(&self) {
        let Some(file) = &self.file else { return };
        let mut marks = self.marks();
        if marks.now == marks.saved {
            return;
        }
        let Some(mark) = marks.now.clone() else {
            return;
        };
        let text = format!("{} {}\n", mark.id, mark.revision);
        match write_atomic(file, text.as_bytes(), 0o600) {
            Ok(()) => marks.saved = Some(mark),
            Err(error) => {
                tracing::warn!(%error, "a restored snapshot of etcd may go unnoticed at the next start");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_went_back_is_known_after_a_restart_and_another_is_not_behind() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = Some(directory.path().join("seen"));
        let seen = Seen::load(file.clone());
        assert!(!seen.is_behind("a", 0));
        seen.note("a", 7);
        seen.save();
        let seen = Seen::load(file.clone());
        assert!(seen.is_behind("a", 6));
        assert!(!seen.is_behind("a", 7));
        assert!(!seen.is_behind("b", 1));
        for damaged in ["", "a", "a x\n", "\u{0}"] {
            std::fs::write(directory.path().join("seen"), damaged).expect("ours");
            assert!(!Seen::load(file.clone()).is_behind("a", 0), "{damaged:?}");
        }
    }
}
