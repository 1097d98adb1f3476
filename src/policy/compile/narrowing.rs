//! What the owners of services refuse (`mesh.allow`).

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;

use super::index::Index;
use super::sets::Sets;
use crate::model::Label;
use crate::policy::ports::{Asked, PortSet};
use crate::policy::selector::{Selector, Wild};
use crate::policy::subject::{MAX_NARROWED, Offered, OfferedPort, Subject};
use crate::policy::table::{Class, Narrowing, Refusal};

/// Compiles the refusals of all classes.
pub(super) fn narrowing(index: &Index<'_>, sets: &mut Sets) -> Narrowing {
    let mut made = Narrowing::default();
    let mut numbers: HashMap<Selector, u32, RandomState> = HashMap::default();
    for (class, subject) in index.examples() {
        let start = made.refusals.len();
        let mut narrowed = subject.narrowed().peekable();
        if narrowed.peek().is_none() {
            continue;
        }
        let undeclared = undeclared(subject).map(|set| sets.number(set));
        for offered in narrowed.by_ref().take(MAX_NARROWED) {
            let admitted = admitted(&mut made, &mut numbers, index, subject, offered);
            let own = sets.number(refused([offered]));
            add(&mut made, &admitted, own, undeclared);
        }
        if narrowed.peek().is_some() {
            let own = sets.number(refused(narrowed));
            add(&mut made, &[], own, undeclared);
        }
        let range = number(start)..number(made.refusals.len());
        made.of_class.insert(Class(class), range);
    }
    made
}

/// Adds the refusals of one service: of its own ports, and of those that nobody declares.
fn add(made: &mut Narrowing, admitted: &[u32], own: u32, undeclared: Option<u32>) {
    for refused in [Some(own), undeclared].into_iter().flatten() {
        made.refusals.push(Refusal {
            admitted: admitted.into(),
            refused,
        });
    }
}

/// The numbers of the sets of classes that a service does not refuse, one for each selector, because few selectors are in many lists.
fn admitted(
    made: &mut Narrowing,
    numbers: &mut HashMap<Selector, u32, RandomState>,
    index: &Index<'_>,
    subject: &Subject,
    offered: &Offered,
) -> Vec<u32> {
    let mut selectors: BTreeSet<Selector> = offered.admitted().iter().cloned().collect();
    let mut all = Vec::new();
    if selectors.remove(&Selector::SameProject) {
        all.push(projects(made, index, subject));
    }
    let number_of = |selector: Selector| {
        *numbers.entry(selector).or_insert_with_key(|selector| {
            made.admitted.push(index.select(selector).into());
            number(made.admitted.len() - 1)
        })
    };
    all.extend(selectors.into_iter().map(number_of));
    all
}

/// The number of the set of the classes that share a project with `subject`.
fn projects(made: &mut Narrowing, index: &Index<'_>, subject: &Subject) -> u32 {
    let projects: BTreeSet<&Label> = subject.projects().collect();
    let mut classes = BTreeSet::new();
    for project in projects {
        let project = Selector::Project(Wild::Is(project.clone()));
        classes.extend(index.select(&project));
    }
    made.admitted.push(classes.into_iter().copied().collect());
    number(made.admitted.len() - 1)
}

/// The ports of services, and fragments, which may be for any port.
fn refused<'s>(services: impl IntoIterator<Item = &'s Offered>) -> PortSet {
    let ports = services.into_iter().flat_map(|offered| &offered.ports);
    let ports = ports.map(OfferedPort::asked);
    ports.chain([Asked::Other]).collect()
}

/// What no service of an instance declares. At the address of a node, other programs have these ports.
fn undeclared(subject: &Subject) -> Option<PortSet> {
    let declared = || PortSet::everything().without(&subject.declared());
    (!subject.is_node).then(declared)
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
