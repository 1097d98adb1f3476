//! Resident memory of the two daemons in a small mesh: four nodes, so that each has three peers, and ten services.
//!
//! ```text
//! cargo bench --bench memory
//! ```
//!
//! Prints kibibytes as the kernel counts them: `VmRSS` has all pages that are in memory, `RssAnon` those of them that
//! are the process's own rather than parts of the program file (proc_pid_status(5)).

use std::process::ExitCode;
use std::time::{Duration, Instant};

use meshd::testbed::{Host, Running, World, as_root};

use control::{ADMIN_SOCKET, SOCKET, meshctl, wait_for};

#[path = "rig/control.rs"]
mod control;

const NODES: usize = 4;
const SERVICES: usize = 10;

fn main() -> ExitCode {
    match as_root(|| {
        measure();
        0
    }) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() {
    let world = World::new().expect("a network");
    let logs = tempfile::tempdir().expect("a temporary directory");
    let start = |host: &Host, program: &str, arguments: &[&str]| -> Running {
        let mut command = host.command(program).expect("a namespace");
        host.start(command.args(arguments), &logs.path().join(host.name()))
            .expect("it is built")
    };
    let coordinator_host = world.host("coordinator").expect("a host");
    let arguments = ["--state-dir", "/run/state", "--admin-socket", ADMIN_SOCKET];
    let coordinator = start(
        &coordinator_host,
        env!("CARGO_BIN_EXE_mesh-coordinator"),
        &arguments,
    );
    wait_for(&coordinator_host, ADMIN_SOCKET);
    meshctl(&coordinator_host, &["init"]);
    let nodes: Vec<(Host, Running)> = (1..=NODES)
        .map(|n| {
            let host = world.host(&format!("n{n}")).expect("a host");
            let arguments = ["--state-dir", "/run/state", "--socket", SOCKET];
            let daemon = start(&host, env!("CARGO_BIN_EXE_meshd"), &arguments);
            wait_for(&host, SOCKET);
            let token = meshctl(&coordinator_host, &["token", "create"]);
            meshctl(&host, &["join", token.trim()]);
            (host, daemon)
        })
        .collect();
    for n in 0..SERVICES {
        let (name, port) = (format!("service-{n}"), (8000 + n).to_string());
        meshctl(
            &nodes[n % NODES].0,
            &["service", "add", &name, "--port", &port],
        );
    }
    let end = Instant::now() + Duration::from_secs(30);
    for (host, _) in &nodes {
        let complete = || {
            let services = meshctl(host, &["service", "list"]);
            let status = meshctl(host, &["status"]);
            services.lines().count() > SERVICES && status.matches("direct").count() == NODES - 1
        };
        while !complete() {
            assert!(Instant::now() < end, "{} is not complete", host.name());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    // Buffers that were only needed at the start have been given back by then.
    std::thread::sleep(Duration::from_secs(3));
    println!("process            VmRSS KiB  RssAnon KiB");
    print_memory("mesh-coordinator", &coordinator);
    for (host, daemon) in &nodes {
        print_memory(&format!("meshd on {}", host.name()), daemon);
    }
}

fn print_memory(name: &str, process: &Running) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()))
        .expect("the daemon runs");
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.split_whitespace().next())
            .unwrap_or("?")
    };
    println!(
        "{name:<18} {:>9} {:>12}",
        field("VmRSS:"),
        field("RssAnon:")
    );
}
