//! Answers to other programs about the services of the mesh: targets for Prometheus, and the sites of an ingress. Pure.
//!
//! [`targets`] has every TCP port of every instance. [`sites`] decides which servers are behind each host name that a container asks for
//! with `mesh.public`; [`traefik`] and [`caddy`] write these sites as the configuration of a program. Everything is computed from the map
//! of the mesh. Each member has bounds of its own for targets and for host names, so no member takes the place of another in them.

pub mod caddy;
pub mod sites;
pub mod targets;
pub mod traefik;

use std::collections::BTreeSet;

use crate::model::ServiceName;

/// The name by which people know a container with several names in the DNS: one without a project, if it has one.
fn known_name(names: &BTreeSet<ServiceName>) -> Option<&ServiceName> {
    names
        .iter()
        .min_by_key(|name| (name.project.is_some(), *name))
}
