//! What a rollout is to do: the service, its nodes in their order, and the commands. The journal begins with it. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::text::listed;
use crate::model::{Label, ServiceName};
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{SCHEMA, ServiceRow};
use crate::records::kinds::Health;

/// The maximum number of nodes that a message names.
const MAX_NAMED: usize = 10;

/// A rollout over the nodes of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) schema: u32,
    pub(super) service: ServiceName,
    /// The nodes, in the order in which they are changed.
    pub(super) nodes: Vec<Label>,
    /// What the nodes know the rollout by. A plan has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) holder: String,
    #[serde(flatten)]
    pub(super) way: Way,
}

/// How each node is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Way {
    /// The command that replaces the instances of a node.
    pub(super) command: String,
    /// The command that brings back what a node had before.
    pub(super) rollback: Option<String>,
    /// The number of nodes that are changed at the same time.
    pub(super) batch: usize,
    /// The number of nodes that are changed before the others.
    pub(super) canary: usize,
    /// How long the canary nodes are watched.
    pub(super) soak_ms: u64,
    /// The time limit of each command, and of its instances to become healthy.
    pub(super) timeout_ms: u64,
    /// Whether the last usable instance may be drained.
    pub(super) force: bool,
}

/// Why there is no such rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OrderError {
    pub(super) code: ErrorCode,
    pub(super) message: String,
}

impl Order {
    /// A rollout over all nodes with an instance of `service`. `rows` are the services of the mesh.
    ///
    /// # Errors
    /// No node has it, a node cannot be changed now, or a batch would leave no usable instance.
    pub(super) fn new(
        service: &ServiceName,
        way: Way,
        rows: &[ServiceRow],
    ) -> Result<Self, OrderError> {
        let instances = || {
            rows.iter()
                .filter(|row| row.name == service.name && row.project == service.project)
                .flat_map(|row| &row.instances)
        };
        let nodes: BTreeSet<Label> = instances().map(|i| i.node.clone()).collect();
        if nodes.is_empty() {
            let text =
                format!("no node serves {service}; `meshctl service list` shows all services");
            return refuse(ErrorCode::NotFound, text);
        }
        let away: BTreeSet<&Label> = instances()
            .filter(|i| !i.reachable)
            .map(|i| &i.node)
            .collect();
        if !away.is_empty() {
            let text = format!(
                "{} cannot be reached from here; bring it back, or remove it with `meshctl node remove`",
                listed(away, MAX_NAMED)
            );
            return refuse(ErrorCode::Conflict, text);
        }
        let drained: BTreeSet<&Label> = instances()
            .filter(|i| i.health == Health::Draining)
            .map(|i| &i.node)
            .collect();
        if !drained.is_empty() && !way.force {
            let text = format!(
                "{service} is draining on {}, perhaps for another rollout; wait until that has ended, run `meshctl service undrain {service}` there, or use --force",
                listed(drained, MAX_NAMED)
            );
            return refuse(ErrorCode::Conflict, text);
        }
        let usable: BTreeSet<Label> = instances()
            .filter(|i| i.health.is_usable())
            .map(|i| i.node.clone())
            .collect();
        let order = Self {
            schema: SCHEMA,
            service: service.clone(),
            nodes: nodes.into_iter().collect(),
            holder: String::new(),
            way,
        };
        order.check_groups(&usable)?;
        Ok(order)
    }

    /// Checks that each group leaves a usable instance on another node.
    fn check_groups(&self, usable: &BTreeSet<Label>) -> Result<(), OrderError> {
        if self.way.force {
            return Ok(());
        }
        let last = self.groups().find(|group| {
            let has_usable = group.iter().any(|node| usable.contains(node));
            has_usable && usable.iter().all(|node| group.contains(node))
        });
        let Some(group) = last else {
            return Ok(());
        };
        let remedy = if group.len() > 1 {
            "use a smaller --batch, start it on another node first, or use --force"
        } else {
            "start it on another node first, or use --force"
        };
        let text = format!(
            "{} is healthy only on {}, so draining there would stop the service; {remedy}",
            self.service,
            listed(group, MAX_NAMED)
        );
        refuse(ErrorCode::Conflict, text)
    }

    /// The nodes that are changed together, in their order: first the canary nodes, then the others.
    pub(super) fn groups(&self) -> impl Iterator<Item = &[Label]> {
        let (canaries, others) = self.nodes.split_at(self.canaries().len());
        let batch = self.way.batch.max(1);
        canaries.chunks(batch).chain(others.chunks(batch))
    }

    /// The nodes that are changed before the others, and watched.
    pub(super) fn canaries(&self) -> &[Label] {
        let count = self.way.canary.min(self.nodes.len());
        self.nodes.get(..count).unwrap_or_default()
    }

