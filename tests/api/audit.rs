//! The log of events of a coordinator: what was acknowledged is in it, and no line of it is changed unnoticed.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshd::protocol::JoinToken;
use serde_json::Value;

use crate::coordinator::Coordinator;
use crate::kills::{ROOM, write};

/// Nodes that join at once, each again and again.
const WRITERS: usize = 4;

/// Runs `meshctl audit` on the log in a directory.
fn audit(directory: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .arg("audit")
        .arg("--file")
        .arg(directory)
        .args(words)
        .output()
        .expect("it is built")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The events in the log in a directory.
fn events(directory: &Path, words: &[&str]) -> Vec<Value> {
    let output = audit(directory, words);
    assert!(output.status.success(), "{output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!(document["schema"], 1);
    let events = document["events"].as_array();
    events.expect("a list").clone()
}

fn assert_verified(directory: &Path) {
    let output = audit(directory, &["--verify"]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).ends_with(": each line is as it was written\n"));
}

/// Kills the coordinator while nodes join, until this many joins are acknowledged.
async fn kill_until(count: usize) {
    let mut coordinator = Coordinator::start_with(ROOM);
    let token = coordinator.admin(&["token", "create", "--uses", "100000"]);
    let token = JoinToken::parse(token.trim()).expect("a token");
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let joined = || acknowledged.lock().expect("no panic").len();
    let mut kills = 0;
    while joined() < count {
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let (token, acknowledged) = (token.clone(), Arc::clone(&acknowledged));
                tokio::spawn(write(token, format!("n{kills}-{n}"), acknowledged))
            })
            .collect();
        let pause = getrandom::u32().expect("the system has randomness") % 200_000;
        tokio::time::sleep(Duration::from_micros(pause.into())).await;
        coordinator.kill();
        for writer in writers {
            writer.await.expect("no panic");
        }
        coordinator.restart();
        kills += 1;
    }
    coordinator.kill();

    let events = events(&coordinator.state_dir(), &["--json"]);
    let admitted: HashSet<&str> = events
        .iter()
        .filter(|event| event["what"] == "node_admitted")
        .filter_map(|event| event["object"]["id"].as_str())
        .collect();
    for (id, _) in acknowledged.lock().expect("no panic").iter() {
        let id = id.to_string();
        assert!(
            admitted.contains(id.as_str()),
            "{id} was acknowledged and has no event"
        );
    }
    let starts = events.iter().filter(|event| event["what"] == "started");
    assert_eq!(starts.count(), kills + 1);
    assert_verified(&coordinator.state_dir());
    eprintln!(
        "killed {kills} times under {} acknowledged joins: each has its event",
        joined()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_coordinator_acknowledged_has_an_event() {
    kill_until(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; the short form runs always"]
async fn what_a_coordinator_killed_under_1000_actions_acknowledged_has_an_event() {
    kill_until(1000).await;
}

/// A stopped coordinator with some events.
fn stopped() -> Coordinator {
    let mut coordinator = Coordinator::start();
    for _ in 0..3 {
        coordinator.admin(&["token", "create"]);
    }
    coordinator.kill();
    coordinator
}

/// A copy of the log with other lines.
fn changed(directory: &Path, lines: &[&str]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    let head = copy.path().join("audit.head");
    std::fs::copy(directory.join("audit.head"), head).expect("readable");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(copy.path().join("audit.jsonl"), text).expect("writable");
    copy
}

#[test]
fn each_line_that_a_script_deletes_swaps_or_edits_is_named() {
    let coordinator = stopped();
    let directory = coordinator.state_dir();
    assert_verified(&directory);
    let whole = std::fs::read_to_string(directory.join("audit.jsonl")).expect("there");
    let lines: Vec<&str> = whole.lines().collect();
    assert!(lines.len() >= 5, "{whole}");
    let assert_named = |changed_lines: &[&str], expected: &[String]| {
        let copy = changed(&directory, changed_lines);
        let output = audit(copy.path(), &["--verify"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let found = text(&output.stdout);
        for sentence in expected {
            assert!(found.contains(sentence), "{sentence}: {found}");
        }
        assert_eq!(found.lines().count(), expected.len() + 1, "{found}");
    };
    for n in 1..=lines.len() {
        let at = n - 1;
        let mut deleted = lines.clone();
        deleted.remove(at);
        assert_named(&deleted, &[format!("line {n} was deleted")]);
        let edit = lines[at].replace("\"ok\"", "\"no\"");
        let mut edited = lines.clone();
        edited[at] = &edit;
        let sentence = format!("audit.jsonl:{n}: line {n} was changed");
        assert_named(&edited, &[sentence]);
        if n < lines.len() {
            let mut swapped = lines.clone();
            swapped.swap(at, n);
            let moved = |n, at| format!("audit.jsonl:{at}: line {n} was moved here");
            assert_named(&swapped, &[moved(n, n + 1), moved(n + 1, n)]);
        }
    }
    assert_named(&[], &[format!("lines 1 to {} were deleted", lines.len())]);
}

#[test]
fn an_event_says_who_did_what_and_holds_no_secret() {
    let coordinator = Coordinator::start();
    let token = coordinator.admin(&["token", "create", "--tag", "web"]);
    let events = events(&coordinator.state_dir(), &["--json", "--since", "1h"]);
    let whats: Vec<&str> = events.iter().filter_map(|e| e["what"].as_str()).collect();
    assert_eq!(whats, ["started", "mesh_made", "token_made"]);
    let made = events.last().expect("three");
    assert_eq!(made["who"]["kind"], "local");
    let uid = nix::unistd::getuid().as_raw();
    assert_eq!(made["who"]["uid"], uid);
    assert!(made["who"]["pid"].is_number());
    let parsed = JoinToken::parse(token.trim()).expect("a token");
    let id = parsed.key.public().to_string();
    assert_eq!(made["object"]["token"], id);
    assert_eq!(made["object"]["tags"], serde_json::json!(["web"]));
    let file = std::fs::read_to_string(coordinator.state_dir().join("audit.jsonl"));
    assert!(!file.expect("there").contains(token.trim()));
    let shown = audit(&coordinator.state_dir(), &[]);
    let shown = text(&shown.stdout);
    let last = shown.lines().next_back().expect("three lines");
    let begin = format!(
        "token made  ephemeral=false  expires_at={}",
        made["object"]["expires_at"]
    );
    assert!(last.contains(&begin), "{last}");
    assert!(last.contains(&format!("(uid {uid}, pid ")), "{last}");
    assert_verified(&coordinator.state_dir());
}
