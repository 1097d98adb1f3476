//! The files beside the programs: units and example configurations. `tests/docs` has the README.

mod contents;
mod fuzz;
mod units;

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// One of the three programs, with nothing of the caller's environment.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(match name {
        "meshd" => env!("CARGO_BIN_EXE_meshd"),
        "mesh-coordinator" => env!("CARGO_BIN_EXE_mesh-coordinator"),
        "meshctl" => env!("CARGO_BIN_EXE_meshctl"),
        other => panic!("{other} is none of the programs"),
    });
    command.env_clear();
    command
}

#[test]
fn the_daemons_accept_their_example_configuration() {
    for (name, file) in [
        ("meshd", "config/meshd.toml"),
        ("mesh-coordinator", "config/coordinator.toml"),
    ] {
        let output = program(name)
            .args(["--check-config", "--config"])
            .arg(repository(file))
            .output()
            .expect("it is built");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{name}: {said}");
    }
}

#[test]
fn the_daemons_refuse_a_wrong_configuration_with_78_and_say_all_of_it() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), "state_dirr = \"/x\"\nlisten = 7\n").expect("writable");
    for name in ["meshd", "mesh-coordinator"] {
        let output = program(name)
            .args(["--check-config", "--config"])
            .arg(file.path())
            .output()
            .expect("it is built");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{name}: {said}");
        assert_eq!(said.matches('\n').count(), 1, "{name}: {said}");
        assert!(
            said.contains("line 1: unknown key `state_dirr`; the nearest known key is `state_dir`"),
            "{name}: {said}"
        );
        assert!(said.contains("line 2: "), "{name}: {said}");
    }
}
