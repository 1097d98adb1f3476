//! The mesh as a node sees it: who is in, where, and what they serve.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::address::Block;
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
    /// Services by record id, those of members only and none without instances.
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
    /// Where its tunnel may be reached, best first.
    pub endpoints: Vec<SocketAddr>,
}

impl Netmap {
    /// The member called `name`.
    #[must_use]
    pub fn by_name(&self, name: &Label) -> Option<&Member> {
        self.members.values().find(|m| m.name == *name)
    }

    /// Whether `service` is one of the netmap's: a member's, and with instances.
    #[must_use]
    pub fn admits(&self, service: &Service) -> bool {
        !service.instances.is_empty() && self.members.contains_key(&service.node)
    }

    /// Whether `node` serves anything.
    #[must_use]
    pub fn serves(&self, node: &PublicKey) -> bool {
        let prefix = Service::ids_of(node);
        let next = self.services.range(prefix.clone()..).next();
        next.is_some_and(|(id, _)| id.starts_with(&prefix))
    }
}
