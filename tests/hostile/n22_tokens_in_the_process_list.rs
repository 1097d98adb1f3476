//! No join token is in the process list, which every user of a machine can read. The commands that the programs and the documents
//! propose keep it out of the process list.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use meshd::protocol::token::PREFIX;

use crate::kit::Coordinator;
use crate::program::token;

/// Only a hang takes that long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// All that `ps` can show of a process: the command line and the name, which every user sees, and the environment, which the
/// process's own user sees.
fn shown(pid: u32) -> String {
    let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    let bytes = [read("cmdline"), read("comm"), read("environ")].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn a_join_by_stdin_or_by_a_file_shows_no_token_in_the_process_list() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("token");
    meshd::os::file::create_private_new(&file, token().as_bytes()).expect("writable");
    let path = file.to_str().expect("a plain path");
    for words in [vec!["join", "-"], vec!["join", "--token-file", path]] {
        let socket = directory.path().join("s");
        let _ = std::fs::remove_file(&socket);
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a free path");
        let mut meshctl = Command::new(env!("CARGO_BIN_EXE_meshctl"))
            .args(&words)
            .env("MESHD_SOCKET", &socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it is built");
        let mut stdin = meshctl.stdin.take().expect("a pipe");
        stdin.write_all(token().as_bytes()).expect("it reads");
        drop(stdin);
        // meshctl has read the token before it sends the request, and now it waits for an answer.
        let (mut asking, _) = listener.accept().expect("it asks");
        let mut request = Vec::new();
        while !String::from_utf8_lossy(&request).contains(&token()) {
            let mut buffer = [0; 4096];
            let length = asking.read(&mut buffer).expect("a request");
            assert!(length > 0, "{words:?}: it ends without the token");
            request.extend_from_slice(&buffer[..length]);
        }
        let shown = shown(meshctl.id());
        assert!(shown.contains("join"), "{shown}");
        assert!(!shown.contains(PREFIX), "{words:?}: {shown}");
        drop((asking, listener));
        meshctl.wait().expect("it ends");
    }
}

/// Adds all descendants of the process `pid` to `found`.
fn descendants(pid: u32, found: &mut BTreeSet<u32>) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return;
    };
    for task in tasks.flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|n| n.parse().ok()) {
            if found.insert(child) {
                descendants(child, found);
            }
        }
    }
}

#[test]
fn the_demo_joins_its_nodes_without_a_token_in_the_process_list() {
    if !nix::unistd::geteuid().is_root() {
        return meshd::testbed::skip_test("network namespaces need root");
    }
    let mut demo = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(["demo", "--nodes", "2"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it is built");
    let (end, mut joins) = (Instant::now() + WAIT_TIMEOUT, 0);
    let status = loop {
        if let Some(status) = demo.try_wait().expect("a child") {
            break status;
        }
        assert!(Instant::now() < end, "the demo hangs");
        let mut found = BTreeSet::new();
        descendants(demo.id(), &mut found);
        for pid in found {
            let shown = shown(pid);
            joins += usize::from(shown.contains("join"));
            if shown.contains(PREFIX) {
                let _ = demo.kill();
                let _ = demo.wait();
                panic!("a token is in the process list: {shown}");
            }
        }
    };
    assert!(status.success(), "{status}");
    assert!(joins > 0, "the joins were not seen");
}

/// The lines of a text that propose a command with a token on its command line.
fn proposals(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            let argument = pair[1].trim_matches(|c: char| "`\"'.,;:)".contains(c));
            let is_secret = argument.starts_with(PREFIX) || argument.starts_with('$');
            if pair[0] == "join" && is_secret {
                found.push(line);
            }
        }
    }
    found
}

#[test]
fn neither_the_documents_nor_the_programs_propose_a_token_on_the_command_line() {
    assert_eq!(proposals("run `meshctl join $TOKEN` there").len(), 1);
    assert_eq!(proposals("    sudo meshctl join mesh1_AAAA").len(), 1);
    assert_eq!(proposals("meshctl join -").len(), 0);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    let documents = ["docs", "docs/howto", "docs/reference"];
    for directory in [&["config", "systemd", "examples"][..], &documents].concat() {
        let entries = std::fs::read_dir(root.join(directory))
            .into_iter()
            .flatten();
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    let mut read = 0;
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        read += 1;
        assert_eq!(proposals(&text), [""; 0], "{}", file.display());
    }
    assert!(read > 5, "{read} files");
    let readme = std::fs::read_to_string(root.join("README.md")).expect("it is there");
    assert!(
        readme.contains("meshctl join -"),
        "the README proposes a join that reads the token from stdin"
    );

    // The administrator's commands print a token on stdout only, and only when it is created.
    let coordinator = Coordinator::start();
    let created = coordinator.admin(&["token", "create"]);
    assert!(created.status.success(), "{created:?}");
    let talk = String::from_utf8_lossy(&created.stderr).into_owned();
    assert_eq!(proposals(&talk), [""; 0]);
    assert!(!talk.contains(PREFIX), "{talk}");
    let listed = coordinator.admin(&["token", "list"]);
    assert!(!String::from_utf8_lossy(&listed.stdout).contains(PREFIX));
    assert!(!coordinator.log().contains(PREFIX));
}
