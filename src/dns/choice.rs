//! Chooses the instances of a name that are answered, and their order. Pure: the caller passes the random number.
//!
//! The places of an answer are shared among the nodes that serve the name, not among instances. A node takes no place from
//! another node, however many instances it publishes and however many addresses and ports each of them has. The nodes get
//! one place each in turn, the nearest node first, until every node has all the places that it can fill or no place is left.
//! The answer then lists the nearest nodes first, and nodes at the same distance in random order.

use std::net::IpAddr;

use super::zone::{Entry, NEAREST, Share, Zone};
use crate::model::PublicKey;

/// The most nodes of a name to which places are allocated without memory from the heap.
const FEW: usize = 64;

/// The largest ratio of the weights of two nodes that serve a name.
const MAX_ADVANTAGE: u64 = 10;

/// The entry that a name leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) entry: &'a Entry,
    /// Only the nearest instances are answered.
    pub(super) nearest: bool,
}

/// Finds a name. A name that begins with `nearest` leads to the service behind it, if there is one, and otherwise to its own
/// entry.
pub(super) fn find<'a>(zone: &'a Zone, relative: &str) -> Option<Found<'a>> {
    let below = relative
        .strip_prefix(NEAREST)
        .and_then(|rest| zone.find(rest.strip_prefix('.')?));
    if let Some(entry) = below.filter(|entry| entry.kind.is_service) {
        let nearest = true;
        return Some(Found { entry, nearest });
    }
    let entry = zone.find(relative)?;
    let nearest = false;
    Some(Found { entry, nearest })
}

/// A node's part in one answer.
#[derive(Debug, Clone, Copy, Default)]
struct NodePlaces {
    /// The index of the node's share in the entry.
    share: u32,
    /// How many places the node could fill.
    wants: u16,
    /// How many places the node has.
    has: u16,
}

/// The nodes of a name in the order of an answer, with the places each has.
pub(super) struct Allocation<'a> {
    entry: &'a Entry,
    few: [NodePlaces; FEW],
    many: Vec<NodePlaces>,
    random: u64,
}

