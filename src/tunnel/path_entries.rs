//! The paths to one peer, one of which is the primary one. Pure.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use super::path_entry::Entry;
use crate::model::path::{MAX_PATHS, Path};

/// A path that is not offered is kept for so long after the peer was heard by it.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(180);

/// At most [`MAX_PATHS`] paths. If there is any, one of them is the primary one.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    all: Vec<Entry>,
    /// The index of the primary path.
    primary: usize,
}

impl Entries {
    /// The path to `endpoint` is the only one.
    pub(super) fn new(endpoint: Option<Endpoint>) -> Self {
        Self {
            all: endpoint.map(Entry::new).into_iter().collect(),
            primary: 0,
        }
    }

    pub(super) fn all(&self) -> &[Entry] {
        &self.all
    }

    pub(super) fn all_mut(&mut self) -> &mut [Entry] {
        &mut self.all
    }

    fn position(&self, path: &Path) -> Option<usize> {
        let mut entries = self.all.iter();
        entries.position(|entry| entry.endpoint.path() == *path)
    }

    /// What is known of a path.
    pub(super) fn of(&self, path: &Path) -> Option<&Entry> {
        self.all.get(self.position(path)?)
    }

    /// What is known of a path.
    pub(super) fn of_mut(&mut self, path: &Path) -> Option<&mut Entry> {
        let at = self.position(path)?;
        self.all.get_mut(at)
    }

    /// The primary path.
    #[inline]
    pub(super) fn primary(&self) -> Option<&Entry> {
        self.all.get(self.primary)
    }

    /// The primary path.
    #[inline]
    pub(super) fn primary_mut(&mut self) -> Option<&mut Entry> {
        self.all.get_mut(self.primary)
    }

    /// Makes a path the primary one. Returns whether it was another one before.
    pub(super) fn set_primary(&mut self, path: &Path) -> bool {
        let to = self.position(path).unwrap_or(self.primary);
        std::mem::replace(&mut self.primary, to) != to
    }

    /// Forgets all paths but the primary one.
    pub(super) fn forget_others(&mut self) {
        let primary = self.primary().cloned();
        self.all = primary.into_iter().collect();
        self.primary = 0;
    }

    /// The path to `endpoint`, which is added if it is not known. The path that is least useful makes room, but neither the primary
    /// one nor `kept`.
    pub(super) fn admit(&mut self, endpoint: Endpoint, kept: Option<Path>) -> &mut Entry {
        let known = self.position(&endpoint.path());
        let at = known.unwrap_or_else(|| {
            let entry = Entry::new(endpoint);
            if self.all.len() < MAX_PATHS {
                self.all.push(entry);
                return self.all.len() - 1;
            }
            let least = self.others(kept).min_by_key(|(_, of)| (of.heard, of.opens));
            let least = least.map_or(0, |(at, _)| at);
            self.all[least] = entry;
            least
        });
        &mut self.all[at]
    }

    /// The paths that are neither the primary one nor `kept`, with their indexes.
    fn others(&self, kept: Option<Path>) -> impl Iterator<Item = (usize, &Entry)> {
        let entries = self.all.iter().enumerate();
        entries
            .filter(move |(at, entry)| *at != self.primary && Some(entry.endpoint.path()) != kept)
    }

    /// Removes the paths that were not heard lately, and as many others as it takes to make room for those that are `offered`. Neither
    /// the primary one nor `kept` is removed.
    pub(super) fn make_room(&mut self, offered: &BTreeSet<Path>, kept: Option<Path>, now: Instant) {
        let is_old = |entry: &Entry| {
            let silent = entry.heard.map(|at| now.saturating_duration_since(at));
            silent.is_none_or(|silent| silent >= KEPT_FOR)
        };
        loop {
            let new = offered.iter().filter(|path| self.of(path).is_none());
            let is_crowded = self.all.len() + new.count() > MAX_PATHS;
            let is_offered = |entry: &Entry| offered.contains(&entry.endpoint.path());
            let others = self.others(kept).filter(|(_, entry)| !is_offered(entry));
            let least = others.min_by_key(|(_, entry)| entry.heard);
            let least = least.filter(|(_, entry)| is_crowded || is_old(entry));
            let Some((at, _)) = least else { return };
            // Those behind it move up.
            self.all.remove(at);
            self.primary -= usize::from(self.primary > at);
        }
    }
}
