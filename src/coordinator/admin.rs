//! The admin API. Its calls are in [`crate::wire::admin`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::UnixListener;

use super::Failure;
use super::hub::Hub;
use crate::wire::admin::{Submit, Submitted};
use crate::wire::api::{ApiError, ErrorCode};
use crate::wire::unix_server::{self, failure};

/// Binds the socket.
///
/// # Errors
/// Says who or what is in the way.
pub(super) fn bind(path: &Path) -> Result<UnixListener, Failure> {
    unix_server::bind(path).map_err(|error| Failure::new(error.code(), error))
}

/// Serves until the listener breaks.
pub(super) async fn serve(listener: UnixListener, path: PathBuf, hub: Arc<Hub>) {
    let router = Router::new()
        .route("/v1/mesh", get(mesh).post(submit))
        .route("/v1/records", post(submit))
        .route("/v1/tokens", get(tokens))
        .route("/v1/nodes", get(nodes))
        .with_state(hub);
    if let Err(error) = unix_server::serve(listener, &path, router).await {
        tracing::error!(%error, "the admin socket is closed");
    }
}

async fn mesh(State(hub): State<Arc<Hub>>) -> Response {
    Json(hub.mesh_state()).into_response()
}

async fn submit(State(hub): State<Arc<Hub>>, body: axum::body::Bytes) -> Response {
    let submit: Submit = match serde_json::from_slice(&body) {
        Ok(submit) => submit,
        Err(error) => {
            return failure(ApiError::new(
                ErrorCode::BadRequest,
                format!("the request cannot be read: {error}"),
            ));
        }
    };
    match tokio::task::spawn_blocking(move || hub.submit(submit)).await {
        Ok(Ok(revision)) => Json(Submitted { revision }).into_response(),
        Ok(Err(error)) => failure(error),
        Err(_) => failure(ApiError::new(
            ErrorCode::Internal,
            "the coordinator failed; look at its log",
        )),
    }
}

async fn tokens(State(hub): State<Arc<Hub>>) -> Response {
    Json(hub.tokens()).into_response()
}

async fn nodes(State(hub): State<Arc<Hub>>) -> Response {
    Json(hub.nodes()).into_response()
}
