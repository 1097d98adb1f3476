//! The limits of probes: how many this node sends in a second, and how many of them to one address.
//!
//! A member may list the address of somebody else as its own. So the probes to one address are limited, whichever peers they are
//! for, and no number of lying members makes this node a source of a flood.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::model::Path;
use crate::model::rate::{Bucket, Rate};

/// The largest number of probes in a second.
pub const PROBES: u32 = 200;
/// The largest number of probes to one address in a second.
pub const PROBES_TO_ADDRESS: u32 = 20;
/// The largest number of addresses that are counted. While there are more, no others are probed.
const MAX_ADDRESSES: usize = 1024;
/// How often addresses that were not probed lately are forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// A rate that allows at most `most` in each second: half of them at once, and half as the time goes by.
fn rate(most: u32) -> Rate {
    Rate {
        per_second: f64::from(most) / 2.0,
        burst: f64::from(most) / 2.0,
    }
}

/// The probes that may be sent.
#[derive(Debug)]
pub struct Budget {
    all: Bucket,
    addresses: HashMap<Path, Bucket>,
    swept: Instant,
}

impl Budget {
    /// The whole budget.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            all: Bucket::full(rate(PROBES), now),
            addresses: HashMap::new(),
            swept: now,
        }
    }

    /// Whether a probe by `path` may be sent now. It is counted if so.
    pub fn take(&mut self, path: &Path, now: Instant) -> bool {
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.addresses.retain(|_, bucket| !bucket.is_full(now));
        }
        // All ports of an address share one limit.
        let address = match path {
            Path::Direct(endpoint) => Path::Direct(SocketAddr::new(network(endpoint.ip()), 0)),
            Path::Relay(_) | Path::Stream(_) => *path,
        };
        if self.addresses.len() >= MAX_ADDRESSES && !self.addresses.contains_key(&address) {
            return false;
        }
        let full = Bucket::full(rate(PROBES_TO_ADDRESS), now);
        let bucket = self.addresses.entry(address).or_insert(full);
        if !bucket.take(now) {
            return false;
        }
        let is_allowed = self.all.take(now);
        if !is_allowed {
            bucket.give_back();
        }
        is_allowed
    }
}

/// What shares one limit: an IPv4 address, or the IPv6 network of 64 bits, whose addresses lead to one link.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn path(host: u32, port: u16) -> Path {
        Path::Direct((Ipv4Addr::from_bits(0xc000_0200 + host), port).into())
    }

    /// The times in milliseconds at which probes are allowed, of one each millisecond for five seconds.
    fn allowed(mut path: impl FnMut(u32) -> Path) -> Vec<u32> {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        (0..5000)
            .filter(|ms| budget.take(&path(*ms), start + Duration::from_millis(u64::from(*ms))))
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
            budget.take(&path(n, 7), start);
        }
        assert!(budget.addresses.len() <= MAX_ADDRESSES);
        assert!(budget.take(&path(7, 7), start + Duration::from_secs(10)));
    }
}
