//! Joining: keys, certificate, the call; all that happens before the node has a place in the mesh.
//!
//! What can be in the way on this host is looked for before the token is spent: the device, the port, the disk, and, with
//! what the coordinator returns when it is asked to try the join, the mesh's addresses. A join that fails after the
//! coordinator may have admitted the node signs a departure, so that no member stays behind that never comes.

use std::time::{Duration, SystemTime};

use super::control::join::{JoinError, check, join};
use super::host::{HostNetwork, overlap};
use super::replica::newcomers::membership_in;
use super::state::departing::Departing;
use super::state::{Identity, Keys, Pending, StateDir, Way};
use crate::model::Label;
use crate::model::time::UnixSeconds;
use crate::protocol::JoinToken;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::join::{JoinRequest, JoinResponse};
use crate::records::kinds::{Membership, Record};
use crate::records::ledger::Refused;
use crate::records::{Envelope, Ledger};
use crate::tunnel;

/// The answer to the caller of a join that `meshctl leave` ended.
pub(super) const GIVEN_UP: &str = "the join was given up: somebody ran `meshctl leave`";

/// How often a name that is taken is replaced by the one suggested.
const NAME_TRIES: usize = 5;
/// How old a certificate may be that is offered again after a coordinator may have refused it for its date.
const FRESH: Duration = Duration::from_secs(60);
/// The longest pause between two attempts to finish an interrupted join.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A node that was admitted: what it is, and the records that say so.
pub(super) struct Admitted {
    /// Who it is and where.
    pub identity: Identity,
    /// Verified up to the mesh key.
    pub ledger: Ledger,
    /// For the person who joins.
    pub notes: Vec<String>,
}

/// What an attempt needs of this host.
#[derive(Clone)]
pub(super) struct Ground {
    /// Where keys are kept while it lasts.
    pub dir: StateDir,
    /// The device to be made, which does not overlap with itself.
    pub interface: String,
    /// The UDP port it is to have.
    pub listen_port: u16,
}

/// What the attempt starts from.
pub(super) struct Attempt {
    /// The host.
    pub ground: Ground,
    /// The token's text.
    pub token: String,
    /// The name asked for.
    pub name: Option<Label>,
    /// The name if nobody asked for one; it may be changed.
    pub fallback: Label,
}

/// Joins. The keys are on disk before the call, so that an answer that is lost costs nothing: the same question is
/// asked again.
///
/// # Errors
/// One line for the person who joins.
pub(super) async fn run(attempt: Attempt) -> Result<Admitted, ApiError> {
    let ground = &attempt.ground;
    let token = JoinToken::parse(&attempt.token)
        .map_err(|e| ApiError::new(ErrorCode::BadRequest, e.to_string()))?;
    tunnel::try_open(&ground.interface, ground.listen_port)
        .map_err(|error| ApiError::new(super::device::code_of(&error), error.to_string()))?;
    let mut notes = Vec::new();
    let mut name = attempt
        .name
        .clone()
        .unwrap_or_else(|| attempt.fallback.clone());
    let mut tries = 0;
    let mut oldest = Duration::MAX;
    loop {
        let pending = prepare(&ground.dir, &token, &name, oldest)?;
        let asked = match try_first(ground, &token, &pending).await {
            Ok(()) => ask(ground, &pending, &way_of(&token)).await,
            Err(failed) => Err(failed),
        };
        match asked {
            Ok(admitted) => return Ok(Admitted { notes, ..admitted }),
            Err(Failed::Join(JoinError::Refused(refusal))) => {
                match refusal.suggestion.as_deref().map(Label::parse) {
                    Some(Ok(free)) if attempt.name.is_none() && tries < NAME_TRIES => {
                        notes = vec![format!(
                            "the name {} is taken by another node; this one is {free}",
                            attempt.fallback
                        )];
                        tries += 1;
                        name = free;
                    }
                    // A coordinator accepts only a new certificate. This one may be from a join that began long ago.
                    _ if refusal.code == ErrorCode::Configuration && oldest > FRESH => {
                        oldest = FRESH;
                    }
                    _ => return Err(refusal),
                }
            }
            Err(failed) => return Err(failed.into()),
        }
    }
}

/// Finishes a join that was cut off after the coordinator may have admitted the node. Tries until a coordinator answers.
///
/// # Errors
/// The coordinator refuses, or this host cannot be a member.
pub(super) async fn resume(
    ground: Ground,
    pending: Pending,
    way: Way,
) -> Result<Admitted, ApiError> {
    let mut pause = Duration::from_secs(1);
    loop {
        match ask(&ground, &pending, &way).await {
            Ok(admitted) => return Ok(admitted),
            Err(Failed::Join(error)) if is_undecided(&error) => {
                tracing::debug!(%error, "an interrupted join is not finished yet");
            }
            Err(Failed::Join(JoinError::Dial(error))) => {
                tracing::debug!(%error, "an interrupted join is not finished yet");
            }
            Err(failed) => return Err(failed.into()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Why there is no membership.
enum Failed {
    Join(JoinError),
    Here(ApiError),
}

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self::Here(error)
    }
}

impl From<Failed> for ApiError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Here(error) | Failed::Join(JoinError::Refused(error)) => error,
            Failed::Join(JoinError::Dial(error)) => dial_error(&error),
            Failed::Join(error @ JoinError::Broken { .. }) => {
                ApiError::new(ErrorCode::Unreachable, error.to_string())
            }
        }
    }
}

/// Whether the coordinator may have admitted the node all the same.
fn is_undecided(error: &JoinError) -> bool {
    match error {
        JoinError::Broken { .. } => true,
        JoinError::Refused(refusal) => {
            matches!(refusal.code, ErrorCode::Busy | ErrorCode::Internal)
        }
        JoinError::Dial(_) => false,
    }
}

