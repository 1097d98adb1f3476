//! The exit codes of commands: 0 done, 1 failed, 2 not found or not true, 64 usage, 69 daemon not reachable, 77 not
//! permitted, 78 configuration (the last four as in BSD's sysexits).

use crate::os::file::FileError;
use crate::protocol::api::{ApiError, ErrorCode};

/// A failure: a line for the user, and the exit code.
#[derive(Debug)]
pub struct CliError {
    /// 1, 2, 64, 69, 77 or 78.
    pub code: u8,
    /// What happened, and the remedy.
    pub message: String,
}

impl CliError {
    /// A failure with the exit code of `code`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code: code.exit_code(),
            message: message.into(),
        }
    }

    /// A failure without a specific code.
    pub fn failed(error: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::Internal, error.to_string())
    }

    /// The failure if a name on the command line cannot be part of a request.
    pub(super) fn unsendable_name() -> Self {
        Self::new(
            ErrorCode::BadRequest,
            "a given name cannot be part of a request; use letters, digits and hyphens",
        )
    }
}

impl From<&FileError> for CliError {
    fn from(error: &FileError) -> Self {
        let code = if error.is_permission() {
            ErrorCode::Permission
        } else {
            ErrorCode::Configuration
        };
        Self::new(code, error.to_string())
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
