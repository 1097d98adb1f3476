//! Reads a join token or an API token from a file or from another source, within a limit.

use std::io::{self, ErrorKind, Read};
use std::path::Path;

use super::file::open_regular;

/// The maximum size of a token with the space around it, in bytes. The longest join token has less than 3 KiB, and the
/// longest API token about 8 KiB.
const MAX_TOKEN: u64 = 16 * 1024;

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenReadError {
    #[error("there is no such file")]
    Missing,
    #[error("only other users may read it")]
    Permission,
    #[error("it is not a file, but a directory, a device or a pipe")]
    NotAFile,
    #[error("it is not text")]
    NotText,
    #[error("it has more than {MAX_TOKEN} bytes, so it is not a token")]
    TooLong,
    #[error("{0}")]
    Other(String),
}

impl From<io::Error> for TokenReadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Missing,
            ErrorKind::PermissionDenied => Self::Permission,
            ErrorKind::IsADirectory | ErrorKind::InvalidInput => Self::NotAFile,
            ErrorKind::InvalidData => Self::NotText,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Reads a token from `source` to its end. The space around it is removed.
///
/// # Errors
/// It cannot be read, is not text, or is longer than a token.
pub fn read(source: impl Read) -> Result<String, TokenReadError> {
    let mut bytes = Vec::new();
    source.take(MAX_TOKEN + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_TOKEN {
        return Err(TokenReadError::TooLong);
    }
    let text = String::from_utf8(bytes).map_err(|_| TokenReadError::NotText)?;
    Ok(text.trim().to_owned())
}

/// Reads a token from the regular file at `path`. It waits for no writer of a pipe.
///
/// # Errors
/// As for [`read`], or `path` is no regular file.
pub fn read_file(path: &Path) -> Result<String, TokenReadError> {
    read(open_regular(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_within_its_limit_and_from_regular_files_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("token");
        assert_eq!(read_file(&path), Err(TokenReadError::Missing));
        std::fs::write(&path, " mesh1_x\n").expect("writable");
        assert_eq!(read_file(&path).as_deref(), Ok("mesh1_x"));
        std::fs::write(&path, b"\xff\xfe").expect("writable");
        assert_eq!(read_file(&path), Err(TokenReadError::NotText));
        std::fs::write(&path, "x".repeat(20_000)).expect("writable");
        assert_eq!(read_file(&path), Err(TokenReadError::TooLong));
        assert_eq!(read(io::repeat(b'x')), Err(TokenReadError::TooLong));
        assert_eq!(read_file(dir.path()), Err(TokenReadError::NotAFile));
        assert_eq!(
            read_file(Path::new("/dev/zero")),
            Err(TokenReadError::NotAFile)
        );
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).expect("writable");
        assert_eq!(read_file(&pipe), Err(TokenReadError::NotAFile));
    }
}
