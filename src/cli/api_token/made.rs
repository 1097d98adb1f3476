//! The file of the API tokens that were made with a mesh key on this machine. It has their certificates without the signatures, so it
//! has no token. It is beside the mesh key, since nobody else may make tokens.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::cli::exit::CliError;
use crate::os::file;
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
        read => read.map_err(|error| CliError::from(&error))?,
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

/// Adds the certificate of a new token. If the file is full, the tokens that have expired are left out.
///
/// # Errors
/// The errors are those of [`read`], or the file is full, or cannot be written.
pub(super) fn add(mesh_key: &Path, certificate: &ApiCertificate) -> Result<(), CliError> {
    let path = path_of(mesh_key);
    let mut all = read(mesh_key)?;
    all.push(certificate.clone());
    let mut text = text_of(&all)?;
    if is_too_long(&text) {
        all.retain(|own| own.expires_at > certificate.created_at);
        text = text_of(&all)?;
    }
    // A longer file could not be read again, and then no token could be revoked.
    if is_too_long(&text) {
        let text = format!(
            "{} is full; move it away, and revoke the tokens in it by their whole ids from then on",
            path.display()
        );
        return Err(CliError::new(ErrorCode::Configuration, text));
    }
    file::write_atomic(&path, text.as_bytes(), 0o600).map_err(|error| CliError::from(&error))
}

fn text_of(all: &[ApiCertificate]) -> Result<String, CliError> {
    let lines: Result<Vec<String>, _> = all.iter().map(serde_json::to_string).collect();
    Ok(lines.map_err(CliError::failed)?.join("\n") + "\n")
}

fn is_too_long(text: &str) -> bool {
    text.len() as u64 > MAX_FILE
}

/// `mesh.key.api-tokens` beside `mesh.key`.
fn path_of(mesh_key: &Path) -> PathBuf {
    let mut path = OsString::from(mesh_key);
    path.push(".api-tokens");
    PathBuf::from(path)
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
    fn a_full_file_loses_the_tokens_that_have_expired_and_stays_readable() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let key = directory.path().join("mesh.key");
        let most = usize::try_from(MAX_FILE).expect("it is small");
        let fill = |with: &ApiCertificate| {
            let line = text_of(std::slice::from_ref(with)).expect("plain data");
            let count = most / line.len();
            file::write_atomic(&path_of(&key), line.repeat(count).as_bytes(), 0o600)
                .expect("writable");
            count
        };
        fill(&certificate(1));
        let valid = ApiCertificate {
            created_at: UnixSeconds(5),
            expires_at: UnixSeconds(9),
            ..certificate(2)
        };
        add(&key, &valid).expect("there is room again");
        assert_eq!(read(&key).expect("there"), std::slice::from_ref(&valid));
        let count = fill(&valid);
        let error = add(&key, &valid).expect_err("it is full");
        assert!(error.message.contains("mesh.key.api-tokens is full"));
        assert_eq!(read(&key).expect("it is readable").len(), count);
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
