//! The list of the services of the mesh, as nodes and coordinators return it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::local::{InstanceRow, SCHEMA, ServiceList, ServiceRow};
use crate::model::PublicKey;
use crate::records::kinds::{Instance, Service};
use crate::records::netmap::{Member, Netmap};

/// Returns the services of `netmap`. `is_reachable` says whether the program that returns the list reaches a node.
#[must_use]
pub fn of(netmap: &Netmap, is_reachable: impl Fn(&PublicKey) -> bool) -> ServiceList {
    let mut rows: BTreeMap<_, ServiceRow> = BTreeMap::new();
    for service in netmap.services.values() {
        let Some(member) = netmap.members.get(&service.node) else {
            continue;
        };
        let row = rows
            .entry((service.name.clone(), service.project.clone()))
            .or_insert_with(|| ServiceRow {
                name: service.name.clone(),
                project: service.project.clone(),
                instances: Vec::new(),
            });
        let reachable = is_reachable(&service.node);
        row.instances.extend(rows_of(service, member, reachable));
    }
    ServiceList {
        schema: SCHEMA,
        services: rows.into_values().collect(),
    }
}

fn rows_of(
    service: &Service,
    member: &Member,
    reachable: bool,
) -> impl Iterator<Item = InstanceRow> {
    let instances = service.instances.iter();
    instances.flat_map(move |instance| ports_of(instance, member, reachable))
}

fn ports_of(
    instance: &Instance,
    member: &Member,
    reachable: bool,
) -> impl Iterator<Item = InstanceRow> {
    let first = instance.addresses.first().copied();
    let address = first.unwrap_or(IpAddr::V4(member.block.node_v4()));
    instance.ports.iter().map(move |port| InstanceRow {
        id: instance.id.clone(),
        node: member.name.clone(),
        address,
        addresses: instance.addresses.clone(),
        port: port.number.get(),
        protocol: port.protocol,
        port_name: port.name.clone(),
        health: instance.health,
        reachable,
        source: instance.source,
        public: instance.public.clone(),
    })
}
