//! Joining: keys, certificate, the request, and everything else that happens before the node is a member.
//!
//! Problems of this host are found before the token is spent: the device, the port, the disk, and, with the
//! coordinator's answer to a trial, the mesh's addresses. If a join fails after the coordinator may have admitted the
//! node, the node signs a departure, so that no member remains that never connects.

use std::time::Duration;

use super::control::join::{JoinError, check, join};
use super::host::{HostNetwork, overlap};
use super::replica::newcomers::membership_in;
use super::state::departing::Departing;
use super::state::{Identity, Keys, Pending, StateDir, Way};
use crate::model::Label;
use crate::model::time::UnixSeconds;
use crate::os::clock;
use crate::os::dial::DialError;
use crate::protocol::JoinToken;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::join::{JoinRequest, JoinResponse};
use crate::records::kinds::{Membership, Record};
use crate::records::ledger::Refused;
use crate::records::{Envelope, Ledger};
use crate::tunnel;

/// The maximum number of times that a suggested name replaces one that is in use.
const MAX_NAME_TRIES: usize = 5;
/// The maximum age of a certificate that is sent again after a coordinator may have refused it for its date.
const MAX_CERTIFICATE_AGE: Duration = Duration::from_secs(60);
/// The longest pause between two attempts to finish an interrupted join.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The message of a join that `meshctl leave` ended.
pub(super) const GIVEN_UP: &str = "the join was ended by `meshctl leave`";

/// An admitted node: its identity and the records of the mesh.
pub(super) struct Admitted {
    /// The node's keys, name and addresses.
    pub identity: Identity,
    /// The records of the mesh, verified with the mesh key.
    pub ledger: Ledger,
    /// Messages for the user.
    pub notes: Vec<String>,
}

/// The properties of this host that an attempt needs.
#[derive(Clone)]
pub(super) struct JoinContext {
    /// The directory in which keys are stored.
    pub dir: StateDir,
    /// The tunnel device to create. Its own addresses are no overlap.
    pub interface: String,
    /// The UDP port of the tunnel.
    pub listen_port: u16,
}

/// The input of an attempt.
pub(super) struct Attempt {
    pub context: JoinContext,
    pub token: JoinToken,
    /// The requested name.
    pub name: Option<Label>,
    /// The name if none is requested. It may be replaced by a suggested one.
    pub fallback: Label,
}

/// Joins. The keys are stored on disk before the request, so that a lost answer costs nothing: the same request is sent
/// again.
///
/// # Errors
/// The reason, in one line for the user.
pub(super) async fn run(attempt: Attempt) -> Result<Admitted, ApiError> {
    let (context, token) = (&attempt.context, &attempt.token);
    tunnel::try_open(&context.interface, context.listen_port)
        .map_err(|error| ApiError::new(super::device::code_of(&error), error.to_string()))?;
    let mut notes = Vec::new();
    let mut name = attempt
        .name
        .clone()
        .unwrap_or_else(|| attempt.fallback.clone());
    let mut tries = 0;
    let mut oldest = Duration::MAX;
    loop {
        let pending = prepare(&context.dir, token, &name, oldest)?;
        let result = match try_first(context, token, &pending).await {
            Ok(()) => request_membership(context, &pending, &way_of(token)).await,
            Err(failed) => Err(failed),
        };
        match result {
            Ok(admitted) => return Ok(Admitted { notes, ..admitted }),
            Err(Failed::Join(JoinError::Refused(refusal))) => {
                match refusal.suggestion.as_deref().map(Label::parse) {
                    Some(Ok(free)) if attempt.name.is_none() && tries < MAX_NAME_TRIES => {
                        notes = vec![format!(
                            "the name {} is taken by another node; this one is {free}",
                            attempt.fallback
                        )];
                        tries += 1;
                        name = free;
                    }
                    // A coordinator accepts only a new certificate. This one may belong to a join that began long ago.
                    _ if refusal.code == ErrorCode::Configuration
                        && oldest > MAX_CERTIFICATE_AGE =>
                    {
                        oldest = MAX_CERTIFICATE_AGE;
                    }
                    _ => return Err(refusal),
                }
            }
            Err(failed) => return Err(failed.into()),
        }
    }
}

