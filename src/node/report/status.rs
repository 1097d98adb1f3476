//! The status of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime};

use super::peers::{not_ready, peers, seconds};
use super::problems::problems;
use crate::model::time::made_at;
use crate::model::{Label, PublicKey};
use crate::node::guests::LastHeard;
use crate::node::joined::{JoinedNode, standing};
use crate::node::policy::PolicyInForce;
use crate::node::state::ServicesFault;
use crate::os::clock;
use crate::protocol::local::{
    CoordinatorStatus, DnsStatus, GuestStatus, InterfaceStatus, NodeState, NodeStatus, OutsideName,
    PolicyStatus, RouteRow, SCHEMA, ServiceCounts, Status, TriedPolicy,
};
use crate::records::kinds::Service;

/// The status of a node that is not in a mesh.
pub(in crate::node) fn bare_status(state: NodeState) -> Status {
    Status {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state,
        not_ready: None,
        node: None,
        interface: None,
        coordinator: None,
        dns: None,
        policy: None,
        peers: Vec::new(),
        routes: Vec::new(),
        outside: Vec::new(),
        services: ServiceCounts::default(),
        problems: Vec::new(),
    }
}

/// The status of a joined node.
pub(in crate::node) fn status(node: &JoinedNode, services_fault: Option<&ServicesFault>) -> Status {
    let now = Instant::now();
    let zone = node.names.zone().load();
    Status {
        node: Some(node_status(node, now)),
        interface: Some(InterfaceStatus {
            name: node.device.tunnel.interface().to_owned(),
            mtu: u32::from(node.device.mtu),
            listen_port: node.device.tunnel.listen_port(),
        }),
        coordinator: Some(coordinator_status(node, now)),
        dns: node.resolver.dns.as_ref().map(|dns| DnsStatus {
            listen: dns.listen(),
            records: zone.len(),
            split_dns: dns.split_dns().to_owned(),
        }),
        policy: policy_status(&node.device.policy, clock::wall()),
        peers: peers(node, now),
        routes: routes(node),
        outside: outside(node),
        services: count(node.netmap.services.values(), &node.id()),
        problems: problems(node, services_fault, zone.flagged()),
        not_ready: not_ready(node),
        ..bare_status(if node.replica.is_removed() {
            NodeState::Removed
        } else {
            NodeState::Up
        })
    }
}

/// The networks outside the mesh to which members route.
pub(in crate::node) fn routes(node: &JoinedNode) -> Vec<RouteRow> {
    let standing = |id: &PublicKey| standing(&node.paths, id);
    node.device.routing.rows(&node.netmap, &node.id(), standing)
}

/// The host names of this node's services outside the mesh.
fn outside(node: &JoinedNode) -> Vec<OutsideName> {
    let names = node.workloads.registry.named.iter();
    let names = names.map(|(name, address)| OutsideName {
        name: name.clone(),
        address,
    });
    names.collect()
}

/// Counts services and their instances, in the mesh and on the node `own`. A container of a Compose project has two names:
/// that of its label, and its own name in the project. Its service counts once, under the first.
fn count<'a>(services: impl Iterator<Item = &'a Service>, own: &PublicKey) -> ServiceCounts {
    type InstanceId<'a> = (PublicKey, &'a Label);
    let mut by_name: BTreeMap<(&Label, Option<&Label>), BTreeSet<InstanceId<'_>>> = BTreeMap::new();
    for service in services {
        let name = (&service.name, service.project.as_ref());
        let instances = service.instances.iter().map(|i| (service.node, &i.id));
        by_name.entry(name).or_default().extend(instances);
    }
    let of_mesh = |name: &(&Label, Option<&Label>)| name.1.is_none();
    let common: BTreeSet<InstanceId<'_>> = by_name
        .iter()
        .filter(|(name, _)| of_mesh(name))
        .flat_map(|(_, instances)| instances.iter().copied())
        .collect();
    let mut counts = ServiceCounts::default();
    let mut all: BTreeSet<InstanceId<'_>> = BTreeSet::new();
    for (name, instances) in &by_name {
        let is_counted = |instance: &&InstanceId<'_>| of_mesh(name) || !common.contains(*instance);
        let mut counted = instances.iter().filter(is_counted).peekable();
        if counted.peek().is_some() {
            counts.mesh += 1;
        }
        if counted.any(|(node, _)| node == own) {
            counts.local += 1;
        }
        all.extend(instances);
    }
    counts.mesh_instances = all.len();
    counts.local_instances = all.iter().filter(|(node, _)| node == own).count();
    counts
}

fn node_status(node: &JoinedNode, now: Instant) -> NodeStatus {
    let identity = &node.identity;
    let ledger = node.replica.ledger();
    let membership = ledger.membership(&node.id());
    NodeStatus {
        id: node.id(),
        name: identity.name.clone(),
        tags: membership.map(|m| ledger.tags_of(m)).unwrap_or_default(),
        address_v4: identity.block.node_v4(),
        address_v6: identity.block.node_v6(),
        block_v4: identity.block.v4,
        block_v6: identity.block.v6,
        public_key: identity.keys.wireguard_public(),
        endpoints: ledger
            .node(&node.id())
            .map_or_else(Vec::new, |record| record.endpoints.clone()),
        domain: ledger
            .mesh()
            .map_or_else(|| identity.name.clone(), |m| m.domain.clone()),
        guests: guests(node, now),
    }
}

