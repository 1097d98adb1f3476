//! The map of the mesh that a node computes from its ledger: the members, their addresses, and their services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::kinds::{Mesh, Record, Service, StreamOffer};
use crate::model::address::{Block, is_routable};
use crate::model::key::{PublicKey, WireGuardKey};
use crate::model::name::{Label, MAX_LABEL, ServiceName};
use crate::model::time::UnixSeconds;
use crate::policy::{NodeFacts, Policy};

mod routes;

pub use self::routes::permitted;

/// The members and services of the mesh, all verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Netmap {
    /// The domain and address plan; absent until the mesh record was received.
    pub mesh: Option<Mesh>,
    /// All members that have published a node record, by identity.
    pub members: BTreeMap<PublicKey, Member>,
    /// The services by record id, each as [`Netmap::admit`] returns it.
    pub services: BTreeMap<String, Service>,
    /// The policy in force.
    pub rules: Rules,
    /// The services by record id that are left out because their nodes may not serve them.
    pub unlawful: BTreeMap<String, Unlawful>,
    /// The guests to which a door has leased addresses. They may have expired.
    pub guests: Vec<GuestAt>,
    /// The networks outside the mesh, with the members that offer to route there and that the policy permits to.
    pub routes: BTreeMap<Ipv4Net, BTreeSet<PublicKey>>,
}

/// The policy in force, which decides who may serve a name and who may reach it.
#[derive(Debug, Clone, Default)]
pub enum Rules {
    /// There is no policy: every member may serve every name, and reach everything.
    #[default]
    Open,
    Policy(Arc<Policy>),
    /// There is a policy that this version does not understand, and none that it understood before: nobody may serve a name, and only
    /// control traffic passes.
    Closed,
}

impl Rules {
    /// The rules of the record of the policy, if no policy was in force before.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        match record.policy() {
            Ok(policy) => Self::Policy(Arc::new(policy)),
            Err(_) => Self::Closed,
        }
    }

    /// The policy; none if there is none, or none that this version understands.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        match self {
            Self::Policy(policy) => Some(policy),
            Self::Open | Self::Closed => None,
        }
    }

    /// Whether `member` may serve `service`.
    #[must_use]
    pub fn may_serve(&self, service: &ServiceName, member: &Member) -> bool {
        match self {
            Self::Open => true,
            Self::Policy(policy) => policy.may_serve(service, &member.facts()),
            Self::Closed => false,
        }
    }

    /// Whether `member` may offer to relay for others. Under a policy that is not understood each member may: relays carry encrypted
    /// packets only, and without relays a later policy would not reach some members.
    #[must_use]
    pub fn may_offer_relay(&self, member: &Member) -> bool {
        match self {
            Self::Open | Self::Closed => true,
            Self::Policy(policy) => policy.may_offer_relay(&member.facts()),
        }
    }

    /// Whether a rule says which nodes may serve `service`, so that not every member may.
    #[must_use]
    pub fn bind(&self, service: &ServiceName) -> bool {
        // A node without tags, and with a name that no rule has.
        let nobody = Label::from_host_name(&"x".repeat(MAX_LABEL));
        let facts = NodeFacts {
            name: &nobody,
            tags: &[],
        };
        match self {
            Self::Open => false,
            Self::Policy(policy) => !policy.may_serve(service, &facts),
            Self::Closed => true,
        }
    }
}

impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Policy(one), Self::Policy(other)) => {
                Arc::ptr_eq(one, other) || one.text() == other.text()
            }
            (Self::Open, Self::Open) | (Self::Closed, Self::Closed) => true,
            _ => false,
        }
    }
}

impl Eq for Rules {}

/// A service that its node offers without the right to serve it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlawful {
    pub service: ServiceName,
    pub node: PublicKey,
}

/// The part of a service record that is in the map of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admitted {
    /// The service with the addresses to which the mesh carries packets.
    Service(Service),
    /// Its node may not serve it.
    Unlawful(Unlawful),
    /// It has no instance that the mesh carries, or its node is not a member.
    Nothing,
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

/// A guest to which its door has leased addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestAt {
    pub name: Label,
    pub key: WireGuardKey,
    pub tags: Vec<Label>,
    /// The identity key of the door.
    pub door: PublicKey,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// Whether the door has heard the guest lately.
    pub heard: bool,
}

impl GuestAt {
    /// Both addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
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

