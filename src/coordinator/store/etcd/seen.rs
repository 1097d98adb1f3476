//! How far this coordinator has seen the store come. etcd says nothing of a snapshot that its members were restored from: a
//! store that is behind what was seen of it, or has a name that it had before, is one.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::os::file::write_atomic;

/// Names remembered at most: a store has another one after each restoration.
const NAMES: usize = 8;

/// The names the store has had, the present one last, and the last revision of that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mark {
    names: Vec<String>,
    revision: u64,
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let revision = lines.next()?.parse().ok()?;
        let names = lines.map(str::to_owned).take(NAMES).collect();
        Some(Self { names, revision })
    }

    fn text(&self) -> String {
        format!("{}\n{}\n", self.revision, self.names.join("\n"))
    }

    /// Whether the store has gone back by being `id` at `revision`.
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
            let surplus = self.names.len().saturating_sub(NAMES);
            self.names.drain(..surplus);
        }
        self.revision = revision;
    }
}

/// What was seen, and the file that outlives this coordinator.
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
    /// What is in `file`. One that is not there, or damaged, has seen nothing.
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

    /// What was seen up to now.
    pub(super) fn mark(&self) -> Mark {
        self.marks().now.clone()
    }

    /// The store is `id` at `revision`.
    pub(super) fn note(&self, id: &str, revision: u64) {
        self.marks().now.note(id, revision);
    }

    /// Writes it down. What is seen after the last time is not known at the next start.
    pub(super) fn save(&self) {
        let Some(file) = &self.file else { return };
        let mut marks = self.marks();
        if marks.now == marks.saved {
            return;
        }
        match write_atomic(file, marks.now.text().as_bytes(), 0o600) {
            Ok(()) => marks.saved = marks.now.clone(),
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
    fn a_store_with_a_name_it_had_before_went_back_however_far_it_is() {
        let mut mark = Mark::default();
        mark.note("a", 7);
        mark.note("b", 7);
        assert_eq!(Mark::parse(&mark.text()), Some(mark.clone()));
        assert!(mark.is_ahead_of("a", 7) && mark.is_ahead_of("a", 9));
        assert!(!mark.is_ahead_of("b", 7));
        for n in 0..100 {
            mark.note(&n.to_string(), 7);
        }
        assert_eq!(mark.names.len(), NAMES);
    }
}