/// Completes a join that was interrupted after the coordinator may have admitted the node. Tries until a coordinator
/// answers.
///
/// # Errors
/// The coordinator refuses, or this host cannot be a member.
pub(super) async fn resume(
    context: JoinContext,
    pending: Pending,
    way: Way,
) -> Result<Admitted, ApiError> {
    let mut pause = Duration::from_secs(1);
    let mut logged = String::new();
    loop {
        let error = match request_membership(&context, &pending, &way).await {
            Ok(admitted) => return Ok(admitted),
            Err(Failed::Join(error @ JoinError::Dial(_))) => error.to_string(),
            Err(Failed::Join(error)) if is_undecided(&error) => error.to_string(),
            Err(failed) => return Err(failed.into()),
        };
        // An obstacle that lasts is logged once.
        if error != logged {
            tracing::warn!(%error, "an interrupted join is not completed yet");
            logged = error;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Why there is no membership.
enum Failed {
    Join(JoinError),
    Host(ApiError),
}

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self::Host(error)
    }
}

impl From<Failed> for ApiError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Host(error) | Failed::Join(JoinError::Refused(error)) => error,
            Failed::Join(JoinError::Dial(error)) => dial_error(&error),
            Failed::Join(error @ JoinError::Broken { .. }) => {
                ApiError::new(ErrorCode::Unreachable, error.to_string())
            }
        }
    }
}

/// Whether the coordinator may have admitted the node despite the error.
fn is_undecided(error: &JoinError) -> bool {
    match error {
        JoinError::Broken { .. } => true,
        JoinError::Refused(refusal) => {
            matches!(refusal.code, ErrorCode::Busy | ErrorCode::Internal)
        }
        JoinError::Dial(_) => false,
    }
}

/// Finds problems of this host before the token is used.
async fn try_first(
    context: &JoinContext,
    token: &JoinToken,
    pending: &Pending,
) -> Result<(), Failed> {
    // A node that may have been admitted completes its join.
    if pending.asked {
        return Ok(());
    }
    let request = JoinRequest::make(pending.membership.clone(), &pending.keys.identity);
    let Some(check) = check(&token.urls, token.pin, &request)
        .await
        .map_err(Failed::Join)?
    else {
        return Ok(());
    };
    let mut ledger = Ledger::new(token.mesh_key);
    for envelope in check.records {
        ledger
            .apply(envelope)
            .map_err(|refused| unverifiable(&refused))?;
    }
    check_overlap(context, &ledger).await.map_err(|error| {
        let text = format!(
            "{}; the token was not used; join with it again",
            error.message
        );
        ApiError::new(error.code, text)
    })?;
    Ok(())
}

/// Requests the membership, and departs if the membership cannot be used on this host.
async fn request_membership(
    context: &JoinContext,
    pending: &Pending,
    way: &Way,
) -> Result<Admitted, Failed> {
    let requested_before = pending.asked;
    let pending = Pending {
        asked: true,
        way: Some(way.clone()),
        ..pending.clone()
    };
    context.dir.set_pending(&pending).map_err(ApiError::from)?;
    let request = JoinRequest::make(pending.membership.clone(), &pending.keys.identity);
    match join(&way.urls, way.pin, &request).await {
        Ok(response) => accept(context, way, &pending, response)
            .await
            .map_err(|error| depart_after(&context.dir, &pending, error).into()),
        Err(error) => {
            if !requested_before && !is_undecided(&error) {
                let unrequested = Pending {
                    asked: false,
                    ..pending
                };
                // If this fails, the same request is sent at the next start, and refused again.
                let _ = context.dir.set_pending(&unrequested);
            }
            Err(Failed::Join(error))
        }
    }
}

/// Departs from a mesh that has admitted this node, because `error` prevents the node from being a member. Returns the error
/// for the user.
pub(super) fn depart_after(dir: &StateDir, pending: &Pending, error: ApiError) -> ApiError {
    if let Err(kept) = abandon(dir, pending) {
        tracing::error!(error = %kept, "the departure cannot be stored; the join is completed at the next start");
        return error;
    }
    ApiError::new(
        error.code,
        format!(
            "{}; this node was admitted and departs again, and one use of the token is spent: correct that, then join again, with a new token if this one has no use left",
            error.message
        ),
    )
}

/// Drops a join that was begun. If a coordinator may have admitted the node, its departure is stored in the directory.
pub(super) fn abandon(dir: &StateDir, pending: &Pending) -> Result<(), ApiError> {
    let now = UnixSeconds::from_system(clock::wall());
    if let Some(departing) = Departing::of_pending(pending, now) {
        dir.add_departing(&departing)?;
    }
    dir.clear_pending();
    Ok(())
}

fn dial_error(error: &DialError) -> ApiError {
    let (code, text) = match error {
        DialError::Pin { .. } => (ErrorCode::Forbidden, error.to_string()),
        // The token has the URL, so a correction of the coordinator's settings does not reach it.
        DialError::Unresolved { .. } => (
            ErrorCode::Unreachable,
            format!(
                "{error}; or start mesh-coordinator with `--public-url https://ADDRESS:PORT` (`public_urls`) and make a new token, since a token contains the URL"
            ),
        ),
        DialError::Unreachable { .. } | DialError::NotACoordinator { .. } => {
            (ErrorCode::Unreachable, error.to_string())
        }
    };
    ApiError::new(code, text)
}

