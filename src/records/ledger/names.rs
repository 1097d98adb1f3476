//! Indexes the names of nodes, so that a name is checked without a search through all memberships.

use std::collections::{BTreeSet, HashMap};

use crate::model::{Label, PublicKey};

/// Why a node has a claim to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// The node's membership contains the name.
    Joined,
    /// The node's name record contains the name.
    Wanted,
}

/// The claims of all nodes that were not removed.
#[derive(Debug, Clone, Default)]
pub(super) struct NameIndex(HashMap<Label, BTreeSet<(PublicKey, Claim)>>);

impl NameIndex {
    pub(super) fn add(&mut self, name: &Label, node: PublicKey, claim: Claim) {
        self.0
            .entry(name.clone())
            .or_default()
            .insert((node, claim));
    }

    pub(super) fn remove(&mut self, name: &Label, node: PublicKey, claim: Claim) {
        if let Some(claims) = self.0.get_mut(name) {
            claims.remove(&(node, claim));
            if claims.is_empty() {
                self.0.remove(name);
            }
        }
    }

    /// Whether a node other than `node` has a claim to `name`.
    pub(super) fn is_of_another(&self, name: &Label, node: &PublicKey) -> bool {
        let claims = self.0.get(name).into_iter().flatten();
        // A node has at most two claims to one name, so this ends after three of them.
        claims.into_iter().any(|(claimant, _)| claimant != node)
    }
}
