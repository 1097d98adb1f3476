//! Services outside the mesh: which addresses may have one, and the instance address that stands for each of them. Pure.
//!
//! The firewall maps the instance address to the service, as it maps those of containers. All services at one address share one
//! instance address. It follows from the address of the service, so that it is the same after a restart, unless another one has it.
//! Containers get their addresses from the start of the block, and services outside from its second half.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use ipnet::Ipv4Net;

use crate::model::{MeshAddresses, Protocol};

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
    /// The instance addresses by the addresses of the services.
    held: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// The addresses of services for which the last assignment had no room.
    without_room: BTreeSet<Ipv4Addr>,
    /// The instance addresses that the kernel maps, each with the address to which it leads.
    applied: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

impl Outside {
    /// Assigns an instance address of `pool` to each of the addresses `wanted`. Those in `taken` belong to others. Addresses for which
    /// there is no room get none.
    pub fn assign(
        &mut self,
        wanted: &BTreeSet<Ipv4Addr>,
        pool: Ipv4Net,
        taken: &BTreeSet<Ipv4Addr>,
    ) {
        let last = u32::from(pool.broadcast()).saturating_sub(1);
        let first = u32::from(pool.network()).saturating_add(2);
        // The second half.
        let first = first + last.saturating_sub(first) / 2;
        let is_in = |address: &Ipv4Addr| (first..=last).contains(&u32::from(*address));
        self.held.retain(|target, instance| {
            wanted.contains(target) && is_in(instance) && !taken.contains(instance)
        });
        let count = last.saturating_sub(first) + 1;
        self.without_room.clear();
        for target in wanted {
            if self.held.contains_key(target) {
                continue;
            }
            let used: BTreeSet<Ipv4Addr> = self.held.values().copied().collect();
            let start = digest(*target) % count;
            let mut places = (0..count).map(|step| Ipv4Addr::from(first + (start + step) % count));
            match places.find(|a| !used.contains(a) && !taken.contains(a)) {
                Some(free) => {
                    self.held.insert(*target, free);
                }
                None => {
                    self.without_room.insert(*target);
                }
            }
        }
    }

    /// The instance address of the services at `target`, if it has one.
    #[must_use]
    pub fn instance(&self, target: Ipv4Addr) -> Option<Ipv4Addr> {
        self.held.get(&target).copied()
    }

    /// Whether there was no instance address for the services at `target` when addresses were assigned.
    #[must_use]
    pub fn is_full_for(&self, target: Ipv4Addr) -> bool {
        self.without_room.contains(&target)
    }

    /// The instance addresses by the addresses of the services.
    #[must_use]
    pub fn assigned(&self) -> &BTreeMap<Ipv4Addr, Ipv4Addr> {
        &self.held
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

    /// The instance address at which the services at `target` are reached by now.
    #[must_use]
    pub fn reached_at(&self, target: Ipv4Addr) -> Option<Ipv4Addr> {
        let instance = self.instance(target)?;
        (self.applied.get(&instance) == Some(&target)).then_some(instance)
    }
}

/// A number that follows from an address (FNV-1a).
fn digest(address: Ipv4Addr) -> u32 {
    let octets = address.octets();
    octets.iter().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
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
        let wanted: BTreeSet<Ipv4Addr> = (1..=40).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
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
        let kept = BTreeSet::from([ip("10.0.0.9")]);
        let before = outside.instance(ip("10.0.0.9"));
        outside.assign(&kept, pool(), &BTreeSet::new());
        assert_eq!(outside.instance(ip("10.0.0.9")), before);
        assert_eq!(outside.instances().len(), 1);
        // An address that a container has is not given to a service.
        let taken = before.into_iter().collect();
        let mut other = Outside::default();
        other.assign(&kept, pool(), &taken);
        assert_ne!(other.instance(ip("10.0.0.9")), before);
    }

    #[test]
    fn without_room_a_service_has_no_address() {
        let wanted: BTreeSet<Ipv4Addr> = (0..=255).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
        let mut outside = Outside::default();
        outside.assign(&wanted, pool(), &BTreeSet::new());
        assert_eq!(outside.instances().len(), 127);
        let full = wanted.iter().filter(|a| outside.is_full_for(**a)).count();
        assert_eq!(full, wanted.len() - 127);
        assert!(!outside.is_full_for(ip("10.9.9.9")), "it was not wanted");
        // All addresses belong to containers.
        let one = BTreeSet::from([ip("10.0.0.9")]);
        let taken: BTreeSet<Ipv4Addr> = pool().hosts().collect();
        outside.assign(&one, pool(), &taken);
        assert!(outside.instances().is_empty() && outside.is_full_for(ip("10.0.0.9")));
        outside.assign(&one, pool(), &BTreeSet::new());
        assert!(!outside.is_full_for(ip("10.0.0.9")));
    }

    #[test]
    fn a_service_is_reached_once_the_kernel_maps_its_address_to_it() {
        let (target, other) = (ip("10.0.0.5"), ip("10.0.0.6"));
        let mut outside = Outside::default();
        outside.assign(&BTreeSet::from([target]), pool(), &BTreeSet::new());
        let instance = outside.instance(target).expect("there is room");
        assert_eq!(outside.reached_at(target), None);
        outside.set_applied(BTreeMap::from([(instance, other)]));
        assert_eq!(outside.reached_at(target), None);
        outside.set_applied(BTreeMap::from([(instance, target)]));
        assert_eq!(outside.reached_at(target), Some(instance));
    }
}
