//! The lines of a program whose stderr is the journal. The journal is a file here, which `JOURNAL_STREAM` names as systemd does.

use std::fs::File;
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What mesh-coordinator writes from its start to its end. With `is_journal`, its stderr is the stream that systemd names.
fn lines(settings: &str, is_journal: bool) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    let settings = format!("[metrics]\nlisten = \"\"\n{settings}");
    std::fs::write(path("coordinator.toml"), &settings).expect("a new file");
    let log = File::create(path("log")).expect("a new file");
    let held = log.metadata().expect("a file");
    let inode = held.st_ino() + u64::from(!is_journal);
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"));
    command
        .arg("--config")
        .arg(path("coordinator.toml"))
        .arg("--state-dir")
        .arg(path("state"))
        .arg("--admin-socket")
        .arg(path("admin.sock"))
        .args(["--listen", "127.0.0.1:0"])
        .env("JOURNAL_STREAM", format!("{}:{inode}", held.st_dev()))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stderr(log);
    let mut running = command.spawn().expect("a program");
    let is_quiet = settings.contains("level = \"error\"");
    end_when(&mut running, &path("log"), |log| {
        log.contains("ready") || is_quiet && UnixStream::connect(path("admin.sock")).is_ok()
    });
    let text = std::fs::read_to_string(path("log")).expect("a log");
    text.lines().map(str::to_owned).collect()
}

/// Ends the program when it is ready, as its log or something else shows, unless it ends by itself.
fn end_when(running: &mut Child, log: &Path, is_ready: impl Fn(&str) -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    let pid = i32::try_from(running.id()).expect("a pid");
    let mut is_asked = false;
    while running.try_wait().expect("a child").is_none() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        assert!(Instant::now() < end, "{text}");
        if !is_asked && is_ready(&text) {
            kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
            is_asked = true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn each_line_carries_its_priority_where_stderr_is_the_journal_and_nowhere_else() {
    let in_journal = lines("", true);
    let ready = in_journal
        .iter()
        .filter(|line| line.starts_with("<6> INFO ready "));
    assert_eq!(ready.count(), 1, "{in_journal:?}");
    let is_marked = |line: &String| ["<3>", "<4>", "<6>"].iter().any(|p| line.starts_with(p));
    assert!(in_journal.iter().all(is_marked), "{in_journal:?}");
    let elsewhere = lines("", false);
    assert!(!elsewhere.is_empty());
    assert!(!elsewhere.iter().any(is_marked), "{elsewhere:?}");
}

#[test]
fn json_has_one_object_on_each_line_with_its_priority_before_it() {
    let lines = lines("[log]\nformat = \"json\"\n", true);
    let objects = lines.iter().map(|line| {
        let object = line.strip_prefix("<6>").or(line.strip_prefix("<4>"));
        let object = object.unwrap_or_else(|| panic!("no priority: {line}"));
        serde_json::from_str::<serde_json::Value>(object).expect("an object")
    });
    let objects: Vec<_> = objects.collect();
    let ready = objects.iter().find(|object| object["message"] == "ready");
    let ready = ready.expect("it was ready");
    assert_eq!(ready["level"], "INFO");
    assert!(
        ready["timestamp"].is_string() && ready["listen"].is_string(),
        "{ready}"
    );
}

#[test]
fn the_level_of_the_configuration_leaves_out_what_is_less_severe() {
    // An end because of the configuration is an error, and is written whatever the level.
    assert_eq!(
        lines("[log]\nlevel = \"error\"\n", true),
        Vec::<String>::new()
    );
}

#[test]
fn an_unknown_level_is_an_error_with_file_line_and_the_known_ones() {
    let lines = lines("[log]\nlevel = \"loud\"\n", true);
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert!(line.starts_with("<3>mesh-coordinator: "), "{line}");
    for part in ["line 4", "log.level", "loud", "debug"] {
        assert!(line.contains(part), "{part} in {line}");
    }
}
