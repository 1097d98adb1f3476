//! The owner of an address: the longest matching prefix among the allowed IPs of all peers.
//!
//! There is one hash table for each prefix length in use, the longest first. A mesh has one or two lengths in each family, so
//! a lookup needs one or two probes, whatever the number of peers.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use ipnet::IpNet;

/// The owners of the prefixes of one length. There is a lookup for each packet, so the hasher is a fast one.
type Level<K, T> = HashMap<K, T, RandomState>;

/// An immutable table from prefixes to owners.
#[derive(Debug, Clone, Default)]
pub struct AllowedIps<T> {
    v4: Vec<(u32, Level<u32, T>)>,
    v6: Vec<(u128, Level<u128, T>)>,
}

impl<T: Clone> AllowedIps<T> {
    /// Builds the table. If a prefix is given more than once, the last owner counts, as with `wg`.
    #[must_use]
    pub fn new(prefixes: impl IntoIterator<Item = (IpNet, T)>) -> Self {
        let mut table = Self {
            v4: Vec::new(),
            v6: Vec::new(),
        };
        for (prefix, owner) in prefixes {
            match prefix {
                IpNet::V4(net) => {
                    level(&mut table.v4, u32::from(net.netmask()))
                        .insert(net.network().into(), owner);
                }
                IpNet::V6(net) => {
                    level(&mut table.v6, u128::from(net.netmask()))
                        .insert(net.network().into(), owner);
                }
            }
        }
        table
    }

    /// The same prefixes with other owners.
    #[must_use]
    pub fn map(&self, owner: impl Fn(&T) -> T) -> Self {
        fn level<K: Copy + Eq + std::hash::Hash, T>(
            levels: &[(K, Level<K, T>)],
            owner: impl Fn(&T) -> T,
        ) -> Vec<(K, Level<K, T>)> {
            let nets = |nets: &Level<K, T>| nets.iter().map(|(k, t)| (*k, owner(t))).collect();
            levels.iter().map(|(mask, of)| (*mask, nets(of))).collect()
        }
        Self {
            v4: level(&self.v4, &owner),
            v6: level(&self.v6, &owner),
        }
    }

    /// The owner of `address`.
    #[inline]
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(v4) => {
                let bits = u32::from(v4);
                self.v4
                    .iter()
                    .find_map(|(mask, nets)| nets.get(&(bits & mask)))
            }
            IpAddr::V6(v6) => {
                let bits = u128::from(v6);
                self.v6
                    .iter()
                    .find_map(|(mask, nets)| nets.get(&(bits & mask)))
            }
        }
    }

    /// Whether `address` is the first host of its longest matching prefix. If the prefixes are the blocks of nodes, that is the
    /// address of a node itself.
    #[must_use]
    pub fn is_first_host(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                let bits = u32::from(v4);
                let mut levels = self.v4.iter();
                let net = levels.find(|(mask, nets)| nets.contains_key(&(bits & mask)));
                net.is_some_and(|(mask, _)| bits & !mask == 1)
            }
            IpAddr::V6(v6) => {
                let bits = u128::from(v6);
                let mut levels = self.v6.iter();
                let net = levels.find(|(mask, nets)| nets.contains_key(&(bits & mask)));
                net.is_some_and(|(mask, _)| bits & !mask == 1)
            }
        }
    }
}

/// The table for `mask`, which is inserted if there is none. Tables are sorted by mask: longer masks are larger numbers.
fn level<K: Ord + Copy, T>(levels: &mut Vec<(K, Level<K, T>)>, mask: K) -> &mut Level<K, T> {
    let at = levels.partition_point(|(other, _)| *other > mask);
    if levels.get(at).is_none_or(|(other, _)| *other != mask) {
        levels.insert(at, (mask, Level::default()));
    }
    &mut levels[at].1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_prefix_wins() {
        let table = AllowedIps::new([
            ("10.0.0.0/8".parse().expect("a literal"), 1),
            ("10.1.0.0/16".parse().expect("a literal"), 2),
            ("10.1.2.3/32".parse().expect("a literal"), 3),
            ("::/0".parse().expect("a literal"), 4),
        ]);
        let owner = |a: &str| table.owner(a.parse().expect("a literal")).copied();
        assert_eq!(owner("10.9.9.9"), Some(1));
        assert_eq!(owner("10.1.9.9"), Some(2));
        assert_eq!(owner("10.1.2.3"), Some(3));
        assert_eq!(owner("11.0.0.1"), None);
        assert_eq!(owner("2001:db8::1"), Some(4));
    }

    #[test]
    fn the_first_host_of_a_prefix_is_found_in_both_families_and_never_in_a_prefix_of_one_address() {
        let prefixes = [
            "10.0.0.0/8",
            "10.1.2.0/24",
            "10.1.3.1/32",
            "fd00:0:0:2::/64",
        ];
        let table = AllowedIps::new(prefixes.map(|p| (p.parse().expect("a literal"), ())));
        let is_first = |a: &str| table.is_first_host(a.parse().expect("a literal"));
        for first in ["10.0.0.1", "10.1.2.1", "fd00:0:0:2::1"] {
            assert!(is_first(first), "{first}");
        }
        for other in [
            "10.1.2.0",
            "10.1.2.2",
            "10.1.3.1",
            "10.9.0.1",
            "192.0.2.1",
            "fd00:0:0:2::2",
            "fd00:0:0:3::1",
        ] {
            assert!(!is_first(other), "{other}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn lookups_agree_with_trying_every_prefix(
            nets in prop::collection::vec((any::<u32>(), 0u8..=32), 0..40),
            nets6 in prop::collection::vec((any::<u128>(), 0u8..=128), 0..20),
            near in any::<prop::sample::Index>(),
            flips in any::<u32>(),
        ) {
            let prefixes: Vec<IpNet> = nets.iter()
                .map(|(a, l)| IpNet::new(IpAddr::V4((*a).into()), *l).expect("a length in range"))
                .chain(nets6.iter().map(|(a, l)| IpNet::new(IpAddr::V6((*a).into()), *l).expect("a length in range")))
                .collect();
            let table = AllowedIps::new(prefixes.iter().copied().enumerate().map(|(i, p)| (p, i)));
            let oracle = |address: IpAddr| prefixes.iter().enumerate()
                .filter(|(_, p)| p.contains(&address))
                .max_by_key(|(i, p)| (p.prefix_len(), *i))
                .map(|(i, _)| i);
            for shift in 0..32 {
                let v4 = nets.get(near.index(nets.len().max(1))).map_or(flips, |(a, _)| a ^ (flips >> shift));
                let address = IpAddr::V4(v4.into());
                prop_assert_eq!(table.owner(address).copied(), oracle(address));
                let v6 = nets6.first().map_or(1, |(a, _)| a ^ (u128::from(flips) << shift));
                let address = IpAddr::V6(v6.into());
                prop_assert_eq!(table.owner(address).copied(), oracle(address));
            }
        }
    }
}
