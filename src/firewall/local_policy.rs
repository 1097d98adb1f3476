//! What the policy allows between the addresses of one host. Pure.
//!
//! Containers of one host reach each other without the tunnel, so the firewall holds them to the policy. Addresses that the
//! policy does not tell apart are one group, so the value is small, and two tables that say the same about this host are equal.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::policy::{Class, PortSet, Table};

/// The policy between the addresses of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalPolicy {
    groups: BTreeMap<Ipv4Addr, usize>,
    /// What the first group may ask of the second one.
    allowed: BTreeMap<(usize, usize), PortSet>,
}

impl LocalPolicy {
    /// The policy between `addresses`, which are this node's own one and those of its instances. None if there is no policy.
    #[must_use]
    pub fn of(table: &Table, addresses: &BTreeSet<Ipv4Addr>) -> Option<Self> {
        if table.allows_everything() {
            return None;
        }
        let mut classes: Vec<Class> = Vec::new();
        let mut groups = BTreeMap::new();
        for address in addresses {
            let class = table.class(IpAddr::V4(*address));
            let known = classes.iter().position(|of| *of == class);
            let group = known.unwrap_or_else(|| {
                classes.push(class);
                classes.len() - 1
            });
            groups.insert(*address, group);
        }
        let all = || classes.iter().enumerate();
        let pairs = all().flat_map(|from| all().map(move |to| (from, to)));
        let allowed = pairs.map(|((from, a), (to, b))| ((from, to), table.ports(*a, *b)));
        Some(Self {
            groups,
            allowed: allowed.filter(|(_, ports)| !ports.is_empty()).collect(),
        })
    }

    /// What `from` may ask of `to`. None if that is nothing. An address may ask itself for everything.
    pub(super) fn between(&self, from: Ipv4Addr, to: Ipv4Addr) -> Option<PortSet> {
        if from == to {
            return Some(PortSet::everything());
        }
        let (from, to) = (self.groups.get(&from)?, self.groups.get(&to)?);
        self.allowed.get(&(*from, *to)).cloned()
    }
}
