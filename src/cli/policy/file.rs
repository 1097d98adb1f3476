//! Reads a policy from a file, within its limit.

use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

use crate::cli::exit::CliError;
use crate::os::file::open_regular;
use crate::policy::{MAX_POLICY, Policy, PolicyError};
use crate::protocol::api::ErrorCode;

/// The policy in the file at `path`. `command` is the name of the command, for messages.
///
/// # Errors
/// It cannot be read, or is no policy. The first error in it is named with its line.
pub(super) fn read(command: &str, path: &Path) -> Result<Policy, CliError> {
    let text = text(command, path)?;
    Policy::parse(&text).map_err(|error| wrong(command, path, &error))
}

/// The error for the text at `path`, which is no policy.
pub(super) fn wrong(command: &str, path: &Path, error: &PolicyError) -> CliError {
    let at = format!("{}:{}:{}", path.display(), error.line, error.column);
    let remedy = if error.is_newer() {
        "install the version of meshctl that knows this language"
    } else {
        "correct the file; nothing was changed"
    };
    let text = format!("policy {command}: {at}: {}; {remedy}", error.message);
    CliError::new(ErrorCode::Configuration, text)
}

/// The text of the file at `path`.
///
/// # Errors
/// It cannot be read, is too long, or is not text.
pub(super) fn text(command: &str, path: &Path) -> Result<String, CliError> {
    let refuse = |code, why: &str| {
        let text = format!(
            "policy {command}: cannot read the policy from {}: {why}; name the file that has it",
            path.display()
        );
        CliError::new(code, text)
    };
    let bytes = bytes(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            refuse(ErrorCode::BadRequest, "there is no such file")
        }
        ErrorKind::PermissionDenied => {
            refuse(ErrorCode::Permission, "only other users may read it")
        }
        ErrorKind::IsADirectory | ErrorKind::InvalidInput => refuse(
            ErrorCode::BadRequest,
            "it is not a file, but a directory, a device or a pipe",
        ),
        _ => refuse(ErrorCode::Internal, &error.to_string()),
    })?;
    if bytes.len() > MAX_POLICY {
        let text = format!(
            "policy {command}: {} has more than {MAX_POLICY} bytes, which are the most of a policy; shorten it with groups and `*`",
            path.display()
        );
        return Err(CliError::new(ErrorCode::Configuration, text));
    }
    String::from_utf8(bytes).map_err(|_| refuse(ErrorCode::Configuration, "it is not UTF-8 text"))
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_POLICY as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_holds_no_policy_is_refused_with_the_reason_and_the_remedy() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("shop.toml");
        let refused = |path: &Path| {
            let error = text("check", path).expect_err("it is no policy");
            (
                error.code,
                error.message.replace(&*dir.path().to_string_lossy(), "."),
            )
        };
        assert_eq!(
            refused(&path),
            (64, "policy check: cannot read the policy from ./shop.toml: there is no such file; name the file that has it".to_owned())
        );
        std::fs::write(&path, b"\xff").expect("writable");
        assert!(refused(&path).1.contains("it is not UTF-8 text"));
        std::fs::write(&path, "#".repeat(MAX_POLICY + 1)).expect("writable");
        assert_eq!(
            refused(&path),
            (78, "policy check: ./shop.toml has more than 61440 bytes, which are the most of a policy; shorten it with groups and `*`".to_owned())
        );
        std::fs::write(&path, "#".repeat(MAX_POLICY)).expect("writable");
        assert_eq!(
            text("check", &path).map_err(|e| e.message).map(|t| t.len()),
            Ok(MAX_POLICY)
        );
        for not_a_file in [dir.path(), Path::new("/dev/zero")] {
            assert!(refused(not_a_file).1.contains("a device or a pipe"));
        }
    }
}
