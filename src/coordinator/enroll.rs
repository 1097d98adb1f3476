//! Whether a join request is granted, by the ledger and the coordinator's clock. Pure: the clock is an argument.
//!
//! Uses of the token, the name and the block are decided by the store, in one transaction.

use std::collections::HashSet;
use std::time::Duration;

use crate::model::time::UnixSeconds;
use crate::model::{Label, MeshAddresses};
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

/// What the ledger grants. The store decides the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Granted {
    pub membership: Membership,
    /// How many nodes its token may admit.
    pub uses: u32,
    /// The mesh's address plan.
    pub addresses: MeshAddresses,
}

/// Why the ledger refuses a join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    NoMesh,
    UnknownToken,
    /// The node was removed from the mesh.
    Removed,
    TokenRevoked,
    /// The token expired so many seconds ago.
    TokenExpired(u64),
    /// The clock of the node is so many seconds ahead of the coordinator's.
    ClockAhead(u64),
    /// The clock of the node is so many seconds behind the coordinator's.
    ClockBehind(u64),
    /// The ledger does not accept the membership certificate.
    Certificate(Refused),
    /// Another node has the name.
    NameTaken {
        name: Label,
        /// A similar name that no node has.
        suggestion: Label,
    },
}

impl Refusal {
    /// The refusal of a name that another node has.
    pub(super) fn name_taken(ledger: &Ledger, name: &Label) -> Self {
        Self::NameTaken {
            name: name.clone(),
            suggestion: free_name(ledger, name),
        }
    }
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

    /// The name that the node wants.
    pub(super) fn name(&self) -> &Label {
        &self.membership.name
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
/// Why the join is refused.
pub(super) fn check(
    proven: &Proven,
    ledger: &Ledger,
    now: UnixSeconds,
) -> Result<Granted, Refusal> {
    let membership = &proven.membership;
    let mesh = ledger.mesh().ok_or(Refusal::NoMesh)?;
    let token = ledger
        .token(&membership.token)
        .ok_or(Refusal::UnknownToken)?;
    if ledger.is_revoked(&membership.id) {
        return Err(Refusal::Removed);
    }
    if !is_held(proven, ledger) {
        permit(proven, token, ledger, now)?;
    }
    // The store knows the names that nodes joined with, and not those that they have now.
    if ledger.is_name_of_another(&membership.name, &membership.id) {
        return Err(Refusal::name_taken(ledger, &membership.name));
    }
    Ok(Granted {
        uses: token.uses,
        addresses: mesh.addresses,
        membership: membership.clone(),
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

/// The name in a request that may be forged.
pub(super) fn claimed_name(request: &JoinRequest) -> Option<Label> {
    match Record::parse(&request.membership.payload) {
        Ok((_, Record::Membership(membership))) => Some(membership.name),
        _ => None,
    }
}

/// Whether the same certificate was granted before. The node may not have received the answer.
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
) -> Result<(), Refusal> {
    if ledger.is_token_revoked(&token.id) {
        return Err(Refusal::TokenRevoked);
    }
    if now >= token.expires_at {
        return Err(Refusal::TokenExpired(now.0 - token.expires_at.0));
    }
    compare_clocks(proven.membership.issued_at, now)?;
    ledger
        .check_authentic(&proven.envelope)
        .map_err(Refusal::Certificate)
}

/// Whether the date of the certificate, by the node's clock, is close enough to the coordinator's time.
fn compare_clocks(made: UnixSeconds, now: UnixSeconds) -> Result<(), Refusal> {
    if made > now.plus(CLOCK_SLACK) {
        Err(Refusal::ClockAhead(made.0 - now.0))
    } else if now > made.plus(CLOCK_SLACK) {
        Err(Refusal::ClockBehind(now.0 - made.0))
    } else {
        Ok(())
    }
}

/// `name` with the lowest number appended that no node has.
fn free_name(ledger: &Ledger, name: &Label) -> Label {
    let joined = ledger
        .memberships()
        .filter(|m| !ledger.is_revoked(&m.id))
        .map(|m| m.name.clone());
    let taken: HashSet<Label> = joined.chain(ledger.names().into_values()).collect();
    (2u64..)
        .map(|number| name.with_suffix(&number.to_string()))
        .find(|candidate| !taken.contains(candidate))
        .expect("there are more numbers than nodes")
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        const REMEDY: &str =
            "set both clocks right (for example with systemd-timesyncd) and join again";
        let forbidden = |text: String| Self::new(ErrorCode::Forbidden, text);
        match refusal {
            Refusal::NoMesh => Self::new(
                ErrorCode::Conflict,
                "the coordinator has no mesh yet; run `meshctl init` on it",
            ),
            Refusal::UnknownToken => forbidden(
                "the coordinator does not know this token: it is of another mesh, or was made before the coordinator was set up anew; make one with `meshctl token create`".into(),
            ),
            Refusal::Removed => forbidden(
                "this node was removed from the mesh; run `meshctl leave` on it, then join with a new token".into(),
            ),
            Refusal::TokenRevoked => forbidden(
                "the token is revoked; make another with `meshctl token create`".into(),
            ),
            Refusal::TokenExpired(ago) => forbidden(format!(
                "the token expired {} ago; make another with `meshctl token create`",
                span(ago)
            )),
            Refusal::ClockAhead(by) => Self::new(
                ErrorCode::Configuration,
                format!("the node's clock is {} ahead of the coordinator's; {REMEDY}", span(by)),
            ),
            Refusal::ClockBehind(by) => Self::new(
                ErrorCode::Configuration,
                format!(
                    "the node's clock is {} behind the coordinator's; {REMEDY}. If they are right, this join was begun that long ago: run `meshctl leave` before",
                    span(by)
                ),
            ),
            Refusal::Certificate(refused) => certificate_refused(refused),
            Refusal::NameTaken { name, suggestion } => {
                let text = format!(
                    "another node is called {name}; join with `--name {suggestion}`, or remove that one with `meshctl node remove {name}`"
                );
                Self {
                    suggestion: Some(suggestion.to_string()),
                    ..Self::new(ErrorCode::Conflict, text)
                }
            }
        }
    }
}

fn certificate_refused(refused: Refused) -> ApiError {
    let forbidden = |text: String| ApiError::new(ErrorCode::Forbidden, text);
    match refused {
        Refused::TokenSpent(uses) => forbidden(format!(
            "the token is spent: it has admitted {uses} node(s), all it may; make another with `meshctl token create`"
        )),
        Refused::Stale { .. } | Refused::Forked(_) => ApiError::new(
            ErrorCode::Conflict,
            "the coordinator holds a newer membership certificate of this node; run `meshctl leave` on it, then join again",
        ),
        Refused::TokenExpired => forbidden(
            "the token expires before this membership was made; make another with `meshctl token create`".into(),
        ),
        refused => forbidden(format!("the membership certificate is refused: {refused}")),
    }
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
