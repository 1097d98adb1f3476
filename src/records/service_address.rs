//! Assigns service addresses: the addresses in block 0 from host 64 up.
//!
//! No node allocates them. A node with instances of a service that asks for an address claims one in its record. A service
//! address is translated at the node of the client, so it has a meaning only inside one node: two nodes may give different
//! addresses to a service without harm, but one node must never move an address from a service to another while clients
//! still use it. Therefore [`ServiceAddresses::assign`] takes the earlier assignment of the node into account:
//!
//! - a service that has an address keeps it as long as a node claims an address for it within its share, whatever other
//!   nodes claim;
//! - an address that became free is kept for the service that had it, as long as other addresses are free;
//! - where no address is assigned yet, the claims of earlier members come first. Members are ordered as for names: by the
//!   date of the membership, then by the node's key;
//! - the share of a node is an eighth of the addresses. Services beyond the share of their nodes get the addresses that no
//!   other service needs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::netmap::{Netmap, Rank};
use crate::model::address::MeshAddresses;
use crate::model::key::PublicKey;
use crate::model::name::ServiceName;

/// The first host of block 0 that is a service address.
const FIRST_HOST: u32 = 64;
/// The share of one node is the number of addresses divided by this. Only claims within the share displace those of others.
const SHARES: u32 = 8;

/// The services and their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct ServiceAddresses {
    of: BTreeMap<ServiceName, Ipv4Addr>,
    holders: BTreeMap<Ipv4Addr, ServiceName>,
    /// Addresses that no service has now, each with the service that had it last.
    released: BTreeMap<Ipv4Addr, ServiceName>,
}

/// The form in which [`ServiceAddresses`] are stored in a file.
#[derive(Serialize, Deserialize)]
struct Stored {
    held: BTreeMap<Ipv4Addr, ServiceName>,
    #[serde(default)]
    released: BTreeMap<Ipv4Addr, ServiceName>,
}

/// A node's claim to an address for a service.
struct Claim {
    rank: Rank,
    address: Ipv4Addr,
}

/// How much other services may need an address. Addresses with a lower value are assigned first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// No service had it before, or this service had it.
    Free,
    /// Another service had it last.
    Released,
    /// A service that is beyond its nodes' share has it.
    Surplus,
}

impl ServiceAddresses {
    /// Assigns addresses by the claims in `netmap`. `held` is the earlier assignment of this node.
    #[must_use]
    pub fn assign(netmap: &Netmap, held: &Self) -> Self {
        let Some(plan) = netmap.mesh.as_ref().map(|mesh| &mesh.addresses) else {
            return Self::default();
        };
        let mut claims: BTreeMap<ServiceName, Vec<Claim>> = BTreeMap::new();
        for service in netmap.services.values() {
            let member = netmap.members.get(&service.node);
            if let (Some(address), Some(member)) = (service.service_address, member) {
                let rank = member.rank();
                let claims = claims.entry(service.service_name()).or_default();
                claims.push(Claim { rank, address });
            }
        }
        let (within, beyond) = shared(plan, claims);
        let mut assigned = Self {
            released: held.released.clone(),
            ..Self::default()
        };
        for (address, name) in &held.holders {
            assigned.released.insert(*address, name.clone());
        }
        // A service within the share keeps its address. A service beyond it does so as long as no other service needs it.
        let keeps = |name: &ServiceName| {
            let address = held.of.get(name).copied();
            address.filter(|address| is_service_address(plan, *address))
        };
        let mut surplus: BTreeSet<Ipv4Addr> = BTreeSet::new();
        for (name, _) in &beyond {
            surplus.extend(keeps(name));
        }
        let (kept, new): (Vec<_>, Vec<_>) = within
            .into_iter()
            .partition(|(name, _)| keeps(name).is_some());
        for (name, _) in kept {
            if let Some(address) = keeps(&name) {
                assigned.give(name, address);
            }
        }
        let surplus = |address| surplus.contains(&address);
        for (name, claims) in new {
            assigned.pick(plan, name, &claims, surplus);
        }
        let mut without = Vec::new();
        for (name, claims) in beyond {
            match keeps(&name).filter(|address| !assigned.holders.contains_key(address)) {
                Some(address) => assigned.give(name, address),
                None => without.push((name, claims)),
            }
        }
        for (name, claims) in without {
            assigned.pick(plan, name, &claims, |_| false);
        }
        assigned
    }

