//! Who has which address of this node's block: containers, services outside the mesh, and guests. Nobody gets an address that another
//! one has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

use super::Workloads;
use crate::firewall::Mapped;
use crate::model::PublicKey;
use crate::model::address::Block;
use crate::node::docker::Docker;
use crate::records::Ledger;

/// Sets the addresses of this node's guests. Returns whether they changed.
pub(in crate::node) fn set_guests(workloads: &mut Workloads, guests: BTreeSet<Ipv4Addr>) -> bool {
    let is_changed = guests != workloads.guests;
    workloads.guests = guests;
    reserve(workloads);
    is_changed
}

/// The addresses that no guest gets, because containers or services outside the mesh have them.
pub(in crate::node) fn taken(workloads: &Workloads) -> BTreeSet<Ipv4Addr> {
    let mut taken = leased(workloads);
    taken.extend(workloads.registry.outside().instances());
    taken
}

/// The part of the block whose addresses the engine assigns, if it assigns any.
pub(in crate::node) fn native(workloads: &Workloads) -> Option<Ipv4Net> {
    let plan = workloads.docker.as_ref().and_then(Docker::native);
    plan.map(|plan| plan.range())
}

/// The addresses that are leased to containers.
fn leased(workloads: &Workloads) -> BTreeSet<Ipv4Addr> {
    let docker = workloads.docker.iter();
    let leased = docker.flat_map(|docker| docker.containers.leases.stored().into_values());
    leased.collect()
}

/// Leases no address of a guest or of a service outside the mesh to a container.
fn reserve(workloads: &mut Workloads) {
    let mut reserved = workloads.registry.outside().instances();
    reserved.extend(&workloads.guests);
    if let Some(docker) = &mut workloads.docker {
        docker.containers.leases.reserve(reserved);
    }
}

/// Assigns instance addresses to the services outside the mesh, and returns what is to be mapped.
pub(super) fn map_outside(workloads: &mut Workloads, block: &Block) -> BTreeMap<Ipv4Addr, Mapped> {
    let mut taken = leased(workloads);
    taken.extend(&workloads.guests);
    let pool = workloads.docker.as_ref().and_then(Docker::pool);
    let pool = pool.unwrap_or(block.v4);
    let mapped = workloads.registry.map_outside(block, pool, &taken);
    reserve(workloads);
    let mapped = mapped.into_iter().map(|(instance, mapping)| {
        let mapped = Mapped {
            container: mapping.target,
            pid: None,
            name: mapping.names,
            ports: Some(mapping.ports),
        };
        (instance, mapped)
    });
    mapped.collect()
}

/// The instance addresses that the kernel maps, each with the address to which it leads. `id` is this node.
pub(super) fn mapped(
    workloads: &Workloads,
    ledger: &Ledger,
    id: &PublicKey,
) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
    let Some(state) = workloads.firewall.applied_state() else {
        // As far as is known, what was published before the start of meshd is still mapped.
        let instances = ledger.services_of(id).flat_map(|held| &held.instances);
        let addresses = instances.flat_map(|instance| &instance.addresses);
        let published: BTreeSet<IpAddr> = addresses.copied().collect();
        let targets = workloads.registry.outside().targets().iter();
        let targets = targets.map(|(instance, target)| (*instance, *target));
        return targets
            .filter(|(instance, _)| published.contains(&IpAddr::V4(*instance)))
            .collect();
    };
    if !workloads.firewall.is_active() {
        return BTreeMap::new();
    }
    let mappings = state.mappings.iter();
    mappings
        .map(|(instance, mapped)| (*instance, mapped.container))
        .collect()
}

/// The instance address of the container that has the address `own` on its bridge. `outside` are the instance addresses of services
/// outside the mesh. Nobody is taken for such a service, since the records of its host name may lead to the address of somebody else.
pub(super) fn container_at(
    mappings: &BTreeMap<IpAddr, IpAddr>,
    outside: &BTreeSet<Ipv4Addr>,
    own: IpAddr,
) -> Option<IpAddr> {
    let is_outside =
        |instance: IpAddr| matches!(instance, IpAddr::V4(instance) if outside.contains(&instance));
    let mut mappings = mappings.iter();
    let found =
        mappings.find(|(instance, container)| **container == own && !is_outside(**instance));
    found.map(|(instance, _)| *instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_to_which_a_service_outside_leads_is_taken_for_itself_and_never_for_the_service()
    {
        let instance = |last| Ipv4Addr::new(10, 210, 1, last);
        let container = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 2));
        let outside = BTreeSet::from([instance(9)]);
        let mut mappings = BTreeMap::from([(IpAddr::from(instance(9)), container)]);
        assert_eq!(container_at(&mappings, &outside, container), None);
        mappings.insert(instance(200).into(), container);
        let found = container_at(&mappings, &outside, container);
        assert_eq!(found, Some(instance(200).into()));
    }
}