impl<'a> Allocation<'a> {
    /// Allocates `limit` places; `wants` returns how many a node can fill.
    pub(super) fn allocate(
        found: Found<'a>,
        entropy: u64,
        limit: usize,
        wants: impl Fn(Share<'a>) -> usize,
    ) -> Self {
        let entry = found.entry;
        let mut allocation = Self {
            entry,
            few: [NodePlaces::default(); FEW],
            many: Vec::new(),
            // xorshift64 returns zeros only if it starts with zero.
            random: entropy | 1,
        };
        let shares = entry.shares();
        if shares > FEW {
            allocation.many = vec![NodePlaces::default(); shares];
        }
        let room = allocation.all_mut(shares);
        room.iter_mut()
            .zip(0..)
            .for_each(|(node, n)| node.share = n);
        let limit = limit.min(usize::from(u16::MAX));
        let chosen = allocation.choose_nodes(shares, limit, found.nearest, wants);
        let mut left = limit;
        let chosen = allocation.all_mut(chosen);
        loop {
            let before = left;
            for node in &mut *chosen {
                if left > 0 && node.has < node.wants {
                    node.has += 1;
                    left -= 1;
                }
            }
            if left == 0 || left == before {
                break;
            }
        }
        allocation
    }

    /// Moves the nodes that get a place to the front, at most `limit` of them: the nearest nodes first, and nodes at the same
    /// distance in random order. Returns how many nodes get a place.
    fn choose_nodes(
        &mut self,
        shares: usize,
        limit: usize,
        nearest: bool,
        wants: impl Fn(Share<'a>) -> usize,
    ) -> usize {
        let entry = self.entry;
        let group_of = |nodes: &mut Self, at: usize| {
            let node = *nodes.all_mut(shares).get(at)?;
            Some(entry.share(node.share as usize)?.group)
        };
        let (mut chosen, mut next, mut group_end) = (0, 0, 0);
        while next < shares && chosen < limit {
            if next == group_end {
                let group = group_of(self, next);
                if group.is_none() || (nearest && next > 0) {
                    break;
                }
                group_end += 1;
                while group_end < shares && group_of(self, group_end) == group {
                    group_end += 1;
                }
            }
            let other = next + self.below(group_end - next);
            let nodes = self.all_mut(shares);
            nodes.swap(next, other);
            let share = nodes
                .get(next)
                .and_then(|node| entry.share(node.share as usize));
            let wants = share.map_or(0, &wants).min(limit);
            if wants > 0 {
                nodes.swap(next, chosen);
                if let Some(node) = nodes.get_mut(chosen) {
                    node.wants = wants as u16;
                }
                chosen += 1;
            }
            next += 1;
        }
        chosen
    }

    fn all_mut(&mut self, count: usize) -> &mut [NodePlaces] {
        let nodes = match self.many.is_empty() {
            true => &mut self.few[..],
            false => &mut self.many[..],
        };
        nodes.get_mut(..count).unwrap_or_default()
    }

    fn all(&self) -> &[NodePlaces] {
        match self.many.is_empty() {
            true => &self.few[..],
            false => &self.many[..],
        }
    }

    /// Calls `take` for each place in the order of the answer, until `take` returns false. The arguments are the share of the
    /// place's node, which of the node's places it is, and a random number that is the same for all places of the node.
    pub(super) fn each(self, mut take: impl FnMut(Share<'a>, usize, u64) -> bool) {
        let mut rest = self.all();
        rest = rest.split(|node| node.has == 0).next().unwrap_or_default();
        let share_of = |node: &NodePlaces| self.entry.share(node.share as usize);
        while let Some(group) = rest.first().and_then(share_of).map(|share| share.group) {
            let in_group = |node: &&NodePlaces| share_of(node).is_some_and(|s| s.group == group);
            let length = rest.iter().take_while(in_group).count();
            let (nodes, farther) = rest.split_at(length);
            rest = farther;
            let rounds = nodes.iter().map(|node| node.has).max().unwrap_or(0);
            for round in 0..rounds {
                for node in nodes.iter().filter(|node| round < node.has) {
                    let Some(share) = share_of(node) else {
                        continue;
                    };
                    let random = mixed(self.random ^ u64::from(node.share));
                    if !take(share, usize::from(round), random) {
                        return;
                    }
                }
            }
        }
    }

    /// Returns a random number below `bound` by xorshift64 (Marsaglia, 2003). The order must be even, but not unpredictable.
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % bound.max(1) as u64) as usize
    }
}

/// The element for place `place` of a node. The first element is random, and so is the step from one element to the next. The
/// step is coprime to the number of elements, so each element is visited once before any is visited again. Returns `None` if
/// `elements` is empty.
pub(super) fn element<T>(elements: &[T], place: usize, random: u64) -> Option<&T> {
    let count = elements.len();
    if count < 2 {
        return elements.first();
    }
    let first = (random % count as u64) as usize;
    if place == 0 {
        return elements.get(first);
    }
    let wanted = 1 + ((random >> 32) % (count as u64 - 1)) as usize;
    let step = (wanted..count).find(|step| are_coprime(*step, count));
    let step = step.unwrap_or(1);
    elements.get((first + place % count * step) % count)
}

fn are_coprime(mut a: usize, mut b: usize) -> bool {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
pub(super) fn mixed(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// How many places a node can fill with addresses of one family.
pub(super) fn count_addresses(share: Share<'_>, of_family: fn(&IpAddr) -> bool) -> usize {
    if of_family(&IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)) {
        share.v4.len()
    } else {
        share.v6.len()
    }
}

/// The address for place `place` of a node.
pub(super) fn address_at(
    share: Share<'_>,
    of_family: fn(&IpAddr) -> bool,
    place: usize,
    random: u64,
) -> Option<IpAddr> {
    if of_family(&IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)) {
        element(share.v4, place, random).copied().map(IpAddr::V4)
    } else {
        element(share.v6, place, random).copied().map(IpAddr::V6)
    }
}

/// One SRV record of an answer, as [`divide_weights`] needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weighted {
    /// The node that publishes it.
    pub(super) node: PublicKey,
    pub(super) priority: u16,
    /// The weight: as published before [`divide_weights`], and as answered after it.
    pub(super) weight: u16,
}

