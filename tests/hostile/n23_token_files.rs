//! `meshctl join` and meshd warn of a token file that others can read, change or replace.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use meshd::protocol::local::Problem;

use crate::daemon::Daemon;
use crate::mesh::{Mesh, write};
use crate::program::{meshctl, token};

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
}

/// The warnings of `meshctl join --token-file`. Asserts that it joins and does not print the token.
fn said(path: &Path) -> String {
    let joined =
        r#"{"schema":1,"name":"a","address_v4":"10.210.1.1","address_v6":"fd00::1","notes":[]}"#;
    let daemon = Daemon::answering(vec![(200, joined.to_owned())]);
    let path = path.to_str().expect("a plain path");
    let ran = meshctl(&daemon.socket(), &["join", "--token-file", path]);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(daemon.asked().concat().contains(&token()));
    assert!(!ran.stderr.contains(&token()) && !ran.stdout.contains(&token()));
    let warnings = ran
        .stderr
        .lines()
        .filter(|line| line.starts_with("warning"));
    warnings.collect::<Vec<_>>().join("\n")
}

/// Makes a directory with this mode, and a private token file in it.
fn token_in(mode: u32) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("token");
    std::fs::write(&path, token()).expect("writable");
    set_mode(&path, 0o600);
    set_mode(directory.path(), mode);
    (directory, path)
}

#[test]
fn join_warns_of_a_file_that_others_can_read_or_change_and_of_no_other() {
    let (_directory, path) = token_in(0o755);
    for (mode, expected) in [
        (0o600, None),
        (0o640, None),
        (0o660, None),
        (0o604, Some("can read")),
        (0o644, Some("can read")),
        // Other users could make this machine join a mesh of their own.
        (0o602, Some("can change")),
        (0o622, Some("can change")),
        (0o666, Some("can change")),
    ] {
        set_mode(&path, mode);
        let said = said(&path);
        match expected {
            None => assert_eq!(said, "", "{mode:o}"),
            Some(words) => {
                assert!(said.contains(words), "{mode:o}: {said}");
                let fix = format!("chmod 600 {}", path.display());
                assert!(said.contains(&fix), "{said}");
            }
        }
    }
}

#[test]
fn join_warns_of_a_private_file_that_others_can_replace() {
    for (mode, is_warned) in [
        (0o777, true),
        (0o757, true),
        (0o1777, false),
        (0o775, false),
    ] {
        let (directory, path) = token_in(mode);
        let said = said(&path);
        assert_eq!(said.contains("can replace"), is_warned, "{mode:o}: {said}");
        let fix = format!("chmod o-w {}", directory.path().display());
        assert_eq!(said.contains(&fix), is_warned, "{said}");
    }
    // The directory that others can write in is further up, or the file is a link into such a directory.
    let (open, path) = token_in(0o777);
    let below = open.path().join("below");
    std::fs::create_dir(&below).expect("writable");
    set_mode(&below, 0o700);
    std::fs::copy(&path, below.join("token")).expect("writable");
    assert!(said(&below.join("token")).contains("can replace"));
    let private = tempfile::tempdir().expect("a temporary directory");
    let link = private.path().join("token");
    symlink(&path, &link).expect("writable");
    assert!(said(&link).contains("can replace"));
}

#[test]
fn a_node_that_joins_with_a_file_that_others_can_replace_shows_it_as_a_problem() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    let token = mesh.token(&[]);
    mesh.kill_node(0);
    let host = &mesh.nodes[0].host;
    let directory = host.path("/run/tokens");
    std::fs::create_dir(&directory).expect("the host's own file system");
    write(host, "/run/tokens/token", &token);
    set_mode(&directory.join("token"), 0o600);
    set_mode(&directory, 0o777);
    let text = "[join]\ntoken_file = \"/run/tokens/token\"\n";
    let config = write(host, "/run/meshd.toml", text);
    mesh.start_node_with(0, &["--config", &config]);
    let problem = || -> Option<Problem> {
        let mut problems = mesh.status(0).problems.into_iter();
        problems.find(|p| p.what == "the join token can be changed by others")
    };
    mesh.wait_until("it is a problem", || problem().is_some());
    let fix = problem().expect("just seen").fix;
    assert!(fix.contains("chmod o-w /run/tokens"), "{fix}");
    let log = std::fs::read_to_string(mesh.log(0)).expect("a log");
    assert!(log.contains("can be changed by others"), "{log}");
    assert!(!log.contains(&token), "the token is in the log");
    set_mode(&directory, 0o755);
    assert_eq!(problem(), None);
}
