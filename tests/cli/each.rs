//! `meshctl rollout --each`, against a stand-in for meshd that remembers what is drained. The only node is this one.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::program::command;

/// Only a hang takes that long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// A mesh of one or two nodes, as meshd on the first one answers.
struct Mesh {
    directory: tempfile::TempDir,
    has_ended: Arc<AtomicBool>,
    /// Whether the service is drained.
    is_drained: Arc<AtomicBool>,
    /// Whether the answer to the next change is lost, although the change is made.
    is_answer_lost: Arc<AtomicBool>,
    /// Whether another rollout has reserved the service.
    is_taken: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Mesh {
    fn of(nodes: &'static [&'static str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(directory.path().join("s")).expect("a free path");
        listener.set_nonblocking(true).expect("a socket");
        let has_ended = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(Mutex::new(Vec::new()));
        let is_drained = Arc::new(AtomicBool::new(false));
        let is_answer_lost = Arc::new(AtomicBool::new(false));
        let is_taken = Arc::new(AtomicBool::new(false));
        let (ended, noted) = (Arc::clone(&has_ended), Arc::clone(&calls));
        let meshd = Meshd {
            nodes,
            is_drained: Arc::clone(&is_drained),
            is_answer_lost: Arc::clone(&is_answer_lost),
            is_taken: Arc::clone(&is_taken),
        };
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).expect("a socket");
                        if let Some(call) = meshd.answer(stream) {
                            noted.lock().expect("nobody panics").push(call);
                        }
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self {
            directory,
            has_ended,
            is_drained,
            is_answer_lost,
            is_taken,
            calls,
        }
    }

    fn rollout(&self, words: &[&str]) -> Command {
        let socket = self.directory.path().join("s");
        let mut command = command(&socket, &[&["rollout"], words].concat());
        command.env("XDG_STATE_HOME", self.directory.path());
        command
    }

    /// The drains and undrains, in their order.
    fn changes(&self) -> Vec<String> {
        let calls = self.calls.lock().expect("nobody panics");
        let changes = calls.iter().filter(|call| call.ends_with("drain"));
        changes.cloned().collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn journal(&self) -> PathBuf {
        self.path("meshd/rollout-web.jsonl")
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }
}

/// What answers in place of meshd.
struct Meshd {
    nodes: &'static [&'static str],
    is_drained: Arc<AtomicBool>,
    is_answer_lost: Arc<AtomicBool>,
    is_taken: Arc<AtomicBool>,
}

impl Meshd {
    /// Answers one request. Returns its method and path.
    fn answer(&self, stream: UnixStream) -> Option<String> {
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        reader.read_line(&mut first).ok()?;
        let call = first.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().ok()?;
            }
        }
        reader.read_exact(&mut vec![0; length]).ok()?;
        let body = self.body(&call);
        let status = if body.starts_with(r#"{"code""#) {
            409
        } else {
            200
        };
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        if call.ends_with("drain") && self.is_answer_lost.swap(false, Ordering::Relaxed) {
            return Some(call);
        }
        let stream = reader.get_mut();
        // meshctl may have hung up.
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(body.as_bytes());
        Some(call)
    }

    fn body(&self, call: &str) -> String {
        let is_drained = self.is_drained.load(Ordering::Relaxed);
        let changed = |change: &str| {
            format!(r#"{{"schema":1,"name":"web.svc.mesh","published":true,"change":"{change}"}}"#)
        };
        match call {
            "GET /v1/status" => status(),
            "GET /v1/services" => services(self.nodes, is_drained),
            "GET /v1/services/web/instances" => format!(
                r#"{{"schema":1,"drained":{is_drained},"instances":[{{"id":"n1-web","health":"healthy","check_ms":null}}]}}"#
            ),
            "POST /v1/services/web/reserve" if self.is_taken.load(Ordering::Relaxed) => {
                r#"{"code":"conflict","message":"another rollout has reserved web for 9 s more"}"#
                    .to_owned()
            }
            "POST /v1/services/web/reserve" => r#"{"schema":1}"#.to_owned(),
            "POST /v1/services/web/drain" => {
                let was_drained = self.is_drained.swap(true, Ordering::Relaxed);
                changed(if was_drained { "unchanged" } else { "drained" })
            }
            "POST /v1/services/web/undrain" => {
                self.is_drained.store(false, Ordering::Relaxed);
                changed("undrained")
            }
            _ => String::new(),
        }
    }
}

