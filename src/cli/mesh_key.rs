//! The file of the mesh key: the seed in hexadecimal digits, readable only by its owner.

use std::path::Path;

use zeroize::Zeroizing;

use super::exit::CliError;
use crate::model::{PublicKey, SigningKey};
use crate::os::file;
use crate::os::file::FileError;
use crate::os::random;
use crate::protocol::admin::MeshState;
use crate::protocol::api::ErrorCode;

const MAX_FILE: u64 = 4096;

/// Reads the mesh key.
///
/// # Errors
/// The problem of the file, and its remedy.
pub(super) fn read(path: &Path) -> Result<SigningKey, CliError> {
    let bytes =
        Zeroizing::new(file::read_private(path, MAX_FILE).map_err(|error| explain(&error, path))?);
    let seed = std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.trim().parse::<PublicKey>().ok());
    match seed {
        Some(seed) => Ok(SigningKey::from_seed(&Zeroizing::new(seed.0))),
        None => Err(CliError::new(
            ErrorCode::Configuration,
            format!(
                "{} is not a mesh key; name the right file with --mesh-key, or restore it from a backup",
                path.display()
            ),
        )),
    }
}

/// Creates a new key and its file. An existing file is never overwritten.
///
/// # Errors
/// The system returns an error.
pub(super) fn create(path: &Path) -> Result<SigningKey, CliError> {
    let mut seed = Zeroizing::new([0u8; 32]);
    random::fill(seed.as_mut_slice()).map_err(CliError::failed)?;
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)
            .map_err(|e| explain(&FileError::io("create the directory", parent, e), path))?;
    }
    let text = Zeroizing::new(format!("{}\n", PublicKey(*seed)));
    file::create_private_new(path, text.as_bytes()).map_err(|error| explain(&error, path))?;
    Ok(SigningKey::from_seed(&seed))
}

/// The key of the coordinator's mesh, which has to be the one in the file at `path`.
///
/// # Errors
/// The coordinator has no mesh, or the file has no key or that of another mesh.
pub(super) fn of_mesh(state: &MeshState, path: &Path) -> Result<(PublicKey, SigningKey), CliError> {
    let held = state.mesh_key.ok_or_else(no_mesh)?;
    let key = read(path)?;
    check(&key, held, path)?;
    Ok((held, key))
}

/// The error while a coordinator has no mesh.
pub(super) fn no_mesh() -> CliError {
    CliError::new(
        ErrorCode::Conflict,
        "the coordinator has no mesh yet; run `meshctl init` first",
    )
}

/// Checks that `key`, which was read from `path`, is the key of the coordinator's mesh, `held`.
///
/// # Errors
/// It is the key of another mesh.
pub(super) fn check(key: &SigningKey, held: PublicKey, path: &Path) -> Result<(), CliError> {
    if key.public() == held {
        return Ok(());
    }
    let text = format!(
        "{} is the key of another mesh ({}) than this coordinator's ({}); name the right file with --mesh-key",
        path.display(),
        key.public().short(),
        held.short()
    );
    Err(CliError::new(ErrorCode::Configuration, text))
}

fn explain(error: &FileError, path: &Path) -> CliError {
    if error.is_not_found() {
        let text = format!(
            "there is no mesh key at {}; run `meshctl init` on the administrator's machine, or name the file with --mesh-key",
            path.display()
        );
        return CliError::new(ErrorCode::Configuration, text);
    }
    error.into()
}
