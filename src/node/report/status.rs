//! The status of a node.

use std::collections::BTreeSet;
use std::time::Instant;

use super::peers::{not_ready, peers, seconds};
use super::problems::problems;
use crate::node::docker::Docker;
use crate::node::joined::JoinedNode;
use crate::protocol::local::{
    CoordinatorStatus, DnsStatus, InterfaceStatus, NodeState, NodeStatus, SCHEMA, ServiceCounts,
    Status,
};

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
        peers: Vec::new(),
        services: ServiceCounts::default(),
        problems: Vec::new(),
    }
}

/// The status of a joined node.
pub(in crate::node) fn status(node: &JoinedNode, damaged_services: Option<&str>) -> Status {
    let now = Instant::now();
    let zone = node.names.zone().load();
    let services = node.netmap.services.values();
    let names: BTreeSet<_> = services.map(|s| (&s.name, &s.project)).collect();
    let containers = node.workloads.docker.as_ref().map_or(0, Docker::len);
    Status {
        node: Some(node_status(node)),
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
        peers: peers(node, now),
        services: ServiceCounts {
            local: node.workloads.registry.len() + containers,
            mesh: names.len(),
        },
        problems: problems(node, damaged_services, zone.flagged()),
        not_ready: not_ready(node),
        ..bare_status(if node.replica.is_removed() {
            NodeState::Removed
        } else {
            NodeState::Up
        })
    }
}

fn node_status(node: &JoinedNode) -> NodeStatus {
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
    }
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
