//! Whether a join request is granted, by the ledger and the coordinator's clock.

use crate::model::record::{Membership, Record};
use crate::model::time::UnixSeconds;
use crate::wire::Ledger;
use crate::wire::api::{ApiError, ErrorCode};
use crate::wire::control::PROTOCOL;
use crate::wire::envelope::Purpose;
use crate::wire::join::JoinRequest;
use crate::wire::ledger::Refused;

/// Checks everything but token uses, name and block, which the store checks as it takes them.
///
/// # Errors
/// What is wrong, and what to do about it.
pub(super) fn check(
    request: &JoinRequest,
    ledger: &Ledger,
    now: UnixSeconds,
) -> Result<Membership, ApiError> {
    let refuse = |code, message: String| Err(ApiError::new(code, message));
    if request.protocol != PROTOCOL {
        let text = format!(
            "the node speaks protocol {}, this coordinator speaks {PROTOCOL}; upgrade the older of the two",
            request.protocol
        );
        return refuse(ErrorCode::Version, text);
    }
    let membership = match Record::parse(&request.membership.payload) {
        Ok((_, Record::Membership(membership))) if request.membership.is_authentic() => membership,
        _ => {
            return refuse(
                ErrorCode::BadRequest,
                "the request carries no membership certificate".into(),
            );
        }
    };
    if !request.proof.holds(
        &membership.id,
        Purpose::Join,
        request.membership.payload.as_bytes(),
    ) {
        return refuse(
            ErrorCode::BadRequest,
            "the node does not prove that it holds its identity key".into(),
        );
    }
    if ledger.mesh().is_none() {
        return refuse(
            ErrorCode::Conflict,
            "the coordinator has no mesh yet; run `meshctl init` on it".into(),
        );
    }
    let Some(token) = ledger.token(&membership.token) else {
        return refuse(ErrorCode::Forbidden, "the coordinator does not know this token: it is of another mesh, or was made before the coordinator was set up anew; make one with `meshctl token create`".into());
    };
    if ledger.is_token_revoked(&membership.token) {
        return refuse(
            ErrorCode::Forbidden,
            "the token is revoked; make another with `meshctl token create`".into(),
        );
    }
    let again = ledger
        .membership(&membership.id)
        .is_some_and(|held| held.token == membership.token);
    if now >= token.expires_at && !again {
        return refuse(
            ErrorCode::Forbidden,
            format!(
                "the token expired {} ago; make another with `meshctl token create`",
                ago(now.0 - token.expires_at.0)
            ),
        );
    }
    match ledger.check(&request.membership) {
        Ok(()) | Err(Refused::Stale { .. }) => Ok(membership),
        Err(Refused::TokenExpired) => {
            let ahead = membership.issued_at.0.saturating_sub(now.0);
            refuse(ErrorCode::Configuration, format!("the node's clock is {} ahead of the coordinator's, so that the token seems expired; set the clocks right (for example with systemd-timesyncd) and join again", ago(ahead)))
        }
        Err(Refused::TokenSpent(uses)) => refuse(ErrorCode::Forbidden, format!("the token is spent: it has admitted {uses} node(s), all it may; make another with `meshctl token create`")),
        Err(Refused::NodeRevoked) => refuse(ErrorCode::Forbidden, "this node was removed from the mesh; run `meshctl leave` on it, then join with a new token".into()),
        Err(refused) => refuse(ErrorCode::Forbidden, format!("the membership certificate is refused: {refused}")),
    }
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
