//! Indexes the addresses and WireGuard keys of nodes, so that a node record is checked without a search through all others.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::model::{PublicKey, WireGuardKey};
use crate::records::kinds::Node;

/// The blocks and WireGuard keys of all nodes that were not removed. The blocks of two nodes never overlap.
#[derive(Debug, Clone, Default)]
pub(super) struct AddressIndex {
    /// The last address and the node of each block, by the first address.
    v4: BTreeMap<u32, (u32, PublicKey)>,
    v6: BTreeMap<u128, (u128, PublicKey)>,
    /// The node whose record contains the WireGuard key.
    keys: HashMap<WireGuardKey, PublicKey>,
    /// The nodes whose memberships contain the WireGuard key.
    memberships: HashMap<WireGuardKey, BTreeSet<PublicKey>>,
}

impl AddressIndex {
    /// Whether the block of `node` overlaps the block of another node.
    pub(super) fn block_is_taken(&self, node: &Node) -> bool {
        let (v4, v6) = bounds(node);
        held_by_another(&self.v4, v4, &node.id) || held_by_another(&self.v6, v6, &node.id)
    }

    /// Returns the node whose record contains the WireGuard key.
    pub(super) fn holder_of_key(&self, key: &WireGuardKey) -> Option<PublicKey> {
        self.keys.get(key).copied()
    }

    /// Adds the WireGuard key in the membership of `node`.
    pub(super) fn add_membership(&mut self, key: WireGuardKey, node: PublicKey) {
        self.memberships.entry(key).or_default().insert(node);
    }

    /// Removes the WireGuard key in the membership of `node`, because the membership was replaced or the node was removed.
    pub(super) fn remove_membership(&mut self, key: &WireGuardKey, node: &PublicKey) {
        if let Some(nodes) = self.memberships.get_mut(key) {
            nodes.remove(node);
            if nodes.is_empty() {
                self.memberships.remove(key);
            }
        }
    }

    /// Whether the membership of another node contains `key`, and the membership of `node` does not.
    pub(super) fn is_key_of_another_membership(
        &self,
        key: &WireGuardKey,
        node: &PublicKey,
    ) -> bool {
        self.memberships
            .get(key)
            .is_some_and(|nodes| !nodes.contains(node))
    }

    /// Adds a node record, which replaces the record `before`.
    pub(super) fn replace(&mut self, before: Option<&Node>, node: &Node) {
        if let Some(before) = before {
            self.remove(before);
        }
        let (v4, v6) = bounds(node);
        self.v4.insert(v4.0, (v4.1, node.id));
        self.v6.insert(v6.0, (v6.1, node.id));
        self.keys.insert(node.wireguard_key, node.id);
    }

    /// Removes a node record.
    pub(super) fn remove(&mut self, node: &Node) {
        let (v4, v6) = bounds(node);
        self.v4.remove(&v4.0);
        self.v6.remove(&v6.0);
        self.keys.remove(&node.wireguard_key);
    }
}

/// Returns the first and the last address of each of the node's blocks.
fn bounds(node: &Node) -> ((u32, u32), (u128, u128)) {
    let (v4, v6) = (node.block.v4, node.block.v6);
    (
        (v4.network().into(), v4.broadcast().into()),
        (v6.network().into(), v6.broadcast().into()),
    )
}

fn held_by_another<A: Ord + Copy>(
    held: &BTreeMap<A, (A, PublicKey)>,
    (first, last): (A, A),
    node: &PublicKey,
) -> bool {
    // Blocks do not overlap, so their last addresses are in the same order as their first addresses.
    held.range(..=last)
        .rev()
        .take_while(|(_, (end, _))| *end >= first)
        .any(|(_, (_, holder))| holder != node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::address::Block;
    use crate::testbed::records as build;

    #[test]
    fn a_block_is_taken_if_another_node_has_one_of_its_parts() {
        let node = |n: u8, v4: u32, v6: u32| {
            let block = Block {
                v4: build::block(v4).v4,
                v6: build::block(v6).v6,
            };
            build::node(&build::id(n), block)
        };
        let mut index = AddressIndex::default();
        index.replace(None, &node(1, 1, 1));
        for (n, v4, v6, is_taken) in [
            (2, 1, 9, true),
            (2, 9, 1, true),
            (2, 9, 9, false),
            (1, 1, 1, false),
        ] {
            assert_eq!(index.block_is_taken(&node(n, v4, v6)), is_taken);
        }
    }
}
