//! This node's address block, where the coordinator does not accept its record for it: the node asks for its lease again.
//!
//! A lease is kept for the node that joined, so the answer is the same block, and the record is accepted once whoever took
//! the block is out. Where a coordinator lost a lease, it may have given the block to another node. Then this node moves to
//! the block that it is given now; but a coordinator alone does not move it: there has to be a record in which another
//! member claims the block.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Mesh, coordinators};
use crate::model::PublicKey;
use crate::model::address::Block;
use crate::model::record::Node;
use crate::node::control::join::join;
use crate::node::own_records::key_of;
use crate::node::state::Identity;
use crate::wire::join::JoinRequest;

/// A coordinator is asked no more often.
const PAUSE: Duration = Duration::from_secs(60);

/// What is known of the lease.
#[derive(Debug)]
pub(super) struct Lease {
    answers: mpsc::Sender<Block>,
    asked: Option<Instant>,
    /// A member that claims this node's block in a signed record.
    rival: Option<PublicKey>,
}

impl Lease {
    /// With the answers of the coordinator.
    pub(super) fn new() -> (Self, mpsc::Receiver<Block>) {
        let (answers, receiver) = mpsc::channel(1);
        let lease = Self {
            answers,
            asked: None,
            rival: None,
        };
        (lease, receiver)
    }

    /// The ledger verified a member's record and refuses it, since it claims a block that another node holds.
    pub(super) fn handle_rival(&mut self, own: &Block, node: &Node) {
        if overlaps(own, &node.block) {
            self.rival = Some(node.id);
        }
    }

    /// Whether a coordinator may be asked now; then it is.
    fn may_ask(&mut self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < PAUSE;
        if self.asked.is_some_and(is_recent) {
            return false;
        }
        self.asked = Some(now);
        true
    }
}

fn overlaps(one: &Block, other: &Block) -> bool {
    one.contains(other.node_v4().into())
        || other.contains(one.node_v4().into())
        || one.contains(other.node_v6().into())
        || other.contains(one.node_v6().into())
}

impl Mesh {
    /// Asks a coordinator which block is leased to this node. The answer is an event.
    pub(super) fn ask_for_lease(&mut self, now: Instant) {
        let id = self.id();
        let Some(membership) = self.ledger.entry(&key_of("membership", &id)) else {
            return;
        };
        let request = JoinRequest::make(membership.envelope.clone(), &self.identity.keys.identity);
        if !self.lease.may_ask(now) {
            return;
        }
        let urls = coordinators(&self.ledger, &self.identity);
        let (pin, answers) = (self.identity.pin, self.lease.answers.clone());
        tokio::spawn(async move {
            match join(&urls, pin, &request).await {
                Ok(response) => drop(answers.send(response.block).await),
                Err(error) => {
                    tracing::debug!(%error, "the coordinator does not say which block is leased")
                }
            }
        });
    }

    /// The coordinator says that `block` is leased to this node. Gives what this node is from now on, if it moves.
    pub(in crate::node) fn handle_lease(&mut self, block: Block) -> Option<Identity> {
        if block == self.identity.block {
            return None;
        }
        let rival = self.lease.rival?;
        let id = self.id();
        let mesh = self.ledger.mesh()?;
        let is_free = self
            .ledger
            .nodes()
            .all(|node| node.id == id || !overlaps(&node.block, &block));
        if mesh.addresses.index_of(&block).is_none() || !is_free {
            tracing::warn!(block = %block.v4, "the coordinator leases a block to this node that is not free");
            return None;
        }
        tracing::warn!(from = %self.identity.block.v4, to = %block.v4, rival = rival.short(), "another node has this node's address block; it moves to the one that is leased to it now");
        Some(Identity {
            block,
            ..self.identity.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(v4: &str, v6: &str) -> Block {
        Block {
            v4: v4.parse().expect("a literal"),
            v6: v6.parse().expect("a literal"),
        }
    }

    #[test]
    fn blocks_overlap_by_either_family() {
        let own = block("10.210.1.0/24", "fd00:1:2:1::/64");
        assert!(overlaps(&own, &own));
        assert!(overlaps(&own, &block("10.210.1.0/24", "fd00:1:2:9::/64")));
        assert!(overlaps(&own, &block("10.210.9.0/24", "fd00:1:2:1::/64")));
        assert!(!overlaps(&own, &block("10.210.2.0/24", "fd00:1:2:2::/64")));
    }

    #[test]
    fn a_coordinator_is_asked_for_a_lease_once_a_minute() {
        let (mut lease, _answers) = Lease::new();
        let now = Instant::now();
        let asked = (0..600).filter(|n| lease.may_ask(now + Duration::from_millis(500) * *n));
        assert_eq!(asked.count(), 5);
    }
}
