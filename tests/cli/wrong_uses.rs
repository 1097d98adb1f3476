//! Wrong uses of the three programs. Each is one line on stderr with the cause and the remedy, and has its exit status.
//! `wrong_uses.txt` has the commands with their whole output.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

const TABLE: &str = include_str!("wrong_uses.txt");

/// Texts of Rust's standard library and of parsers, which mean nothing to a user.
const DEBUG_TEXTS: &[&str] = &[
    "invalid digit",
    "invalid IP address",
    "invalid socket address",
    "invalid value",
    "invalid type",
    "expected value",
    "missing field",
    "unknown variant",
    "out of range",
    "is not in ",
    "cannot parse integer",
    "os error",
    "Some(",
    "Err(",
    "Error {",
    "panicked",
];

#[test]
fn each_wrong_use_is_one_line_with_the_cause_and_the_remedy() {
    let stage = Stage::new();
    let commands: Vec<&str> = TABLE.lines().filter_map(|l| l.strip_prefix("$ ")).collect();
    assert!(commands.len() >= 40, "{} wrong uses", commands.len());
    let mut found = String::new();
    let mut faults = Vec::new();
    for command in commands {
        let (status, stderr) = stage.run(command);
        let stderr = stderr.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        for fault in faults_of(status, &stderr) {
            faults.push(format!("{command}: {fault}: {stderr}"));
        }
        found.push_str(&format!("$ {command}\n{status} {}\n\n", stderr.trim_end()));
    }
    assert_eq!(faults, [""; 0]);
    let expected = TABLE.trim_end();
    assert!(
        found.trim_end() == expected,
        "the output differs from wrong_uses.txt:\n{}",
        difference(expected, found.trim_end())
    );
}

#[test]
fn a_planted_text_of_rust_is_a_fault() {
    let faults = |status, text| faults_of(status, text).len();
    assert_eq!(
        faults(64, "meshctl: --port needs a number; see `meshctl --help`\n"),
        0
    );
    assert_eq!(
        faults(64, "meshctl: invalid digit found in string; see --help\n"),
        1
    );
    assert_eq!(faults(64, "meshctl: one\nand two; lines\n"), 1);
    assert_eq!(faults(101, "meshctl: no; see\n"), 1);
    assert_eq!(faults(64, "error: no; see\n"), 1);
    assert_eq!(faults(64, "meshctl: there is a cause\n"), 1);
}

/// What is wrong with a message and an exit status, whatever the command was.
fn faults_of(status: i32, stderr: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if stderr.matches('\n').count() != 1 {
        faults.push("it is not one line".to_owned());
    }
    if ![1, 2, 64, 69, 77, 78].contains(&status) {
        faults.push(format!("{status} is no exit status of these programs"));
    }
    let programs = ["meshctl: ", "meshd: ", "mesh-coordinator: "];
    if !programs.iter().any(|program| stderr.starts_with(program)) {
        faults.push("it does not begin with the program".to_owned());
    }
    // A semicolon or a colon separates the cause from the remedy.
    let rest = stderr.split_once(": ").map_or("", |(_, rest)| rest);
    if !rest.contains("; ") && !rest.contains(": ") {
        faults.push("it has no remedy".to_owned());
    }
    let texts = DEBUG_TEXTS.iter().filter(|text| stderr.contains(**text));
    faults.extend(texts.map(|text| format!("it has `{text}`")));
    faults
}

/// The entries of two tables that differ.
fn difference(expected: &str, found: &str) -> String {
    let expected: Vec<&str> = expected.split("\n\n").collect();
    let other = found
        .split("\n\n")
        .filter(|entry| !expected.contains(entry));
    other.collect::<Vec<_>>().join("\n\n")
}

/// A directory with sockets at which the right and the wrong programs listen. Their threads end with the process of the test.
struct Stage(tempfile::TempDir);

