//! Sets of ports as numbers: equal sets have one number.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::policy::ports::PortSet;

/// All sets of ports of a table.
#[derive(Debug, Default)]
pub(super) struct Sets {
    sets: Vec<PortSet>,
    numbers: HashMap<PortSet, u32, RandomState>,
    /// The unions that were made, because the same ones are asked for many times.
    unions: HashMap<(u32, u32), u32, RandomState>,
}

impl Sets {
    /// The number of a set.
    pub(super) fn number(&mut self, set: PortSet) -> u32 {
        if let Some(number) = self.numbers.get(&set) {
            return *number;
        }
        // So many sets as a u32 can number would not fit into memory.
        let number = u32::try_from(self.sets.len()).unwrap_or(u32::MAX);
        self.sets.push(set.clone());
        self.numbers.insert(set, number);
        number
    }

    /// The number of the union of two sets.
    pub(super) fn union(&mut self, a: u32, b: u32) -> u32 {
        if a == b {
            return a;
        }
        let key = (a.min(b), a.max(b));
        if let Some(number) = self.unions.get(&key) {
            return *number;
        }
        let set = |number: u32| self.sets.get(number as usize);
        let mut union = set(a).cloned().unwrap_or_default();
        if let Some(b) = set(b) {
            union.add(b);
        }
        let number = self.number(union);
        self.unions.insert(key, number);
        number
    }

    pub(super) fn into_sets(self) -> Vec<PortSet> {
        self.sets
    }
}