    pub(super) fn soak(&self) -> Duration {
        Duration::from_millis(self.way.soak_ms)
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.way.timeout_ms)
    }

    /// What would happen, in lines for people. `fill` puts a node into a command.
    pub(super) fn lines(&self, fill: impl Fn(&str, &Label) -> String) -> Vec<String> {
        let mut lines = vec![format!(
            "{}: {} node(s), {} at a time",
            self.service,
            self.nodes.len(),
            self.way.batch
        )];
        let canaries = self.canaries().len();
        let mut planned = 0;
        for group in self.groups() {
            let names: Vec<&str> = group.iter().map(Label::as_str).collect();
            let names = names.join(", ");
            lines.push(format!(
                "drain {names}, and wait until no node sends new clients"
            ));
            lines.extend(
                group
                    .iter()
                    .map(|node| format!("run {}", fill(&self.way.command, node))),
            );
            lines.push(format!(
                "wait until {names} is healthy, publish, and wait until each node sends clients"
            ));
            planned += group.len();
            if planned == canaries {
                let seconds = self.soak().as_secs();
                lines.push(format!("watch the canary for {seconds} s"));
            }
        }
        lines.push(match &self.way.rollback {
            Some(rollback) => {
                format!("if a node fails: stop, and on the changed nodes, newest first: {rollback}")
            }
            None => "if a node fails: stop; there is no --rollback".to_owned(),
        });
        lines
    }
}

fn refuse<T>(code: ErrorCode, message: String) -> Result<T, OrderError> {
    Err(OrderError { code, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::local::InstanceRow;
    use crate::records::kinds::{Protocol, Source};

    fn label(text: &str) -> Label {
        Label::parse(text).expect("a literal")
    }

    fn web() -> ServiceName {
        label("web").into()
    }

    fn way() -> Way {
        Way {
            command: "ssh {node} up".into(),
            rollback: None,
            batch: 1,
            canary: 0,
            soak_ms: 60_000,
            timeout_ms: 300_000,
            force: false,
        }
    }

    fn rows(instances: &[(&str, Health, bool)]) -> Vec<ServiceRow> {
        let address = "10.210.1.2".parse().expect("a literal");
        let instances = instances
            .iter()
            .map(|(node, health, reachable)| InstanceRow {
                id: label(&format!("{node}-web")),
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
        vec![ServiceRow {
            name: label("web"),
            project: None,
            instances: instances.collect(),
        }]
    }

    fn healthy(nodes: &[&str]) -> Vec<ServiceRow> {
        let nodes: Vec<_> = nodes.iter().map(|n| (*n, Health::Healthy, true)).collect();
        rows(&nodes)
    }

    #[test]
    fn the_canary_nodes_are_groups_of_their_own_before_the_others() {
        let way = Way {
            batch: 2,
            canary: 1,
            ..way()
        };
        let order = Order::new(&web(), way, &healthy(&["n4", "n2", "n1", "n3"]));
        let order = order.expect("four nodes");
        let groups: Vec<String> = order.groups().map(|group| listed(group, 9)).collect();
        assert_eq!(groups, ["n1", "n2, n3", "n4"]);
    }

    #[test]
    fn no_group_takes_the_last_healthy_instance_without_force() {
        let refused = |way: Way, rows: &[ServiceRow]| {
            Order::new(&web(), way, rows)
                .err()
                .map(|error| error.message)
        };
        let one = refused(way(), &healthy(&["n1"])).expect("it is the last one");
        assert!(
            one.contains("only on n1") && one.contains("--force"),
            "{one}"
        );
        let both = Way { batch: 2, ..way() };
        let text = refused(both, &healthy(&["n1", "n2"])).expect("both are drained");
        assert!(text.contains("--batch"), "{text}");
        let sick = rows(&[
            ("n1", Health::Healthy, true),
            ("n2", Health::Unhealthy, true),
        ]);
        assert!(refused(way(), &sick).is_some());
        let forced = Way {
            force: true,
            ..way()
        };
        assert_eq!(refused(forced, &healthy(&["n1"])), None);
        assert_eq!(refused(way(), &healthy(&["n1", "n2"])), None);
    }

    #[test]
    fn a_node_that_is_away_or_drained_is_named() {
        let refused = |rows: &[ServiceRow]| {
            let error = Order::new(&web(), way(), rows).expect_err("not now");
            (error.code, error.message)
        };
        let (code, text) = refused(&[]);
        assert_eq!(code, ErrorCode::NotFound);
        assert!(text.contains("no node serves web"), "{text}");
        let (_, text) = refused(&rows(&[
            ("n1", Health::Healthy, true),
            ("n2", Health::Healthy, false),
        ]));
        assert!(text.starts_with("n2 cannot be reached"), "{text}");
        let (_, text) = refused(&rows(&[
            ("n1", Health::Healthy, true),
            ("n2", Health::Draining, true),
        ]));
        assert!(text.starts_with("web is draining on n2"), "{text}");
    }

    #[test]
    fn a_plan_has_a_line_for_each_step() {
        let way = Way {
            canary: 1,
            rollback: Some("ssh {node} down".into()),
            ..way()
        };
        let order = Order::new(&web(), way, &healthy(&["n1", "n2"])).expect("two nodes");
        let lines = order.lines(|command, node| command.replace("{node}", node.as_str()));
        assert_eq!(
            lines,
            [
                "web: 2 node(s), 1 at a time",
                "drain n1, and wait until no node sends new clients",
                "run ssh n1 up",
                "wait until n1 is healthy, publish, and wait until each node sends clients",
                "watch the canary for 60 s",
                "drain n2, and wait until no node sends new clients",
                "run ssh n2 up",
                "wait until n2 is healthy, publish, and wait until each node sends clients",
                "if a node fails: stop, and on the changed nodes, newest first: ssh {node} down",
            ]
        );
    }
}
