//! An index that finds the classes of a selector without a search through all classes.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::model::{Label, ServiceName};
use crate::policy::selector::{Selector, Wild};
use crate::policy::subject::Subject;
use crate::policy::table::Class;

/// Classes in ascending order, each once.
pub(super) type Members = Vec<u16>;

type By<K> = HashMap<K, Members, RandomState>;

/// The classes that have a name of one kind.
#[derive(Default)]
struct Named<'s> {
    all: Members,
    by_name: By<&'s Label>,
}

impl<'s> Named<'s> {
    fn push(&mut self, name: &'s Label, class: u16) {
        push(&mut self.all, class);
        push(self.by_name.entry(name).or_default(), class);
    }

    fn select(&self, name: &Wild) -> Option<&Members> {
        match name {
            Wild::Is(name) => self.by_name.get(name),
            Wild::Any => Some(&self.all),
        }
    }
}

/// The classes by their facts.
pub(super) struct Index<'s> {
    examples: &'s [&'s Subject],
    /// All classes but those of networks.
    all: Members,
    nodes: Named<'s>,
    guests: Named<'s>,
    tagged: Named<'s>,
    /// The classes of networks, by the nodes that route to them.
    networks: Named<'s>,
    in_projects: Members,
    by_service: By<&'s ServiceName>,
    /// The classes with a service of this name in any project.
    by_name: By<&'s Label>,
    /// The number of each project.
    by_project: HashMap<&'s Label, usize, RandomState>,
    /// The projects, and the classes with a service in each.
    projects: Vec<(&'s Label, Members)>,
    /// The numbers of the projects of each class, beginning with class 1.
    projects_of: Vec<Vec<usize>>,
}

impl<'s> Index<'s> {
    pub(super) fn of(examples: &'s [&'s Subject]) -> Self {
        let mut index = Self {
            examples,
            all: Members::new(),
            nodes: Named::default(),
            guests: Named::default(),
            tagged: Named::default(),
            networks: Named::default(),
            in_projects: Members::new(),
            by_service: By::default(),
            by_name: By::default(),
            by_project: HashMap::default(),
            projects: Vec::new(),
            projects_of: Vec::new(),
        };
        for (place, subject) in examples.iter().enumerate() {
            if let Ok(class) = u16::try_from(place + 1) {
                index.add(class, subject);
            }
        }
        index
    }

    fn add(&mut self, class: u16, subject: &'s Subject) {
        match &subject.network {
            Some(network) => {
                for gateway in &network.gateways {
                    self.networks.push(gateway, class);
                }
            }
            None => self.all.push(class),
        }
        if subject.is_node {
            self.nodes.push(&subject.node, class);
        }
        if let Some(guest) = &subject.guest {
            self.guests.push(guest, class);
        }
        for tag in &subject.tags {
            self.tagged.push(tag, class);
        }
        let mut own = Vec::new();
        for offered in &subject.services {
            let service = &offered.service;
            push(self.by_service.entry(service).or_default(), class);
            if let Some(project) = &service.project {
                push(&mut self.in_projects, class);
                push(self.by_name.entry(&service.name).or_default(), class);
                own.push(self.add_project(project, class));
            }
        }
        own.sort_unstable();
        own.dedup();
        self.projects_of.push(own);
    }

    /// Adds a class to a project, and returns the number of the project.
    fn add_project(&mut self, project: &'s Label, class: u16) -> usize {
        let next = self.projects.len();
        let number = *self.by_project.entry(project).or_insert(next);
        if number == next {
            self.projects.push((project, Members::new()));
        }
        if let Some((_, members)) = self.projects.get_mut(number) {
            push(members, class);
        }
        number
    }

    /// The projects that have any of the classes `sources`, each with those that it has.
    pub(super) fn by_project(&self, sources: &[u16]) -> Vec<(&'s Label, Members)> {
        let mut found: Vec<Members> = vec![Members::new(); self.projects.len()];
        for class in sources {
            let own = usize::from(*class).checked_sub(1);
            let own = own.and_then(|place| self.projects_of.get(place));
            for project in own.into_iter().flatten() {
                if let Some(members) = found.get_mut(*project) {
                    members.push(*class);
                }
            }
        }
        let named = self.projects.iter().map(|(project, _)| *project).zip(found);
        named.filter(|(_, members)| !members.is_empty()).collect()
    }

    /// The subject that stands for a class.
    pub(super) fn example(&self, class: u16) -> Option<&'s Subject> {
        let index = usize::from(class).checked_sub(1)?;
        self.examples.get(index).copied()
    }

    /// All classes with the subjects that stand for them.
    pub(super) fn examples(&self) -> impl Iterator<Item = (u16, &'s Subject)> {
        // The classes of subjects are counted from 1.
        let numbered = self.examples.iter().copied().zip(1..);
        numbered.map(|(subject, class)| (class, subject))
    }

    /// How many classes there are, with [`Class::OUTSIDE`].
    pub(super) fn len(&self) -> usize {
        debug_assert_eq!(Class::OUTSIDE.0, 0);
        self.examples.len() + 1
    }

    /// The classes that a selector selects. `same-project` selects none here, because it depends on the other side of a rule.
    pub(super) fn select(&self, selector: &Selector) -> &[u16] {
        let members = match selector {
            Selector::Any => Some(&self.all),
            Selector::Service(name) => self.by_service.get(&ServiceName::from(name.clone())),
            Selector::InProject(Wild::Is(project), Wild::Is(name)) => {
                let service = ServiceName {
                    name: name.clone(),
                    project: Some(project.clone()),
                };
                self.by_service.get(&service)
            }
            Selector::InProject(Wild::Is(project), Wild::Any)
            | Selector::Project(Wild::Is(project)) => {
                let number = self.by_project.get(project);
                let project = number.and_then(|number| self.projects.get(*number));
                project.map(|(_, members)| members)
            }
            Selector::InProject(Wild::Any, Wild::Is(name)) => self.by_name.get(name),
            Selector::InProject(Wild::Any, Wild::Any) | Selector::Project(Wild::Any) => {
                Some(&self.in_projects)
            }
            Selector::Tag(tag) => self.tagged.select(tag),
            Selector::Node(name) => self.nodes.select(name),
            Selector::Guest(name) => self.guests.select(name),
            Selector::Route(name) => self.networks.select(name),
            Selector::SameProject | Selector::Unknown => None,
        };
        members.map_or(&[], Vec::as_slice)
    }

    /// The classes that one of several selectors selects.
    pub(super) fn select_any<'a>(
        &self,
        selectors: impl IntoIterator<Item = &'a Selector>,
    ) -> Members {
        let mut members = Members::new();
        for selector in selectors {
            members.extend(self.select(selector));
        }
        members.sort_unstable();
        members.dedup();
        members
    }
}

/// Adds a class that is not smaller than those before it.
fn push(members: &mut Members, class: u16) {
    if members.last() != Some(&class) {
        members.push(class);
    }
}
