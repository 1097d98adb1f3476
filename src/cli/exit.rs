//! How a command ends: 0 done, 1 failed, 2 not found or not true, 64 usage, 69 nobody to ask, 77 no right, 78
//! configuration (after BSD's sysexits).

use crate::protocol::api::{ApiError, ErrorCode};

/// A failure: one line, and the exit code.
#[derive(Debug)]
pub struct CliError {
    /// 1, 2, 64, 69, 77 or 78.
    pub code: u8,
    /// What happened and what to do.
    pub message: String,
}

impl CliError {
    /// A failure of `code`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code: code.exit_code(),
            message: message.into(),
        }
    }

    /// A failure that no other code fits.
    pub fn failed(error: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::Internal, error.to_string())
    }
}

impl From<ApiError> for CliError {
    fn from(error: ApiError) -> Self {
        let mut message = error.message;
        if let Some(free) = error.suggestion {
            message = format!("{message}; `{free}` is free");
        }
        Self {
            code: error.code.exit_code(),
            message,
        }
    }
}
