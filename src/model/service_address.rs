//! Service addresses: which service has which of the addresses in block 0 from host 64 up.
//!
//! Nobody gives them out. A node with instances of a service that asks for one claims an address in its record; the
//! first claim stays, since whoever comes later sees it and claims the same for the same service, and another for
//! another. Where two services claim the same address at the same time, the first by name keeps it. All of it follows
//! from the netmap alone, so nodes with the same records agree.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::address::MeshAddresses;
use super::name::ServiceName;
use super::netmap::Netmap;
use super::record::Service;

/// The first host of block 0 that is a service's.
const FIRST_HOST: u32 = 64;

/// Services with the address each has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceAddresses {
    of: BTreeMap<ServiceName, Ipv4Addr>,
    taken: BTreeSet<Ipv4Addr>,
}

impl ServiceAddresses {
    /// What follows from the claims in `netmap`.
    #[must_use]
    pub fn assign(netmap: &Netmap) -> Self {
        let Some(mesh) = &netmap.mesh else {
            return Self::default();
        };
        let mut claims: BTreeMap<ServiceName, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        for service in netmap.services.values() {
            if let Some(address) = service.service_address {
                claims
                    .entry(service.service_name())
                    .or_default()
                    .insert(address);
            }
        }
        let mut assigned = Self::default();
        let mut without = Vec::new();
        for (name, claimed) in claims {
            let free = claimed.iter().find(|address| {
                is_service_address(&mesh.addresses, **address) && !assigned.taken.contains(address)
            });
            match free.copied() {
                Some(address) => assigned.give(name, address),
                None => without.push(name),
            }
        }
        for name in without {
            assigned.choose(&mesh.addresses, name);
        }
        assigned
    }

    /// The address that `name` has, or one that it gets now: from its name's hash on, the first that is free. None, if
    /// all are taken.
    pub fn choose(&mut self, plan: &MeshAddresses, name: ServiceName) -> Option<Ipv4Addr> {
        if let Some(address) = self.of.get(&name) {
            return Some(*address);
        }
        let (first, count) = range(plan)?;
        let start = fnv1a(&name.to_string()) % count;
        let address = (0..count)
            .map(|step| Ipv4Addr::from(first + (start + step) % count))
            .find(|address| !self.taken.contains(address))?;
        self.give(name, address);
        Some(address)
    }

    fn give(&mut self, name: ServiceName, address: Ipv4Addr) {
        self.taken.insert(address);
        self.of.insert(name, address);
    }

    /// The address of `name`.
    #[must_use]
    pub fn find(&self, name: &ServiceName) -> Option<Ipv4Addr> {
        self.of.get(name).copied()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceName, Ipv4Addr)> {
        self.of.iter().map(|(name, address)| (name, *address))
    }
}

impl Service {
    /// What it is called.
    #[must_use]
    pub fn service_name(&self) -> ServiceName {
        ServiceName {
            name: self.name.clone(),
            project: self.project.clone(),
        }
    }
}

/// The first service address and how many there are: up to the last but one of block 0, which is its broadcast address.
fn range(plan: &MeshAddresses) -> Option<(u32, u32)> {
    let size = 1u32.checked_shl(32 - u32::from(plan.node_block_v4))?;
    let first = u32::from(plan.prefix_v4.network()).checked_add(FIRST_HOST)?;
    let count = size.checked_sub(FIRST_HOST + 1)?;
    (count > 0).then_some((first, count))
}

fn is_service_address(plan: &MeshAddresses, address: Ipv4Addr) -> bool {
    range(plan).is_some_and(|(first, count)| {
        u32::from(address)
            .checked_sub(first)
            .is_some_and(|offset| offset < count)
    })
}

