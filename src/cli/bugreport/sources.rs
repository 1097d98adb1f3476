//! What a report has of this machine: files, and the output of programs that only read.

use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::protocol::local::Status;

/// Stands for the name of the tunnel device.
pub(super) const INTERFACE: &str = "INTERFACE";

/// The programs: the name of the part, and the command.
pub(super) const PROGRAMS: &[(&str, &str, &[&str])] = &[
    (
        "journal-meshd.txt",
        "journalctl",
        &[
            "--unit=meshd",
            "--lines=500",
            "--no-pager",
            "--output=short-iso",
        ],
    ),
    (
        "journal-coordinator.txt",
        "journalctl",
        &[
            "--unit=mesh-coordinator",
            "--lines=500",
            "--no-pager",
            "--output=short-iso",
        ],
    ),
    (
        "unit-meshd.txt",
        "systemctl",
        &["status", "meshd", "--no-pager", "--lines=0"],
    ),
    (
        "ip-link.txt",
        "ip",
        &["-details", "-statistics", "link", "show", "dev", INTERFACE],
    ),
    (
        "ip-address.txt",
        "ip",
        &["address", "show", "dev", INTERFACE],
    ),
    (
        "ip-route.txt",
        "ip",
        &["route", "show", "table", "all", "dev", INTERFACE],
    ),
    ("ip-rule.txt", "ip", &["rule", "show"]),
    ("nft-ip.txt", "nft", &["list", "table", "ip", "meshd"]),
    ("nft-ip6.txt", "nft", &["list", "table", "ip6", "meshd"]),
    (
        "nft-bridge.txt",
        "nft",
        &["list", "table", "bridge", "meshd"],
    ),
    ("docker-user.txt", "iptables", &["-S", "DOCKER-USER"]),
    (
        "resolved.txt",
        "resolvectl",
        &["status", INTERFACE, "--no-pager"],
    ),
    ("docker.txt", "docker", &["version"]),
];

/// How long a program may run.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum size of a part, in bytes.
const MAX_PART: usize = 1024 * 1024;

/// The versions of meshd and of the system.
pub(super) fn versions(status: Option<&Status>) -> String {
    let meshd = status.map_or("not running", |status| &status.version);
    let read = |path: &str| read(Path::new(path));
    format!(
        "meshctl {}\nmeshd {meshd}\n\n{}\n{}\n{}",
        env!("CARGO_PKG_VERSION"),
        read("/proc/version"),
        read("/etc/os-release"),
        read("/proc/meminfo")
            .lines()
            .take(3)
            .collect::<Vec<_>>()
            .join("\n")
    )
}

/// The text of a file, or why there is none.
pub(super) fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(MAX_PART as u64).read_to_end(&mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("not available: {}: {error}\n", path.display()),
    }
}

/// The output of a program, or why there is none.
pub(super) async fn output(program: &str, words: &[&str]) -> String {
    let running = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match timeout(PROGRAM_TIMEOUT, running).await {
        Ok(Ok(output)) => {
            let text = [output.stdout, output.stderr].concat();
            let start = text.len().saturating_sub(MAX_PART);
            // The last lines of a log are those of the fault.
            let text = text.get(start..).unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        }
        Ok(Err(error)) => format!("not available: {program}: {error}\n"),
        Err(_) => format!(
            "not available: {program} did not end within {} s\n",
            PROGRAM_TIMEOUT.as_secs()
        ),
    }
}
