//! Packs blocks into as few layers as have a bounded number of pairs.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::blocks::{Block, Blocks};
use super::sets::Sets;
use crate::policy::table::Layer;

/// The most pairs of roles of one layer. A hash map with so many takes 2.3 MiB.
pub(super) const MAX_PAIRS: usize = 1 << 17;

/// Packs the blocks, of which the smallest come first, into layers of at most `most_pairs` pairs.
pub(super) fn pack(
    blocks: &Blocks,
    classes: usize,
    most_pairs: usize,
    sets: &mut Sets,
) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut rest = blocks.blocks.as_slice();
    while !rest.is_empty() {
        let plan = |count: usize| {
            let some = rest.get(..count).unwrap_or(rest);
            Plan::of(blocks, some, classes, most_pairs)
        };
        let (count, plan) = match plan(rest.len()) {
            Some(all) => (rest.len(), all),
            None => {
                most(rest.len(), fitting(blocks, rest, most_pairs), plan).unwrap_or_else(|| {
                    // In a layer with one block, all sources have one role, so this layer has at most one pair for each class.
                    let one = rest.get(..1).unwrap_or_default();
                    (1, Plan::unbounded(blocks, one, classes))
                })
            }
        };
        layers.push(plan.layer(blocks, sets));
        rest = rest.get(count..).unwrap_or_default();
    }
    layers
}

/// A number of blocks that certainly fit into a layer, because the pairs of their classes already do.
fn fitting(blocks: &Blocks, rest: &[Block], most_pairs: usize) -> usize {
    let mut pairs = 0_usize;
    let fits = |block: &&Block| {
        pairs = pairs.saturating_add(blocks.size(block));
        pairs <= most_pairs
    };
    rest.iter().take_while(fits).count()
}

/// The plan with the most blocks that fit, and their number. More blocks never have fewer pairs, so the number is found by bisection
/// between `fitting`, which is known to fit and may be 0, and `all`, which is known not to fit.
fn most<'b>(
    all: usize,
    fitting: usize,
    plan: impl Fn(usize) -> Option<Plan<'b>>,
) -> Option<(usize, Plan<'b>)> {
    let (mut low, mut high) = (fitting, all);
    let mut best = None;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match plan(middle) {
            Some(found) => {
                best = Some((middle, found));
                low = middle;
            }
            None => high = middle,
        }
    }
    best.or_else(|| Some((low, plan(low)?)).filter(|_| low > 0))
}

/// The roles of the classes, for some blocks.
struct Plan<'b> {
    blocks: &'b [Block],
    from: Vec<u32>,
    to: Vec<u32>,
    /// The roles that occur in each side, by the number of the side.
    sources: HashMap<u32, Vec<u32>, RandomState>,
    destinations: HashMap<u32, Vec<(u32, u32)>, RandomState>,
}

impl<'b> Plan<'b> {
    /// None if there are more than `most` pairs.
    fn of(blocks: &Blocks, some: &'b [Block], classes: usize, most: usize) -> Option<Self> {
        let plan = Self::unbounded(blocks, some, classes);
        let pairs = plan.blocks.iter().map(|block| {
            let from = plan.sources.get(&block.from).map_or(0, Vec::len);
            let to = plan.destinations.get(&block.to).map_or(0, Vec::len);
            from * to
        });
        let pairs: usize = pairs.sum();
        (pairs <= most).then_some(plan)
    }

    fn unbounded(blocks: &Blocks, some: &'b [Block], classes: usize) -> Self {
        let mut plan = Self {
            blocks: some,
            from: vec![0; classes],
            to: vec![0; classes],
            sources: HashMap::default(),
            destinations: HashMap::default(),
        };
        plan.split_roles(blocks);
        compact(&mut plan.from);
        compact(&mut plan.to);
        plan.collect_roles(blocks);
        plan
    }