/// FNV-1a, 32 bits: the same on every node and in every version, which a hasher of the standard library is not.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, octet| {
        (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::Mesh;
    use crate::model::{Label, PublicKey};

    fn plan() -> MeshAddresses {
        MeshAddresses {
            prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
            prefix_v6: "fd12:3456:789a::/48".parse().expect("a literal"),
            node_block_v4: 24,
            node_block_v6: 64,
        }
    }

    fn name(text: &str) -> ServiceName {
        ServiceName::parse(text).expect("a literal")
    }

    /// A netmap in which each node claims an address for a service.
    fn netmap(claims: &[(u8, &str, &str)]) -> Netmap {
        let mesh = Mesh {
            id: "mesh".into(),
            version: 1,
            domain: Label::parse("mesh").expect("a literal"),
            addresses: plan(),
            coordinators: vec![],
        };
        let services = claims.iter().map(|(node, service, address)| {
            let node = PublicKey([*node; 32]);
            let name = name(service);
            let id = Service::id_of(&node, name.project.as_ref(), &name.name);
            let service = Service {
                id: id.clone(),
                version: 1,
                node,
                name: name.name,
                project: name.project,
                service_address: Some(address.parse().expect("a literal")),
                instances: Vec::new(),
            };
            (id, service)
        });
        Netmap {
            mesh: Some(mesh),
            services: services.collect(),
            ..Netmap::default()
        }
    }

    #[test]
    fn a_first_claim_is_from_the_range_and_the_same_everywhere() {
        let one = ServiceAddresses::default().choose(&plan(), name("db"));
        assert_eq!(one, ServiceAddresses::default().choose(&plan(), name("db")));
        let last = one.expect("room").octets();
        assert_eq!(last[..3], [10, 210, 0]);
        assert!((64..=254).contains(&last[3]), "{last:?}");
    }

    #[test]
    fn a_service_keeps_its_address_whoever_comes_later() {
        let address = "10.210.0.99";
        for other in ["a", "b", "zz", "db.shop"] {
            let mut assigned = ServiceAddresses::assign(&netmap(&[(1, "db", address)]));
            let chosen = assigned.choose(&plan(), name(other)).expect("room");
            assert_ne!(chosen.to_string(), address);
            let both = netmap(&[(1, "db", address), (2, other, &chosen.to_string())]);
            let assigned = ServiceAddresses::assign(&both);
            assert_eq!(
                assigned.find(&name("db")).map(|a| a.to_string()),
                Some(address.to_owned())
            );
            assert_eq!(assigned.find(&name(other)), Some(chosen));
        }
    }

    #[test]
    fn of_two_services_with_one_claim_the_first_by_name_keeps_it() {
        let assigned = ServiceAddresses::assign(&netmap(&[
            (1, "web", "10.210.0.70"),
            (2, "db", "10.210.0.70"),
        ]));
        assert_eq!(
            assigned.find(&name("db")).map(|a| a.to_string()),
            Some("10.210.0.70".to_owned())
        );
        let other = assigned.find(&name("web")).expect("room");
        assert_ne!(other.to_string(), "10.210.0.70");
    }

    #[test]
    fn two_nodes_with_different_claims_for_one_service_agree_on_the_lower() {
        let assigned = ServiceAddresses::assign(&netmap(&[
            (1, "db", "10.210.0.80"),
            (2, "db", "10.210.0.70"),
        ]));
        assert_eq!(
            assigned.find(&name("db")).map(|a| a.to_string()),
            Some("10.210.0.70".to_owned())
        );
    }

    #[test]
    fn a_claim_on_the_dns_address_or_a_nodes_is_none() {
        for stolen in ["10.210.0.53", "10.210.1.1", "10.210.0.255", "8.8.8.8"] {
            let assigned = ServiceAddresses::assign(&netmap(&[(1, "db", stolen)]));
            let given = assigned.find(&name("db")).expect("room").to_string();
            assert_ne!(given, stolen);
        }
    }

    #[test]
    fn when_all_are_taken_there_is_none() {
        let mut assigned = ServiceAddresses::default();
        for n in 0..191 {
            assert!(
                assigned.choose(&plan(), name(&format!("s{n}"))).is_some(),
                "{n}"
            );
        }
        assert_eq!(assigned.choose(&plan(), name("one-more")), None);
    }
}
