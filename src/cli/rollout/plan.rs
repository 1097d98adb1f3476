//! Computes which services a rollout drains, whether that is allowed, and whether they are available again. Pure.

use std::collections::BTreeSet;
use std::fmt;

use super::super::exit::CliError;
use crate::model::{Label, ServiceName};
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{ContainerRow, ContainerState, ServiceRow};

/// The services and instances of a rollout.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RolloutPlan {
    /// The services to drain.
    pub(super) services: BTreeSet<ServiceName>,
    /// Their instances on this node, each with the service name of the rollout.
    pub(super) instances: BTreeSet<(Label, ServiceName)>,
    /// The services with a usable instance on this node.
    serving: BTreeSet<ServiceName>,
}

/// The progress of a rollout.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All services are available again.
    Healthy,
    /// A service is not available yet, for this reason.
    Waiting(String),
}

impl RolloutPlan {
    /// A rollout of the services `wanted`, or of all services of `containers`.
    pub(super) fn new(
        wanted: &[ServiceName],
        containers: &[ContainerRow],
    ) -> Result<Self, CliError> {
        let missing = wanted
            .iter()
            .find(|service| !containers.iter().any(|c| c.services.contains(service)));
        if let Some(service) = missing {
            let text = format!(
                "no container of this node serves {service}; `meshctl service list` shows all services"
            );
            return Err(CliError::new(ErrorCode::NotFound, text));
        }
        let services: BTreeSet<ServiceName> = if wanted.is_empty() {
            // Each service is named as in its label.
            let first = containers.iter().filter_map(|c| c.services.first());
            first.cloned().collect()
        } else {
            wanted.iter().cloned().collect()
        };
        if services.is_empty() {
            let text = "no container of this node serves anything; set the label mesh.service=NAME";
            return Err(CliError::new(ErrorCode::NotFound, text));
        }
        let (mut instances, mut serving) = (BTreeSet::new(), BTreeSet::new());
        for container in containers {
            let about = container.services.iter().filter(|s| services.contains(s));
            for service in about {
                instances.insert((container.instance.clone(), service.clone()));
                if is_serving(container) && !container.drained {
                    serving.insert(service.clone());
                }
            }
        }
        Ok(Self {
            services,
            instances,
            serving,
        })
    }

    /// Checks that another node serves each service that is drained. `node` is this node's name.
    pub(super) fn check_other_nodes(
        &self,
        rows: &[ServiceRow],
        node: &Label,
    ) -> Result<(), CliError> {
        for service in &self.serving {
            let others = rows
                .iter()
                .filter(|row| row.name == service.name && row.project == service.project)
                .flat_map(|row| &row.instances)
                .any(|i| {
                    let drained = i.node == *node
                        && self.instances.contains(&(i.id.clone(), service.clone()));
                    !drained && i.reachable && i.health.is_usable()
                });
            if !others {
                let text = format!(
                    "{service} is ready only on this node, so draining it would stop the service; start it on another node first, or use --force"
                );
                return Err(CliError::new(ErrorCode::Conflict, text));
            }
        }
        Ok(())
    }

    /// Whether all services are available again: each has a usable instance, and none is starting.
    pub(super) fn progress(&self, containers: &[ContainerRow]) -> Progress {
        for service in &self.services {
            let of = || containers.iter().filter(|c| c.services.contains(service));
            if let Some(starting) = of().find(|c| c.state == ContainerState::Starting) {
                return Progress::Waiting(format!("{} is not ready", starting.name));
            }
            if !of().any(is_serving) {
                return Progress::Waiting(format!("no container of {service} is healthy"));
            }
        }
        Progress::Healthy
    }
}

fn is_serving(container: &ContainerRow) -> bool {
    container.state == ContainerState::Ready && container.health.is_usable()
}

