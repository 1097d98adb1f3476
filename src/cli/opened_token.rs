//! Reads tokens from files that the user names.

use std::fs::File;
use std::path::Path;

use crate::os::file::exposure;
use crate::os::token_file::{self, TokenReadError};
use crate::protocol::api::ErrorCode;

/// Reads the token in `file`, which was opened at `path`. Warns if every user of the machine can read, change or replace it.
///
/// # Errors
/// As for [`token_file::read`].
pub(super) fn read(file: File, path: &Path) -> Result<String, TokenReadError> {
    if let Some(exposed) = file.metadata().ok().and_then(|f| exposure(&f, path)) {
        eprintln!("warning: {}; {}", exposed.why, exposed.fix);
    }
    token_file::read(file)
}

/// The code for a token that cannot be read.
pub(super) fn code(error: &TokenReadError) -> ErrorCode {
    match error {
        TokenReadError::Permission => ErrorCode::Permission,
        _ => ErrorCode::BadRequest,
    }
}
