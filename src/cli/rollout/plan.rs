//! Which services a rollout is about, whether they may be drained, and whether they are back. Pure.

use std::collections::BTreeSet;
use std::fmt;

use super::super::exit::CliError;
use crate::model::{Label, ServiceName};
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{ContainerRow, ContainerState, ServiceRow};

/// What a rollout is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The services to drain.
    pub(super) services: BTreeSet<ServiceName>,
    /// Their instances on this node, by the name they are asked for with.
    pub(super) instances: BTreeSet<(Label, ServiceName)>,
    /// Services of which something here takes clients.
    serving: BTreeSet<ServiceName>,
}

/// Where the containers of a rollout are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All services are back.
    Healthy,
    /// What is missing.
    Waiting(String),
}

impl Plan {
    /// About `wanted`, or all services of `containers`.
    pub(super) fn new(
        wanted: &[ServiceName],
        containers: &[ContainerRow],
    ) -> Result<Self, CliError> {
        let missing = wanted
            .iter()
            .find(|service| !containers.iter().any(|c| c.services.contains(service)));
        if let Some(service) = missing {
            let text = format!(
                "no container of this node is {service}; `meshctl service list` shows all services"
            );
            return Err(CliError::new(ErrorCode::NotFound, text));
        }
        let services: BTreeSet<ServiceName> = if wanted.is_empty() {
            // Each by the name it was labelled with.
            let first = containers.iter().filter_map(|c| c.services.first());
            first.cloned().collect()
        } else {
            wanted.iter().cloned().collect()
        };
        if services.is_empty() {
            let text =
                "no container of this node is a service; the label mesh.service=NAME makes it one";
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

    /// Refuses to drain what nothing else in the mesh stands in for. `node` is this node's name.
    pub(super) fn refuse_the_last(
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
                    "{service} is ready nowhere but on this node, so draining it would leave nothing; start it elsewhere first, or go on with --force"
                );
                return Err(CliError::new(ErrorCode::Conflict, text));
            }
        }
        Ok(())
    }

    /// Whether all services are back: something of each is up, and nothing is still coming up.
    pub(super) fn progress(&self, containers: &[ContainerRow]) -> Progress {
        for service in &self.services {
            let of = || containers.iter().filter(|c| c.services.contains(service));
            if let Some(starting) = of().find(|c| c.state == ContainerState::Starting) {
                return Progress::Waiting(format!("{} is not up", starting.name));
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

impl fmt::Display for Plan {
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
            });
        ServiceRow {
            name: service.name,
            project: service.project,
            instances: instances.collect(),
        }
    }

    #[test]
    fn without_names_it_is_about_all_by_the_names_they_were_labelled_with() {
        let containers = [
            container("a", &["web", "app.shop"], ContainerState::Ready),
            container("b", &["db"], ContainerState::Ready),
        ];
        let plan = Plan::new(&[], &containers).expect("two services");
        assert_eq!(plan.to_string(), "db, web");
        let plan = Plan::new(&[name("app.shop")], &containers).expect("one service");
        assert_eq!(
            plan.instances,
            BTreeSet::from([(label("n1-a"), name("app.shop"))])
        );
        assert_eq!(
            Plan::new(&[name("cache")], &containers)
                .expect_err("none")
                .code,
            2
        );
        assert_eq!(Plan::new(&[], &[]).expect_err("none").code, 2);
    }

    #[test]
    fn the_last_ready_instance_of_the_mesh_is_not_drained() {
        let containers = [container("a", &["web"], ContainerState::Ready)];
        let plan = Plan::new(&[], &containers).expect("a service");
        let refused = |rows: &[ServiceRow]| plan.refuse_the_last(rows, &label("n1")).is_err();
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
    fn what_serves_nobody_may_be_drained() {
        let containers = [container("a", &["web"], ContainerState::Starting)];
        let plan = Plan::new(&[], &containers).expect("a service");
        assert!(plan.refuse_the_last(&[], &label("n1")).is_ok());
    }

    #[test]
    fn a_service_is_back_when_something_is_up_and_nothing_is_coming_up() {
        let old = container("a", &["web"], ContainerState::Ready);
        let plan = Plan::new(&[], std::slice::from_ref(&old)).expect("a service");
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
