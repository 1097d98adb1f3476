//! What the owners of services refuse (`mesh.allow`).

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;

use super::index::Index;
use super::sets::Sets;
use crate::model::Label;
use crate::policy::ports::{Asked, PortSet};
use crate::policy::selector::{Selector, Wild};
use crate::policy::subject::{Offered, Subject};
use crate::policy::table::{Class, Narrowing, Refusal};

/// Compiles the refusals of all classes.
pub(super) fn narrowing(index: &Index<'_>, sets: &mut Sets) -> Narrowing {
    let mut made = Narrowing::default();
    let mut numbers: HashMap<Selector, u32, RandomState> = HashMap::default();
    for (class, subject) in index.examples() {
        let start = made.refusals.len();
        let narrowed = subject.services.iter().filter(|o| !o.allow.is_empty());
        for offered in narrowed {
            let refusal = Refusal {
                admitted: admitted(&mut made, &mut numbers, index, subject, offered),
                refused: sets.number(refused(subject, offered)),
            };
            made.refusals.push(refusal);
        }
        let range = number(start)..number(made.refusals.len());
        if !range.is_empty() {
            made.of_class.insert(Class(class), range);
        }
    }
    made
}

/// The numbers of the sets of classes that a service does not refuse, one for each selector, because few selectors are in many lists.
fn admitted(
    made: &mut Narrowing,
    numbers: &mut HashMap<Selector, u32, RandomState>,
    index: &Index<'_>,
    subject: &Subject,
    offered: &Offered,
) -> Box<[u32]> {
    let mut selectors: BTreeSet<Selector> = offered.allow.iter().cloned().collect();
    if selectors.remove(&Selector::SameProject) {
        let projects: BTreeSet<&Label> = subject.projects().collect();
        let projects = projects.into_iter().cloned();
        selectors.extend(projects.map(|project| Selector::Project(Wild::Is(project))));
    }
    let number_of = |selector: Selector| {
        *numbers.entry(selector).or_insert_with_key(|selector| {
            made.admitted.push(index.select(selector).into());
            number(made.admitted.len() - 1)
        })
    };
    selectors.into_iter().map(number_of).collect()
}

/// What a service refuses to all who are not admitted.
fn refused(subject: &Subject, offered: &Offered) -> PortSet {
    let own = offered.declared();
    let mut refused = if subject.is_node {
        // Other programs have ports at the address of a node too.
        own
    } else {
        let of_others = subject.declared().without(&own);
        PortSet::everything().without(&of_others)
    };
    // A fragment may be for any port.
    refused.extend([Asked::Other]);
    refused
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