fn way_of(token: &JoinToken) -> Way {
    Way {
        mesh_key: token.mesh_key,
        urls: token.urls.clone(),
        pin: token.pin,
    }
}

/// Returns the keys and the certificate of a join with this token and name. They are read from the disk if the
/// certificate there is not older than `oldest`, and created otherwise.
fn prepare(
    dir: &StateDir,
    token: &JoinToken,
    name: &Label,
    oldest: Duration,
) -> Result<Pending, ApiError> {
    let now = clock::wall();
    let clock = UnixSeconds::from_system(now);
    let token_id = token.key.public();
    let begun = match dir.pending()? {
        Some(pending) if pending.token != token_id => {
            abandon(dir, &pending)?;
            None
        }
        begun => begun,
    };
    if let Some(pending) = &begun
        && let Some(membership) = membership_in(&pending.membership)
        && membership.name == *name
        && membership.issued_at.plus(oldest) >= clock
        && membership.issued_at <= clock.plus(oldest)
    {
        return Ok(pending.clone());
    }
    // A coordinator may have admitted these keys under another name. A newer certificate replaces that one.
    let asked = begun.as_ref().is_some_and(|pending| pending.asked);
    let keys = match begun {
        Some(pending) => pending.keys,
        None => Keys::generate().map_err(|e| {
            ApiError::new(
                ErrorCode::Internal,
                format!("the system returns no random bytes: {e}"),
            )
        })?,
    };
    let membership = Membership {
        id: keys.identity.public(),
        version: crate::model::time::next_version(0, now),
        token: token_id,
        name: name.clone(),
        wireguard_key: keys.wireguard_public(),
        tags: Vec::new(),
        issued_at: clock,
        proof: None,
    };
    let membership = Record::Membership(membership.proven_by(&keys.identity));
    let pending = Pending {
        keys,
        token: token_id,
        membership: Envelope::seal(&membership, &token.key),
        asked,
        way: Some(way_of(token)),
    };
    dir.set_pending(&pending)?;
    Ok(pending)
}

/// Verifies the coordinator's answer, and that the mesh's addresses can be used on this host.
async fn accept(
    context: &JoinContext,
    way: &Way,
    pending: &Pending,
    response: JoinResponse,
) -> Result<Admitted, ApiError> {
    let mut ledger = Ledger::new(way.mesh_key);
    for envelope in response.records {
        ledger
            .apply(envelope)
            .map_err(|refused| unverifiable(&refused))?;
    }
    let id = pending.keys.identity.public();
    let (mesh, name) = match (ledger.mesh(), ledger.membership(&id)) {
        (Some(mesh), Some(membership)) => (mesh, membership.name.clone()),
        _ => return Err(unverifiable(&Refused::NotAMember)),
    };
    if mesh.addresses.index_of(&response.block).is_none() {
        return Err(unverifiable(&Refused::ForeignBlock(
            response.block.v4.to_string(),
        )));
    }
    check_overlap(context, &ledger).await?;
    let identity = Identity {
        keys: pending.keys.clone(),
        name,
        mesh_key: way.mesh_key,
        block: response.block,
        urls: way.urls.clone(),
        pin: way.pin,
        previous: None,
    };
    Ok(Admitted {
        identity,
        ledger,
        notes: Vec::new(),
    })
}

/// Checks that no network of this host overlaps the mesh's addresses.
async fn check_overlap(context: &JoinContext, ledger: &Ledger) -> Result<(), ApiError> {
    let internal =
        |error: &dyn std::fmt::Display| ApiError::new(ErrorCode::Internal, error.to_string());
    let mesh = ledger
        .mesh()
        .ok_or_else(|| unverifiable(&Refused::NoMesh))?;
    let network = HostNetwork::open().map_err(|e| internal(&e))?;
    let found = network.found().await.map_err(|e| internal(&e))?;
    overlap(&mesh.addresses, &found, &context.interface)
        .map_err(|e| ApiError::new(ErrorCode::Configuration, e.to_string()))
}

fn unverifiable(refused: &Refused) -> ApiError {
    ApiError::new(
        ErrorCode::Forbidden,
        format!(
            "the coordinator's answer does not verify ({refused}); do not trust this coordinator, and ask the person who runs it"
        ),
    )
}

#[cfg(test)]
mod tests;