    /// Returns the address of `name`, and assigns one if it has none: the first free address from the hash of the name on. Returns
    /// none if no address is free.
    pub fn choose(&mut self, plan: &MeshAddresses, name: ServiceName) -> Option<Ipv4Addr> {
        match self.of.get(&name) {
            Some(address) => Some(*address),
            None => self.pick(plan, name, &[], |_| false),
        }
    }

    /// Assigns `name` an address that no service has: its earlier address, else a claimed address, else any.
    fn pick(
        &mut self,
        plan: &MeshAddresses,
        name: ServiceName,
        claims: &[Claim],
        surplus: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        let (first, count) = range(plan)?;
        if self.holders.len() >= count as usize {
            return None;
        }
        let start = fnv1a(&name.to_string()) % count;
        let any = || {
            let hosts = (0..count).map(move |step| (start + step) % count);
            hosts.map(move |host| Ipv4Addr::from(first + host))
        };
        let had = self.released.iter().filter(|(_, before)| **before == name);
        let wanted: Vec<Ipv4Addr> = had
            .map(|(address, _)| *address)
            .chain(claims.iter().map(|claim| claim.address))
            .filter(|address| is_service_address(plan, *address))
            .collect();
        let use_of = |address: Ipv4Addr| {
            if surplus(address) {
                return Use::Surplus;
            }
            match self.released.get(&address) {
                Some(before) if *before != name => Use::Released,
                _ => Use::Free,
            }
        };
        let address = [Use::Free, Use::Released, Use::Surplus]
            .into_iter()
            .find_map(|most| {
                let fits = |address: &Ipv4Addr| {
                    !self.holders.contains_key(address) && use_of(*address) <= most
                };
                wanted
                    .iter()
                    .copied()
                    .find(fits)
                    .or_else(|| any().find(fits))
            })?;
        self.give(name, address);
        Some(address)
    }

    fn give(&mut self, name: ServiceName, address: Ipv4Addr) {
        self.released.remove(&address);
        self.holders.insert(address, name.clone());
        self.of.insert(name, address);
    }

    /// Returns the address of `name`.
    #[must_use]
    pub fn find(&self, name: &ServiceName) -> Option<Ipv4Addr> {
        self.of.get(name).copied()
    }

    /// Returns all services that have an address.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceName, Ipv4Addr)> {
        self.of.iter().map(|(name, address)| (name, *address))
    }
}

impl From<Stored> for ServiceAddresses {
    fn from(stored: Stored) -> Self {
        let mut addresses = Self {
            released: stored.released,
            ..Self::default()
        };
        for (address, name) in stored.held {
            if !addresses.of.contains_key(&name) {
                addresses.give(name, address);
            }
        }
        addresses
    }
}

impl From<ServiceAddresses> for Stored {
    fn from(addresses: ServiceAddresses) -> Self {
        Self {
            held: addresses.holders,
            released: addresses.released,
        }
    }
}

type Claims = Vec<(ServiceName, Vec<Claim>)>;

/// Sorts the services by their first claimants, and separates those that are beyond the share of every node that claims an
/// address for them. A service is charged to that claimant which has the fewest charges, so a node cannot use up the share
/// of another node by claiming addresses for the same services.
fn shared(plan: &MeshAddresses, claims: BTreeMap<ServiceName, Vec<Claim>>) -> (Claims, Claims) {
    let share = range(plan).map_or(0, |(_, count)| count.div_ceil(SHARES));
    let mut services: Claims = claims.into_iter().collect();
    for (_, claims) in &mut services {
        claims.sort_by_key(|claim| claim.rank);
    }
    services.sort_by_key(|(_, claims)| claims.first().map(|claim| claim.rank));
    let mut charged: BTreeMap<PublicKey, u32> = BTreeMap::new();
    services.into_iter().partition(|(_, claims)| {
        let of = |claim: &&Claim| charged.get(&claim.rank.id).copied().unwrap_or(0);
        let Some(claim) = claims.iter().min_by_key(of) else {
            return false;
        };
        let charged = charged.entry(claim.rank.id).or_default();
        *charged = charged.saturating_add(1);
        *charged <= share
    })
}

