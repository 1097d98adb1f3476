//! Rules for records that come on a stream, in addition to those of the ledger. The ledger has no clock and knows neither
//! joins nor leases.
//!
//! - A membership that is new to the store is accepted on the terms in [`super::refill`], and so is a membership with a proof of its
//!   node in place of one without. Any other membership that changes one in the store is accepted only by a store that has lost
//!   records, and the name in it must be the same.
//! - A node keeps the block that was leased to it when it joined. A node record with any other block is refused if that block
//!   belongs to another node or if the node has a lease of its own. A store that has lost records may not know all leases, so
//!   it accepts such a record.
//! - After the refill, a store that was restored accepts the first record of a node with any block that is leased to nobody. The
//!   store may have refused the record before, because another node had the block, and may have leased the node a block that it
//!   never used. Once the other node is removed, all other ledgers accept the record. A coordinator that refused it would differ
//!   from them for ever.

use super::published::PublishRefused;
use super::refill::{Bringer, Phase, Terms, terms};
use super::state::State;
use super::view::View;
use crate::coordinator::enroll::CLOCK_SLACK;
use crate::coordinator::store::{Store, StoreError};
use crate::model::time::{Now, UnixSeconds};
use crate::model::{Label, PublicKey};
use crate::records::Ledger;
use crate::records::envelope::Authentic;
use crate::records::kinds::{Membership, Node, Record};

/// The time at which records arrive, and the phase of the refill then.
pub(super) struct Arrival {
    pub now: Now,
    pub phase: Option<Phase>,
}

impl Arrival {
    /// Whether the store may lack records that its nodes hold.
    fn may_lack_records(&self) -> bool {
        !matches!(self.phase, None | Some(Phase::Over))
    }
}

/// Whether a stream of `sender` may bring this record. The caller verifies the signature, and the ledger its own rules.
pub(super) fn permit_on_stream(
    view: &View,
    store: &mut dyn Store,
    sender: &PublicKey,
    envelope: &Authentic,
    arrival: &Arrival,
) -> Result<Result<(), PublishRefused>, StoreError> {
    match envelope.parsed() {
        Ok((_, Record::Membership(membership))) => {
            let is_proven = envelope.is_proven();
            permit_membership(view, store, sender, (membership, is_proven), arrival)
        }
        Ok((_, Record::Node(node))) => permit_node(view, store, node, arrival),
        _ => Ok(Ok(())),
    }
}

fn permit_membership(
    view: &View,
    store: &mut dyn Store,
    sender: &PublicKey,
    (membership, is_proven): (&Membership, bool),
    arrival: &Arrival,
) -> Result<Result<(), PublishRefused>, StoreError> {
    let clock = UnixSeconds::from_system(arrival.now.wall);
    let (bringer, terms) = {
        let state = view.read();
        let Some(ledger) = &state.ledger else {
            return Ok(Ok(()));
        };
        // The holder of a token may have signed the held membership without the node. This one has the proof of the node.
        let is_change = !is_proven || ledger.is_membership_proven(&membership.id);
        if let Some(held) = ledger.membership(&membership.id)
            && is_change
            && (held.name != membership.name || !arrival.may_lack_records())
        {
            return Ok(Err(PublishRefused::ChangedMembership));
        }
        let bringer = bringer(&state, ledger, sender, membership);
        let terms = terms(arrival.phase, bringer);
        let may_bring = bringer == Bringer::Member || membership.id == *sender;
        if terms == Terms::ByClock && !(may_bring && admits_now(ledger, membership, clock)) {
            return Ok(Err(PublishRefused::NeverJoined));
        }
        (bringer, terms)
    };
    if let Terms::Later(left) = terms {
        return Ok(Err(PublishRefused::NotYet(left)));
    }
    // A mark proves that the node was admitted, even if the store has no record of that.
    let admitted =
        bringer == Bringer::Former || store.may_have_admitted(&membership.token, &membership.id)?;
    Ok(if admitted {
        Ok(())
    } else {
        Err(PublishRefused::NeverJoined)
    })
}

fn permit_node(
    view: &View,
    store: &mut dyn Store,
    node: &Node,
    arrival: &Arrival,
) -> Result<Result<(), PublishRefused>, StoreError> {
    if arrival.may_lack_records() {
        return Ok(Ok(()));
    }
    let (block, is_first) = {
        let state = view.read();
        let Some(ledger) = &state.ledger else {
            return Ok(Ok(()));
        };
        let held = ledger.node(&node.id);
        if held.is_some_and(|held| held.block == node.block) {
            return Ok(Ok(()));
        }
        // The ledger refuses a block outside the plan.
        let plan = ledger.mesh().map(|mesh| &mesh.addresses);
        let block = plan.and_then(|plan| plan.index_of(&node.block));
        (block, held.is_none())
    };
    let Some(block) = block else {
        return Ok(Ok(()));
    };
    let may_have = store.may_lease(&node.id, block)? || is_first && store.may_have_leased(block)?;
    Ok(if may_have {
        Ok(())
    } else {
        Err(PublishRefused::Leased(node.block.v4.to_string()))
    })
}

/// The name of a member that the revocation of its token does not list among the nodes that stay. Such a member joined after
/// `meshctl` had listed the nodes.
pub(super) fn left_out(state: &State, envelope: &Authentic) -> Option<Label> {
    let Ok((_, Record::Revocation(revocation))) = envelope.parsed() else {
        return None;
    };
    let stays = revocation.stays.as_ref()?;
    let mut members = state.ledger.as_ref()?.members_by(&revocation.id);
    let left_out = members.find(|member| !stays.contains(&member.id))?;
    Some(left_out.name.clone())
}

fn bringer(state: &State, ledger: &Ledger, sender: &PublicKey, membership: &Membership) -> Bringer {
    if ledger.membership(sender).is_some() && !ledger.is_revoked(sender) {
        Bringer::Member
    } else if membership.id == *sender && state.former.contains(sender) {
        Bringer::Former
    } else {
        Bringer::Unproven
    }
}

/// Whether the membership's token admits nodes now, by the coordinator's clock, and the membership is not dated in the future.
fn admits_now(ledger: &Ledger, membership: &Membership, clock: UnixSeconds) -> bool {
    let token = ledger.token(&membership.token);
    token.is_some_and(|token| clock < token.expires_at)
        && !ledger.is_token_revoked(&membership.token)
        && membership.issued_at <= clock.plus(CLOCK_SLACK)
}