fn services(nodes: &[&str], is_drained: bool) -> String {
    let health = if is_drained { "draining" } else { "healthy" };
    let instances: Vec<String> = nodes
        .iter()
        .map(|node| {
            format!(
                r#"{{"id":"{node}-web","node":"{node}","address":"10.210.1.2","addresses":[],"port":80,"protocol":"tcp",
                    "port_name":null,"health":"{health}","reachable":true,"source":"docker"}}"#
            )
        })
        .collect();
    format!(
        r#"{{"schema":1,"services":[{{"name":"web","project":null,"instances":[{}]}}]}}"#,
        instances.join(",")
    )
}

/// No DNS answers at the address of the node.
fn status() -> String {
    let key = "01".repeat(32);
    let wireguard = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    format!(
        r#"{{"schema":1,"version":"9.9.9","state":"up","node":{{"id":"{key}","name":"n1","tags":[],"address_v4":"127.213.7.9",
            "address_v6":"fd00::1","block_v4":"10.210.1.0/24","block_v6":"fd00::/64","public_key":"{wireguard}","domain":"mesh"}},
            "interface":null,"coordinator":null,"dns":null,"peers":[],"services":{{"local":1,"mesh":1}},"problems":[]}}"#
    )
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(mesh: &Mesh, words: &[&str], status: i32, parts: &[&str]) {
    let output = mesh.rollout(words).output().expect("meshctl is built");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{words:?}: {said}");
    assert!(
        parts.iter().all(|part| said.contains(part)),
        "{words:?}: {said}"
    );
    assert_eq!(said.lines().count(), 1, "{words:?}: {said}");
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + WAIT_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The steps in a journal, without its first line.
fn steps(journal: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    let lines = text.lines().skip(1);
    lines
        .map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).expect("an entry");
            entry["step"].as_str().expect("a text").to_owned()
        })
        .collect()
}

/// Starts a rollout whose command hangs, and waits until the command runs.
fn hanging(mesh: &Mesh) -> std::process::Child {
    let started = mesh.path("started");
    let each = format!("touch {}; : {{node}}; sleep 100", started.display());
    let rollout = mesh.rollout(&["web", "--force", "--each", &each]);
    // The tests may have been started with nohup, and a program inherits that it ignores SIGHUP.
    let mut command = Command::new("/usr/bin/env");
    command
        .arg("--default-signal=HUP")
        .arg(rollout.get_program())
        .args(rollout.get_args())
        .env_clear();
    for (name, value) in rollout.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("meshctl is built");
    wait_until("the command runs", || started.exists());
    child
}

fn signal(child: &std::process::Child, signal: Signal) {
    let pid = i32::try_from(child.id()).expect("a process id");
    kill(Pid::from_raw(pid), signal).expect("it runs");
}

fn ended(child: std::process::Child) -> Output {
    child.wait_with_output().expect("it ends")
}

