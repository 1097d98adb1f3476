//! The limits of probes: how many this node sends in a second, how many of them for one peer, and how many to one address.
//!
//! A member may list the address of somebody else as its own. So the probes to one address are limited, whichever peers they are
//! for, and no number of lying members makes this node a source of a flood.
//!
//! A member may also list many addresses, and other ones again and again. So each peer has a share of the probes, and what it
//! needs beyond its share is granted only while half of the probes are left for the others.

use std::hash::Hash;
use std::net::SocketAddr;
use std::time::Instant;

use crate::model::Path;
use crate::model::address::link_of;
use crate::model::path::MAX_PATHS;
use crate::model::rate::{Bucket, Buckets, Rate};

/// The largest number of probes in a second.
pub const PROBES: u32 = 200;
/// The largest number of probes to one address in a second.
pub const PROBES_TO_ADDRESS: u32 = 20;
/// The maximum number of addresses that are counted. While there are more, no others are probed.
const MAX_ADDRESSES: usize = 1024;
/// The maximum number of peers that are counted. While there are more, no others are probed.
const MAX_PEERS: usize = 4096;
/// The share of a peer: at once one probe by each of its paths, since most paths that work do so at the first probe, and then the
/// probes of a path that is suspect.
const SHARE: Rate = Rate {
    per_second: 4.0,
    burst: MAX_PATHS as f64,
};
/// The number of probes that are left for the peers which have not used up their shares.
const RESERVED: f64 = PROBES as f64 / 4.0;

/// A rate that allows at most `most` in each second: half of them at once, and half as the time goes by.
fn rate(most: u32) -> Rate {
    Rate {
        per_second: f64::from(most) / 2.0,
        burst: f64::from(most) / 2.0,
    }
}

/// The probes that may be sent. `K` names a peer.
#[derive(Debug)]
pub struct Budget<K> {
    all: Bucket,
    addresses: Buckets<Path>,
    peers: Buckets<K>,
}

impl<K: Eq + Hash> Budget<K> {
    /// The whole budget.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            all: Bucket::full(rate(PROBES), now),
            addresses: Buckets::new(rate(PROBES_TO_ADDRESS), MAX_ADDRESSES, now),
            peers: Buckets::new(SHARE, MAX_PEERS, now),
        }
    }

    /// Whether a probe for `peer` by `path` may be sent now. It is counted if so.
    pub fn take(&mut self, peer: K, path: &Path, now: Instant) -> bool {
        // All ports of an address share one limit.
        let address = match path {
            Path::Direct(endpoint) => Path::Direct(SocketAddr::new(link_of(endpoint.ip()), 0)),
            Path::Relay(_) | Path::Stream(_) => *path,
        };
        let Some(share) = self.peers.of(peer, now) else {
            return false;
        };
        let reserved = if share.holds(1.0, now) { 0.0 } else { RESERVED };
        // An address is counted only if a probe may be sent to it, so that no peer fills the table with addresses.
        if !self.all.holds(1.0 + reserved, now) {
            return false;
        }
        let address = self.addresses.of(address, now);
        let is_allowed = address.is_some_and(|bucket| bucket.take(now));
        if is_allowed {
            self.all.take(now);
            share.take(now);
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    fn path(host: u32, port: u16) -> Path {
        Path::Direct((Ipv4Addr::from_bits(0xc000_0200 + host), port).into())
    }

    /// The times in milliseconds at which probes are allowed, of one each millisecond for five seconds.
    fn allowed(mut path: impl FnMut(u32) -> Path) -> Vec<u32> {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        (0..5000)
            .filter(|ms| {
                let now = start + Duration::from_millis(u64::from(*ms));
                budget.take(*ms % 20, &path(*ms), now)
            })
            .collect()
    }

    fn most_in_a_second(times: &[u32]) -> usize {
        let count = |from: u32| {
            times
                .iter()
                .filter(move |at| (from..from + 1000).contains(*at))
        };
        times
            .iter()
            .map(|from| count(*from).count())
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn no_second_has_more_than_twenty_probes_to_one_address_whatever_the_port() {
        let times = allowed(|n| path(1, n as u16));
        assert!((10..=PROBES_TO_ADDRESS as usize).contains(&most_in_a_second(&times)));
        assert!(times.len() >= 50, "and they go on: {}", times.len());
    }

    #[test]
    fn all_addresses_of_an_ipv6_network_share_one_limit() {
        let address = |network: u16, host: u32| -> Path {
            let host = u128::from(host);
            let bits =
                Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, 1).to_bits() + (host << 16);
            Path::Direct((Ipv6Addr::from_bits(bits), 7).into())
        };
        let times = allowed(|n| address(1, n));
        assert!((10..=PROBES_TO_ADDRESS as usize).contains(&most_in_a_second(&times)));
        let times = allowed(|n| address(n as u16, n));
        assert!(
            most_in_a_second(&times) >= 100,
            "other networks have their own"
        );
        let mapped = |n: u32| Ipv4Addr::from_bits(0xc000_0200 + n).to_ipv6_mapped();
        let times = allowed(|n| Path::Direct((mapped(n), 7).into()));
        assert!(
            most_in_a_second(&times) >= 100,
            "these are addresses of IPv4"
        );
    }

    #[test]
    fn no_second_has_more_than_two_hundred_probes_whatever_the_address() {
        let times = allowed(|n| path(n, 7));
        assert!((100..=PROBES as usize).contains(&most_in_a_second(&times)));
        assert!(times.len() >= 500, "and they go on: {}", times.len());
    }

    #[test]
    fn the_number_of_addresses_is_bounded() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for n in 0..100_000 {
            budget.take(n, &path(n, 7), start);
        }
        assert!(budget.addresses.len() <= MAX_ADDRESSES);
        assert!(budget.peers.len() <= MAX_PEERS);
        assert!(budget.take(7, &path(7, 7), start + Duration::from_secs(10)));
    }

    #[test]
    fn a_peer_with_ever_new_addresses_takes_nothing_from_the_share_of_the_others() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut greedy = 0;
        for ms in 0..5000u32 {
            let now = start + Duration::from_millis(u64::from(ms));
            let mut take = |peer, host| budget.take(peer, &path(host, 7), now);
            greedy += (0..10).filter(|n| take(0, 1000 + ms * 10 + n)).count();
            if ms % 2600 == 0 {
                let shares = (1..=4).map(|peer| {
                    let paths = 0..MAX_PATHS as u32;
                    paths.filter(|n| take(peer, peer * 20 + n)).count()
                });
                // Their shares are full at the beginning, and have grown by ten probes at the second time.
                let least = if ms == 0 { MAX_PATHS } else { 10 };
                assert!(shares.min() >= Some(least), "at {ms} ms");
            }
        }
        assert!(greedy >= 400, "it gets what the others leave: {greedy}");
    }
}
