//! The API for administrators. Its calls are in [`crate::protocol::admin`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Path as UrlPath, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::net::UnixListener;

use super::hub::{self, Hub};
use super::reply::{answer, crashed, document};
use super::{Failure, without_rights};
use crate::os::audit::Who;
use crate::os::unix_server::failure;
use crate::os::{clock, unix_server};
use crate::protocol::admin::{ApiTokenNoted, RecordList, Submit, Submitted};
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::api_token::ApiCertificate;

/// Binds the socket.
///
/// # Errors
/// The socket is in use, or cannot be made.
pub(super) async fn bind(path: &Path) -> Result<UnixListener, Failure> {
    unix_server::bind(path)
        .await
        .map_err(|error| match error.code() {
            ErrorCode::Permission => without_rights(&error.to_string(), "--admin-socket"),
            code => Failure::new(code, error),
        })
}

/// Serves until the listener fails.
pub(super) async fn serve(listener: UnixListener, path: PathBuf, hub: Arc<Hub>) {
    let router = Router::new()
        .route("/v1/mesh", get(mesh).post(submit))
        .route("/v1/records", get(records).post(submit))
        .route("/v1/tokens", get(tokens))
        .route("/v1/tokens/{id}/memberships", get(memberships))
        .route("/v1/nodes", get(nodes))
        .route("/v1/api-tokens", post(api_token_made))
        .route("/v1/api-tokens/revoked", get(revoked_api_tokens))
        .with_state(hub);
    if let Err(error) = unix_server::serve(listener, &path, router).await {
        tracing::error!(%error, "the admin socket is closed");
    }
}

async fn mesh(State(hub): State<Arc<Hub>>) -> Response {
    document(hub.mesh_state())
}

async fn submit(
    State(hub): State<Arc<Hub>>,
    Extension(by): Extension<Who>,
    body: axum::body::Bytes,
) -> Response {
    let submit: Submit = match serde_json::from_slice(&body) {
        Ok(submit) => submit,
        Err(error) => return failure(ApiError::unreadable(&error)),
    };
    let submit = move || hub.submit(submit, by, clock::now());
    let result = tokio::task::spawn_blocking(submit).await;
    answer(
        result
            .unwrap_or_else(|_| Err(crashed()))
            .map(|revision| Submitted { revision }),
    )
}

async fn api_token_made(
    State(hub): State<Arc<Hub>>,
    Extension(by): Extension<Who>,
    body: axum::body::Bytes,
) -> Response {
    let certificate: ApiCertificate = match serde_json::from_slice(&body) {
        Ok(certificate) => certificate,
        Err(error) => return failure(ApiError::unreadable(&error)),
    };
    let noted = ApiTokenNoted::from(&certificate);
    let note = move || hub::api::note_made(&hub, certificate, &by);
    let result = tokio::task::spawn_blocking(note).await;
    answer(result.map(|()| noted).map_err(|_| crashed()))
}

async fn revoked_api_tokens(State(hub): State<Arc<Hub>>) -> Response {
    document(hub::api::revoked_api_tokens(&hub))
}

async fn records(State(hub): State<Arc<Hub>>) -> Response {
    let (records, _) = hub.snapshot();
    document(RecordList { schema: 1, records })
}

async fn tokens(State(hub): State<Arc<Hub>>) -> Response {
    document(hub.tokens(clock::now()))
}

async fn memberships(State(hub): State<Arc<Hub>>, UrlPath(id): UrlPath<String>) -> Response {
    match id.parse() {
        Ok(token) => document(hub.memberships_by(&token)),
        Err(_) => failure(ApiError::new(
            ErrorCode::BadRequest,
            "the token's id is not a key; `meshctl token list --json` shows whole ids",
        )),
    }
}

async fn nodes(State(hub): State<Arc<Hub>>) -> Response {
    document(hub.nodes(clock::now()))
}
