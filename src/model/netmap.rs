//! The mesh as a node sees it: who is in, where, and what they serve.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::address::{Block, is_routable};
use super::key::{PublicKey, WireGuardKey};
use super::name::Label;
use super::record::{Mesh, Service};

/// A verified view of the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Netmap {
    /// Domain and address plan; absent until the first records came.
    pub mesh: Option<Mesh>,
    /// All members that have published a node record, by identity.
    pub members: BTreeMap<PublicKey, Member>,
    /// Services by record id, each as [`Netmap::admit`] gives it.
    pub services: BTreeMap<String, Service>,
}

/// A node of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Identity key.
    pub id: PublicKey,
    /// Unique within the netmap: of two claimants the earlier keeps the name.
    pub name: Label,
    /// What its token granted.
    pub tags: Vec<Label>,
    /// The key its tunnel speaks with.
    pub wireguard_key: WireGuardKey,
    /// The addresses it owns.
    pub block: Block,
    /// Where its tunnel may be reached, best first. Endpoints to which not every node can send are left out.
    pub endpoints: Vec<SocketAddr>,
    /// Whether nobody reaches its IPv6 address.
    pub without_ipv6: bool,
}

impl Member {
    /// The node's own addresses that can be reached, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v6 = (!self.without_ipv6).then(|| IpAddr::V6(self.block.node_v6()));
        [IpAddr::V4(self.block.node_v4())]
            .into_iter()
            .chain(v6)
            .collect()
    }
}

impl Netmap {
    /// The member called `name`.
    #[must_use]
    pub fn by_name(&self, name: &Label) -> Option<&Member> {
        self.members.values().find(|m| m.name == *name)
    }

    /// `service` as it stands in the netmap, if its node is a member: with the addresses of its node's block, to which the
    /// mesh carries packets, and without the instances that have no other. So no record makes a name of the mesh
    /// lead to a machine outside the mesh.
    #[must_use]
    pub fn admit(&self, service: &Service) -> Option<Service> {
        let block = self.members.get(&service.node)?.block;
        let mut service = service.clone();
        service.instances.retain_mut(|instance| {
            instance
                .addresses
                .retain(|address| block.contains(*address) && is_routable(*address));
            !instance.addresses.is_empty()
        });
        (!service.instances.is_empty()).then_some(service)
    }

    /// Whether `node` serves anything.
    #[must_use]
    pub fn serves(&self, node: &PublicKey) -> bool {
        let prefix = Service::ids_of(node);
        let next = self.services.range(prefix.clone()..).next();
        next.is_some_and(|(id, _)| id.starts_with(&prefix))
    }
}
