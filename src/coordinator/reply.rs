//! Responses of the public API and of the admin API: a JSON document, or an error.

use axum::Json;
use axum::response::{IntoResponse as _, Response};

use crate::os::unix_server::failure;
use crate::protocol::api::{ApiError, ErrorCode};

/// A response with a JSON body.
pub(super) fn document(document: impl serde::Serialize) -> Response {
    Json(document).into_response()
}

/// A response with the result of a call.
pub(super) fn answer(result: Result<impl serde::Serialize, ApiError>) -> Response {
    match result {
        Ok(given) => document(given),
        Err(error) => failure(error),
    }
}

/// The error of a call that ended in a panic. The panic is in the log.
pub(super) fn crashed() -> ApiError {
    ApiError::new(
        ErrorCode::Internal,
        "the coordinator failed; look at its log",
    )
}
