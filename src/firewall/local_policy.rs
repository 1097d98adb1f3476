//! What the policy allows between the addresses of one host. Pure.
//!
//! Containers of one host reach each other without the tunnel, so the firewall enforces the policy between them. Addresses that the
//! policy does not tell apart are one group. So the value is small, and two tables with the same rules for this host have equal values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::policy::{Class, PortSet, Table};

/// The policy between the addresses of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalPolicy {
    groups: BTreeMap<IpAddr, usize>,
    /// What the first group may ask of the second one.
    allowed: BTreeMap<(usize, usize), PortSet>,
}

impl LocalPolicy {
    /// The policy between `addresses`, which are this node's own one and those of its instances. None if there is no policy.
    #[must_use]
    pub fn of(table: &Table, addresses: &BTreeSet<IpAddr>) -> Option<Self> {
        if table.allows_everything() {
            return None;
        }
        // The number of a class depends on the whole mesh, and that of its group only on the addresses of this host.
        let mut numbers: BTreeMap<Class, usize> = BTreeMap::new();
        let mut groups = BTreeMap::new();
        for address in addresses {
            let next = numbers.len();
            let class = table.class(*address);
            groups.insert(*address, *numbers.entry(class).or_insert(next));
        }
        let classes: Vec<Class> = numbers.keys().copied().collect();
        let pairs = table.pairs(&classes).into_iter();
        let allowed = pairs.filter_map(|(from, to, ports)| {
            Some(((*numbers.get(&from)?, *numbers.get(&to)?), ports))
        });
        Some(Self {
            groups,
            allowed: allowed.collect(),
        })
    }

    /// A policy by which an address may ask of another one what is listed.
    #[cfg(test)]
    pub(super) fn allowing<A: Into<IpAddr> + Copy>(pairs: &[(A, A, PortSet)]) -> Self {
        let pairs = pairs.iter();
        let pairs = pairs.map(|(a, b, ports)| ((*a).into(), (*b).into(), ports));
        let pairs: Vec<(IpAddr, IpAddr, &PortSet)> = pairs.collect();
        let addresses: BTreeSet<IpAddr> = pairs.iter().flat_map(|(a, b, _)| [*a, *b]).collect();
        let groups: BTreeMap<_, _> = addresses.into_iter().zip(0..).collect();
        let allowed = pairs.iter().map(|(a, b, ports)| {
            let group = |of| groups.get(of).copied().unwrap_or_default();
            ((group(a), group(b)), (*ports).clone())
        });
        Self {
            allowed: allowed.collect(),
            groups,
        }
    }

    /// What `from` may ask of `to`. None if it may ask for nothing. An address may ask itself for everything.
    pub(super) fn between(&self, from: IpAddr, to: IpAddr) -> Option<PortSet> {
        if from == to {
            return Some(PortSet::everything());
        }
        let (from, to) = (self.groups.get(&from)?, self.groups.get(&to)?);
        self.allowed.get(&(*from, *to)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Label, Protocol};
    use crate::policy::{Asked, Offered, OfferedPort, Policy, Subject};

    fn label(text: &str) -> Label {
        Label::parse(text).expect("a literal")
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 210, 1, last])
    }

    fn address_v6(last: u8) -> IpAddr {
        IpAddr::from([0xfd00, 1, 2, 1, 0, 0, 0, u16::from(last)])
    }

    fn subject(last: u8, service: Option<&str>) -> Subject {
        let offered = service.map(|name| Offered {
            service: label(name).into(),
            ports: vec![OfferedPort {
                name: None,
                protocol: Protocol::Tcp,
                port: 5432,
            }],
            allow: Vec::new(),
        });
        Subject {
            addresses: vec![address(last), address_v6(last)],
            node: label("n1"),
            tags: Vec::new(),
            is_node: offered.is_none(),
            guest: None,
            network: None,
            services: offered.into_iter().collect(),
        }
    }

    fn policy(text: &str) -> Option<LocalPolicy> {
        let policy = Policy::parse(text).expect("a literal");
        let subjects = [
            subject(1, None),
            subject(2, Some("web")),
            subject(3, Some("web")),
            subject(4, Some("db")),
        ];
        let table = Table::compile(Some(&policy), &subjects);
        let addresses = (1..=4).flat_map(|last| [address(last), address_v6(last)]);
        LocalPolicy::of(&table, &addresses.collect())
    }

    #[test]
    fn a_policy_is_reduced_to_what_it_says_about_the_addresses_of_one_host() {
        let text =
            "language = 1\ndefault = \"deny\"\n[[allow]]\nfrom = [\"web\"]\nto = [\"db:5432\"]\n";
        let policy = policy(text).expect("a policy");
        let db = PortSet::of(Asked::Port(Protocol::Tcp, 5432));
        for from in [2, 3] {
            let found = policy.between(address(from), address(4));
            assert_eq!(found.as_ref(), Some(&db));
            let found = policy.between(address_v6(from), address_v6(4));
            assert_eq!(found.as_ref(), Some(&db));
        }
        for (from, to) in [(1, 4), (4, 2), (2, 3), (2, 1), (9, 4), (2, 9)] {
            let found = policy.between(address(from), address(to));
            assert_eq!(found, None, "{from} to {to}");
            let found = policy.between(address_v6(from), address_v6(to));
            assert_eq!(found, None, "{from} to {to} over IPv6");
        }
        let own = policy.between(address(4), address(4));
        assert_eq!(own, Some(PortSet::everything()));
    }

    #[test]
    fn without_a_policy_there_are_no_rules() {
        let table = Table::compile(None, &[subject(1, None), subject(2, Some("web"))]);
        assert_eq!(
            LocalPolicy::of(&table, &(1..=2).map(address).collect()),
            None
        );
        let closed = LocalPolicy::of(&Table::closed(), &(1..=2).map(address).collect());
        assert_eq!(
            closed.and_then(|of| of.between(address(1), address(2))),
            None
        );
        assert!(LocalPolicy::of(&Table::closed(), &BTreeSet::new()).is_some());
    }
}
