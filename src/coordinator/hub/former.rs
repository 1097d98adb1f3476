//! The nodes that are not members and were members according to their marks.

use std::collections::{HashSet, VecDeque};

use crate::model::PublicKey;

/// The maximum number of former members that are stored. A node that is no longer stored returns its mark with its next stream.
const MAX_FORMER: usize = 4096;

/// A bounded set of nodes. When it is full, the node that was inserted first gives way.
#[derive(Debug, Default)]
pub(super) struct Former {
    nodes: HashSet<PublicKey>,
    /// In the order in which they were inserted; it may contain nodes that were removed since.
    order: VecDeque<PublicKey>,
}

impl Former {
    pub(super) fn contains(&self, node: &PublicKey) -> bool {
        self.nodes.contains(node)
    }

    /// Inserts a node. If the set is full, nodes for which `is_known` holds are removed first, since the ledger knows these.
    pub(super) fn insert(&mut self, node: PublicKey, is_known: impl Fn(&PublicKey) -> bool) {
        if self.order.len() >= MAX_FORMER {
            self.nodes.retain(|node| !is_known(node));
            self.order.retain(|node| self.nodes.contains(node));
        }
        while self.order.len() >= MAX_FORMER
            && let Some(oldest) = self.order.pop_front()
        {
            self.nodes.remove(&oldest);
        }
        if self.nodes.insert(node) {
            self.order.push_back(node);
        }
    }

    /// Removes a node that has become a member.
    pub(super) fn remove(&mut self, node: &PublicKey) {
        if self.nodes.remove(node) {
            self.order.retain(|other| other != node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: usize) -> PublicKey {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        PublicKey(key)
    }

    #[test]
    fn the_oldest_gives_way_and_nodes_that_the_ledger_knows_give_way_before() {
        let mut former = Former::default();
        for n in 0..MAX_FORMER {
            former.insert(node(n), |_| false);
        }
        former.insert(node(MAX_FORMER), |_| false);
        assert!(!former.contains(&node(0)) && former.contains(&node(1)));
        former.insert(node(MAX_FORMER + 1), |known| *known == node(7));
        assert!(!former.contains(&node(7)) && former.contains(&node(1)));
        former.remove(&node(1));
        assert!(!former.contains(&node(1)));
        assert_eq!(former.nodes.len(), former.order.len());
    }
}
