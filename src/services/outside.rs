//! Services outside the mesh: which addresses may have one, and the instance address that stands for each of them. Pure.
//!
//! The firewall maps the instance address to the service, as it maps those of containers. All services at one address share one
//! instance address, and so do all services at one host name. It follows from the address or the name as it is configured, so that it
//! is the same after a restart and when a name gets another address, unless another one has it. Containers get their addresses from the
//! start of the block, and services outside from its second half.
//!
//! An address has one instance address, because the policy between containers of this host is kept by the address to which the kernel
//! forwards. Of several names with the same address, only one is mapped: the one that had the address before, so that nobody takes it
//! from another name by records that lead to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use ipnet::Ipv4Net;

use crate::model::{HostName, Label, MeshAddresses, Protocol, ServerAddress};

/// Why no service outside the mesh can be at an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The address is one of another node, or of no node.
    #[error(
        "nothing carries packets to {0}: it is an address of the mesh that is not of this node; omit the address, or add the service on the node that has it"
    )]
    OfMesh(IpAddr),
    /// The address is one of this machine.
    #[error(
        "{0} is an address of this machine; omit the address, and let the program listen on the node's mesh address"
    )]
    Own(IpAddr),
    /// No router passes packets to the address on.
    #[error(
        "{0} is a {1} address, to which this node cannot forward; give the address that the service has in its network"
    )]
    Special(IpAddr, &'static str),
    /// The address is one of IPv6.
    #[error(
        "{0} is an address of IPv6, and this node forwards to services outside over IPv4 only; give the IPv4 address of the service"
    )]
    Ipv6(IpAddr),
    /// A host name leads to an address of the container networks.
    #[error(
        "{0} is an address of the containers of this machine, to which no host name may lead; offer the container by the label mesh.service, and remove this service"
    )]
    OfContainer(Ipv4Addr),
    /// The name is one of the mesh.
    #[error(
        "{0} is a name of the mesh, which this node does not forward to; omit the address, or add the service on the node that has it"
    )]
    NameOfMesh(HostName),
    /// The node looks up the maximum number of names.
    #[error(
        "this node looks up {1} host names for its services, which is the maximum; give the IP address of {0}"
    )]
    TooManyNames(HostName, usize),
}

/// What decides where services outside the mesh can be: the mesh, and the addresses of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// The address plan of the mesh, once it is known.
    pub mesh: Option<MeshAddresses>,
    /// The domain of the mesh, once it is known.
    pub domain: Option<Label>,
    /// The addresses of this machine outside the mesh.
    pub own: BTreeSet<IpAddr>,
    /// The networks of the containers of this machine that are in the mesh.
    pub containers: BTreeSet<Ipv4Net>,
}

impl Machine {
    /// Checks that a service outside the mesh can be at `address`.
    ///
    /// # Errors
    /// Says why not, and what to do.
    pub fn check(&self, address: IpAddr) -> Result<Ipv4Addr, Refusal> {
        check(address, self.mesh.as_ref(), &self.own)
    }

    /// Checks that a service outside the mesh can be at `address`, to which its host name leads. The policy would take a container at that
    /// address for the service, so nobody chooses one by the records of a name.
    ///
    /// # Errors
    /// Says why not, and what to do.
    pub fn check_answer(&self, address: Ipv4Addr) -> Result<Ipv4Addr, Refusal> {
        let address = self.check(address.into())?;
        match self.containers.iter().any(|net| net.contains(&address)) {
            true => Err(Refusal::OfContainer(address)),
            false => Ok(address),
        }
    }

    /// Checks that a service outside the mesh can be at `name`.
    ///
    /// # Errors
    /// It is a name of the mesh.
    pub fn check_name(&self, name: &HostName) -> Result<(), Refusal> {
        let domain = self.domain.as_ref();
        match domain.is_some_and(|domain| name.is_under(domain.as_str())) {
            true => Err(Refusal::NameOfMesh(name.clone())),
            false => Ok(()),
        }
    }
}

/// Where services outside the mesh are, as it is configured. The order decides which one is mapped of several that have the same
/// address now, unless one of them is a name that was mapped before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    At(Ipv4Addr),
    Named(HostName),
}

impl Place {
    /// The place of services at `address`, to which packets are forwarded at `target`. None if there is no such address.
    #[must_use]
    pub fn of(address: &ServerAddress, target: Option<Ipv4Addr>) -> Option<Self> {
        match address {
            ServerAddress::At(_) => target.map(Self::At),
            ServerAddress::Named(name) => Some(Self::Named(name.clone())),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(address) => std::fmt::Display::fmt(address, f),
            Self::Named(name) => std::fmt::Display::fmt(name, f),
        }
    }
}

