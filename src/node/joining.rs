//! Joining: keys, certificate, the call; all that happens before the node has a place in the mesh.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};

use super::api::Command;
use super::control::join::{JoinError, join};
use super::host::{HostNetwork, overlap};
use super::state::{Identity, Keys, Pending, StateDir};
use crate::model::Label;
use crate::model::record::{Membership, Record};
use crate::model::time::UnixSeconds;
use crate::tunnel;
use crate::wire::api::{ApiError, ErrorCode};
use crate::wire::join::{JoinRequest, JoinResponse};
use crate::wire::ledger::Refused;
use crate::wire::local::Join;
use crate::wire::{Envelope, JoinToken, Ledger};

/// How often a name that is taken is replaced by the one suggested.
const NAME_TRIES: usize = 5;

/// A node that was admitted: what it is, and the records that say so.
pub(super) struct Admitted {
    /// Who it is and where.
    pub identity: Identity,
    /// Verified up to the mesh key.
    pub ledger: Ledger,
    /// For the person who joins.
    pub notes: Vec<String>,
}

/// What the attempt starts from.
pub(super) struct Attempt {
    /// Where keys are kept while it lasts.
    pub dir: StateDir,
    /// The token's text.
    pub token: String,
    /// The name asked for.
    pub name: Option<Label>,
    /// The name if nobody asked for one; it may be changed.
    pub fallback: Label,
    /// The device to be made, which does not overlap with itself.
    pub interface: String,
    /// The UDP port it is to have.
    pub listen_port: u16,
}

/// Joins. The keys are on disk before the call, so that an answer that is lost costs nothing: the same question is
/// asked again.
///
/// # Errors
/// One line for the person who joins.
pub(super) async fn run(attempt: Attempt) -> Result<Admitted, ApiError> {
    let token = JoinToken::parse(&attempt.token)
        .map_err(|e| ApiError::new(ErrorCode::BadRequest, e.to_string()))?;
    // A token is spent once the coordinator is asked: what is in the way here has to be said before.
    tunnel::try_open(&attempt.interface, attempt.listen_port)
        .map_err(|error| ApiError::new(super::mesh::code_of(&error), error.to_string()))?;
    let mut notes = Vec::new();
    let mut name = attempt
        .name
        .clone()
        .unwrap_or_else(|| attempt.fallback.clone());
    let mut tries = 0;
    loop {
        let pending = prepare(&attempt.dir, &token, &name)?;
        let request = JoinRequest::make(pending.membership.clone(), &pending.keys.identity);
        match join(&token.urls, token.pin, &request).await {
            Ok(response) => {
                let admitted = accept(&attempt, &token, pending, name, response).await?;
                return Ok(Admitted { notes, ..admitted });
            }
            Err(JoinError::Refused(refusal)) => {
                match refusal.suggestion.as_deref().map(Label::parse) {
                    Some(Ok(free)) if attempt.name.is_none() && tries < NAME_TRIES => {
                        notes = vec![format!(
                            "the name {} is taken by another node; this one is {free}",
                            attempt.fallback
                        )];
                        tries += 1;
                        name = free;
                    }
                    _ => return Err(refusal),
                }
            }
            Err(JoinError::Dial(error)) => return Err(dial_error(&error)),
            Err(error @ JoinError::Broken { .. }) => {
                return Err(ApiError::new(ErrorCode::Unreachable, error.to_string()));
            }
        }
    }
}

fn dial_error(error: &super::control::DialError) -> ApiError {
    let code = match error {
        super::control::DialError::Pin { .. } => ErrorCode::Forbidden,
        _ => ErrorCode::Unreachable,
    };
    ApiError::new(code, error.to_string())
}

