//! Requests the lease of this node's address block again, if the coordinator does not accept the node's record because of
//! the block, or if it does not know the node.
//!
//! A coordinator keeps the lease of a node that joined. Then the answer names the same block, and the record is accepted
//! once the node that took the block is removed. A coordinator that lost the lease may have given the block to another node.
//! Then this node moves to the block in the answer. A coordinator alone cannot move it: there has to be a signed record in
//! which another member claims the block. If that member is removed before the answer comes, the block is free again, but
//! not for this node at a coordinator that leased another block to it. So this node moves then as well, while its
//! own record is refused because of the block.
//!
//! A coordinator that does not know the node may have lost the join, if its disk had not stored it yet. The request is that of
//! the join, so such a coordinator admits the node as if it had not received the first request. It applies the same rules: a
//! token that is spent, expired or revoked by now admits nobody, and the membership must be no older than ten minutes.

use std::time::{Duration, Instant};

use super::own::Own;
use crate::model::PublicKey;
use crate::model::address::Block;
use crate::protocol::local::Problem;
use crate::records::Ledger;
use crate::records::kinds::Node;

/// The shortest time between two requests to a coordinator.
const PAUSE: Duration = Duration::from_secs(60);

/// The state of the requests for the lease.
#[derive(Debug, Default)]
pub(super) struct Lease {
    requested_at: Option<Instant>,
    /// A member that claims this node's block in a signed record.
    rival: Option<PublicKey>,
    /// Why the last request has failed, if it has.
    failure: Option<String>,
}

impl Lease {
    /// The ledger refused the record of `node`, which is authentic, since its block belongs to another node.
    pub(super) fn handle_rival(&mut self, own: &Block, node: &Node) {
        if own.overlaps(&node.block) {
            self.rival = Some(node.id);
        }
    }

    /// Whether a coordinator may be asked now. If so, the pause begins.
    pub(super) fn may_request(&mut self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < PAUSE;
        if self.requested_at.is_some_and(is_recent) {
            return false;
        }
        self.requested_at = Some(now);
        true
    }

    /// The coordinator answered which block is leased to this node, or the request has failed for a reason. `is_refused` is
    /// whether it refuses the record of this node because of the block. Returns the block to which this node moves, if it does.
    pub(super) fn handle_answer(
        &mut self,
        own: &Own,
        ledger: &Ledger,
        is_refused: bool,
        answer: Result<Block, String>,
    ) -> Option<Block> {
        let block = match answer {
            Ok(block) => {
                self.failure = None;
                block
            }
            Err(why) => {
                // There is a request each minute, and one line is enough.
                if self.failure.as_ref() != Some(&why) {
                    tracing::warn!(%why, "the coordinator does not tell which address block is leased to this node");
                }
                self.failure = Some(why);
                return None;
            }
        };
        let rival = self.rival?;
        let is_present = ledger.membership(&rival).is_some() && !ledger.is_revoked(&rival);
        if block == own.block {
            // The other member is out, and the coordinator says that the block is this node's.
            self.rival = self.rival.filter(|_| is_present);
            return None;
        }
        if !is_present && !is_refused {
            return None;
        }
        let id = own.id();
        let mesh = ledger.mesh()?;
        let is_free = ledger
            .nodes()
            .all(|node| node.id == id || !node.block.overlaps(&block));
        if mesh.addresses.index_of(&block).is_none() || !is_free {
            tracing::warn!(block = %block.v4, "the coordinator leases a block to this node that is not free; this node keeps its block");
            return None;
        }
        tracing::warn!(from = %own.block.v4, to = %block.v4, rival = rival.short(), "another node has this node's address block; this node moves to the block that is leased to it now");
        Some(block)
    }

    /// The problem that the last request has failed.
    pub(super) fn problem(&self) -> Option<Problem> {
        let why = self.failure.as_ref()?;
        Some(Problem {
            what: "the coordinator does not tell which address block is leased to this node".to_owned(),
            why: format!("the last request has failed: {why}"),
            fix: "remove the cause; this node asks again each minute. If the coordinator cannot admit this node again, run `meshctl leave` here and join with a new token".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_is_asked_for_a_lease_once_a_minute() {
        let mut lease = Lease::default();
        let now = Instant::now();
        let asked = (0..600).filter(|n| lease.may_request(now + Duration::from_millis(500) * *n));
        assert_eq!(asked.count(), 5);
    }
}