/// Checks that a service outside the mesh can be at `address`. `own` are the addresses of this machine.
///
/// # Errors
/// Says why not, and what to do.
pub fn check(
    address: IpAddr,
    mesh: Option<&MeshAddresses>,
    own: &BTreeSet<IpAddr>,
) -> Result<Ipv4Addr, Refusal> {
    if mesh.is_some_and(|mesh| mesh.contains(address)) {
        return Err(Refusal::OfMesh(address));
    }
    let IpAddr::V4(v4) = address else {
        return Err(Refusal::Ipv6(address));
    };
    let special = [
        (v4.is_loopback(), "loopback"),
        (v4.is_link_local(), "link-local"),
        (v4.is_multicast(), "multicast"),
        (v4.is_broadcast(), "broadcast"),
        (v4.octets().first() == Some(&0), "unspecified"),
    ];
    if let Some((_, what)) = special.into_iter().find(|(is_so, _)| *is_so) {
        return Err(Refusal::Special(address, what));
    }
    if own.contains(&address) {
        return Err(Refusal::Own(address));
    }
    Ok(v4)
}

/// What the firewall maps for the services at one address outside the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutsideMapping {
    /// The address of the services.
    pub target: Ipv4Addr,
    /// The names of the services, for users.
    pub names: String,
    /// The ports on which the services accept connections.
    pub ports: BTreeSet<(Protocol, NonZeroU16)>,
}

/// The instance addresses of services outside the mesh.
#[derive(Debug, Clone, Default)]
pub struct Outside {
    /// The instance addresses by the places of the services.
    held: BTreeMap<Place, Ipv4Addr>,
    /// The places for which the last assignment had no room.
    without_room: BTreeSet<Place>,
    /// The instance addresses that are to be mapped, each with the address to which it leads.
    targets: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// The places that are not mapped, each with the place that has the same address and is mapped.
    shared: BTreeMap<Place, Place>,
    /// The instance addresses that the kernel maps, each with the address to which it leads.
    applied: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

impl Outside {
    /// Assigns an instance address of `pool` to each of the places `wanted`, which come with the addresses that they have now. Those in
    /// `taken` belong to others. Places for which there is no room get none.
    pub fn assign(
        &mut self,
        wanted: &BTreeMap<Place, Option<Ipv4Addr>>,
        pool: Ipv4Net,
        taken: &BTreeSet<Ipv4Addr>,
    ) {
        let last = u32::from(pool.broadcast()).saturating_sub(1);
        let first = u32::from(pool.network()).saturating_add(2);
        // The second half.
        let first = first + last.saturating_sub(first) / 2;
        let is_in = |address: &Ipv4Addr| (first..=last).contains(&u32::from(*address));
        self.held.retain(|place, instance| {
            wanted.contains_key(place) && is_in(instance) && !taken.contains(instance)
        });
        let count = last.saturating_sub(first) + 1;
        self.without_room.clear();
        for place in wanted.keys() {
            if self.held.contains_key(place) {
                continue;
            }
            let used: BTreeSet<Ipv4Addr> = self.held.values().copied().collect();
            let start = digest(place) % count;
            let mut places = (0..count).map(|step| Ipv4Addr::from(first + (start + step) % count));
            match places.find(|a| !used.contains(a) && !taken.contains(a)) {
                Some(free) => {
                    self.held.insert(place.clone(), free);
                }
                None => {
                    self.without_room.insert(place.clone());
                }
            }
        }
        self.set_targets(wanted);
    }

    /// Decides which places are mapped. A name does not take an address from another name that led to it first.
    fn set_targets(&mut self, wanted: &BTreeMap<Place, Option<Ipv4Addr>>) {
        let before = std::mem::take(&mut self.targets);
        self.shared.clear();
        let places = wanted
            .iter()
            .filter_map(|(place, target)| Some((place, (*target)?, self.instance(place)?)));
        let mut places: Vec<(&Place, Ipv4Addr, Ipv4Addr)> = places.collect();
        places.sort_by_key(|(place, target, instance)| {
            matches!(place, Place::Named(_)) && before.get(instance) != Some(target)
        });
        let mut mapped: BTreeMap<Ipv4Addr, &Place> = BTreeMap::new();
        for (place, target, instance) in places {
            match mapped.get(&target) {
                Some(other) => drop(self.shared.insert(place.clone(), (*other).clone())),
                None => {
                    mapped.insert(target, place);
                    self.targets.insert(instance, target);
                }
            }
        }
    }

    /// The instance address of the services at `place`, if it has one.
    #[must_use]
    pub fn instance(&self, place: &Place) -> Option<Ipv4Addr> {
        self.held.get(place).copied()
    }

