//! Runs meshctl.

use std::path::Path;
use std::process::{Command, Stdio};

use meshd::model::{PublicKey, SigningKey};
use meshd::protocol::JoinToken;
use meshd::protocol::token::SpkiPin;

/// A join token of a mesh that is not there.
pub(crate) fn token() -> String {
    JoinToken {
        urls: vec!["https://192.0.2.1:7443".parse().expect("a literal")],
        pin: SpkiPin([1; 32]),
        mesh_key: PublicKey([2; 32]),
        key: SigningKey::from_seed(&[3; 32]),
    }
    .to_string()
}

/// The output and the exit status of a run of meshctl.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// Exit status.
    pub(crate) status: i32,
    /// Data.
    pub(crate) stdout: String,
    /// Talk.
    pub(crate) stderr: String,
}

/// meshctl with `words`, against the socket `meshd`, with nothing of the caller's environment.
pub(crate) fn command(meshd: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command
        .args(words)
        .env_clear()
        .env("MESHD_SOCKET", meshd)
        .stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn meshctl(meshd: &Path, words: &[&str]) -> Ran {
    let output = command(meshd, words).output().expect("meshctl is built");
    Ran {
        status: output.status.code().expect("it exits by itself"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}
