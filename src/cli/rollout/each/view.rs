//! What is seen of the mesh at one moment. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::resolvers::Resolver;
use crate::model::Label;
use crate::protocol::local::OwnInstances;
use crate::records::kinds::Health;

/// How long instances must be healthy in a row. The last events of an engine may be late.
const STEADY: Duration = Duration::from_secs(2);

/// The service at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct View {
    /// The nodes with an instance that new clients may use and that this node reaches.
    pub(super) usable: BTreeSet<Label>,
    /// The instances on the nodes that were looked at, as these nodes see them.
    pub(super) own: BTreeMap<Label, Own>,
    /// The DNS of all nodes that are reached.
    pub(super) resolvers: BTreeMap<Label, Resolver>,
}

/// The instances of one node, whether they are drained or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Own {
    /// All are healthy. They are trusted after they were healthy for this time in a row.
    Healthy(Duration),
    /// One is not healthy, for this reason.
    Waiting(String),
    /// The node does not answer, for this reason.
    Away(String),
}

impl Own {
    /// What the answer of a node means.
    pub(super) fn of(own: &OwnInstances) -> Self {
        // Those that received their stop signal are about to be gone.
        let instances = own.instances.iter();
        let running: Vec<_> = instances
            .filter(|instance| instance.health != Health::Draining)
            .collect();
        if running.is_empty() {
            return Self::Waiting("no instance runs".to_owned());
        }
        let mut steady = STEADY;
        for instance in running {
            if !instance.health.is_usable() {
                return Self::Waiting(format!("{} is {}", instance.id, instance.health.as_str()));
            }
            let check = instance.check_ms.map(Duration::from_millis);
            steady = steady.max(check.unwrap_or_default());
        }
        Self::Healthy(steady)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::local::OwnInstance;

    fn own(instances: &[(&str, Health, Option<u64>)]) -> Own {
        let instances = instances.iter().map(|(id, health, check_ms)| OwnInstance {
            id: Label::parse(id).expect("a literal"),
            health: *health,
            check_ms: *check_ms,
        });
        Own::of(&OwnInstances {
            schema: 1,
            drained: true,
            instances: instances.collect(),
        })
    }

    #[test]
    fn a_node_is_healthy_when_all_instances_are_that_do_not_end() {
        let old = ("n1-old", Health::Draining, None);
        let new = |health| ("n1-new", health, None);
        assert_eq!(own(&[]), Own::Waiting("no instance runs".into()));
        assert_eq!(own(&[old]), Own::Waiting("no instance runs".into()));
        let starting = own(&[old, new(Health::Starting)]);
        assert_eq!(starting, Own::Waiting("n1-new is starting".into()));
        assert_eq!(own(&[old, new(Health::Healthy)]), Own::Healthy(STEADY));
        assert_eq!(own(&[new(Health::Unknown)]), Own::Healthy(STEADY));
    }

    #[test]
    fn a_check_with_a_long_interval_is_waited_for() {
        let slow = ("n1-80", Health::Healthy, Some(15_000));
        assert_eq!(own(&[slow]), Own::Healthy(Duration::from_secs(15)));
    }
}
