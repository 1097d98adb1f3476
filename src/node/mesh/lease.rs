//! Requests the lease of this node's address block again, if the coordinator does not accept the node's record because of
//! the block.
//!
//! A coordinator keeps the lease of a node that joined. Then the answer names the same block, and the record is accepted
//! once the node that took the block is removed. A coordinator that lost the lease may have given the block to another node.
//! Then this node moves to the block in the answer. A coordinator alone cannot move it: there has to be a signed record in
//! which another member claims the block.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Mesh, coordinators};
use crate::model::PublicKey;
use crate::model::address::Block;
use crate::node::control::join::join;
use crate::node::state::Identity;
use crate::protocol::join::JoinRequest;
use crate::records::kinds::{Node, RecordKey};

/// The shortest time between two requests to a coordinator.
const PAUSE: Duration = Duration::from_secs(60);

/// The state of the requests for the lease.
#[derive(Debug)]
pub(super) struct Lease {
    answers: mpsc::Sender<Block>,
    asked: Option<Instant>,
    /// A member that claims this node's block in a signed record.
    rival: Option<PublicKey>,
}

impl Lease {
    /// Returns the state, and the channel on which the answers of the coordinator arrive.
    pub(super) fn new() -> (Self, mpsc::Receiver<Block>) {
        let (answers, receiver) = mpsc::channel(1);
        let lease = Self {
            answers,
            asked: None,
            rival: None,
        };
        (lease, receiver)
    }

    /// The ledger refused the record of `node`, which is authentic, since its block belongs to another node.
    pub(super) fn handle_rival(&mut self, own: &Block, node: &Node) {
        if overlaps(own, &node.block) {
            self.rival = Some(node.id);
        }
    }

    /// Whether a coordinator may be asked now. If so, the pause begins.
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
    /// Asks a coordinator which block is leased to this node. The answer arrives as an event.
    pub(super) fn ask_for_lease(&mut self, now: Instant) {
        let id = self.id();
        let Some(membership) = self.ledger.entry(&RecordKey::Membership(id)) else {
            return;
        };
        if !self.lease.may_ask(now) {
            return;
        }
        let request = JoinRequest::make(membership.envelope.clone(), &self.identity.keys.identity);
        let urls = coordinators(&self.ledger, &self.identity);
        let (pin, answers) = (self.identity.pin, self.lease.answers.clone());
        tokio::spawn(async move {
            match join(&urls, pin, &request).await {
                Ok(response) => drop(answers.send(response.block).await),
                Err(error) => {
                    tracing::debug!(%error, "the coordinator does not answer which block is leased to this node")
                }
            }
        });
    }

    /// The coordinator answered that `block` is leased to this node. Returns the new identity if the node moves to that block.
    pub(in crate::node) fn handle_lease(&mut self, block: Block) -> Option<Identity> {
        if block == self.identity.block {
            return None;
        }
        // Once the other node is out, nothing but the coordinator's word is left for a move.
        let rival = self.lease.rival.filter(|rival| {
            self.ledger.membership(rival).is_some() && !self.ledger.is_revoked(rival)
        })?;
        let id = self.id();
        let mesh = self.ledger.mesh()?;
        let is_free = self
            .ledger
            .nodes()
            .all(|node| node.id == id || !overlaps(&node.block, &block));
        if mesh.addresses.index_of(&block).is_none() || !is_free {
            tracing::warn!(block = %block.v4, "the coordinator leases a block to this node that is not free; this node keeps its block");
            return None;
        }
        tracing::warn!(from = %self.identity.block.v4, to = %block.v4, rival = rival.short(), "another node has this node's address block; this node moves to the block that is leased to it now");
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