/// Returns the first service address and the number of service addresses. The last address of block 0 is its broadcast address, so
/// it is not a service address.
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

/// The 32-bit FNV-1a hash. It is the same on every node and in every version, unlike the hashers of the standard library.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::UnixSeconds;
    use crate::records::kinds::{Mesh, Service};
    use crate::records::netmap::Member;
    use crate::testbed::records as build;
    use proptest::prelude::*;

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

    fn member(n: u8) -> Member {
        let block = plan().block(u32::from(n)).expect("in the plan");
        Member {
            issued_at: UnixSeconds(u64::from(n) * 1000),
            ..build::member(&PublicKey([n; 32]), &format!("n{n}"), block)
        }
    }

    fn assign(netmap: &Netmap) -> ServiceAddresses {
        ServiceAddresses::assign(netmap, &ServiceAddresses::default())
    }

    fn address_of(assigned: &ServiceAddresses, service: &str) -> Option<String> {
        assigned.find(&name(service)).map(|a| a.to_string())
    }

    /// A netmap in which each node claims an address for a service. Node 1 joined first, then node 2, and so on.
    fn netmap(claims: &[(u8, &str, &str)]) -> Netmap {
        let mesh = Mesh {
            addresses: plan(),
            ..build::mesh()
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
        let members = claims
            .iter()
            .map(|(n, _, _)| (PublicKey([*n; 32]), member(*n)));
        Netmap {
            mesh: Some(mesh),
            members: members.collect(),
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
    fn the_address_of_a_first_claim_is_the_same_in_every_version() {
        for (service, address) in [
            ("a", "10.210.0.109"),
            ("db", "10.210.0.206"),
            ("mail", "10.210.0.205"),
            ("web.shop", "10.210.0.239"),
        ] {
            let chosen = ServiceAddresses::default().choose(&plan(), name(service));
            assert_eq!(chosen.map(|a| a.to_string()).as_deref(), Some(address));
        }
    }

    #[test]
    fn a_service_keeps_its_address_whoever_claims_it_later() {
        let address = "10.210.0.99";
        let before = assign(&netmap(&[(5, "db", address)]));
        // The rivals are an earlier member, a name that sorts first, and a lower address for the same service.
        let later = netmap(&[
            (5, "db", address),
            (1, "a", address),
            (2, "db", "10.210.0.64"),
        ]);
        let assigned = ServiceAddresses::assign(&later, &before);
        assert_eq!(address_of(&assigned, "db").as_deref(), Some(address));
        assert!(address_of(&assigned, "a").is_some_and(|other| other != address));
        // The same holds after a restart, with the addresses from the disk.
        let stored = serde_json::to_string(&assigned).expect("plain values");
        let stored: ServiceAddresses = serde_json::from_str(&stored).expect("just written");
        assert_eq!(ServiceAddresses::assign(&later, &stored), assigned);
    }

    #[test]
    fn an_address_waits_for_the_service_that_had_it_while_others_are_free() {
        let address = "10.210.0.99";
        let before = assign(&netmap(&[(5, "db", address)]));
        let gone = netmap(&[(1, "a", address)]);
        let without = ServiceAddresses::assign(&gone, &before);
        assert!(address_of(&without, "a").is_some_and(|other| other != address));
        let back = netmap(&[(1, "a", address), (5, "db", "10.210.0.70")]);
        // The same holds after a restart, with the addresses from the disk.
        let stored = serde_json::to_string(&without).expect("plain values");
        let stored: ServiceAddresses = serde_json::from_str(&stored).expect("just written");
        for held in [without, stored] {
            let again = ServiceAddresses::assign(&back, &held);
            assert_eq!(address_of(&again, "db").as_deref(), Some(address));
        }
    }

    #[test]
    fn of_two_services_with_one_claim_the_one_of_the_earlier_member_has_it() {
        let assigned = assign(&netmap(&[
            (1, "web", "10.210.0.70"),
            (2, "db", "10.210.0.70"),
        ]));
        assert_eq!(address_of(&assigned, "web").as_deref(), Some("10.210.0.70"));
        assert_ne!(address_of(&assigned, "db").as_deref(), Some("10.210.0.70"));
        assert!(address_of(&assigned, "db").is_some());
    }

    #[test]
    fn of_two_claims_for_one_service_that_of_the_earlier_member_holds() {
        let assigned = assign(&netmap(&[
            (1, "db", "10.210.0.80"),
            (2, "db", "10.210.0.70"),
        ]));
        assert_eq!(address_of(&assigned, "db").as_deref(), Some("10.210.0.80"));
    }

    #[test]
    fn a_node_that_claims_all_addresses_leaves_others_theirs_and_room_for_new_ones() {
        let all: Vec<(String, String)> = (64..255)
            .map(|host| (format!("x{host}"), format!("10.210.0.{host}")))
            .collect();
        let mut claims: Vec<(u8, &str, &str)> = all
            .iter()
            .map(|(service, address)| (1, service.as_str(), address.as_str()))
            .collect();
        // Node 1 also claims addresses for the services of node 9.
        claims.extend([(1, "db", "10.210.0.200"), (1, "late", "10.210.0.201")]);
        let hog = assign(&netmap(&claims));
        assert_eq!(hog.iter().count(), 191);
        claims.extend([(9, "db", "10.210.0.70"), (9, "late", "10.210.0.71")]);
        claims.push((9, "own", "10.210.0.72"));
        let assigned = ServiceAddresses::assign(&netmap(&claims), &hog);
        for service in ["db", "late", "own"] {
            assert!(address_of(&assigned, service).is_some(), "{service}");
        }
        let again = ServiceAddresses::assign(&netmap(&claims), &assigned);
        assert_eq!(again, assigned);
    }

    #[test]
    fn a_claim_on_the_dns_address_or_a_nodes_is_none() {
        for stolen in ["10.210.0.53", "10.210.1.1", "10.210.0.255", "8.8.8.8"] {
            let assigned = assign(&netmap(&[(1, "db", stolen)]));
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

    proptest! {
        #[test]
        fn no_address_moves_while_it_is_claimed_and_none_belongs_to_two(
            steps in prop::collection::vec(
                prop::collection::vec((1u8..5, 0usize..40, 0u8..255), 0..60),
                1..5,
            ),
        ) {
            let mut held = ServiceAddresses::default();
            for step in steps {
                let texts: Vec<(u8, String, String)> = step
                    .iter()
                    .map(|(node, service, host)| (*node, format!("s{service}"), format!("10.210.0.{host}")))
                    .collect();
                let claims: Vec<(u8, &str, &str)> = texts
                    .iter()
                    .map(|(node, service, address)| (*node, service.as_str(), address.as_str()))
                    .collect();
                let netmap = netmap(&claims);
                let assigned = ServiceAddresses::assign(&netmap, &held);
                let claimed: BTreeSet<ServiceName> =
                    netmap.services.values().map(Service::service_name).collect();
                for (service, address) in held.iter().filter(|(s, _)| claimed.contains(*s)) {
                    prop_assert_eq!(assigned.find(service), Some(address));
                }
                for service in &claimed {
                    let address = assigned.find(service);
                    prop_assert!(address.is_some_and(|a| is_service_address(&plan(), a)));
                }
                let distinct: BTreeSet<Ipv4Addr> =
                    assigned.iter().map(|(_, address)| address).collect();
                prop_assert_eq!(distinct.len(), claimed.len());
                prop_assert_eq!(&ServiceAddresses::assign(&netmap, &assigned), &assigned);
                held = assigned;
            }
        }
    }
}
