//! The services of the mesh, also for other programs, and the containers of a node.

use crate::discovery::sites::{Site, Sites};
use crate::discovery::targets::{self, Target};
use crate::model::PublicKey;
use crate::node::joined::JoinedNode;
use crate::path::watch::Reach;
use crate::protocol::local::{ContainerList, SCHEMA, ServiceList};
use crate::protocol::service_list;

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
    service_list::of(&node.netmap, |id| is_reachable(node, id))
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
