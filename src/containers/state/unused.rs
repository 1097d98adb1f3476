//! Labels of meshd that have no effect: unknown ones, and those of containers that are not exposed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::containers::container::Container;
use crate::containers::inspect::{ContainerId, Inspected};
use crate::containers::labels::{self, Rules, printable};
use crate::protocol::local::Problem;

/// The maximum number of containers that get a problem of their own.
pub(super) const MAX_NAMED: usize = 8;

/// The containers that are not exposed and have labels of meshd: the name of each, and these labels.
#[derive(Debug, Default)]
pub(super) struct UnusedLabels(BTreeMap<ContainerId, (String, Vec<String>)>);

impl UnusedLabels {
    /// A container is not exposed. Remembers its labels, if it has any of meshd.
    pub(super) fn note(&mut self, inspected: &Inspected, rules: Rules) {
        let image = inspected.image.labels.as_ref();
        let unused = labels::unused(&inspected.labels, image, rules);
        if !unused.is_empty() {
            let name = printable(&inspected.name);
            self.0.insert(inspected.id.clone(), (name, unused));
        }
    }

    /// The container ended, or it is exposed.
    pub(super) fn remove(&mut self, id: &ContainerId) {
        self.0.remove(id);
    }

    /// Forgets all containers but the `existing` ones.
    pub(super) fn retain(&mut self, existing: &BTreeSet<ContainerId>) {
        self.0.retain(|id, _| existing.contains(id));
    }

    /// The problems of these containers and of the `exposed` ones: one for each of the first, and one for all others.
    pub(super) fn problems<'c>(
        &self,
        exposed: impl Iterator<Item = &'c Container>,
    ) -> Vec<Problem> {
        let exposed = exposed.filter(|held| held.is_mapped() && !held.exposed.unknown.is_empty());
        let exposed = exposed.map(|held| of_exposed(&printable(&held.name), &held.exposed.unknown));
        let others = self.0.values();
        let others = others.map(|(name, unused)| of_other(name, unused));
        let mut all = exposed.chain(others);
        let mut problems: Vec<Problem> = all.by_ref().take(MAX_NAMED).collect();
        let more = all.count();
        if more > 0 {
            problems.push(Problem {
                what: format!("{more} more containers have labels of meshd without effect"),
                why: "they have labels that meshd does not know, or no label mesh.service".into(),
                fix: "correct the others first".into(),
            });
        }
        problems
    }
}

fn of_exposed(name: &str, unknown: &[String]) -> Problem {
    Problem {
        what: format!("a label of the container {name} has no effect"),
        why: labels::explain_unused(unknown),
        fix: "correct or remove the label, and create the container again".into(),
    }
}

fn of_other(name: &str, unused: &[String]) -> Problem {
    Problem {
        what: format!("the container {name} has labels of meshd and is not exposed"),
        why: labels::explain_unused(unused),
        fix: "correct the labels, or add mesh.service=NAME, and create the container again; without these labels the problem disappears as well".into(),
    }
}
