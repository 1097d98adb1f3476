//! Failures before an answer arrives: each one prints one line and exits with the right status.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use crate::daemon::Daemon;
use crate::program::{Ran, command, meshctl};

#[test]
fn without_a_socket_meshd_is_not_running() {
    let ran = meshctl(Path::new("/nonexistent/s"), &["status"]);
    assert_eq!(
        ran,
        Ran {
            status: 69,
            stdout: String::new(),
            stderr: "meshctl: meshd is not running (there is no /nonexistent/s); start it with `systemctl start meshd`, or name its socket with --socket\n".into(),
        }
    );
}

#[test]
fn a_socket_without_a_listener_was_left_by_a_dead_meshd() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("s");
    drop(UnixListener::bind(&socket).expect("a free path"));
    let ran = meshctl(&socket, &["status"]);
    assert_eq!(ran.status, 69, "{ran:?}");
    assert!(ran.stderr.contains("no program listens"), "{ran:?}");
}

#[test]
fn a_meshd_that_is_not_running_is_neither_live_nor_ready() {
    for condition in ["live", "ready"] {
        let ran = meshctl(
            Path::new("/nonexistent/s"),
            &["status", "--check", condition],
        );
        assert_eq!(ran.status, 2, "{ran:?}");
        assert!(ran.stderr.starts_with("meshctl: meshd is not running"));
    }
}

#[test]
fn a_socket_of_others_is_a_matter_of_permission() {
    if !nix::unistd::geteuid().is_root() {
        meshd::testbed::skip_test("only root can become another user");
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("s");
    let _listener = UnixListener::bind(&socket).expect("a free path");
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    };
    mode(directory.path(), 0o755);
    mode(&socket, 0o600);
    // The binary may lie where nobody else can go.
    let program = directory.path().join("meshctl");
    std::fs::copy(env!("CARGO_BIN_EXE_meshctl"), &program).expect("it is built");
    mode(&program, 0o755);
    use std::os::unix::process::CommandExt as _;
    let output = std::process::Command::new(&program)
        .args(["status", "--socket"])
        .arg(&socket)
        .current_dir("/")
        .uid(65_534)
        .gid(65_534)
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(77));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        said,
        format!(
            "meshctl: only root and the group of {} may use meshd; use sudo\n",
            socket.display()
        )
    );
}

#[test]
fn a_daemon_that_breaks_off_or_talks_nonsense_is_reported_in_one_line() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (number, (answer, status)) in [
        ("", 69),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", 69),
        ("220 mail.example ESMTP\r\n", 69),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", 69),
        ("HTTP/1.1 500 x\r\ncontent-length: 4\r\n\r\noops", 69),
    ]
    .into_iter()
    .enumerate()
    {
        let socket = directory.path().join(number.to_string());
        let listener = UnixListener::bind(&socket).expect("a free path");
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("meshctl connects");
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        });
        let ran = meshctl(&socket, &["status"]);
        thread.join().expect("the stand-in does not panic");
        assert_eq!(ran.status, status, "{answer:?} {ran:?}");
        assert_eq!(ran.stderr.matches('\n').count(), 1, "{ran:?}");
    }
}

#[test]
fn a_wrong_command_line_is_one_line_and_64() {
    for words in [
        &["statsu"][..],
        &["join"],
        &["status", "--nope"],
        &["service", "add", "web"],
        &["service", "add", "web", "--port", "0"],
        &["service", "add", "a_b", "--port", "80"],
        &[
            "service",
            "add",
            "web",
            "--port",
            "80",
            "--check-tcp",
            "--check-http",
            "/",
        ],
        &[
            "service",
            "add",
            "web",
            "--port",
            "80",
            "--check-http",
            "healthz",
        ],
        &[
            "service",
            "add",
            "web",
            "--port",
            "80",
            "--address",
            "nowhere",
        ],
        &["ping", "web", "-c", "0"],
        &["join", "mesh1_x", "--timeout", "5"],
        &["completions", "tcsh"],
    ] {
        let ran = meshctl(Path::new("/nonexistent/s"), words);
        assert_eq!(ran.status, 64, "{words:?} {ran:?}");
        assert_eq!(ran.stderr.matches('\n').count(), 1, "{words:?} {ran:?}");
        assert!(ran.stderr.starts_with("meshctl: ") && ran.stdout.is_empty());
    }
}

#[test]
fn a_garbled_token_is_refused_without_a_request_to_meshd() {
    for (token, said) in [
        ("hello", "this is not a join token"),
        ("mesh1_AAAA", "the join token is garbled"),
    ] {
        let ran = meshctl(Path::new("/nonexistent/s"), &["join", token]);
        assert_eq!(ran.status, 64);
        assert!(ran.stderr.contains(said), "{ran:?}");
    }
}

#[test]
fn every_command_has_help_on_stdout() {
    for words in [
        &["--help"][..],
        &["join", "--help"],
        &["leave", "--help"],
        &["status", "--help"],
        &["ping", "--help"],
        &["service", "--help"],
        &["service", "list", "--help"],
        &["service", "add", "--help"],
        &["service", "remove", "--help"],
        &["service", "drain", "--help"],
        &["service", "undrain", "--help"],
        &["resolve", "--help"],
        &["completions", "--help"],
        &["--version"],
    ] {
        let ran = meshctl(Path::new("/nonexistent/s"), words);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{words:?}");
        assert!(ran.stdout.contains("meshctl"), "{words:?}");
    }
}

#[test]
fn nothing_at_all_is_help_and_64() {
    let output = command(Path::new(""), &[])
        .env_remove("MESHD_SOCKET")
        .output()
        .expect("meshctl is built");
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Usage: meshctl"));
}

#[test]
fn a_reader_that_stops_reading_causes_no_panic() {
    let mut child = command(Path::new("/nonexistent/s"), &["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("meshctl is built");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_full_disk_under_stdout_is_a_failure() {
    let Ok(full) = std::fs::File::options().write(true).open("/dev/full") else {
        meshd::testbed::skip_test("there is no /dev/full");
        return;
    };
    let output = command(Path::new("/nonexistent/s"), &["completions", "bash"])
        .stdout(full)
        .output()
        .expect("meshctl is built");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write to standard output"));
}

#[test]
fn the_option_takes_precedence_over_the_environment() {
    let list = r#"{"schema":1,"services":[]}"#;
    let daemon = Daemon::answering(vec![(200, list.into())]);
    let socket = daemon.socket();
    let socket = socket.to_str().expect("a plain path");
    let ran = meshctl(
        Path::new("/nonexistent/s"),
        &["service", "list", "--socket", socket],
    );
    assert_eq!(ran.status, 0, "{ran:?}");
    assert_eq!(daemon.asked(), ["GET /v1/services"]);
}