impl Stage {
    fn new() -> Self {
        let stage = Self(tempfile::tempdir().expect("a temporary directory"));
        let path = |name: &str| stage.0.path().join(name);
        std::fs::write(path("not-a-socket"), "text").expect("writable");
        std::fs::create_dir(path("folder")).expect("writable");
        let right = "language = 1\ndefault = \"allow\"\n";
        std::fs::write(path("right.toml"), right).expect("writable");
        std::fs::write(path("wrong.toml"), "language = 1\ndefault = \"allowed\"\n")
            .expect("writable");
        std::fs::write(path("large.toml"), "#".repeat(61_441)).expect("writable");
        write_key(&path("other.key"));
        drop(UnixListener::bind(path("dead.sock")).expect("a free path"));
        serve(&path("meshd.sock"), |request| match request {
            "GET /v1/status" => http(200, STATUS),
            _ => http(404, ""),
        });
        serve(&path("coordinator.sock"), |request| match request {
            "GET /v1/mesh" => http(200, &mesh_state(None)),
            "GET /v1/tokens" => http(200, r#"{"schema":1,"tokens":[]}"#),
            "GET /v1/nodes" => http(200, r#"{"schema":1,"nodes":[]}"#),
            _ => http(404, ""),
        });
        serve(&path("mesh.sock"), |request| match request {
            "GET /v1/mesh" => http(200, &mesh_state(Some(key(1)))),
            _ => http(404, ""),
        });
        serve(&path("web.sock"), |_| http(200, "<html>It works!</html>"));
        serve(&path("smtp.sock"), |_| {
            "220 mail.example ESMTP\r\n".to_owned()
        });
        stage
    }

    /// Runs a line of the table in the directory. Words have no spaces, and `''` is an empty one.
    fn run(&self, line: &str) -> (i32, String) {
        let mut words = line
            .split(' ')
            .map(|word| if word == "''" { "" } else { word });
        let mut program = words.next().expect("a program");
        let mut variable = None;
        if let Some(pair) = program.split_once('=') {
            variable = Some(pair);
            program = words.next().expect("a program");
        }
        let path = match program {
            "meshctl" => env!("CARGO_BIN_EXE_meshctl"),
            "meshd" => env!("CARGO_BIN_EXE_meshd"),
            "mesh-coordinator" => env!("CARGO_BIN_EXE_mesh-coordinator"),
            other => panic!("{other} is not ours"),
        };
        let mut command = Command::new(path);
        command
            .args(words)
            .current_dir(self.0.path())
            .env_clear()
            .envs([
                ("MESHD_SOCKET", "none.sock"),
                ("MESH_ADMIN_SOCKET", "none.sock"),
                ("MESH_KEY", "none.key"),
            ])
            .envs(variable)
            .stdin(Stdio::null());
        let output = command.output().expect("it is built");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{line}");
        let status = output.status.code().expect("it exits by itself");
        (status, String::from_utf8(output.stderr).expect("UTF-8"))
    }
}

/// The status of a node that has joined and is alone.
pub(crate) const STATUS: &str = r#"{"schema":1,"version":"9.9.9","state":"up","node":{"id":"0101010101010101010101010101010101010101010101010101010101010101",
    "name":"n1","tags":[],"address_v4":"10.210.1.1","address_v6":"fd00::1","block_v4":"10.210.1.0/24","block_v6":"fd00::/64",
    "public_key":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","domain":"mesh"},
    "interface":null,"coordinator":null,"dns":null,"peers":[],"services":{"local":0,"mesh":0},"problems":[]}"#;

fn key(seed: u8) -> meshd::model::PublicKey {
    meshd::model::SigningKey::from_seed(&[seed; 32]).public()
}

/// Writes the file of a mesh key that is not the one of the mesh.
fn write_key(path: &Path) {
    std::fs::write(path, "02".repeat(32)).expect("writable");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("ours");
}

fn mesh_state(mesh_key: Option<meshd::model::PublicKey>) -> String {
    let state = meshd::protocol::admin::MeshState {
        mesh_key,
        mesh: None,
        urls: Vec::new(),
        pin: meshd::protocol::token::SpkiPin([1; 32]),
        configured_domain: "mesh".parse().expect("a literal"),
        configured_addresses: meshd::model::MeshAddresses {
            prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
            prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
            node_block_v4: 24,
            node_block_v6: 64,
        },
        url_problems: Vec::new(),
    };
    serde_json::to_string(&state).expect("a document")
}

fn http(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Answers each connection with `answer` to the first line of its request, without the version.
fn serve(path: &Path, answer: impl Fn(&str) -> String + Send + 'static) {
    let listener = UnixListener::bind(path).expect("a free path");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or_default();
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            let line = text.lines().next().unwrap_or_default();
            let line = line.trim_end_matches(" HTTP/1.1");
            let _ = stream.write_all(answer(line).as_bytes());
        }
    });
}
