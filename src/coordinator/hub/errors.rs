//! Errors that several parts of the hub return.

use crate::coordinator::store::StoreError;
use crate::protocol::api::{ApiError, ErrorCode};

pub(super) fn no_mesh() -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        "the coordinator has no mesh yet; run `meshctl init` on it",
    )
}

/// The error that a caller receives for a failure of the store.
pub(super) fn fault(error: StoreError) -> ApiError {
    let code = match error {
        StoreError::Behind => ErrorCode::Busy,
        _ => ErrorCode::Internal,
    };
    ApiError::new(code, error.to_string())
}
