//! Rules as blocks: each class of one list reaches each class of another.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

use super::index::{Index, Members};
use super::opened::opened;
use super::sets::Sets;
use crate::model::Label;
use crate::policy::ports::PortSet;
use crate::policy::rules::{Policy, Ports, Term};
use crate::policy::selector::{Selector, Wild};

/// Sources, destinations and ports: each class of the source side reaches each class of the destination side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Block {
    /// The number of a list in [`Blocks::sources`].
    pub(super) from: u32,
    /// The number of a list in [`Blocks::destinations`].
    pub(super) to: u32,
    /// The number of the set of ports, if it is the same for all destinations.
    pub(super) fixed: Option<u32>,
}

/// All blocks of a policy, and their sides.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    pub(super) blocks: Vec<Block>,
    pub(super) sources: Vec<Members>,
    /// Classes in ascending order, with the number of the set of ports of each. In lists for blocks with fixed ports it is 0 and not used.
    pub(super) destinations: Vec<Vec<(u16, u32)>>,
}

impl Blocks {
    /// The most pairs of classes that a block can open.
    pub(super) fn size(&self, block: &Block) -> usize {
        let from = self.sources.get(block.from as usize).map_or(0, Vec::len);
        let to = self.destinations.get(block.to as usize).map_or(0, Vec::len);
        from.saturating_mul(to)
    }
}

/// What the ports of a destination depend on. Fixed ports are those of the block, whichever they are.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Kind {
    Fixed,
    Declared,
    Named(Label),
}

impl Kind {
    fn of(ports: &Ports) -> Self {
        match ports {
            Ports::Fixed(_) => Self::Fixed,
            Ports::Declared => Self::Declared,
            Ports::Named(name) => Self::Named(name.clone()),
        }
    }
}

/// Makes the blocks. Lists that occur again are made once.
pub(super) struct Builder<'p, 's> {
    policy: &'p Policy,
    index: &'s Index<'s>,
    sets: &'s mut Sets,
    made: Blocks,
    seen: HashSet<Block, RandomState>,
    lists: HashMap<&'p [Term], u32, RandomState>,
    members: HashMap<Members, u32, RandomState>,
    targets: HashMap<(Term, Kind), u32, RandomState>,
    /// The sources and ports of rules for `same-project` whose blocks are made.
    same_project: HashSet<(u32, &'p Ports), RandomState>,
}

impl<'p, 's> Builder<'p, 's> {
    pub(super) fn new(policy: &'p Policy, index: &'s Index<'s>, sets: &'s mut Sets) -> Self {
        Self {
            policy,
            index,
            sets,
            made: Blocks::default(),
            seen: HashSet::default(),
            lists: HashMap::default(),
            members: HashMap::default(),
            targets: HashMap::default(),
            same_project: HashSet::default(),
        }
    }

    /// The blocks of all rules, the smallest first.
    pub(super) fn build(mut self) -> Blocks {
        let policy = self.policy;
        for rule in &policy.rules {
            let from = self.source(&rule.from);
            for target in &rule.to {
                if target.term == Term::One(Selector::SameProject) {
                    self.add_same_project(from, &target.ports);
                } else {
                    self.add_target(from, &target.term, &target.ports);
                }
            }
        }
        let mut blocks = std::mem::take(&mut self.made.blocks);
        blocks.sort_by_cached_key(|block| self.made.size(block));
        self.made.blocks = blocks;
        self.made
    }

    fn add_target(&mut self, from: u32, term: &Term, ports: &Ports) {
        let fixed = match ports {
            Ports::Fixed(set) => Some(self.sets.number(set.clone())),
            Ports::Declared | Ports::Named(_) => None,
        };
        let to = self.destination(term, ports);
        let block = Block { from, to, fixed };
        if self.made.size(&block) > 0 && self.seen.insert(block) {
            self.made.blocks.push(block);
        }
    }

    /// Adds one block for each project of the sources.
    fn add_same_project(&mut self, from: u32, ports: &'p Ports) {
        if !self.same_project.insert((from, ports)) {
            return;
        }
        let sources = self.made.sources.get(from as usize);
        let by_project = self.index.by_project(sources.map_or(&[], Vec::as_slice));
        for (project, sources) in by_project {
            let from = self.member_list(sources);
            let project = Term::One(Selector::Project(Wild::Is(project.clone())));
            self.add_target(from, &project, ports);
        }
    }

    /// The number of the list of the classes that `terms` select.
    fn source(&mut self, terms: &'p [Term]) -> u32 {
        if let Some(number) = self.lists.get(terms) {
            return *number;
        }
        let selectors = terms.iter().flat_map(|term| self.policy.selectors(term));
        let members = self.index.select_any(selectors);
        let number = self.member_list(members);
        self.lists.insert(terms, number);
        number
    }

    fn member_list(&mut self, members: Members) -> u32 {
        if let Some(number) = self.members.get(&members) {
            return *number;
        }
        let number = u32::try_from(self.made.sources.len()).unwrap_or(u32::MAX);
        self.made.sources.push(members.clone());
        self.members.insert(members, number);
        number
    }

    /// The number of the list of the classes that `term` selects, with their ports.
    fn destination(&mut self, term: &Term, ports: &Ports) -> u32 {
        let key = (term.clone(), Kind::of(ports));
        if let Some(number) = self.targets.get(&key) {
            return *number;
        }
        let selectors = self.policy.selectors(term);
        let mut classes: Vec<(u16, u32)> = Vec::new();
        for selector in selectors {
            for class in self.index.select(selector) {
                let set = match &key.1 {
                    Kind::Fixed => Some(0),
                    Kind::Declared | Kind::Named(_) => self.ports_of(*class, selector, ports),
                };
                classes.extend(set.map(|set| (*class, set)));
            }
        }
        classes.sort_unstable();
        // A class that several selectors of a group select has the ports of all of them.
        let mut numbers = Vec::new();
        let of_class = classes.chunk_by(|(a, _), (b, _)| a == b);
        let merged: Vec<(u16, u32)> = of_class
            .filter_map(|sets| {
                let (class, _) = sets.first()?;
                numbers.clear();
                numbers.extend(sets.iter().map(|(_, set)| *set));
                Some((*class, self.sets.union(&mut numbers)))
            })
            .collect();
        let number = u32::try_from(self.made.destinations.len()).unwrap_or(u32::MAX);
        self.made.destinations.push(merged);
        self.targets.insert(key, number);
        number
    }

    /// The number of the set of ports that are open at a class, if any is.
    fn ports_of(&mut self, class: u16, selector: &Selector, ports: &Ports) -> Option<u32> {
        let open: PortSet = opened(selector, ports, self.index.example(class)?);
        (!open.is_empty()).then(|| self.sets.number(open))
    }
}
