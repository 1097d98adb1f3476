//! Whether a join request is granted, by the ledger and the coordinator's clock. Pure: the clock is an argument.
//!
//! Uses of the token, the name and the block are decided by the store, in one transaction.

use std::time::Duration;

use crate::model::MeshAddresses;
use crate::model::time::UnixSeconds;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::control::{agree, disagreement};
use crate::protocol::join::JoinRequest;
use crate::records::Ledger;
use crate::records::envelope::{Authentic, Purpose};
use crate::records::kinds::{Membership, Record, RecordKey, Token};
use crate::records::ledger::Refused;

/// The maximum difference between a node's clock and the coordinator's at a join. The date of a membership has to be right:
/// other nodes hold a membership back if they receive it much later, and of two nodes with one name the earlier keeps it.
pub(super) const CLOCK_SLACK: Duration = Duration::from_secs(600);

/// Nothing stands against the join but what the store decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Granted {
    /// The certificate asked for.
    pub membership: Membership,
    /// How many nodes its token may admit.
    pub uses: u32,
    /// The mesh's address plan.
    pub addresses: MeshAddresses,
}

/// A membership that is signed by the key of the token that it names, for a node that proved to hold the identity key that it
/// names. The token itself may be unknown to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proven {
    membership: Membership,
    envelope: Authentic,
}

impl Proven {
    /// The signed envelope of the membership.
    pub(super) fn envelope(&self) -> &Authentic {
        &self.envelope
    }
}

/// Verifies the signatures of a request, and its version of the protocol. That needs no ledger, and takes longer than all other
/// checks.
///
/// # Errors
/// The error says what is wrong with the request.
pub(super) fn prove(request: &JoinRequest) -> Result<Proven, ApiError> {
    let oldest = request.oldest.unwrap_or(request.protocol);
    if agree(oldest, request.protocol).is_none() {
        return Err(ApiError::new(
            ErrorCode::Version,
            disagreement(oldest, request.protocol),
        ));
    }
    proven_membership(request)
}

/// Checks a request. A request that was granted before is granted again, even if its token has expired or was revoked since.
///
/// # Errors
/// The error says what is wrong, and what to do about it.
pub(super) fn check(
    proven: &Proven,
    ledger: &Ledger,
    now: UnixSeconds,
) -> Result<Granted, ApiError> {
    let membership = proven.membership.clone();
    let Some(mesh) = ledger.mesh() else {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            "the coordinator has no mesh yet; run `meshctl init` on it",
        ));
    };
    let Some(token) = ledger.token(&membership.token) else {
        return Err(forbidden(
            "the coordinator does not know this token: it is of another mesh, or was made before the coordinator was set up anew; make one with `meshctl token create`",
        ));
    };
    if ledger.is_revoked(&membership.id) {
        return Err(removed());
    }
    if !is_held(proven, ledger) {
        permit(proven, token, ledger, now)?;
    }
    Ok(Granted {
        uses: token.uses,
        addresses: mesh.addresses,
        membership,
    })
}

/// The membership in the request, if its node holds the identity it names.
fn proven_membership(request: &JoinRequest) -> Result<Proven, ApiError> {
    let bad = |text: &str| ApiError::new(ErrorCode::BadRequest, text);
    let none = || bad("the request carries no membership certificate");
    let envelope = Authentic::verify(request.membership.clone()).ok_or_else(none)?;
    let membership = match envelope.parsed() {
        Ok((_, Record::Membership(membership))) if envelope.signer == membership.token => {
            membership.clone()
        }
        _ => return Err(none()),
    };
    let payload = envelope.payload.as_bytes();
    if request.proof.holds(&membership.id, Purpose::Join, payload) {
        Ok(Proven {
            membership,
            envelope,
        })
    } else {
        Err(bad(
            "the node does not prove that it holds its identity key",
        ))
    }
}

/// Whether this very certificate was granted before: its answer may have got lost.
fn is_held(proven: &Proven, ledger: &Ledger) -> bool {
    let key = RecordKey::Membership(proven.membership.id);
    ledger
        .entry(&key)
        .is_some_and(|held| held.envelope.payload == proven.envelope.payload)
}

fn permit(
    proven: &Proven,
    token: &Token,
    ledger: &Ledger,
    now: UnixSeconds,
) -> Result<(), ApiError> {
    if ledger.is_token_revoked(&token.id) {
        return Err(forbidden(
            "the token is revoked; make another with `meshctl token create`",
        ));
    }
    if now >= token.expires_at {
        return Err(forbidden(format!(
            "the token expired {} ago; make another with `meshctl token create`",
            span(now.0 - token.expires_at.0)
        )));
    }
    if ledger.is_revoked(&proven.membership.id) {
        return Err(removed());
    }
    compare_clocks(proven.membership.issued_at, now)?;
    ledger
        .check_authentic(&proven.envelope)
        .map_err(|refused| match refused {
            Refused::TokenSpent(uses) => forbidden(format!(
                "the token is spent: it has admitted {uses} node(s), all it may; make another with `meshctl token create`"
            )),
            Refused::Stale { .. } | Refused::Forked(_) => ApiError::new(
                ErrorCode::Conflict,
                "the coordinator holds a newer membership certificate of this node; run `meshctl leave` on it, then join again",
            ),
            Refused::TokenExpired => {
                forbidden("the token expires before this membership was made; make another with `meshctl token create`")
            }
            refused => forbidden(format!("the membership certificate is refused: {refused}")),
        })
}

/// Whether the date of the certificate, by the node's clock, is close enough to the coordinator's time.
fn compare_clocks(made: UnixSeconds, now: UnixSeconds) -> Result<(), ApiError> {
    let remedy = "set both clocks right (for example with systemd-timesyncd) and join again";
    let text = if made > now.plus(CLOCK_SLACK) {
        format!(
            "the node's clock is {} ahead of the coordinator's; {remedy}",
            span(made.0 - now.0)
        )
    } else if now > made.plus(CLOCK_SLACK) {
        format!(
            "the node's clock is {} behind the coordinator's; {remedy}. If they are right, this join was begun that long ago: run `meshctl leave` before",
            span(now.0 - made.0)
        )
    } else {
        return Ok(());
    };
    Err(ApiError::new(ErrorCode::Configuration, text))
}

fn removed() -> ApiError {
    forbidden(
        "this node was removed from the mesh; run `meshctl leave` on it, then join with a new token",
    )
}

fn forbidden(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, message)
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests;