/// The guests of this node, in the order of their names.
fn guests(node: &JoinedNode, now: Instant) -> Vec<GuestStatus> {
    let views = node.device.guests.views();
    let guests = views.filter_map(|view| {
        let (address_v4, address_v6) = view.lease.addresses(&node.identity.block)?;
        let ago = |(at, _): LastHeard| seconds(now.saturating_duration_since(at));
        Some(GuestStatus {
            name: view.name.clone(),
            key: view.lease.key,
            address_v4,
            address_v6,
            is_here: view.lease.heard,
            last_heard_seconds_ago: view.last.map(ago),
            endpoint: view.last.and_then(|(_, endpoint)| endpoint),
        })
    });
    let mut guests: Vec<GuestStatus> = guests.collect();
    guests.sort_by(|a, b| a.name.cmp(&b.name));
    guests
}

fn policy_status(policy: &PolicyInForce, now: SystemTime) -> Option<PolicyStatus> {
    let version = policy.version()?;
    let tried = policy.is_trying().then(|| TriedPolicy {
        version,
        since_seconds_ago: made_at(version, now)
            .and_then(|at| now.duration_since(at).ok())
            .map(seconds),
    });
    Some(PolicyStatus { version, tried })
}

fn coordinator_status(node: &JoinedNode, now: Instant) -> CoordinatorStatus {
    let link = node.replica.link();
    let received = link.last_received();
    CoordinatorStatus {
        url: link.url().to_owned(),
        connected: link.is_connected(),
        revision: node.replica.position().revision,
        synced_seconds_ago: received.map(|at| seconds(now.saturating_duration_since(at))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::kinds::{Health, Instance, Port, Protocol, Source, default_weight};

    fn label(text: &str) -> Label {
        Label::parse(text).expect("a literal")
    }

    fn service(node: u8, name: &str, project: Option<&str>, ids: &[&str]) -> Service {
        let node = PublicKey([node; 32]);
        let instance = |id: &&str| Instance {
            id: label(id),
            addresses: Vec::new(),
            ports: vec![Port {
                number: 80.try_into().expect("not zero"),
                protocol: Protocol::Tcp,
                name: None,
            }],
            health: Health::Healthy,
            weight: default_weight(),
            priority: 0,
            source: Source::Docker,
            allow: vec![],
            public: vec![],
        };
        let (name, project) = (label(name), project.map(label));
        Service {
            id: Service::id_of(&node, project.as_ref(), &name),
            version: 1,
            node,
            name,
            project,
            service_address: None,
            instances: ids.iter().map(instance).collect(),
        }
    }

    fn counts(services: &[Service]) -> [usize; 4] {
        let counts = count(services.iter(), &PublicKey([1; 32]));
        [
            counts.local,
            counts.mesh,
            counts.local_instances,
            counts.mesh_instances,
        ]
    }

    #[test]
    fn a_policy_that_is_tried_is_shown_with_its_age() {
        use crate::records::kinds::{MeshPolicy, Record};
        use crate::testbed::records as build;

        let version = 1_790_000_000_000;
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(version);
        let now = at + std::time::Duration::from_secs(90);
        let status = |record: MeshPolicy, now| {
            let record = build::sealed(&Record::Policy(record), 1);
            let policy = PolicyInForce::new(Some(record), &build::id(1));
            policy_status(&policy, now).map(|status| (status.version, status.tried))
        };
        let open = MeshPolicy::new(version, crate::policy::OPEN);
        assert_eq!(status(open.clone(), now), Some((version, None)));
        let tried = |since_seconds_ago| TriedPolicy {
            version,
            since_seconds_ago,
        };
        let trying = open.trying("language = 1\n");
        let found = status(trying.clone(), now);
        assert_eq!(found, Some((version, Some(tried(Some(90.0))))));
        // The clock of this node is behind.
        let found = status(trying, std::time::UNIX_EPOCH);
        assert_eq!(found, Some((version, Some(tried(None)))));
        assert_eq!(
            policy_status(&PolicyInForce::new(None, &build::id(1)), now),
            None
        );
    }

    #[test]
    fn one_container_is_one_instance_of_one_service() {
        let db = [
            service(1, "db", None, &["n1-db-1"]),
            service(1, "database", Some("shop"), &["n1-db-1"]),
        ];
        assert_eq!(counts(&db), [1, 1, 1, 1]);
        let exposed_without_a_label = &db[1..];
        assert_eq!(counts(exposed_without_a_label), [1, 1, 1, 1]);
    }

    #[test]
    fn services_and_instances_are_counted_apart_for_this_node_and_the_mesh() {
        let services = [
            service(1, "web", None, &["n1-80", "n1-81"]),
            service(2, "web", None, &["n2-80"]),
            service(2, "db", None, &["n2-5432"]),
            service(2, "db", Some("shop"), &["n2-other"]),
            service(3, "gone", None, &[]),
        ];
        assert_eq!(counts(&services), [1, 3, 2, 5]);
        assert_eq!(counts(&[]), [0, 0, 0, 0]);
    }
}
