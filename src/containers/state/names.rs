//! The names of instances, and the services that each container serves.

use std::collections::{BTreeMap, BTreeSet};

use super::Containers;
use crate::containers::container::Container;
use crate::containers::inspect::ContainerId;
use crate::containers::labels::printable;
use crate::model::{Label, ServiceName};
use crate::protocol::local::Problem;

impl Containers {
    /// Handles a new name of the node.
    pub fn handle_node_name(&mut self, node: Label) {
        self.context.node = node;
        self.name_instances();
    }

    /// Sets the name of each instance: `<node>-<container>`, which is unique in the mesh. If that is too long or in
    /// use, the container's id replaces its name. If the names of two containers give the same label, the one that has
    /// the label keeps it, and the other gets it once it is free.
    pub(super) fn name_instances(&mut self) {
        let node = &self.context.node;
        let wanted = |held: &Container| node.joined(&Label::nearest(&held.name)?);
        let mut taken: BTreeSet<Label> = BTreeSet::new();
        let mut named: BTreeMap<ContainerId, Label> = BTreeMap::new();
        for keeps in [true, false] {
            for (id, held) in self.held.iter().filter(|(_, held)| held.is_mapped()) {
                if named.contains_key(id) {
                    continue;
                }
                let wanted = wanted(held).filter(|label| !keeps || held.label == *label);
                let label = match wanted {
                    Some(label) if taken.insert(label.clone()) => label,
                    _ if keeps => continue,
                    _ => self.label_by_id(id),
                };
                named.insert(id.clone(), label);
            }
        }
        for (id, label) in named {
            if let Some(held) = self.held.get_mut(&id) {
                held.label = label;
            }
        }
    }

    pub(super) fn label_by_id(&self, id: &ContainerId) -> Label {
        self.context.node.with_suffix(id.short())
    }
}

/// The names within a project that a label `mesh.service` requests and that are not used, because a Compose service has
/// the same name, or a project whose name gives the same label requests it as well. Using the name would mix two
/// services.
pub(super) fn contested(held: &BTreeMap<ContainerId, Container>) -> BTreeSet<&ServiceName> {
    let composes = || {
        let all = held.values();
        all.filter_map(|held| held.exposed.compose.as_ref())
    };
    let own: BTreeSet<&ServiceName> = composes().map(|compose| &compose.name).collect();
    let mut askers: BTreeMap<&ServiceName, &str> = BTreeMap::new();
    let mut contested = BTreeSet::new();
    for compose in composes() {
        let Some(labelled) = &compose.labelled else {
            continue;
        };
        let first = *askers.entry(labelled).or_insert(&compose.project);
        if own.contains(labelled) || first != compose.project {
            contested.insert(labelled);
        }
    }
    contested
}

/// A problem for each container whose label requests one of these names.
pub(super) fn contested_names(held: &BTreeMap<ContainerId, Container>) -> Vec<Problem> {
    let contested = contested(held);
    let problems = held.values().filter_map(|held| {
        let compose = held.exposed.compose.as_ref()?;
        let labelled = compose.labelled.as_ref()?;
        contested.contains(labelled).then(|| Problem {
            what: format!(
                "the container {} does not have the name {labelled}",
                printable(&held.name)
            ),
            why: "another Compose service has this name, or a project whose name gives the same DNS label requests it"
                .into(),
            fix: format!(
                "change its label mesh.service, or use the name {}",
                compose.name
            ),
        })
    });
    problems.collect()
}

/// The services that a container serves.
pub(super) fn served<'a>(
    held: &'a Container,
    contested: &BTreeSet<&ServiceName>,
) -> impl Iterator<Item = &'a ServiceName> {
    let labelled = held.exposed.compose.as_ref();
    let labelled = labelled.and_then(|compose| compose.labelled.as_ref());
    let services = held.exposed.services.iter();
    services.filter(move |service| labelled != Some(*service) || !contested.contains(*service))
}
