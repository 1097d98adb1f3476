//! Who holds which addresses and tunnel keys: an index, so that a node's record is checked without a look at all others.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::model::{PublicKey, WireGuardKey};
use crate::records::kinds::Node;

/// The blocks and tunnel keys of all nodes that are in. Blocks of two nodes never overlap.
#[derive(Debug, Clone, Default)]
pub(super) struct Holders {
    /// First address of a block, with its last and its node.
    v4: BTreeMap<u32, (u32, PublicKey)>,
    v6: BTreeMap<u128, (u128, PublicKey)>,
    keys: HashMap<WireGuardKey, PublicKey>,
    /// For each tunnel key, the nodes whose memberships name it.
    named: HashMap<WireGuardKey, BTreeSet<PublicKey>>,
}

impl Holders {
    /// Whether the block of `node` overlaps the block of another node.
    pub(super) fn block_is_taken(&self, node: &Node) -> bool {
        let (v4, v6) = bounds(node);
        held_by_another(&self.v4, v4, &node.id) || held_by_another(&self.v6, v6, &node.id)
    }

    /// The node whose record has the tunnel key.
    pub(super) fn holder_of_key(&self, key: &WireGuardKey) -> Option<PublicKey> {
        self.keys.get(key).copied()
    }

    /// Notes that the membership of `node` names `key`.
    pub(super) fn name(&mut self, key: WireGuardKey, node: PublicKey) {
        self.named.entry(key).or_default().insert(node);
    }

    /// Notes that the membership of `node` no longer names `key`, or that `node` was removed.
    pub(super) fn unname(&mut self, key: &WireGuardKey, node: &PublicKey) {
        if let Some(nodes) = self.named.get_mut(key) {
            nodes.remove(node);
            if nodes.is_empty() {
                self.named.remove(key);
            }
        }
    }

    /// Whether the membership of another node names `key`, and the membership of `node` does not.
    pub(super) fn is_named_by_another(&self, key: &WireGuardKey, node: &PublicKey) -> bool {
        self.named
            .get(key)
            .is_some_and(|nodes| !nodes.contains(node))
    }

    /// Takes `node` in, in the place of what it said before.
    pub(super) fn replace(&mut self, before: Option<&Node>, node: &Node) {
        if let Some(before) = before {
            self.remove(before);
        }
        let (v4, v6) = bounds(node);
        self.v4.insert(v4.0, (v4.1, node.id));
        self.v6.insert(v6.0, (v6.1, node.id));
        self.keys.insert(node.wireguard_key, node.id);
    }

    /// What `node` had is free.
    pub(super) fn remove(&mut self, node: &Node) {
        let (v4, v6) = bounds(node);
        self.v4.remove(&v4.0);
        self.v6.remove(&v6.0);
        self.keys.remove(&node.wireguard_key);
    }
}

/// First and last address of a node's blocks.
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
    // Since none overlap, their ends are in the order of their beginnings.
    held.range(..=last)
        .rev()
        .take_while(|(_, (end, _))| *end >= first)
        .any(|(_, (_, holder))| holder != node)
}