#[test]
fn wrong_uses_say_what_to_do() {
    let mesh = Mesh::of(&["n1", "n2"]);
    let each = ["web", "--each", "ssh {node} up"];
    let with = |words: &[&'static str]| [&each[..], words].concat();
    refused(&mesh, &["web", "--each", "up"], 64, &["{node}"]);
    refused(&mesh, &["--each", "up {node}"], 64, &["one service"]);
    refused(&mesh, &["web", "--canary", "1"], 64, &["--each"]);
    refused(&mesh, &with(&["--", "up"]), 64, &["exclude each other"]);
    refused(&mesh, &with(&["--resume"]), 64, &["exclude each other"]);
    refused(&mesh, &with(&["--canary", "0"]), 64, &["from 1 to 1000"]);
    refused(&mesh, &with(&["--soak", "5s"]), 64, &["--canary"]);
    refused(&mesh, &["web", "--resume"], 2, &["there is no journal"]);
    refused(
        &mesh,
        &["cache", "--each", "up {node}"],
        2,
        &["no node serves cache"],
    );
    let no_token = &["n2 needs a token", "--scope drain", "--api-token-file"];
    refused(&mesh, &each, 64, no_token);
    assert_eq!(mesh.changes(), Vec::<String>::new());
}

#[test]
fn the_last_healthy_instance_is_not_drained() {
    let mesh = Mesh::of(&["n1"]);
    let each = ["web", "--each", "up {node}"];
    refused(&mesh, &each, 1, &["healthy only on n1", "--force"]);
    let mesh = Mesh::of(&["n1", "n2"]);
    let both = ["web", "--each", "up {node}", "--batch", "2"];
    refused(&mesh, &both, 1, &["n1, n2", "--batch"]);
    assert_eq!(mesh.changes(), Vec::<String>::new());
}

#[test]
fn a_plan_is_printed_and_nothing_is_done() {
    let mesh = Mesh::of(&["n1", "n2"]);
    let words = ["web", "--each", "ssh {node} up", "--canary", "1", "--plan"];
    let output = mesh.rollout(&words).output().expect("meshctl is built");
    assert_eq!(
        text(&output.stdout),
        "web: 2 node(s), 1 at a time
drain n1, and wait until no node sends new clients
run ssh n1 up
wait until n1 is healthy, publish, and wait until each node sends clients
watch the canary for 60 s
drain n2, and wait until no node sends new clients
run ssh n2 up
wait until n2 is healthy, publish, and wait until each node sends clients
if a node fails: stop; there is no --rollback
"
    );
    let json = mesh.rollout(&[&words[..], &["--json"]].concat()).output();
    let json = json.expect("meshctl is built");
    let document: serde_json::Value = serde_json::from_slice(&json.stdout).expect("a document");
    assert_eq!(document["schema"], 1);
    assert_eq!(document["groups"], serde_json::json!([["n1"], ["n2"]]));
    assert_eq!(mesh.changes(), Vec::<String>::new());
    assert!(!mesh.journal().exists());
}

#[test]
fn each_step_has_an_event_and_an_entry_in_the_journal() {
    let mesh = Mesh::of(&["n1"]);
    let words = ["web", "--force", "--each", "echo new on {node}", "--json"];
    let output = mesh.rollout(&words).output().expect("meshctl is built");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stderr), "n1 | new on n1\n");
    let events: Vec<String> = text(&output.stdout)
        .lines()
        .map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).expect("a document");
            assert_eq!(event["schema"], 1);
            event["event"].as_str().expect("a text").to_owned()
        })
        .collect();
    let wanted = [
        "started", "draining", "drained", "waiting", "running", "checking", "changed", "done",
    ];
    assert_eq!(events, wanted);
    assert_eq!(
        mesh.changes(),
        [
            "POST /v1/services/web/drain",
            "POST /v1/services/web/undrain"
        ]
    );
    let wanted = ["drain", "run", "published", "changed", "ended"];
    assert_eq!(steps(&mesh.journal()), wanted);
    let again = ["web", "--resume"];
    refused(&mesh, &again, 1, &["has ended", "nothing to resume"]);
}

