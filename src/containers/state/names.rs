//! What instances are called, and which names of services they have.

use std::collections::{BTreeMap, BTreeSet};

use super::Containers;
use crate::containers::container::Container;
use crate::containers::inspect::ContainerId;
use crate::containers::labels::printable;
use crate::model::{Label, ServiceName};
use crate::protocol::local::Problem;

impl Containers {
    /// The node is called so from now on.
    pub fn handle_node_name(&mut self, node: Label) {
        self.surroundings.node = node;
        self.name_instances();
    }

    /// Names each instance after its node and its container as that is called now: `<node>-<container>` is one instance's in
    /// the whole mesh. Where that is too long or taken, the container's id stands for its name. Of two containers whose names
    /// make one label, the one that has it keeps it; once it is free, the other has it.
    pub(super) fn name_instances(&mut self) {
        let node = &self.surroundings.node;
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
        self.surroundings.node.with_suffix(id.short())
    }
}

/// Names within a project that `mesh.service` asks for and does not get: a Compose service is called so, or another
/// project asks for it whose name makes the same label. Both would mix two services.
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

/// The containers whose label asks for one of these names.
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
            why: "another service of Compose is called so, or one of a project whose name makes the same label"
                .into(),
            fix: format!(
                "give it another label mesh.service, or ask for it as {}",
                compose.name
            ),
        })
    });
    problems.collect()
}

/// The services that a container stands for.
pub(super) fn served<'a>(
    held: &'a Container,
    contested: &BTreeSet<&ServiceName>,
) -> impl Iterator<Item = &'a ServiceName> {
    let labelled = held.exposed.compose.as_ref();
    let labelled = labelled.and_then(|compose| compose.labelled.as_ref());
    let services = held.exposed.services.iter();
    services.filter(move |service| labelled != Some(*service) || !contested.contains(*service))
}
