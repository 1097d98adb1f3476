//! The services of the mesh, also for other programs, and the containers of a node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::discovery::sites::{Site, Sites};
use crate::discovery::targets::{self, Target};
use crate::model::PublicKey;
use crate::node::joined::JoinedNode;
use crate::path::watch::Reach;
use crate::protocol::local::{ContainerList, InstanceRow, SCHEMA, ServiceList, ServiceRow};

/// The exposed containers of this node.
pub(in crate::node) fn containers(node: &JoinedNode) -> ContainerList {
    let docker = node.workloads.docker.as_ref();
    ContainerList {
        schema: SCHEMA,
        containers: docker
            .map(|docker| docker.rows(node.workloads.registry.drained()))
            .unwrap_or_default(),
    }
}

/// All services of the mesh.
pub(in crate::node) fn services(node: &JoinedNode) -> ServiceList {
    let mut rows: BTreeMap<_, ServiceRow> = BTreeMap::new();
    for service in node.netmap.services.values() {
        let Some(member) = node.netmap.members.get(&service.node) else {
            continue;
        };
        let row = rows
            .entry((service.name.clone(), service.project.clone()))
            .or_insert_with(|| ServiceRow {
                name: service.name.clone(),
                project: service.project.clone(),
                instances: Vec::new(),
            });
        for instance in &service.instances {
            for port in &instance.ports {
                row.instances.push(InstanceRow {
                    id: instance.id.clone(),
                    node: member.name.clone(),
                    address: instance
                        .addresses
                        .first()
                        .copied()
                        .unwrap_or(IpAddr::V4(member.block.node_v4())),
                    addresses: instance.addresses.clone(),
                    port: port.number.get(),
                    protocol: port.protocol,
                    port_name: port.name.clone(),
                    health: instance.health,
                    reachable: is_reachable(node, &service.node),
                    source: instance.source,
                    public: instance.public.clone(),
                });
            }
        }
    }
    ServiceList {
        schema: SCHEMA,
        services: rows.into_values().collect(),
    }
}

/// The ports of all instances of the mesh as targets.
pub(in crate::node) fn targets(node: &JoinedNode) -> Vec<Target> {
    targets::targets(&node.netmap, |id| is_reachable(node, id))
}

/// The host names of the mesh, with the servers behind them.
pub(in crate::node) fn sites(node: &JoinedNode) -> Vec<Site> {
    Sites::of(&node.netmap, |id| is_reachable(node, id)).sites
}

fn is_reachable(node: &JoinedNode, id: &PublicKey) -> bool {
    *id == node.id() || node.paths.reach().get(id) != Some(&Reach::Unreachable)
}
