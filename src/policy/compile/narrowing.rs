//! Compiles the refusals of the owners of services (`mesh.allow`).

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;

use super::index::Index;
use super::sets::Sets;
use crate::policy::ports::{Asked, PortSet};
use crate::policy::selector::{Selector, Wild};
use crate::policy::subject::{MAX_NARROWED, Offered, OfferedPort, Subject};
use crate::policy::table::{Class, Narrowing, Refusal};

/// Compiles the refusals of all classes.
pub(super) fn narrowing(index: &Index<'_>, sets: &mut Sets) -> Narrowing {
    let mut made = Narrowing::default();
    let mut lists = Lists::new(index);
    for (class, subject) in index.examples() {
        let start = made.refusals.len();
        let mut narrowed = subject.narrowed().peekable();
        if narrowed.peek().is_none() {
            continue;
        }
        let undeclared = undeclared(subject).map(|set| sets.number(set));
        for offered in narrowed.by_ref().take(MAX_NARROWED) {
            let admitted = lists.admitted(subject, offered);
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
    made.admitted = lists.made;
    made
}

/// Adds the refusals of one service: of its own ports, and of those that no service declares.
fn add(made: &mut Narrowing, admitted: &[u32], own: u32, undeclared: Option<u32>) {
    for refused in [Some(own), undeclared].into_iter().flatten() {
        made.refusals.push(Refusal {
            admitted: admitted.into(),
            refused,
        });
    }
}

/// The lists of classes that services admit. Each is made once, because many services have the same selectors. Otherwise an owner could
/// make every node list the same classes again for each of its services.
struct Lists<'i, 's> {
    index: &'i Index<'s>,
    made: Vec<Box<[u16]>>,
    /// The number of the list of the classes that one of these selectors selects.
    numbers: HashMap<BTreeSet<Selector>, u32, RandomState>,
}

impl<'i, 's> Lists<'i, 's> {
    fn new(index: &'i Index<'s>) -> Self {
        Self {
            index,
            made: Vec::new(),
            numbers: HashMap::default(),
        }
    }

    /// The numbers of the lists of classes that a service of `subject` admits, one for each of its selectors.
    fn admitted(&mut self, subject: &Subject, offered: &Offered) -> Vec<u32> {
        let selectors: BTreeSet<&Selector> = offered.admitted().iter().collect();
        let lists = selectors.into_iter().map(|selector| match selector {
            Selector::SameProject => self.number(own_projects(subject)),
            selector => self.number(BTreeSet::from([selector.clone()])),
        });
        lists.collect()
    }

    fn number(&mut self, selectors: BTreeSet<Selector>) -> u32 {
        if let Some(number) = self.numbers.get(&selectors) {
            return *number;
        }
        let number = number(self.made.len());
        self.made.push(self.index.select_any(&selectors).into());
        self.numbers.insert(selectors, number);
        number
    }
}

/// The selectors of the projects in which `subject` has a service.
fn own_projects(subject: &Subject) -> BTreeSet<Selector> {
    let projects: BTreeSet<_> = subject.projects().collect();
    let selectors = projects.into_iter().cloned().map(Wild::Is);
    selectors.map(Selector::Project).collect()
}

/// The ports of services, and fragments, because a fragment may be for any port.
fn refused<'s>(services: impl IntoIterator<Item = &'s Offered>) -> PortSet {
    let ports = services.into_iter().flat_map(|offered| &offered.ports);
    let ports = ports.map(OfferedPort::asked);
    ports.chain([Asked::Other]).collect()
}

/// The ports that no service of an instance declares; none for a node, where these ports belong to other programs.
fn undeclared(subject: &Subject) -> Option<PortSet> {
    let declared = || PortSet::everything().without(&subject.declared());
    (!subject.is_node).then(declared)
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