    /// Gives the classes of each side roles that are not those of other classes.
    fn split_roles(&mut self, blocks: &Blocks) {
        let mut next = (0, 0);
        let mut renamed = HashMap::default();
        for block in self.blocks {
            if self.sources.insert(block.from, Vec::new()).is_none() {
                let members = blocks.sources.get(block.from as usize);
                let members = members.into_iter().flatten().map(|class| (*class, 0));
                split(&mut self.from, &mut next.0, &mut renamed, members);
            }
            if self.destinations.insert(block.to, Vec::new()).is_none() {
                let members = blocks.destinations.get(block.to as usize);
                let members = members.into_iter().flatten().copied();
                split(&mut self.to, &mut next.1, &mut renamed, members);
            }
        }
    }

    /// Lists the roles of each side.
    fn collect_roles(&mut self, blocks: &Blocks) {
        for (side, roles) in &mut self.sources {
            let members = blocks.sources.get(*side as usize).into_iter().flatten();
            roles.extend(members.filter_map(|class| self.from.get(usize::from(*class))));
            roles.sort_unstable();
            roles.dedup();
        }
        for (side, roles) in &mut self.destinations {
            let members = blocks.destinations.get(*side as usize);
            for (class, set) in members.into_iter().flatten() {
                roles.extend(self.to.get(usize::from(*class)).map(|role| (*role, *set)));
            }
            roles.sort_unstable();
            roles.dedup();
        }
    }

    /// The layer with the pairs of roles.
    fn layer(&self, blocks: &Blocks, sets: &mut Sets) -> Layer {
        let mut layer = Layer {
            from: narrow(&self.from),
            to: narrow(&self.to),
            ..Layer::default()
        };
        // The sets of the pairs that more than one block opens, other than the first one of each pair.
        let mut more: Vec<(u32, u32)> = Vec::new();
        for block in self.blocks {
            debug_assert!(blocks.size(block) > 0);
            let sources = self.sources.get(&block.from).into_iter().flatten();
            let destinations = self.destinations.get(&block.to);
            for from in sources.map(|role| role16(*role)) {
                for (to, set) in destinations.into_iter().flatten() {
                    let set = block.fixed.unwrap_or(*set);
                    let key = Layer::key(from, role16(*to));
                    let first = *layer.pairs.entry(key).or_insert(set);
                    if first != set {
                        more.push((key, set));
                    }
                }
            }
        }
        more.sort_unstable();
        let mut numbers = Vec::new();
        for of_pair in more.chunk_by(|(a, _), (b, _)| a == b) {
            let pair = of_pair.first();
            if let Some(first) = pair.and_then(|(key, _)| layer.pairs.get_mut(key)) {
                numbers.clear();
                numbers.push(*first);
                numbers.extend(of_pair.iter().map(|(_, set)| *set));
                *first = sets.union(&mut numbers);
            }
        }
        layer.pairs.shrink_to_fit();
        layer
    }
}

/// Gives the members of each role new roles, one for each value. Classes that are no members keep their roles.
fn split(
    roles: &mut [u32],
    next: &mut u32,
    renamed: &mut HashMap<(u32, u32), u32, RandomState>,
    members: impl Iterator<Item = (u16, u32)>,
) {
    renamed.clear();
    for (class, value) in members {
        let Some(role) = roles.get_mut(usize::from(class)) else {
            continue;
        };
        *role = *renamed.entry((*role, value)).or_insert_with(|| {
            *next += 1;
            *next
        });
    }
}

/// Numbers the roles that are still in use from 1 on. Role 0 stays.
fn compact(roles: &mut [u32]) {
    let mut numbers: HashMap<u32, u32, RandomState> = HashMap::default();
    let mut next = 0;
    for role in roles.iter_mut().filter(|role| **role != 0) {
        *role = *numbers.entry(*role).or_insert_with(|| {
            next += 1;
            next
        });
    }
}

fn narrow(roles: &[u32]) -> Box<[u16]> {
    roles.iter().map(|role| role16(*role)).collect()
}

/// There are at most as many roles as classes, which have 16 bits.
fn role16(role: u32) -> u16 {
    u16::try_from(role).unwrap_or_default()
}
