//! The services of the mesh, and the containers of a node.

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

fn is_reachable(node: &JoinedNode, id: &PublicKey) -> bool {
    *id == node.id() || node.paths.reach().get(id) != Some(&Reach::Unreachable)
}
