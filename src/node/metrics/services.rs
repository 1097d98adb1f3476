//! The metrics of each service: the instances of this node by health, and the instances of the mesh as this node sees them.

use std::collections::BTreeMap;

use super::MAX_NAMED;
use crate::node::joined::JoinedNode;
use crate::os::metrics::{Kind, MetricsPage};
use crate::path::watch::Reach;
use crate::records::kinds::{Health, Service};

/// The order in which the values of the label `health` are written.
const HEALTHS: [Health; 5] = [
    Health::Healthy,
    Health::Unhealthy,
    Health::Starting,
    Health::Draining,
    Health::Unknown,
];

/// How many instances of a service are usable for this node, and how many are not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usable {
    usable: usize,
    unusable: usize,
}

/// Adds the metrics of services. Returns the number of services that are left out.
pub(super) fn add(page: &mut MetricsPage, node: &JoinedNode) -> usize {
    let id = node.id();
    let reach = node.paths.reach();
    let services = node.netmap.services.values();
    let own = by_health(services.clone().filter(|service| service.node == id));
    let of_mesh = by_use(services.map(|service| {
        let is_reached =
            service.node == id || reach.get(&service.node) != Some(&Reach::Unreachable);
        (service, is_reached)
    }));
    write(page, &own, &of_mesh);
    own.len().max(of_mesh.len()).saturating_sub(MAX_NAMED)
}

/// The healths of the instances of each service.
fn by_health<'a>(services: impl Iterator<Item = &'a Service>) -> BTreeMap<String, Vec<Health>> {
    let mut healths: BTreeMap<String, Vec<Health>> = BTreeMap::new();
    for service in services.filter(|service| !service.instances.is_empty()) {
        let held = healths.entry(service.service_name().to_string());
        let instances = service.instances.iter().map(|instance| instance.health);
        held.or_default().extend(instances);
    }
    healths
}

/// The usable and the unusable instances of each service. The flag is whether this node reaches the node of the instance.
fn by_use<'a>(services: impl Iterator<Item = (&'a Service, bool)>) -> BTreeMap<String, Usable> {
    let mut uses: BTreeMap<String, Usable> = BTreeMap::new();
    for (service, is_reached) in services {
        if service.instances.is_empty() {
            continue;
        }
        let held = uses.entry(service.service_name().to_string()).or_default();
        for instance in &service.instances {
            if is_reached && instance.health.is_usable() {
                held.usable += 1;
            } else {
                held.unusable += 1;
            }
        }
    }
    uses
}

fn write(
    page: &mut MetricsPage,
    own: &BTreeMap<String, Vec<Health>>,
    of_mesh: &BTreeMap<String, Usable>,
) {
    let help = "Instances of the service on this node, by their health.";
    let mut family = page.family("service_local_instances", Kind::Gauge, help);
    for (service, healths) in own.iter().take(MAX_NAMED) {
        for health in HEALTHS {
            let labels = [("service", service.as_str()), ("health", health.as_str())];
            let count = healths.iter().filter(|held| **held == health).count();
            family.sample(&labels, count);
        }
    }
    let help = "Instances of the service in the mesh. One is usable if it is healthy, or has no check, and this node reaches it.";
    let mut family = page.family("service_mesh_instances", Kind::Gauge, help);
    for (service, count) in of_mesh.iter().take(MAX_NAMED) {
        for (usable, count) in [("true", count.usable), ("false", count.unusable)] {
            family.sample(&[("service", service.as_str()), ("usable", usable)], count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Label, PublicKey};
    use crate::records::kinds::{Instance, Source, default_weight};

    fn service(name: &str, node: u8, healths: &[Health]) -> Service {
        let (name, node) = (
            Label::parse(name).expect("a literal"),
            PublicKey([node; 32]),
        );
        let instances = healths.iter().enumerate().map(|(n, health)| Instance {
            id: name.with_suffix(&n.to_string()),
            addresses: Vec::new(),
            ports: Vec::new(),
            health: *health,
            weight: default_weight(),
            priority: 0,
            source: Source::Docker,
            allow: vec![],
            public: vec![],
        });
        Service {
            id: Service::id_of(&node, None, &name),
            version: 1,
            node,
            project: None,
            service_address: None,
            instances: instances.collect(),
            name,
        }
    }

    #[test]
    fn instances_are_counted_by_health_here_and_by_use_in_the_mesh() {
        let own = service("db", 1, &[Health::Healthy, Health::Unhealthy]);
        let far = service("db", 2, &[Health::Healthy]);
        let cut_off = service("web", 3, &[Health::Unknown, Health::Starting]);
        let withdrawn = service("old", 2, &[]);
        let mut page = MetricsPage::new("");
        let mesh = [
            (&own, true),
            (&far, true),
            (&cut_off, false),
            (&withdrawn, true),
        ];
        write(
            &mut page,
            &by_health([&own].into_iter()),
            &by_use(mesh.into_iter()),
        );
        let text = page.into_text();
        let samples: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "service_local_instances{service=\"db\",health=\"healthy\"} 1",
                "service_local_instances{service=\"db\",health=\"unhealthy\"} 1",
                "service_local_instances{service=\"db\",health=\"starting\"} 0",
                "service_local_instances{service=\"db\",health=\"draining\"} 0",
                "service_local_instances{service=\"db\",health=\"unknown\"} 0",
                "service_mesh_instances{service=\"db\",usable=\"true\"} 2",
                "service_mesh_instances{service=\"db\",usable=\"false\"} 1",
                "service_mesh_instances{service=\"web\",usable=\"true\"} 0",
                "service_mesh_instances{service=\"web\",usable=\"false\"} 2",
            ]
        );
    }
}