/// Finds what would be in the way after the join, while nothing is spent.
async fn try_first(ground: &Ground, token: &JoinToken, pending: &Pending) -> Result<(), Failed> {
    // Who may have been admitted finishes that.
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
        ledger.apply(envelope).map_err(|refused| untrue(&refused))?;
    }
    fits(ground, &ledger).await.map_err(|error| {
        let text = format!(
            "{}; the token was not used, join with it again",
            error.message
        );
        ApiError::new(error.code, text)
    })?;
    Ok(())
}

/// Asks for the membership, and gives it back if it is of no use here.
async fn ask(ground: &Ground, pending: &Pending, way: &Way) -> Result<Admitted, Failed> {
    let asked_before = pending.asked;
    let pending = Pending {
        asked: true,
        way: Some(way.clone()),
        ..pending.clone()
    };
    ground.dir.set_pending(&pending).map_err(ApiError::from)?;
    let request = JoinRequest::make(pending.membership.clone(), &pending.keys.identity);
    match join(&way.urls, way.pin, &request).await {
        Ok(response) => accept(ground, way, &pending, response)
            .await
            .map_err(|error| give_back(&ground.dir, &pending, error).into()),
        Err(error) => {
            if !asked_before && !is_undecided(&error) {
                let unasked = Pending {
                    asked: false,
                    ..pending
                };
                // Without it the same is asked again at the next start, and refused again.
                let _ = ground.dir.set_pending(&unasked);
            }
            Err(Failed::Join(error))
        }
    }
}

/// Departs from a mesh that has admitted this node, which cannot take its place because of `error`.
pub(super) fn give_back(dir: &StateDir, pending: &Pending, error: ApiError) -> ApiError {
    if let Err(kept) = abandon(dir, pending) {
        tracing::error!(error = %kept, "the departure cannot be stored; the join is finished at the next start");
        return error;
    }
    ApiError::new(
        error.code,
        format!(
            "{}; this node was admitted and gives its name and addresses back, and one use of the token is spent: mend that, then join again, with a new token if this one has no use left",
            error.message
        ),
    )
}

/// Forgets a join that was begun. If a coordinator may have admitted the node, its departure is left in the directory.
pub(super) fn abandon(dir: &StateDir, pending: &Pending) -> Result<(), ApiError> {
    let now = UnixSeconds::from_system(SystemTime::now());
    if let Some(departing) = Departing::of_pending(pending, now) {
        dir.add_departing(&departing)?;
    }
    dir.clear_pending();
    Ok(())
}

fn dial_error(error: &super::control::DialError) -> ApiError {
    let code = match error {
        super::control::DialError::Pin { .. } => ErrorCode::Forbidden,
        _ => ErrorCode::Unreachable,
    };
    ApiError::new(code, error.to_string())
}

fn way_of(token: &JoinToken) -> Way {
    Way {
        mesh_key: token.mesh_key,
        urls: token.urls.clone(),
        pin: token.pin,
    }
}

/// The keys and certificate of a join with this token and name. They are taken from the disk if the certificate there is not
/// older than `oldest`, and made anew otherwise.
fn prepare(
    dir: &StateDir,
    token: &JoinToken,
    name: &Label,
    oldest: Duration,
) -> Result<Pending, ApiError> {
    let now = SystemTime::now();
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
    // A coordinator may have admitted these keys under another name: a newer certificate replaces that one.
    let asked = begun.as_ref().is_some_and(|pending| pending.asked);
    let keys = match begun {
        Some(pending) => pending.keys,
        None => Keys::generate().map_err(|e| {
            ApiError::new(
                ErrorCode::Internal,
                format!("the system has no randomness to give: {e}"),
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

/// Verifies what the coordinator says, and that its addresses can be used here.
async fn accept(
    ground: &Ground,
    way: &Way,
    pending: &Pending,
    response: JoinResponse,
) -> Result<Admitted, ApiError> {
    let mut ledger = Ledger::new(way.mesh_key);
    for envelope in response.records {
        ledger.apply(envelope).map_err(|refused| untrue(&refused))?;
    }
    let id = pending.keys.identity.public();
    let (mesh, name) = match (ledger.mesh(), ledger.membership(&id)) {
        (Some(mesh), Some(membership)) => (mesh, membership.name.clone()),
        _ => return Err(untrue(&Refused::NotAMember)),
    };
    if mesh.addresses.index_of(&response.block).is_none() {
        return Err(untrue(&Refused::ForeignBlock(
            response.block.v4.to_string(),
        )));
    }
    fits(ground, &ledger).await?;
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

/// Whether nothing on this host has addresses of the mesh.
async fn fits(ground: &Ground, ledger: &Ledger) -> Result<(), ApiError> {
    let internal =
        |error: &dyn std::fmt::Display| ApiError::new(ErrorCode::Internal, error.to_string());
    let mesh = ledger.mesh().ok_or_else(|| untrue(&Refused::NoMesh))?;
    let network = HostNetwork::open().map_err(|e| internal(&e))?;
    let found = network.found().await.map_err(|e| internal(&e))?;
    overlap(&mesh.addresses, &found, &ground.interface)
        .map_err(|e| ApiError::new(ErrorCode::Configuration, e.to_string()))
}

fn untrue(refused: &Refused) -> ApiError {
    ApiError::new(
        ErrorCode::Forbidden,
        format!(
            "the coordinator's answer does not verify ({refused}); it is not to be trusted, ask who runs it"
        ),
    )
}

#[cfg(test)]
mod tests;
