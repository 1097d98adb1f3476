//! Finds what a change of the policy opens and closes.

use std::collections::BTreeMap;

use super::compile::{Kinds, Owners};
use super::ports::PortSet;
use super::rules::Policy;
use super::subject::Subject;
use super::table::{Class, Table};

/// The ports that a change opens and closes. They are the same for each pair of these subjects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The sources, by their places in the list of subjects.
    pub from: Vec<usize>,
    /// The destinations, by their places in the list of subjects.
    pub to: Vec<usize>,
    /// The ports that are open after the change and were not open before.
    pub added: PortSet,
    /// The ports that were open before the change and are not open after it.
    pub removed: PortSet,
}

/// The exact differences between two policies. Each pair of subjects is in at most one change.
#[must_use]
pub fn diff(old: Option<&Policy>, new: Option<&Policy>, subjects: &[Subject]) -> Vec<Change> {
    let owners = Owners::of(subjects);
    let kinds = Kinds::of(subjects, &owners);
    let old = Table::of_kinds(old, &kinds, &owners);
    let new = Table::of_kinds(new, &kinds, &owners);
    let mut members: BTreeMap<Class, Vec<usize>> = BTreeMap::new();
    for (number, class) in kinds.of_subject.iter().enumerate() {
        if *class != Class::NOBODY {
            members.entry(*class).or_default().push(number);
        }
    }
    let mut changes = Vec::new();
    let sources = alike(&members, |class| old.roles(&new.layers, class, true));
    let destinations = alike(&members, |class| old.roles(&new.layers, class, false));
    for from in &sources {
        for to in &destinations {
            let (Some(a), Some(b)) = (from.first(), to.first()) else {
                continue;
            };
            let before = old.ports_by_rules(*a, *b);
            let after = new.ports_by_rules(*a, *b);
            if before != after {
                let by_rules = (after.without(&before), before.without(&after));
                add(
                    &mut changes,
                    &new,
                    &members,
                    (from.as_slice(), to.as_slice()),
                    &by_rules,
                );
            }
        }
    }
    changes
}

/// Groups the classes that have the same roles in all layers.
fn alike(
    members: &BTreeMap<Class, Vec<usize>>,
    roles: impl Fn(Class) -> Vec<u16>,
) -> Vec<Vec<Class>> {
    let mut groups: BTreeMap<Vec<u16>, Vec<Class>> = BTreeMap::new();
    for class in members.keys() {
        groups.entry(roles(*class)).or_default().push(*class);
    }
    groups.into_values().collect()
}

/// Adds the changes of classes for which the policy changes in the same way. Ports that the owner of a destination refuses are closed
/// under both policies, so they are left out.
fn add(
    changes: &mut Vec<Change>,
    table: &Table,
    members: &BTreeMap<Class, Vec<usize>>,
    (from, to): (&[Class], &[Class]),
    (added, removed): &(PortSet, PortSet),
) {
    let subjects = |classes: &[Class]| {
        let subjects = classes.iter().filter_map(|class| members.get(class));
        subjects.flatten().copied().collect::<Vec<usize>>()
    };
    let is_narrowed = |class: &Class| table.is_narrowed(*class);
    let (narrowed, open): (Vec<Class>, Vec<Class>) =
        to.iter().partition(|class| is_narrowed(class));
    let mut push = |from: &[Class], to: &[Class], refused: &PortSet| {
        let change = Change {
            from: subjects(from),
            to: subjects(to),
            added: added.without(refused),
            removed: removed.without(refused),
        };
        let is_none = change.added.is_empty() && change.removed.is_empty();
        if !is_none && !change.to.is_empty() {
            changes.push(change);
        }
    };
    push(from, &open, &PortSet::nothing());
    for to in narrowed {
        let mut by_refused: BTreeMap<PortSet, Vec<Class>> = BTreeMap::new();
        for from in from {
            let refused = table.refused_ports(*from, to);
            by_refused.entry(refused).or_default().push(*from);
        }
        for (refused, from) in &by_refused {
            push(from, &[to], refused);
        }
    }
}