impl fmt::Display for RolloutPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.services.iter().map(ToString::to_string).collect();
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::local::InstanceRow;
    use crate::records::kinds::{Health, Protocol, Source};

    fn label(text: &str) -> Label {
        Label::parse(text).expect("a literal")
    }

    fn name(text: &str) -> ServiceName {
        ServiceName::parse(text).expect("a literal")
    }

    fn container(id: &str, services: &[&str], state: ContainerState) -> ContainerRow {
        let health = match state {
            ContainerState::Starting => Health::Starting,
            ContainerState::Ready => Health::Healthy,
            ContainerState::Draining => Health::Draining,
        };
        ContainerRow {
            id: id.into(),
            name: id.into(),
            instance: label(&format!("n1-{id}")),
            services: services.iter().map(|s| name(s)).collect(),
            address: None,
            address_v6: None,
            state,
            health,
            drained: false,
        }
    }

    fn row(service: &str, instances: &[(&str, &str, Health, bool)]) -> ServiceRow {
        let service = name(service);
        let address = "10.210.1.2".parse().expect("a literal");
        let instances = instances
            .iter()
            .map(|(id, node, health, reachable)| InstanceRow {
                id: label(id),
                node: label(node),
                address,
                addresses: vec![address],
                port: 80,
                protocol: Protocol::Tcp,
                port_name: None,
                health: *health,
                reachable: *reachable,
                source: Source::Docker,
                public: vec![],
            });
        ServiceRow {
            name: service.name,
            project: service.project,
            instances: instances.collect(),
        }
    }

    #[test]
    fn without_arguments_all_services_are_drained_under_the_names_of_their_labels() {
        let containers = [
            container("a", &["web", "app.shop"], ContainerState::Ready),
            container("b", &["db"], ContainerState::Ready),
        ];
        let plan = RolloutPlan::new(&[], &containers).expect("two services");
        assert_eq!(plan.to_string(), "db, web");
        let plan = RolloutPlan::new(&[name("app.shop")], &containers).expect("one service");
        assert_eq!(
            plan.instances,
            BTreeSet::from([(label("n1-a"), name("app.shop"))])
        );
        assert_eq!(
            RolloutPlan::new(&[name("cache")], &containers)
                .expect_err("none")
                .code,
            2
        );
        assert_eq!(RolloutPlan::new(&[], &[]).expect_err("none").code, 2);
    }

    #[test]
    fn the_last_ready_instance_of_the_mesh_is_not_drained() {
        let containers = [container("a", &["web"], ContainerState::Ready)];
        let plan = RolloutPlan::new(&[], &containers).expect("a service");
        let refused = |rows: &[ServiceRow]| plan.check_other_nodes(rows, &label("n1")).is_err();
        let own = ("n1-a", "n1", Health::Healthy, true);
        assert!(refused(&[row("web", &[own])]));
        assert!(refused(&[row(
            "web",
            &[own, ("n2-a", "n2", Health::Healthy, false)]
        )]));
        assert!(refused(&[row(
            "web",
            &[own, ("n2-a", "n2", Health::Draining, true)]
        )]));
        assert!(refused(&[row(
            "web.other",
            &[("n2-a", "n2", Health::Healthy, true)]
        )]));
        assert!(!refused(&[row(
            "web",
            &[own, ("n2-a", "n2", Health::Unknown, true)]
        )]));
    }

    #[test]
    fn a_service_without_a_usable_instance_may_be_drained() {
        let containers = [container("a", &["web"], ContainerState::Starting)];
        let plan = RolloutPlan::new(&[], &containers).expect("a service");
        assert!(plan.check_other_nodes(&[], &label("n1")).is_ok());
    }

    #[test]
    fn a_service_is_available_when_an_instance_is_usable_and_none_is_starting() {
        let old = container("a", &["web"], ContainerState::Ready);
        let plan = RolloutPlan::new(&[], std::slice::from_ref(&old)).expect("a service");
        let new = |state| container("b", &["web"], state);
        let ending = container("a", &["web"], ContainerState::Draining);
        let waits = |containers: &[ContainerRow]| plan.progress(containers) != Progress::Healthy;
        assert!(waits(&[]));
        assert!(waits(std::slice::from_ref(&ending)));
        assert!(waits(&[ending.clone(), new(ContainerState::Starting)]));
        assert!(waits(&[old, new(ContainerState::Starting)]));
        assert!(!waits(&[ending, new(ContainerState::Ready)]));
    }
}
