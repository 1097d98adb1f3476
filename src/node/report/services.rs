//! The services of the mesh, also for other programs, and the containers of a node.

use crate::discovery::sites::{Site, Sites};
use crate::discovery::targets::{self, Target};
use crate::model::{PublicKey, ServiceName};
use crate::node::joined::JoinedNode;
use crate::path::watch::Reach;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{
    ContainerList, ContainerRow, ContainerState, OwnInstance, OwnInstances, SCHEMA, ServiceList,
};
use crate::protocol::service_list;
use crate::records::kinds::Health;

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

/// The instances of one service on this node. `name` is as in a request.
///
/// # Errors
/// It is no name of a service.
pub(in crate::node) fn own_instances(
    node: &JoinedNode,
    name: &str,
) -> Result<OwnInstances, ApiError> {
    let service = ServiceName::parse(name)
        .map_err(|error| ApiError::new(ErrorCode::BadRequest, error.to_string()))?;
    let registry = &node.workloads.registry;
    let of_containers = containers(node)
        .containers
        .into_iter()
        .filter(|container| container.services.contains(&service))
        .map(of_container);
    let registered = registry.own_instances(&node.identity.name, &service);
    let mut instances: Vec<OwnInstance> = of_containers.chain(registered).collect();
    instances.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(OwnInstances {
        schema: SCHEMA,
        drained: registry.drained().contains(&service),
        instances,
    })
}

fn of_container(container: ContainerRow) -> OwnInstance {
    OwnInstance {
        id: container.instance,
        health: match container.state {
            ContainerState::Starting => Health::Starting,
            ContainerState::Ready => container.health,
            ContainerState::Draining => Health::Draining,
        },
        check_ms: None,
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
