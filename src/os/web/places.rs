//! How many connections there may be, together and of one source.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::address::link_of;

/// The maximum number of connections.
const MAX_CONNECTIONS: usize = 256;
/// The maximum number of connections of one source, so that no member of the mesh takes all of them.
const MAX_OF_SOURCE: usize = 32;

/// The connections that are open. A clone refers to the same ones.
#[derive(Debug, Clone, Default)]
pub struct Places(Arc<Mutex<Counts>>);

/// The place of a connection. It is free again when this is dropped.
#[derive(Debug)]
pub struct ConnectionPlace {
    places: Places,
    source: IpAddr,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

impl Places {
    /// Takes a place for a connection from `source`. None if there are too many connections.
    #[must_use]
    pub fn take(&self, source: IpAddr) -> Option<ConnectionPlace> {
        let source = link_of(source);
        let is_taken = self.counts().take(source);
        is_taken.then(|| ConnectionPlace {
            places: self.clone(),
            source,
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // A panic under the lock leaves at most a wrong count.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.places.counts().free(self.source);
    }
}

impl Counts {
    fn take(&mut self, source: IpAddr) -> bool {
        let of_source = self.by_source.get(&source).copied().unwrap_or_default();
        if self.all >= MAX_CONNECTIONS || of_source >= MAX_OF_SOURCE {
            return false;
        }
        self.all += 1;
        self.by_source.insert(source, of_source + 1);
        true
    }

    fn free(&mut self, source: IpAddr) {
        self.all = self.all.saturating_sub(1);
        if let Some(count) = self.by_source.get_mut(&source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_source_takes_all_places_and_a_place_that_is_dropped_is_free() {
        let places = Places::default();
        let source = |n: u8| IpAddr::from([10, 210, n, 1]);
        let mut held: Vec<_> = (0..100).filter_map(|_| places.take(source(1))).collect();
        assert_eq!(held.len(), MAX_OF_SOURCE);
        held.pop();
        assert!(places.take(source(1)).is_some());
        for n in 2..100 {
            held.extend((0..MAX_OF_SOURCE).filter_map(|_| places.take(source(n))));
        }
        assert_eq!(held.len(), MAX_CONNECTIONS);
        held.clear();
        assert!(places.counts().by_source.is_empty());
        assert!(places.take(source(1)).is_some());
    }
}