    /// Returns the facts about the node that rules of a policy check.
    #[must_use]
    pub fn facts(&self) -> NodeFacts<'_> {
        NodeFacts {
            name: &self.name,
            tags: &self.tags,
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
    /// Returns the services that are served by two nodes without a common tag, and whose nodes no rule of the policy names. Nodes with
    /// equal sets of tags do not contest a service, even if the sets are empty: in a mesh whose tokens carry no tags, no service is
    /// contested.
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
            let service = ServiceName {
                name: name.clone(),
                project: project.cloned(),
            };
            if !sets.iter().any(|set| apart(set)) || self.rules.bind(&service) {
                continue;
            }
            let mut nodes: Vec<&Label> = members.iter().map(|member| &member.name).collect();
            nodes.sort();
            contested.push(Contested { service, nodes });
        }
        contested
    }

    /// Leaves out the relays that may not be offered, by their own nodes and by those that name them.
    pub(super) fn leave_out_relays(&mut self) {
        let Rules::Policy(_) = &self.rules else {
            return;
        };
        let members = self.members.values();
        let without = members.filter(|member| !self.rules.may_offer_relay(member));
        let without: BTreeSet<PublicKey> = without.map(|member| member.id).collect();
        for member in self.members.values_mut() {
            member.relays.retain(|relay| !without.contains(relay));
            if without.contains(&member.id) {
                member.stream = None;
            }
        }
    }

    /// Returns the member whose block has `address`.
    #[must_use]
    pub fn owner_of(&self, address: IpAddr) -> Option<&Member> {
        let mut members = self.members.values();
        members.find(|member| member.block.contains(address))
    }

    /// Returns the member with the name `name`.
    #[must_use]
    pub fn by_name(&self, name: &Label) -> Option<&Member> {
        self.members.values().find(|m| m.name == *name)
    }

    /// Returns `service` as it is in the netmap, if its node is a member that may serve it. It has only addresses in its node's block,
    /// to which the mesh carries packets, and only instances with such an address. So no record makes a name of the mesh resolve to a
    /// machine outside the mesh, or to one that the policy does not allow.
    #[must_use]
    pub fn admit(&self, service: &Service) -> Admitted {
        let Some(member) = self.members.get(&service.node) else {
            return Admitted::Nothing;
        };
        let block = member.block;
        let mut service = service.clone();
        service.instances.retain_mut(|instance| {
            instance
                .addresses
                .retain(|address| block.contains(*address) && is_routable(*address));
            !instance.addresses.is_empty()
        });
        if service.instances.is_empty() {
            return Admitted::Nothing;
        }
        let name = service.service_name();
        if self.rules.may_serve(&name, member) {
            Admitted::Service(service)
        } else {
            Admitted::Unlawful(Unlawful {
                service: name,
                node: service.node,
            })
        }
    }

    /// Replaces the service with the record id `id`. `service` is its record; none if there is no record. Returns the service that the
    /// netmap had before.
    pub fn replace(&mut self, id: &str, service: Option<&Service>) -> Option<Service> {
        self.unlawful.remove(id);
        match service.map(|service| self.admit(service)) {
            Some(Admitted::Service(service)) => self.services.insert(id.to_owned(), service),
            Some(Admitted::Unlawful(unlawful)) => {
                self.unlawful.insert(id.to_owned(), unlawful);
                self.services.remove(id)
            }
            Some(Admitted::Nothing) | None => self.services.remove(id),
        }
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
    fn a_node_publishes_addresses_of_both_parts_of_its_own_block_and_no_others() {
        let mut netmap = serving(&[(1, &[]), (2, &[])]);
        let own = ["10.210.1.2", "fd00:0:0:1::2"];
        let foreign = ["10.210.2.2", "fd00:0:0:2::2", "2001:db8::2", "fe80::2"];
        let all = own.iter().chain(&foreign);
        let all: Vec<IpAddr> = all.map(|text| text.parse().expect("a literal")).collect();
        let instance = build::instance("c", all);
        let service = build::service(&PublicKey([1; 32]), "web", vec![instance]);
        netmap.replace(&service.id.clone(), Some(&service));
        let admitted = &netmap.services[&service.id].instances[0].addresses;
        let shown: Vec<String> = admitted.iter().map(ToString::to_string).collect();
        assert_eq!(shown, own);
    }

    #[test]
    fn a_node_serves_if_one_of_the_services_in_the_map_is_its_own() {
        let mut netmap = serving(&[(1, &[]), (3, &[])]);
        for (n, serves) in [(0, false), (1, true), (2, false), (3, true), (4, false)] {
            assert_eq!(netmap.serves(&PublicKey([n; 32])), serves, "{n}");
        }
        netmap.services.clear();
        assert!(!netmap.serves(&PublicKey([1; 32])));
    }

    #[test]
    fn a_member_without_ipv6_is_reached_at_its_ipv4_address_alone() {
        let block = build::block(1);
        let addresses = |without_ipv6| {
            let member = Member {
                without_ipv6,
                ..build::member(&build::id(1), "n1", block)
            };
            member.addresses()
        };
        assert_eq!(addresses(false), block.node_addresses());
        assert_eq!(addresses(true), block.node_addresses()[..1]);
    }

    #[test]
    fn a_service_is_not_contested_if_a_rule_names_its_nodes() {
        let nodes: [(u8, &[&str]); 2] = [(1, &["db"]), (2, &["web"])];
        let under = |rules: &str| {
            let policy = Policy::parse(&format!("language = 1\n{rules}")).expect("a policy");
            Netmap {
                rules: Rules::Policy(Arc::new(policy)),
                ..serving(&nodes)
            }
        };
        let serve = |by: &str| format!("[[serve]]\nnames = [\"db\"]\nby = [\"{by}\"]\n");
        assert_eq!(under("").contested().len(), 1);
        assert_eq!(under(&serve("*")).contested().len(), 1);
        for by in ["tag:db", "node:n1"] {
            assert_eq!(under(&serve(by)).contested(), []);
        }
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
