//! The names of a zone, as a map whose changed copies share everything that did not change.

use std::sync::Arc;

use foldhash::fast::RandomState;
use rpds::HashTrieMapSync;

use super::entry::Entry;

/// Names, relative to the domain, and what they have. Above a name stand all its parents, down to one label (RFC 8020).
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    // Every query is looked up here, so the hasher is fast. It is seeded, so that nobody can choose names with the same hash.
    entries: HashTrieMapSync<Arc<str>, Arc<Entry>, RandomState>,
}

impl Names {
    pub(super) fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name).map(AsRef::as_ref)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        let entries = self.entries.iter();
        entries.map(|(name, entry)| (name.as_ref(), entry.as_ref()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Changes what `name` has, if it is there.
    pub(super) fn change(&mut self, name: &str, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.get_mut(name) {
            change(Arc::make_mut(entry));
        }
    }

    /// Changes what `name` has, which is nothing if it was not there.
    pub(super) fn put(&mut self, name: &str, change: impl FnOnce(&mut Entry)) {
        self.plant(name);
        self.change(name, change);
    }

    fn plant(&mut self, name: &str) {
        if self.entries.contains_key(name) {
            return;
        }
        self.entries.insert_mut(name.into(), Arc::default());
        if let Some((_, parent)) = name.split_once('.') {
            self.put(parent, |entry| entry.below += 1);
        }
    }

    /// Removes `name` if it has nothing, and then its parents in the same way.
    pub(super) fn prune(&mut self, name: &str) {
        if !self.find(name).is_some_and(Entry::is_bare) {
            return;
        }
        self.entries.remove_mut(name);
        if let Some((_, parent)) = name.split_once('.') {
            self.change(parent, |entry| entry.below = entry.below.saturating_sub(1));
            self.prune(parent);
        }
    }
}
