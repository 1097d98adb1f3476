//! The file of the API tokens that were made with a mesh key on this machine. It has their certificates without the signatures, so it
//! has no token. It is beside the mesh key, since nobody else may make tokens.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::cli::exit::CliError;
use crate::os::file::{self, FileError};
use crate::protocol::api::ErrorCode;
use crate::protocol::api_token::ApiCertificate;

/// The maximum size of the file, in bytes. That is about 4,000 tokens.
const MAX_FILE: u64 = 2 * 1024 * 1024;

/// Reads the certificates, the oldest first. Without the file there are none.
///
/// # Errors
/// The file cannot be read, or somebody damaged it.
pub(super) fn read(mesh_key: &Path) -> Result<Vec<ApiCertificate>, CliError> {
    let path = path_of(mesh_key);
    let bytes = match file::read_private(&path, MAX_FILE) {
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        read => read.map_err(|error| explain(&error))?,
    };
    let lines = bytes.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty());
    let certificates = lines.map(serde_json::from_slice::<ApiCertificate>);
    let certificates: Result<Vec<ApiCertificate>, _> = certificates.collect();
    certificates.map_err(|error| {
        let text = format!(
            "{} is damaged ({error}); restore it from a backup, or move it away",
            path.display()
        );
        CliError::new(ErrorCode::Configuration, text)
    })
}

/// Adds the certificate of a new token.
///
/// # Errors
/// The errors are those of [`read`], or the file cannot be written.
pub(super) fn add(mesh_key: &Path, certificate: &ApiCertificate) -> Result<(), CliError> {
    let mut all = read(mesh_key)?;
    all.push(certificate.clone());
    let lines: Result<Vec<String>, _> = all.iter().map(serde_json::to_string).collect();
    let text = lines.map_err(CliError::failed)?.join("\n") + "\n";
    file::write_atomic(&path_of(mesh_key), text.as_bytes(), 0o600).map_err(|error| explain(&error))
}

/// `mesh.key.api-tokens` beside `mesh.key`.
fn path_of(mesh_key: &Path) -> PathBuf {
    let mut path = OsString::from(mesh_key);
    path.push(".api-tokens");
    PathBuf::from(path)
}

fn explain(error: &FileError) -> CliError {
    let code = if error.is_permission() {
        ErrorCode::Permission
    } else {
        ErrorCode::Configuration
    };
    CliError::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::model::PublicKey;
    use crate::model::time::UnixSeconds;
    use crate::testbed::records::label;

    fn certificate(n: u8) -> ApiCertificate {
        ApiCertificate {
            id: PublicKey([n; 32]),
            name: label("ci"),
            scopes: vec![],
            nodes: vec![],
            from: vec![],
            created_at: UnixSeconds(1),
            expires_at: UnixSeconds(2),
        }
    }

    #[test]
    fn tokens_are_listed_in_the_order_in_which_they_were_made() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let key = directory.path().join("mesh.key");
        assert!(read(&key).expect("nothing is there").is_empty());
        for n in 1..4 {
            add(&key, &certificate(n)).expect("writable");
        }
        assert_eq!(read(&key).expect("there"), [1, 2, 3].map(certificate));
        let path = directory.path().join("mesh.key.api-tokens");
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_named_and_stays_as_it_is() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let key = directory.path().join("mesh.key");
        add(&key, &certificate(1)).expect("writable");
        let path = directory.path().join("mesh.key.api-tokens");
        file::write_atomic(&path, b"{\n", 0o600).expect("writable");
        let error = add(&key, &certificate(2)).expect_err("it is damaged");
        assert!(error.message.contains("mesh.key.api-tokens is damaged"));
        assert_eq!(std::fs::read(&path).expect("there"), b"{\n");
    }
}