/// Divides the weight of each node among its records. Within a priority, a node weighs as much as its heaviest record,
/// however many records it has, and at most [`MAX_ADVANTAGE`] times as much as another node. Weights that are in these
/// proportions already are answered as published.
pub(super) fn divide_weights(records: &mut [Weighted]) {
    let mut priorities: Vec<u16> = records.iter().map(|record| record.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    for priority in priorities {
        divide_weights_of(records, priority);
    }
}

fn divide_weights_of(records: &mut [Weighted], priority: u16) {
    // Each node, with the sum of its weights and its heaviest weight.
    let mut nodes: Vec<(PublicKey, u64, u64)> = Vec::new();
    for record in records.iter().filter(|r| r.priority == priority) {
        let weight = u64::from(record.weight);
        match nodes.iter_mut().find(|(node, ..)| *node == record.node) {
            Some((_, sum, heaviest)) => {
                *sum += weight;
                *heaviest = (*heaviest).max(weight);
            }
            None => nodes.push((record.node, weight, weight)),
        }
    }
    let lightest = nodes.iter().map(|(_, _, heaviest)| *heaviest).min();
    let most = lightest.unwrap_or(0).max(1).saturating_mul(MAX_ADVANTAGE);
    for (_, _, heaviest) in &mut nodes {
        *heaviest = (*heaviest).min(most);
    }
    let Some((_, first_sum, first_due)) = nodes.first().copied() else {
        return;
    };
    // There are at most 32 weights of 16 bits each, so no product comes near 64 bits.
    let in_proportion = |(_, sum, due): &(PublicKey, u64, u64)| sum * first_due == first_sum * due;
    if nodes.iter().all(in_proportion) {
        return;
    }
    // Rounding changes larger numbers less.
    let largest = nodes.iter().map(|(_, _, due)| *due).max().unwrap_or(1);
    let scale = (u64::from(u16::MAX) / largest.max(1)).clamp(1, 100);
    for record in records.iter_mut().filter(|r| r.priority == priority) {
        let node = nodes.iter().find(|(node, ..)| *node == record.node);
        if let Some((_, sum, due)) = node.filter(|_| record.weight > 0) {
            let weight = u64::from(record.weight) * due * scale / (*sum).max(1);
            record.weight = u16::try_from(weight.max(1)).unwrap_or(u16::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn weights(records: &[(u8, u16, u16)]) -> Vec<u16> {
        let mut records: Vec<Weighted> = records
            .iter()
            .map(|(node, priority, weight)| Weighted {
                node: PublicKey([*node; 32]),
                priority: *priority,
                weight: *weight,
            })
            .collect();
        divide_weights(&mut records);
        records.iter().map(|record| record.weight).collect()
    }

    #[test]
    fn weights_of_one_record_a_node_are_answered_as_published() {
        assert_eq!(weights(&[(0, 0, 10), (1, 0, 30)]), [10, 30]);
        assert_eq!(weights(&[(0, 0, 10), (0, 0, 20)]), [10, 20]);
        // Each instance has two ports.
        let ports = [(0, 0, 10), (0, 0, 10), (1, 0, 10), (1, 0, 10)];
        assert_eq!(weights(&ports), [10; 4]);
        assert_eq!(weights(&[(0, 0, 0), (1, 0, 0)]), [0, 0]);
        assert_eq!(weights(&[]), [] as [u16; 0]);
    }

    #[test]
    fn many_records_of_a_node_weigh_as_much_as_its_heaviest() {
        let mut records = vec![(1, 0, 10); 31];
        records.push((0, 0, 10));
        let answered = weights(&records);
        let (honest, others) = answered.split_last().expect("32 records");
        let others: u32 = others.iter().map(|weight| u32::from(*weight)).sum();
        assert!(others.abs_diff(u32::from(*honest)) <= 31, "{answered:?}");
        // The records of one node keep the proportions of their weights.
        assert_eq!(
            weights(&[(0, 0, 30), (0, 0, 10), (1, 0, 30)]),
            [2250, 750, 3000]
        );
    }

    #[test]
    fn no_weight_counts_more_than_ten_times_that_of_another_node() {
        assert_eq!(weights(&[(0, 0, u16::MAX), (1, 0, 10)]), [10_000, 1000]);
        // Clients hardly ever select a record of weight 0 while another record has a weight (RFC 2782).
        assert_eq!(weights(&[(0, 0, 10), (1, 0, 0)]), [10, 0]);
        // The weights of different priorities are not compared.
        assert_eq!(weights(&[(0, 0, u16::MAX), (1, 1, 10)]), [u16::MAX, 10]);
    }

    #[test]
    fn a_node_visits_all_its_instances_before_it_repeats_one() {
        for count in 1..40usize {
            let elements: Vec<usize> = (0..count).collect();
            for random in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
                let visited: BTreeSet<usize> = (0..count)
                    .filter_map(|place| element(&elements, place, random).copied())
                    .collect();
                assert_eq!(visited.len(), count, "{count} {random}");
            }
        }
        assert_eq!(element(&[] as &[u8], 0, 7), None);
    }
}