#[test]
fn a_command_that_hangs_is_killed_and_the_node_is_taken_back() {
    let mesh = Mesh::of(&["n1"]);
    let done = mesh.path("back");
    let back = format!("touch {}; : {{node}}", done.display());
    let words = ["web", "--force", "--timeout", "1s", "--each"];
    let more = ["sleep 600; : {node}", "--rollback", &back];
    let output = mesh.rollout(&[&words[..], &more].concat()).output();
    let output = output.expect("meshctl is built");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let end = "meshctl: the rollout of web stopped at n1: the command did not end within 1 s, and was killed; rolled back: n1; this rollout leaves no node drained\n";
    assert!(said.ends_with(end), "{said}");
    assert!(done.exists());
    let wanted = [
        "drain",
        "run",
        "failed",
        "revert",
        "published",
        "reverted",
        "ended",
    ];
    assert_eq!(steps(&mesh.journal()), wanted);
}

#[test]
fn an_interrupt_publishes_the_node_and_says_how_to_resume() {
    let mesh = Mesh::of(&["n1"]);
    let child = hanging(&mesh);
    let second = ["web", "--force", "--each", "up {node}"];
    refused(&mesh, &second, 1, &["another rollout of web is running"]);
    signal(&child, Signal::SIGINT);
    let output = ended(child);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let end = format!(
        "meshctl: interrupted; the command was started on n1; this rollout leaves no node drained; continue with `meshctl rollout --resume {}`\n",
        mesh.journal().display()
    );
    assert!(said.ends_with(&end), "{said}");
    assert_eq!(steps(&mesh.journal()), ["drain", "run", "published"]);
    refused(&mesh, &second, 1, &["has not ended", "--resume"]);
    assert_eq!(
        mesh.changes(),
        [
            "POST /v1/services/web/drain",
            "POST /v1/services/web/undrain"
        ]
    );
}

#[test]
fn a_rollout_that_was_killed_is_resumed_from_its_journal() {
    let mesh = Mesh::of(&["n1"]);
    let mut child = hanging(&mesh);
    signal(&child, Signal::SIGKILL);
    child.wait().expect("it ends");
    assert_eq!(steps(&mesh.journal()), ["drain", "run"]);
    // The command of the journal would hang again.
    let journal = std::fs::read_to_string(mesh.journal()).expect("it is there");
    let journal = journal.replace("sleep 100", "true");
    std::fs::write(mesh.journal(), format!("{journal}{{\"step\":\"chan")).expect("it is ours");
    let output = mesh.rollout(&["web", "--resume"]).output();
    let output = output.expect("meshctl is built");
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.starts_with("resuming web on n1\n"), "{said}");
    let wanted = [
        "drain",
        "run",
        "drain",
        "run",
        "published",
        "changed",
        "ended",
    ];
    assert_eq!(steps(&mesh.journal()), wanted);
    assert_eq!(
        mesh.changes().last().map(String::as_str),
        Some("POST /v1/services/web/undrain")
    );
}

#[test]
fn a_rollout_whose_terminal_closes_publishes_the_node_before_it_ends() {
    let mesh = Mesh::of(&["n1"]);
    let mut child = hanging(&mesh);
    // What is written to the terminal from now on fails.
    drop(child.stderr.take());
    signal(&child, Signal::SIGHUP);
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert_eq!(steps(&mesh.journal()), ["drain", "run", "published"]);
    assert!(!mesh.is_drained.load(Ordering::Relaxed));
}

#[test]
fn a_rollback_that_hangs_is_killed_and_the_node_is_published() {
    let mesh = Mesh::of(&["n1"]);
    let words = ["web", "--force", "--timeout", "1s", "--each"];
    let more = ["false {node}", "--rollback", "sleep 600; : {node}"];
    let output = mesh.rollout(&[&words[..], &more].concat()).output();
    let output = output.expect("meshctl is built");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let end = "meshctl: the rollout of web stopped at n1: the command failed (exit status: 1); not rolled back: n1; this rollout leaves no node drained\n";
    assert!(said.ends_with(end), "{said}");
    assert!(!mesh.is_drained.load(Ordering::Relaxed));
}