/// The keys and certificate of a join with this token and name: those on disk, if there are any, or new ones.
fn prepare(dir: &StateDir, token: &JoinToken, name: &Label) -> Result<Pending, ApiError> {
    let token_id = token.key.public();
    let begun = dir.pending()?.filter(|pending| pending.token == token_id);
    if let Some(pending) = &begun
        && matches!(Record::parse(&pending.membership.payload), Ok((_, Record::Membership(m))) if m.name == *name)
    {
        return Ok(pending.clone());
    }
    let keys = match begun {
        Some(pending) => pending.keys,
        None => Keys::generate().map_err(|e| {
            ApiError::new(
                ErrorCode::Internal,
                format!("the system has no randomness to give: {e}"),
            )
        })?,
    };
    let now = SystemTime::now();
    let membership = Record::Membership(Membership {
        id: keys.identity.public(),
        version: crate::model::time::next_version(0, now),
        token: token_id,
        name: name.clone(),
        wireguard_key: keys.wireguard_public(),
        tags: Vec::new(),
        issued_at: UnixSeconds::from_system(now),
    });
    let pending = Pending {
        keys,
        token: token_id,
        membership: Envelope::seal(&membership, &token.key),
    };
    dir.set_pending(&pending)?;
    Ok(pending)
}

/// Verifies what the coordinator says, and that its addresses can be used here.
async fn accept(
    attempt: &Attempt,
    token: &JoinToken,
    pending: Pending,
    name: Label,
    response: JoinResponse,
) -> Result<Admitted, ApiError> {
    let mut ledger = Ledger::new(token.mesh_key);
    for envelope in response.records {
        ledger.apply(envelope).map_err(|refused| untrue(&refused))?;
    }
    let id = pending.keys.identity.public();
    let mesh = match (ledger.mesh(), ledger.membership(&id)) {
        (Some(mesh), Some(_)) => mesh,
        _ => return Err(untrue(&Refused::NotAMember)),
    };
    if mesh.addresses.index_of(&response.block).is_none() {
        return Err(untrue(&Refused::ForeignBlock(
            response.block.v4.to_string(),
        )));
    }
    let network =
        HostNetwork::open().map_err(|e| ApiError::new(ErrorCode::Internal, e.to_string()))?;
    let found = network
        .found()
        .await
        .map_err(|e| ApiError::new(ErrorCode::Internal, e.to_string()))?;
    overlap(&mesh.addresses, &found, &attempt.interface).map_err(|e| {
        ApiError::new(
            ErrorCode::Configuration,
            format!("{e}; the token is not lost, join with it again"),
        )
    })?;
    let identity = Identity {
        keys: pending.keys,
        name,
        mesh_key: token.mesh_key,
        block: response.block,
        urls: token.urls.clone(),
        pin: token.pin,
        previous: None,
    };
    Ok(Admitted {
        identity,
        ledger,
        notes: Vec::new(),
    })
}

fn untrue(refused: &Refused) -> ApiError {
    ApiError::new(
        ErrorCode::Forbidden,
        format!(
            "the coordinator's answer does not verify ({refused}); it is not to be trusted, ask who runs it"
        ),
    )
}

/// Joins at the first start with the token in `file`, and keeps trying while the coordinator is away.
pub(super) async fn join_unattended(file: PathBuf, commands: mpsc::Sender<Command>) {
    let mut wait = Duration::from_secs(1);
    loop {
        let token = match std::fs::read_to_string(&file) {
            Ok(token) => token.trim().to_owned(),
            Err(error) => {
                return tracing::warn!(file = %file.display(), %error, "cannot read the join token; this node stays unjoined");
            }
        };
        let (reply, answer) = oneshot::channel();
        let join = Join {
            token,
            name: None,
            timeout_seconds: 30.0,
        };
        if commands.send(Command::Join(join, reply)).await.is_err() {
            return;
        }
        match answer.await {
            Ok(Ok(joined)) => {
                return tracing::info!(name = %joined.name, "joined with the token file");
            }
            Ok(Err(error)) if error.code == ErrorCode::Conflict && error.suggestion.is_none() => {
                return;
            }
            Ok(Err(error)) => tracing::warn!(%error, "not joined"),
            Err(_) => return,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(60));
    }
}
