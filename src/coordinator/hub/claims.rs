//! Rules for records that come on a stream, in addition to those of the ledger. The ledger has no clock and knows neither
//! joins nor leases.
//!
//! - A membership that is new to the store is accepted on the terms in [`super::refill`]. One that changes a membership held
//!   is accepted only by a store that has lost records, and the name in it must be the same.
//! - A node keeps the block that was leased to it when it joined. A node record with any other block is refused if that block
//!   belongs to another node or if the node has a lease of its own. A store that has lost records may not know all leases, so
//!   it accepts such a record.

use std::time::Duration;

use super::refill::{Bringer, Phase, Terms, terms};
use super::{Hub, PublishRefused, State, Writer};
use crate::coordinator::enroll::CLOCK_SLACK;
use crate::coordinator::store::StoreError;
use crate::model::time::{Now, UnixSeconds};
use crate::model::{Label, PublicKey};
use crate::records::Ledger;
use crate::records::envelope::Authentic;
use crate::records::kinds::{Membership, Node, Record};

impl Hub {
    /// Whether a stream of `who` may bring this record. The caller verifies the signature, and the ledger its own rules.
    pub(super) fn permit_on_stream(
        &self,
        writer: &mut Writer,
        who: &PublicKey,
        envelope: &Authentic,
        now: Now,
    ) -> Result<Result<(), PublishRefused>, StoreError> {
        match envelope.parsed() {
            Ok((_, Record::Membership(membership))) => {
                self.permit_membership(writer, who, membership, now)
            }
            Ok((_, Record::Node(node))) => self.permit_node(writer, node, now),
            _ => Ok(Ok(())),
        }
    }

    fn permit_membership(
        &self,
        writer: &mut Writer,
        who: &PublicKey,
        membership: &Membership,
        now: Now,
    ) -> Result<Result<(), PublishRefused>, StoreError> {
        let phase = self.phase(now.monotonic);
        let clock = UnixSeconds::from_system(now.wall);
        let (bringer, terms) = {
            let state = self.read();
            let Some(ledger) = &state.ledger else {
                return Ok(Ok(()));
            };
            if let Some(held) = ledger.membership(&membership.id)
                && (held.name != membership.name || !misses_something(phase))
            {
                return Ok(Err(PublishRefused::ChangedMembership));
            }
            let bringer = state.bringer(ledger, who, membership);
            let terms = terms(phase, bringer);
            let may_bring = bringer == Bringer::Member || membership.id == *who;
            if terms == Terms::ByClock && !(may_bring && admits_now(ledger, membership, clock)) {
                return Ok(Err(PublishRefused::NeverJoined));
            }
            (bringer, terms)
        };
        if let Terms::Later(left) = terms {
            return Ok(Err(PublishRefused::NotYet(left)));
        }
        // A mark proves that the node was admitted, even if the store has no record of that.
        let admitted = bringer == Bringer::Former
            || writer
                .store
                .may_have_admitted(&membership.token, &membership.id)?;
        Ok(if admitted {
            Ok(())
        } else {
            Err(PublishRefused::NeverJoined)
        })
    }

    fn permit_node(
        &self,
        writer: &mut Writer,
        node: &Node,
        now: Now,
    ) -> Result<Result<(), PublishRefused>, StoreError> {
        if misses_something(self.phase(now.monotonic)) {
            return Ok(Ok(()));
        }
        let block = {
            let state = self.read();
            let Some(ledger) = &state.ledger else {
                return Ok(Ok(()));
            };
            let held = ledger.node(&node.id);
            if held.is_some_and(|held| held.block == node.block) {
                return Ok(Ok(()));
            }
            // The ledger refuses a block outside the plan.
            ledger
                .mesh()
                .and_then(|mesh| mesh.addresses.index_of(&node.block))
        };
        Ok(match block {
            Some(block) if !writer.store.may_lease(&node.id, block)? => {
                Err(PublishRefused::Leased(node.block.v4.to_string()))
            }
            _ => Ok(()),
        })
    }
}

impl Hub {
    /// The name of a member that the revocation of its token does not list among the nodes that stay. Such a member joined
    /// after `meshctl` had listed the nodes.
    pub(super) fn left_out(&self, envelope: &Authentic) -> Option<Label> {
        let Ok((_, Record::Revocation(revocation))) = envelope.parsed() else {
            return None;
        };
        let stays = revocation.stays.as_ref()?;
        let state = self.read();
        let mut members = state.ledger.as_ref()?.members_by(&revocation.id);
        let left_out = members.find(|member| !stays.contains(&member.id))?;
        Some(left_out.name.clone())
    }
}

impl State {
    fn bringer(&self, ledger: &Ledger, who: &PublicKey, membership: &Membership) -> Bringer {
        if ledger.membership(who).is_some() && !ledger.is_revoked(who) {
            Bringer::Member
        } else if membership.id == *who && self.former.contains(who) {
            Bringer::Former
        } else {
            Bringer::Stranger
        }
    }
}

fn misses_something(phase: Option<Phase>) -> bool {
    !matches!(phase, None | Some(Phase::Over))
}

/// Whether the membership's token admits nodes now, by the coordinator's clock, and the membership is not dated in the future.
fn admits_now(ledger: &Ledger, membership: &Membership, clock: UnixSeconds) -> bool {
    let token = ledger.token(&membership.token);
    token.is_some_and(|token| clock < token.expires_at)
        && !ledger.is_token_revoked(&membership.token)
        && membership.issued_at <= clock.plus(CLOCK_SLACK)
}

/// The message for people that tells when a refused stranger may try again.
pub(super) fn not_yet(left: &Duration) -> String {
    format!(
        "the coordinator's store has lost recent records, and its members send these first; try again in {} s",
        left.as_secs() + 1
    )
}
