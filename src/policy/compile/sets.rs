//! Sets of ports as numbers: equal sets have one number.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::policy::ports::PortSet;

/// All sets of ports of a table.
#[derive(Debug, Default)]
pub(super) struct Sets {
    sets: Vec<PortSet>,
    numbers: HashMap<PortSet, u32, RandomState>,
    /// The unions that were made, by the numbers of their sets in ascending order, because the same unions are asked for many times.
    unions: HashMap<Box<[u32]>, u32, RandomState>,
}

impl Sets {
    /// The number of a set.
    pub(super) fn number(&mut self, set: PortSet) -> u32 {
        if let Some(number) = self.numbers.get(&set) {
            return *number;
        }
        // As many sets as a u32 can number would not fit into memory.
        let number = u32::try_from(self.sets.len()).unwrap_or(u32::MAX);
        self.sets.push(set.clone());
        self.numbers.insert(set, number);
        number
    }

    /// The number of the union of several sets. The sets are not united two by two: for one destination that many rules open, the unions
    /// in between would need far more memory than the last one.
    pub(super) fn union(&mut self, numbers: &mut Vec<u32>) -> u32 {
        numbers.sort_unstable();
        numbers.dedup();
        if let [number] = numbers.as_slice() {
            return *number;
        }
        if let Some(number) = self.unions.get(numbers.as_slice()) {
            return *number;
        }
        let mut union = PortSet::nothing();
        for set in numbers.iter().filter_map(|n| self.sets.get(*n as usize)) {
            union.add(set);
        }
        let number = self.number(union);
        self.unions.insert(numbers.as_slice().into(), number);
        number
    }

    pub(super) fn into_sets(self) -> Vec<PortSet> {
        self.sets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use crate::policy::ports::Asked;

    #[test]
    fn the_union_of_many_sets_is_one_set_more_and_is_made_once() {
        let mut sets = Sets::default();
        let port = |n| PortSet::of(Asked::Port(Protocol::Tcp, n));
        let mut all: Vec<u32> = (1..=500).map(|n| sets.number(port(2 * n))).collect();
        let union = sets.union(&mut all);
        all.reverse();
        assert_eq!(sets.union(&mut all), union);
        assert_eq!(sets.union(&mut vec![7, 7]), 7);
        let sets = sets.into_sets();
        assert_eq!(sets.len(), 501);
        let union = &sets[union as usize];
        assert_eq!(union.ranges(Protocol::Tcp).count(), 500);
    }
}
