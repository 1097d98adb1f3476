//! How many connections there may be, together, of one source and of one network.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::{IpNet, Ipv4Net};

use crate::model::address::link_of;

/// The maximum number of connections.
const MAX_CONNECTIONS: usize = 256;
/// The maximum number of connections of one source.
const MAX_OF_SOURCE: usize = 32;
/// The maximum number of connections of one IPv4 network, so that no member of the mesh takes all of them: a member can have each address
/// of its block.
const MAX_OF_NETWORK: usize = 128;
/// The prefix length of such a network. By default this is the length of a node's block.
const NETWORK: u8 = 24;

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
    by_network: HashMap<IpNet, usize>,
}

impl Places {
    /// Takes a place for a connection from `source`. None if there are too many connections.
    #[must_use]
    pub fn take(&self, source: IpAddr) -> Option<ConnectionPlace> {
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
        let of = |network: &IpNet| self.by_network.get(network).copied().unwrap_or_default();
        let is_full = |(network, most): (IpNet, usize)| of(&network) >= most;
        if self.all >= MAX_CONNECTIONS || networks_of(source).any(is_full) {
            return false;
        }
        self.all += 1;
        for (network, _) in networks_of(source) {
            *self.by_network.entry(network).or_default() += 1;
        }
        true
    }

    fn free(&mut self, source: IpAddr) {
        self.all = self.all.saturating_sub(1);
        for (network, _) in networks_of(source) {
            if let Some(count) = self.by_network.get_mut(&network) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.by_network.remove(&network);
                }
            }
        }
    }
}

/// The networks in which a connection from `source` is counted, each with its maximum number of connections: the source alone, and the
/// IPv4 network around it.
fn networks_of(source: IpAddr) -> impl Iterator<Item = (IpNet, usize)> {
    let source = IpNet::from(link_of(source));
    let network = match source {
        IpNet::V4(v4) => Ipv4Net::new(v4.addr(), NETWORK).ok(),
        // One machine can have all addresses of its link, which count as one source.
        IpNet::V6(_) => None,
    };
    let network = network.map(|network| (IpNet::V4(network.trunc()), MAX_OF_NETWORK));
    std::iter::once((source, MAX_OF_SOURCE)).chain(network)
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
        assert!(places.counts().by_network.is_empty());
        assert!(places.take(source(1)).is_some());
    }

    #[test]
    fn no_member_takes_all_places_with_the_addresses_of_its_block() {
        let places = Places::default();
        let v4 = |n: u8| IpAddr::from([10, 210, 1, n]);
        let v6 = |n: u16| IpAddr::from([0xfd00, 0, 0, 1, 0, 0, 0, n]);
        let mut held: Vec<_> = (1..=254).filter_map(|n| places.take(v4(n))).collect();
        assert_eq!(held.len(), MAX_OF_NETWORK);
        held.extend((1..=254).filter_map(|n| places.take(v6(n))));
        assert_eq!(held.len(), MAX_OF_NETWORK + MAX_OF_SOURCE);
        assert!(places.take(IpAddr::from([10, 210, 2, 1])).is_some());
        held.clear();
        assert!(places.counts().by_network.is_empty());
    }
}
