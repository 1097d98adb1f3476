//! The map of the mesh that a node computes from its ledger: the members, their addresses, and their services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::kinds::{Mesh, Service, StreamOffer};
use crate::model::address::{Block, is_routable};
use crate::model::key::{PublicKey, WireGuardKey};
use crate::model::name::{Label, ServiceName};
use crate::model::time::UnixSeconds;

/// The members and services of the mesh, all verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Netmap {
    /// The domain and address plan; absent until the mesh record was received.
    pub mesh: Option<Mesh>,
    /// All members that have published a node record, by identity.
    pub members: BTreeMap<PublicKey, Member>,
    /// The services by record id, each as [`Netmap::admit`] returns it.
    pub services: BTreeMap<String, Service>,
}

/// A member of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The identity key.
    pub id: PublicKey,
    /// The name, which is unique within the netmap: of two members that claim a name, the earlier one keeps it.
    pub name: Label,
    /// When the membership was issued. A member cannot move this date back, so the date ranks members that claim the same
    /// thing.
    pub issued_at: UnixSeconds,
    /// The tags that its token grants.
    pub tags: Vec<Label>,
    /// The WireGuard key of its tunnel.
    pub wireguard_key: WireGuardKey,
    /// Its address block.
    pub block: Block,
    /// The addresses at which its tunnel may be reached, best first. Endpoints to which not every node can send are left out.
    pub endpoints: Vec<SocketAddr>,
    /// Whether its IPv6 address cannot be reached.
    pub without_ipv6: bool,
    /// Whether it understands the messages of `protocol::path_messages`.
    pub speaks_paths: bool,
    /// The relays that it is best reached through, best first.
    pub relays: Vec<PublicKey>,
    /// Its addresses at its router.
    pub at_router: AtRouter,
    /// Where it relays over TLS.
    pub stream: Option<StreamOffer>,
}

/// The addresses that a router has for a member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AtRouter {
    /// Those of the member's endpoints that the router maps to it.
    pub mapped: Vec<SocketAddr>,
    /// Those from which others saw its datagrams come. Nothing is sent there before the member expects that.
    pub observed: Vec<SocketAddr>,
}

/// The order of members that claim the same thing: the member that joined first comes first. A member gains nothing by its
/// choice of a name. Its key counts only among members with the same date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// When the membership was issued.
    pub issued_at: UnixSeconds,
    /// The identity key, which decides between members with the same date.
    pub id: PublicKey,
}

impl Member {
    /// Returns the member's position among members that claim the same thing.
    #[must_use]
    pub fn rank(&self) -> Rank {
        Rank {
            issued_at: self.issued_at,
            id: self.id,
        }
    }

    /// Returns the node's own addresses that can be reached, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v6 = (!self.without_ipv6).then(|| IpAddr::V6(self.block.node_v6()));
        [IpAddr::V4(self.block.node_v4())]
            .into_iter()
            .chain(v6)
            .collect()
    }
}

/// A service that is served by at least two nodes without a common tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contested<'a> {
    /// The name of the service and of its project.
    pub service: ServiceName,
    /// The names of all nodes that serve it, in alphabetical order.
    pub nodes: Vec<&'a Label>,
}

impl Netmap {
    /// Returns the services that are served by two nodes without a common tag. Nodes with equal sets of tags do not contest a
    /// service, even if the sets are empty: in a mesh whose tokens carry no tags, no service is contested.
    #[must_use]
    pub fn contested(&self) -> Vec<Contested<'_>> {
        let mut served: BTreeMap<(&Label, Option<&Label>), Vec<&Member>> = BTreeMap::new();
        for service in self.services.values() {
            if let Some(member) = self.members.get(&service.node) {
                let name = (&service.name, service.project.as_ref());
                served.entry(name).or_default().push(member);
            }
        }
        let mut contested = Vec::new();
        for ((name, project), members) in served {
            // Many nodes share few different sets of tags, so the sets are compared instead of the nodes.
            let sets: BTreeSet<&[Label]> = members.iter().map(|m| m.tags.as_slice()).collect();
            let apart = |a: &[Label]| {
                sets.iter()
                    .any(|b| a != *b && !a.iter().any(|tag| b.contains(tag)))
            };
            if !sets.iter().any(|set| apart(set)) {
                continue;
            }
            let mut nodes: Vec<&Label> = members.iter().map(|member| &member.name).collect();
            nodes.sort();
            contested.push(Contested {
                service: ServiceName {
                    name: name.clone(),
                    project: project.cloned(),
                },
                nodes,
            });
        }
        contested
    }

    /// Returns the member with the name `name`.
    #[must_use]
    pub fn by_name(&self, name: &Label) -> Option<&Member> {
        self.members.values().find(|m| m.name == *name)
    }

    /// Returns `service` as it is in the netmap; none if its node is not a member. It has only addresses in its node's block, to which
    /// the mesh carries packets, and only instances with such an address. So no record makes a name of the mesh resolve to a machine
    /// outside the mesh.
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

    /// Whether `node` has a service with instances.
    #[must_use]
    pub fn serves(&self, node: &PublicKey) -> bool {
        let prefix = Service::ids_of(node);
        let next = self.services.range(prefix.clone()..).next();
        next.is_some_and(|(id, _)| id.starts_with(&prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::records as build;
    use crate::testbed::records::label;

    /// A netmap of nodes with these tags. All of the nodes serve `db`.
    fn serving(nodes: &[(u8, &[&str])]) -> Netmap {
        let mut netmap = Netmap::default();
        for (n, tags) in nodes {
            let id = PublicKey([*n; 32]);
            let block = Block {
                v4: format!("10.210.{n}.0/24").parse().expect("a literal"),
                v6: format!("fd00:0:0:{n}::/64").parse().expect("a literal"),
            };
            let member = Member {
                tags: tags.iter().map(|tag| label(tag)).collect(),
                ..build::member(&id, &format!("n{n}"), block)
            };
            netmap.members.insert(id, member);
            let service = build::service(&id, "db", vec![]);
            netmap.services.insert(service.id.clone(), service);
        }
        netmap
    }

    #[test]
    fn a_service_of_nodes_without_a_common_tag_is_contested_and_all_its_nodes_are_named() {
        let netmap = serving(&[(1, &["db"]), (2, &["db", "web"]), (3, &["ci"])]);
        let contested = netmap.contested();
        assert_eq!(contested.len(), 1);
        assert_eq!(contested[0].service.to_string(), "db");
        let nodes: Vec<&str> = contested[0].nodes.iter().map(|n| n.as_str()).collect();
        assert_eq!(nodes, ["n1", "n2", "n3"]);
        // A node without tags has no tag in common with another node either.
        assert_eq!(serving(&[(1, &["db"]), (2, &[])]).contested().len(), 1);
    }

    #[test]
    fn nodes_that_are_alike_or_share_a_tag_contest_nothing() {
        for nodes in [
            &[(1, &[][..]), (2, &[][..])][..],
            &[(1, &["db"][..]), (2, &["web", "db"][..])][..],
            &[(1, &["db"][..])][..],
            &[][..],
        ] {
            assert_eq!(serving(nodes).contested(), []);
        }
    }
}
