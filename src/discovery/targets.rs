//! The TCP ports of all instances as targets for Prometheus, in the format of its HTTP service discovery.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;

use serde::Serialize;

use super::known_name;
use crate::model::{Protocol, PublicKey, ServiceName};
use crate::records::kinds::{Instance, Port};
use crate::records::netmap::{Member, Netmap};

/// The maximum number of targets on one node. More are left out.
pub const MAX_TARGETS_OF_NODE: usize = 1024;

/// A target, with the labels from which the rules of `relabel_configs` choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Its address. The format has a list.
    pub targets: [String; 1],
    pub labels: BTreeMap<&'static str, String>,
}

/// A port of an instance. A container with several names in the DNS is one instance.
struct Found<'a> {
    member: &'a Member,
    instance: &'a Instance,
    port: &'a Port,
    /// The services that it is an instance of.
    names: BTreeSet<ServiceName>,
}

/// Returns the targets in the order of their addresses. `is_reachable` says whether packets reach a node. Instances that are not healthy
/// are among them, since Prometheus is to notice that.
#[must_use]
pub fn targets(netmap: &Netmap, is_reachable: impl Fn(&PublicKey) -> bool) -> Vec<Target> {
    let mut found: BTreeMap<SocketAddr, Found<'_>> = BTreeMap::new();
    let mut counts: BTreeMap<PublicKey, usize> = BTreeMap::new();
    for service in netmap.services.values() {
        let Some(member) = netmap.members.get(&service.node) else {
            continue;
        };
        for instance in &service.instances {
            let Some(ip) = instance.addresses.first() else {
                continue;
            };
            let ports = instance.ports.iter();
            for port in ports.filter(|port| port.protocol == Protocol::Tcp) {
                let address = SocketAddr::new(*ip, port.number.get());
                if let Some(found) = found.get_mut(&address) {
                    found.names.insert(service.service_name());
                    continue;
                }
                let count = counts.entry(member.id).or_default();
                if *count < MAX_TARGETS_OF_NODE {
                    *count += 1;
                    let target = Found {
                        member,
                        instance,
                        port,
                        names: [service.service_name()].into(),
                    };
                    found.insert(address, target);
                }
            }
        }
    }
    let found = found.iter();
    found
        .map(|(address, found)| Target {
            targets: [address.to_string()],
            labels: labels(found, is_reachable(&found.member.id)),
        })
        .collect()
}

