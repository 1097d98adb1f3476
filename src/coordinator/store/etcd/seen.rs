//! The newest state of the store that this coordinator has read. etcd does not report that its members were restored
//! from a snapshot. If the store has an older revision than before, or a name that it had earlier, it was restored.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::os::file::write_atomic;

/// The maximum number of stored names. A store gets a new name at each restoration.
const MAX_NAMES: usize = 8;

/// The names that the store has had, the present one last, and its last revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mark {
    names: Vec<String>,
    revision: u64,
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let revision = lines.next()?.parse().ok()?;
        let names = lines.map(str::to_owned).take(MAX_NAMES).collect();
        Some(Self { names, revision })
    }

    fn text(&self) -> String {
        format!("{}\n{}\n", self.revision, self.names.join("\n"))
    }

    /// Whether a store with name `id` at `revision` is older than this state.
    pub(super) fn is_ahead_of(&self, id: &str, revision: u64) -> bool {
        match self.names.split_last() {
            Some((now, _)) if now == id => revision < self.revision,
            Some((_, before)) => before.iter().any(|name| name == id),
            None => false,
        }
    }

    fn note(&mut self, id: &str, revision: u64) {
        if self.names.last().is_none_or(|now| now != id) {
            self.names.retain(|name| name != id);
            self.names.push(id.to_owned());
            let surplus = self.names.len().saturating_sub(MAX_NAMES);
            self.names.drain(..surplus);
        }
        self.revision = revision;
    }
}

/// The newest state, and the file in which it survives a restart.
#[derive(Debug)]
pub(super) struct Seen {
    file: Option<PathBuf>,
    marks: Mutex<Marks>,
}

#[derive(Debug)]
struct Marks {
    now: Mark,
    saved: Mark,
}

impl Seen {
    /// Reads `file`. A file that is missing or damaged is like a new one.
    pub(super) fn load(file: Option<PathBuf>) -> Self {
        let text = file
            .as_ref()
            .and_then(|file| std::fs::read_to_string(file).ok());
        let mark = text.as_deref().and_then(Mark::parse).unwrap_or_default();
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

    /// The newest state.
    pub(super) fn mark(&self) -> Mark {
        self.marks().now.clone()
    }

    /// Notes that the store has name `id` and is at `revision`.
    pub(super) fn note(&self, id: &str, revision: u64) {
        self.marks().now.note(id, revision);
    }

    /// Writes the state to the file. Changes after the last call are not known at the next start.
    pub(super) fn save(&self) {
        let Some(file) = &self.file else { return };
        let mut marks = self.marks();
        if marks.now == marks.saved {
            return;
        }
        match write_atomic(file, marks.now.text().as_bytes(), 0o600) {
            Ok(()) => marks.saved = marks.now.clone(),
            Err(error) => {
                tracing::warn!(%error, "a restoration of etcd from a snapshot may not be noticed at the next start");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_store_is_recognized_after_a_restart_and_another_store_is_not_older() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = Some(directory.path().join("seen"));
        let seen = Seen::load(file.clone());
        assert!(!seen.mark().is_ahead_of("a", 0));
        seen.note("a", 7);
        seen.save();
        let seen = Seen::load(file.clone());
        assert!(seen.mark().is_ahead_of("a", 6));
        assert!(!seen.mark().is_ahead_of("a", 7));
        assert!(!seen.mark().is_ahead_of("b", 1));
        for damaged in ["", "a", "x\na\n", "\u{0}"] {
            std::fs::write(directory.path().join("seen"), damaged).expect("ours");
            let mark = Seen::load(file.clone()).mark();
            assert!(!mark.is_ahead_of("a", 0), "{damaged:?}");
        }
    }

    #[test]
    fn a_store_with_an_earlier_name_was_restored_whatever_its_revision() {
        let mut mark = Mark::default();
        mark.note("a", 7);
        mark.note("b", 7);
        assert_eq!(Mark::parse(&mark.text()), Some(mark.clone()));
        assert!(mark.is_ahead_of("a", 7) && mark.is_ahead_of("a", 9));
        assert!(!mark.is_ahead_of("b", 7));
        for n in 0..100 {
            mark.note(&n.to_string(), 7);
        }
        assert_eq!(mark.names.len(), MAX_NAMES);
    }
}