#[test]
fn a_node_that_was_drained_in_the_meantime_is_left_as_it_is() {
    let mesh = Mesh::of(&["n1"]);
    let ran = mesh.path("ran");
    // Between the first look at the mesh and the drain, another rollout begins. Here it is drained before, and the
    // journal of this rollout knows nothing of it.
    let order = concat!(
        r#"{"schema":1,"service":"web","nodes":["n1"],"command":"touch RAN; : {node}","rollback":null,"#,
        r#""batch":1,"canary":0,"soak_ms":0,"timeout_ms":1000,"force":false}"#
    );
    let order = order.replace("RAN", &ran.display().to_string());
    let journal = mesh.path("journal");
    std::fs::write(&journal, format!("{order}\n")).expect("it is ours");
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&journal, private).expect("it is ours");
    mesh.is_drained.store(true, Ordering::Relaxed);
    let words = ["--resume", journal.to_str().expect("a path")];
    let output = mesh.rollout(&words).output().expect("meshctl is built");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("n1: it is drained already"), "{said}");
    assert!(said.contains("no node was changed"), "{said}");
    assert!(!ran.exists());
    assert_eq!(mesh.changes(), ["POST /v1/services/web/drain"]);
    assert!(mesh.is_drained.load(Ordering::Relaxed));
    assert_eq!(steps(&journal), ["drain", "foreign", "failed", "ended"]);
}

#[test]
fn a_second_rollout_from_another_machine_is_refused() {
    let mesh = Mesh::of(&["n1"]);
    mesh.is_taken.store(true, Ordering::Relaxed);
    let words = ["web", "--force", "--each", "true {node}"];
    let output = mesh.rollout(&words).output().expect("meshctl is built");
    assert!(output.status.success(), "--force goes on: {output:?}");
    // The same rollout without --force, which its journal has.
    let journal = std::fs::read_to_string(mesh.journal()).expect("it is there");
    let order = journal.lines().next().expect("its first line");
    let order = order.replace(r#""force":true"#, r#""force":false"#);
    std::fs::write(mesh.journal(), format!("{order}\n")).expect("it is ours");
    let before = mesh.changes();
    let parts = &["n1: another rollout has reserved web"];
    refused(&mesh, &["web", "--resume"], 1, parts);
    assert_eq!(mesh.changes(), before);
    mesh.is_taken.store(false, Ordering::Relaxed);
    let output = mesh.rollout(&["web", "--resume"]).output();
    let output = output.expect("meshctl is built");
    let said = text(&output.stderr);
    assert!(said.contains("no other node has a healthy"), "{said}");
    let calls = mesh.calls.lock().expect("nobody panics");
    let last = calls.last().map(String::as_str);
    assert_eq!(
        last,
        Some("POST /v1/services/web/reserve"),
        "it is released"
    );
}

#[test]
fn a_call_whose_answer_is_lost_is_repeated() {
    let mesh = Mesh::of(&["n1"]);
    mesh.is_answer_lost.store(true, Ordering::Relaxed);
    let words = ["web", "--force", "--each", "true {node}"];
    let output = mesh.rollout(&words).output().expect("meshctl is built");
    assert!(output.status.success(), "{output:?}");
    let (drain, undrain) = (
        "POST /v1/services/web/drain",
        "POST /v1/services/web/undrain",
    );
    assert_eq!(mesh.changes(), [drain, drain, undrain]);
}

#[test]
fn a_rollout_that_is_resumed_without_a_token_gives_up_no_node() {
    let mesh = Mesh::of(&["n1"]);
    let mut child = hanging(&mesh);
    signal(&child, Signal::SIGKILL);
    child.wait().expect("it ends");
    let journal = std::fs::read_to_string(mesh.journal()).expect("it is there");
    let journal = journal.replace(r#""nodes":["n1"]"#, r#""nodes":["n1","n2"]"#);
    std::fs::write(mesh.journal(), journal).expect("it is ours");
    let no_token = &["n2 needs a token", "--api-token-file"];
    refused(&mesh, &["web", "--resume"], 64, no_token);
    assert_eq!(steps(&mesh.journal()), ["drain", "run"]);
}