/// The labels of a target. Prometheus drops those with this prefix after the rules were applied.
fn labels(found: &Found<'_>, is_reachable: bool) -> BTreeMap<&'static str, String> {
    let Found {
        member,
        instance,
        port,
        names,
    } = found;
    let mut labels = BTreeMap::from([
        ("__meta_mesh_node", member.name.to_string()),
        ("__meta_mesh_node_tags", list(&member.tags)),
        ("__meta_mesh_services", list(names)),
        ("__meta_mesh_instance", instance.id.to_string()),
        ("__meta_mesh_port", port.number.to_string()),
        ("__meta_mesh_health", instance.health.as_str().to_owned()),
        ("__meta_mesh_reachable", is_reachable.to_string()),
        ("__meta_mesh_source", instance.source.as_str().to_owned()),
    ]);
    if let Some(name) = known_name(names) {
        labels.insert("__meta_mesh_service", name.name.to_string());
    }
    if let Some(project) = names.iter().find_map(|name| name.project.as_ref()) {
        labels.insert("__meta_mesh_project", project.to_string());
    }
    if let Some(name) = &port.name {
        labels.insert("__meta_mesh_port_name", name.to_string());
    }
    if !instance.public.is_empty() {
        labels.insert("__meta_mesh_public", list(&instance.public));
    }
    labels
}

/// A list as one label: with a comma at both ends, so that a rule finds an item with `.*,item,.*` wherever it is.
fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut text = String::from(",");
    for item in items {
        text.push_str(&format!("{item},"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::PublicHost;
    use crate::records::kinds::{Health, Service, Source};
    use crate::testbed::records as build;

    fn netmap(services: Vec<Service>) -> Netmap {
        let mut netmap = Netmap::default();
        for n in [1u8, 2] {
            let mut member = build::member(&build::id(n), &format!("n{n}"), build::block(n.into()));
            if n == 1 {
                member.tags = vec![build::label("db"), build::label("eu")];
            }
            netmap.members.insert(member.id, member);
        }
        for service in services {
            netmap.services.insert(service.id.clone(), service);
        }
        netmap
    }

    #[test]
    fn each_tcp_port_of_an_instance_is_a_target_with_its_labels() {
        let database = Instance {
            ports: vec![
                build::port(5432, None),
                build::port(9187, Some("metrics")),
                Port {
                    protocol: Protocol::Udp,
                    ..build::port(53, None)
                },
            ],
            health: Health::Unhealthy,
            source: Source::Docker,
            ..build::instance("n1-db", vec![[10, 210, 1, 7].into()])
        };
        let in_project = Service {
            id: Service::id_of(
                &build::id(1),
                Some(&build::label("shop")),
                &build::label("pg"),
            ),
            project: Some(build::label("shop")),
            ..build::service(&build::id(1), "pg", vec![database.clone()])
        };
        let web = Instance {
            public: vec![PublicHost::parse("shop.example.com").expect("a literal")],
            ..build::instance("n2-80", vec!["fd00::7".parse().expect("a literal")])
        };
        let netmap = netmap(vec![
            build::service(&build::id(1), "db", vec![database]),
            in_project,
            build::service(&build::id(2), "web", vec![web]),
            build::service(&build::id(9), "ghost", vec![]),
        ]);
        let found = targets(&netmap, |node| *node == build::id(1));
        let database = |port: &str| {
            json!({
                "__meta_mesh_health": "unhealthy",
                "__meta_mesh_instance": "n1-db",
                "__meta_mesh_node": "n1",
                "__meta_mesh_node_tags": ",db,eu,",
                "__meta_mesh_port": port,
                "__meta_mesh_project": "shop",
                "__meta_mesh_reachable": "true",
                "__meta_mesh_service": "db",
                "__meta_mesh_services": ",db,pg.shop,",
                "__meta_mesh_source": "docker",
            })
        };
        let mut metrics = database("9187");
        metrics["__meta_mesh_port_name"] = json!("metrics");
        assert_eq!(
            serde_json::to_value(found).expect("plain data"),
            json!([
                { "targets": ["10.210.1.7:5432"], "labels": database("5432") },
                { "targets": ["10.210.1.7:9187"], "labels": metrics },
                {
                    "targets": ["[fd00::7]:80"],
                    "labels": {
                        "__meta_mesh_health": "healthy",
                        "__meta_mesh_instance": "n2-80",
                        "__meta_mesh_node": "n2",
                        "__meta_mesh_node_tags": ",",
                        "__meta_mesh_port": "80",
                        "__meta_mesh_public": ",shop.example.com,",
                        "__meta_mesh_reachable": "false",
                        "__meta_mesh_service": "web",
                        "__meta_mesh_services": ",web,",
                        "__meta_mesh_source": "cli",
                    },
                },
            ])
        );
    }

    #[test]
    fn without_services_there_is_an_empty_list() {
        let found = targets(&netmap(vec![]), |_| true);
        let text = serde_json::to_string(&found).expect("plain data");
        assert_eq!(text, "[]");
    }

    #[test]
    fn a_node_has_a_bound_of_targets_and_takes_none_from_others() {
        let instance = |n: u8| Instance {
            ports: (0..16).map(|p| build::port(8000 + p, None)).collect(),
            ..build::instance(&format!("i{n}"), vec![[10, 210, 1, n].into()])
        };
        let many: Vec<Instance> = (2..102).map(instance).collect();
        let one = build::instance("i", vec![[10, 210, 2, 7].into()]);
        let netmap = netmap(vec![
            build::service(&build::id(1), "many", many),
            build::service(&build::id(2), "one", vec![one]),
        ]);
        let found = targets(&netmap, |_| true);
        assert_eq!(found.len(), MAX_TARGETS_OF_NODE + 1);
        let last = found.last().expect("there are some");
        assert_eq!(last.targets, ["10.210.2.7:80"]);
    }
}