    /// Whether there was no instance address for the services at `place` when addresses were assigned.
    #[must_use]
    pub fn is_full_for(&self, place: &Place) -> bool {
        self.without_room.contains(place)
    }

    /// The place that is mapped instead of `place`, because both have the same address.
    #[must_use]
    pub fn mapped_instead(&self, place: &Place) -> Option<&Place> {
        self.shared.get(place)
    }

    /// The instance addresses that are to be mapped, each with the address to which it leads.
    #[must_use]
    pub fn targets(&self) -> &BTreeMap<Ipv4Addr, Ipv4Addr> {
        &self.targets
    }

    /// All instance addresses.
    #[must_use]
    pub fn instances(&self) -> BTreeSet<Ipv4Addr> {
        self.held.values().copied().collect()
    }

    /// Sets what the kernel maps: instance addresses, each with the address to which it leads.
    pub fn set_applied(&mut self, applied: BTreeMap<Ipv4Addr, Ipv4Addr>) {
        self.applied = applied;
    }

    /// The instance address at which the services at `place` are reached by now: the kernel forwards to one of the addresses `targets`.
    #[must_use]
    pub fn reached_at(
        &self,
        place: &Place,
        mut targets: impl Iterator<Item = Ipv4Addr>,
    ) -> Option<Ipv4Addr> {
        let instance = self.instance(place)?;
        let applied = self.applied.get(&instance)?;
        targets.any(|target| target == *applied).then_some(instance)
    }
}

/// A number that follows from a place (FNV-1a).
fn digest(place: &Place) -> u32 {
    let fold = |bytes: &[u8]| {
        bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        })
    };
    match place {
        Place::At(address) => fold(&address.octets()),
        Place::Named(name) => fold(name.as_str().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().expect("a literal")
    }

    fn pool() -> Ipv4Net {
        "10.210.1.0/24".parse().expect("a literal")
    }

    fn at(text: &str) -> Place {
        Place::At(ip(text))
    }

    fn named(text: &str) -> Place {
        Place::Named(text.parse().expect("a literal"))
    }

    /// The places at addresses from `first` to `last`.
    fn places(first: u8, last: u8) -> BTreeMap<Place, Option<Ipv4Addr>> {
        let addresses = (first..=last).map(|n| Ipv4Addr::new(10, 0, 0, n));
        addresses
            .map(|address| (Place::At(address), Some(address)))
            .collect()
    }

    #[test]
    fn an_address_outside_the_mesh_may_have_a_service_and_others_are_refused_with_a_sentence() {
        let mesh = MeshAddresses {
            prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
            prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
            node_block_v4: 24,
            node_block_v6: 64,
        };
        let own = BTreeSet::from([IpAddr::V4(ip("192.168.1.7"))]);
        let check = |text: &str| {
            let address = text.parse().expect("a literal");
            check(address, Some(&mesh), &own)
        };
        for fine in ["10.0.0.5", "192.168.1.8", "203.0.113.7", "100.64.0.1"] {
            assert_eq!(check(fine), Ok(ip(fine)));
        }
        for (refused, part) in [
            ("10.210.99.1", "nothing carries packets to 10.210.99.1"),
            ("fd00:1:2:9::1", "nothing carries packets to"),
            ("192.168.1.7", "of this machine"),
            ("127.0.0.1", "loopback"),
            ("169.254.169.254", "link-local"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("0.0.0.0", "unspecified"),
            ("2001:db8::5", "IPv6"),
        ] {
            let said = check(refused).expect_err(refused).to_string();
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn each_address_has_one_instance_address_that_stays_and_that_nobody_else_has() {
        let wanted = places(1, 40);
        let mut outside = Outside::default();
        outside.assign(&wanted, pool(), &BTreeSet::new());
        let all = outside.instances();
        assert_eq!(all.len(), wanted.len());
        let second_half = |a: &Ipv4Addr| pool().contains(a) && a.octets()[3] >= 128;
        assert!(all.iter().all(|a| second_half(a) && a.octets()[3] < 255));
        let mut again = Outside::default();
        again.assign(&wanted, pool(), &BTreeSet::new());
        assert_eq!(again.instances(), all);
        // Others go, and those that stay keep their addresses.
        let kept = places(9, 9);
        let before = outside.instance(&at("10.0.0.9"));
        outside.assign(&kept, pool(), &BTreeSet::new());
        assert_eq!(outside.instance(&at("10.0.0.9")), before);
        assert_eq!(outside.instances().len(), 1);
        // An address that a container has is not given to a service.
        let taken = before.into_iter().collect();
        let mut other = Outside::default();
        other.assign(&kept, pool(), &taken);
        assert_ne!(other.instance(&at("10.0.0.9")), before);
    }

    #[test]
    fn without_room_a_service_has_no_address() {
        let mut outside = Outside::default();
        let wanted = places(0, 255);
        outside.assign(&wanted, pool(), &BTreeSet::new());
        assert_eq!(outside.instances().len(), 127);
        let full = wanted.keys().filter(|place| outside.is_full_for(place));
        assert_eq!(full.count(), wanted.len() - 127);
        assert!(!outside.is_full_for(&at("10.9.9.9")), "it was not wanted");
        // All addresses belong to containers.
        let one = places(9, 9);
        let taken: BTreeSet<Ipv4Addr> = pool().hosts().collect();
        outside.assign(&one, pool(), &taken);
        assert!(outside.instances().is_empty() && outside.is_full_for(&at("10.0.0.9")));
        outside.assign(&one, pool(), &BTreeSet::new());
        assert!(!outside.is_full_for(&at("10.0.0.9")));
    }

    #[test]
    fn a_service_is_reached_once_the_kernel_maps_its_address_to_it() {
        let (target, other) = (ip("10.0.0.5"), ip("10.0.0.6"));
        let (place, reached) = (at("10.0.0.5"), |outside: &Outside| {
            outside.reached_at(&at("10.0.0.5"), [target].into_iter())
        });
        let mut outside = Outside::default();
        outside.assign(&places(5, 5), pool(), &BTreeSet::new());
        let instance = outside.instance(&place).expect("there is room");
        assert_eq!(reached(&outside), None);
        outside.set_applied(BTreeMap::from([(instance, other)]));
        assert_eq!(reached(&outside), None);
        outside.set_applied(BTreeMap::from([(instance, target)]));
        assert_eq!(reached(&outside), Some(instance));
    }

    #[test]
    fn the_instance_address_of_a_name_stays_while_the_name_has_no_address_and_when_it_gets_another_one()
     {
        let name = named("db.example.net");
        let mut outside = Outside::default();
        let mut instances = BTreeSet::new();
        for address in [None, Some(ip("10.0.0.5")), Some(ip("10.0.0.6")), None] {
            let wanted = BTreeMap::from([(name.clone(), address)]);
            outside.assign(&wanted, pool(), &BTreeSet::new());
            let instance = outside.instance(&name).expect("there is room");
            instances.insert(instance);
            let expected: BTreeMap<_, _> = address.map(|to| (instance, to)).into_iter().collect();
            assert_eq!(*outside.targets(), expected);
        }
        assert_eq!(instances.len(), 1);
        let mut other = Outside::default();
        let wanted = BTreeMap::from([(named("other.example.net"), None)]);
        other.assign(&wanted, pool(), &BTreeSet::new());
        assert_ne!(other.instances(), instances);
    }

    #[test]
    fn of_several_places_with_the_same_address_one_is_mapped() {
        let (first, second) = (named("a.example.net"), named("b.example.net"));
        let mut outside = Outside::default();
        let target = ip("10.0.0.5");
        let mut wanted = BTreeMap::from([
            (first.clone(), Some(target)),
            (second.clone(), Some(target)),
        ]);
        outside.assign(&wanted, pool(), &BTreeSet::new());
        let instance = outside.instance(&first).expect("there is room");
        assert_eq!(*outside.targets(), BTreeMap::from([(instance, target)]));
        assert_eq!(outside.mapped_instead(&second), Some(&first));
        assert_eq!(outside.mapped_instead(&first), None);
        wanted.insert(first.clone(), Some(ip("10.0.0.6")));
        outside.assign(&wanted, pool(), &BTreeSet::new());
        assert_eq!(outside.targets().len(), 2);
        assert_eq!(outside.mapped_instead(&second), None);

        // A name that leads to the address of another one does not take it.
        wanted.insert(first.clone(), Some(target));
        outside.assign(&wanted, pool(), &BTreeSet::new());
        assert_eq!(outside.mapped_instead(&first), Some(&second));
        assert_eq!(outside.mapped_instead(&second), None);
        // An address of the configuration does.
        let configured = at("10.0.0.5");
        wanted.insert(configured.clone(), Some(target));
        outside.assign(&wanted, pool(), &BTreeSet::new());
        for name in [&first, &second] {
            assert_eq!(outside.mapped_instead(name), Some(&configured));
        }
    }

    #[test]
    fn a_name_of_the_mesh_is_refused() {
        let machine = Machine {
            domain: Label::parse("mesh").ok(),
            ..Machine::default()
        };
        let check = |text: &str| machine.check_name(&text.parse().expect("a literal"));
        assert_eq!(check("db.example.net"), Ok(()));
        let refused = check("db.svc.mesh")
            .expect_err("it is of the mesh")
            .to_string();
        assert!(refused.contains("a name of the mesh"), "{refused}");
    }
}
