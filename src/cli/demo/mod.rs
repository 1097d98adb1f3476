//! `meshctl demo`: a coordinator and some nodes on this machine, each in its own network namespace, with the same
//! programs as on servers. All programs run from this executable, each under its own name.

mod visitor;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;

use super::exit::CliError;
use super::table;
use crate::os::arguments;
use crate::os::file::create_private_new;
use crate::os::progress::ProgressLine;
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{PeerState, Status};
use crate::testbed::{Host, Running, TestbedError, World, as_root};

/// The arguments of `meshctl demo`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl demo
  meshctl demo --nodes 5 --keep    leaves the nodes running, to look at them

It needs root, or user namespaces for all users. It changes nothing on this machine.")]
pub(super) struct DemoArguments {
    /// The number of nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = arguments::number(2u32, 50, 3), allow_hyphen_values = true)]
    nodes: u32,
    /// Leave it running until Ctrl-C
    #[arg(long)]
    keep: bool,
}

const PAGE: &str = "hello from the other side of the tunnel\n";
const PAGE_PORT: u16 = 8080;
const SOCKET: &str = "/run/meshd.sock";
const ADMIN_SOCKET: &str = "/run/admin.sock";
const MESH_KEY: &str = "/run/mesh.key";
const TOKEN_FILE: &str = "/run/join-token";
/// The time limit of each step.
const STEP_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) fn run(arguments: &DemoArguments) -> Result<u8, CliError> {
    let code = |error: &TestbedError| {
        if matches!(error, TestbedError::NoRights) {
            ErrorCode::Permission
        } else {
            ErrorCode::Internal
        }
    };
    as_root(|| match show(arguments) {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("meshctl demo: {failure}");
            1
        }
    })
    .map_err(|error| CliError::new(code(&error), error.to_string()))
}

/// Why the demo failed, with the last lines of the logs.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Testbed(#[from] TestbedError),
    #[error("{0}")]
    Step(String),
}

/// Prints each step and how long it took.
struct Steps {
    began: Instant,
    step: Instant,
    /// The line while a step takes long.
    progress: Option<ProgressLine>,
}

impl Steps {
    fn done(&mut self, text: &str) {
        drop(self.progress.take());
        table::line(&format!(
            "{:>7.0} ms  {text}",
            self.step.elapsed().as_secs_f64() * 1e3
        ));
        let _ = std::io::stdout().flush();
        self.step = Instant::now();
        self.progress = Some(ProgressLine::start("working on the next step"));
    }
}

/// The programs of the demo. They are ended in this order.
struct Stage {
    nodes: Vec<(Host, Running)>,
    _coordinator: Running,
    coordinator_host: Host,
    _world: World,
    logs: tempdir::TempDir,
}

mod tempdir {
    //! A directory that is removed when its value is dropped.
    use std::path::{Path, PathBuf};

    pub(super) struct TempDir(PathBuf);

    impl TempDir {
        pub(super) fn new() -> std::io::Result<Self> {
            use std::os::unix::fs::DirBuilderExt as _;
            let path = std::env::temp_dir().join(format!("meshctl-demo-{}", std::process::id()));
            std::fs::DirBuilder::new().mode(0o700).create(&path)?;
            Ok(Self(path))
        }

        pub(super) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn show(arguments: &DemoArguments) -> Result<(), Failure> {
    let count = arguments.nodes as usize;
    let mut steps = Steps {
        began: Instant::now(),
        step: Instant::now(),
        progress: None,
    };
    let stage = set_up(count, &mut steps)?;
    match play(&stage, &mut steps) {
        Ok(()) => {}
        Err(failure) => {
            let log = tail_of(&stage);
            return Err(Failure::Step(format!(
                "{failure}\n{log}run it again with RUST_LOG=debug for more messages, and report them"
            )));
        }
    }
    drop(steps.progress.take());
    table::line(&format!(
        "\nall steps succeeded, in {:.1} s",
        steps.began.elapsed().as_secs_f64()
    ));
    if arguments.keep {
        keep(&stage);
    }
    Ok(())
}

fn set_up(count: usize, steps: &mut Steps) -> Result<Stage, Failure> {
    let world = World::new()?;
    let logs =
        tempdir::TempDir::new().map_err(|e| TestbedError::Io("make a directory for logs", e))?;
    let coordinator_host = world.host("coordinator")?;
    let hosts = (1..=count)
        .map(|n| world.host(&format!("node-{n}")))
        .collect::<Result<Vec<_>, _>>()?;
    steps.done(&format!(
        "{} machines on one network: network namespaces of this kernel",
        count + 1
    ));

    let log = |host: &Host| logs.path().join(host.name());
    let mut command = program(&coordinator_host, "mesh-coordinator")?;
    command.args([
        "--state-dir",
        "/run/coordinator",
        "--admin-socket",
        ADMIN_SOCKET,
    ]);
    let coordinator = coordinator_host.start(&mut command, &log(&coordinator_host))?;
    let mut nodes = Vec::new();
    for host in hosts {
        let mut command = program(&host, "meshd")?;
        command.args(["--state-dir", "/run/state", "--socket", SOCKET]);
        let running = host.start(&mut command, &log(&host))?;
        nodes.push((host, running));
    }
    let stage = Stage {
        nodes,
        _coordinator: coordinator,
        coordinator_host,
        _world: world,
        logs,
    };
    let sockets: Vec<PathBuf> = std::iter::once(stage.coordinator_host.path(ADMIN_SOCKET))
        .chain(stage.nodes.iter().map(|(host, _)| host.path(SOCKET)))
        .collect();
    if !wait_until(|| sockets.iter().all(|path| path.exists())) {
        return Err(Failure::Step(format!(
            "the programs do not start\n{}",
            tail_of(&stage)
        )));
    }
    steps.done(&format!(
        "mesh-coordinator on one, meshd on the other {count}"
    ));
    Ok(stage)
}

fn play(stage: &Stage, steps: &mut Steps) -> Result<(), Failure> {
    administer(stage, &["init"])?;
    steps.done("meshctl init: created the mesh key");
    join_all(stage, steps)?;
    let (server, client) = match stage.nodes.as_slice() {
        [(server, _), .., (client, _)] => (server, client),
        _ => return Err(Failure::Step("there are too few nodes".into())),
    };
    visitor::serve(server, PAGE_PORT, PAGE)?;
    on(
        server,
        &[
            "service",
            "add",
            "web",
            "--port",
            &PAGE_PORT.to_string(),
            "--check-tcp",
        ],
    )?;
    steps.done(&format!(
        "meshctl service add web on {}, where a page is served",
        server.name()
    ));

    let address = resolve_web(client, steps)?;
    let answer = visitor::fetch(client, SocketAddr::new(address, PAGE_PORT))
        .map_err(|e| Failure::Step(format!("the page cannot be fetched: {e}")))?;
    if answer != PAGE {
        return Err(Failure::Step(format!(
            "another page was fetched: {answer:?}"
        )));
    }
    steps.done(&format!(
        "fetched http://web.svc.mesh:{PAGE_PORT}/ over the tunnel from {}",
        client.name()
    ));

    wait_until(|| {
        stage.nodes.iter().all(|(host, _)| {
            status_of(host).is_ok_and(|s| s.peers.iter().all(|p| p.state == PeerState::Direct))
        })
    });
    let rows = rows(stage)?;
    steps.done("every node has a tunnel to every other");
    drop(steps.progress.take());
    table::line("");
    table::table(&["NODE", "ADDRESS", "ENDPOINT", "PEERS", "SERVICES"], &rows);
    table::line(&format!(
        "\nhttp://web.svc.mesh:{PAGE_PORT}/ returns: {}",
        answer.trim()
    ));
    Ok(())
}

fn join_all(stage: &Stage, steps: &mut Steps) -> Result<(), Failure> {
    for (host, _) in &stage.nodes {
        let token = administer(stage, &["token", "create"])?;
        // The token is passed in a file that only root can read: every user of this machine can see command lines.
        create_private_new(&host.path(TOKEN_FILE), token.as_bytes())
            .map_err(|error| Failure::Step(error.to_string()))?;
        on(host, &["join", "--token-file", TOKEN_FILE])?;
        steps.done(&format!(
            "meshctl token create; meshctl join on {}",
            host.name()
        ));
    }
    Ok(())
}

/// Looks the name of the service up on `client`, until it has an address.
fn resolve_web(client: &Host, steps: &mut Steps) -> Result<IpAddr, Failure> {
    let resolver = SocketAddr::new(
        IpAddr::V4(
            status_of(client)?
                .node
                .ok_or_else(|| Failure::Step("the node has no address".into()))?
                .address_v4,
        ),
        53,
    );
    let mut found = Vec::new();
    let looked_up = wait_until(|| {
        found = visitor::look_up(client, resolver, "web.svc.mesh.").unwrap_or_default();
        !found.is_empty()
    });
    let address = found
        .first()
        .copied()
        .filter(|_| looked_up)
        .ok_or_else(|| Failure::Step("web.svc.mesh does not resolve".into()))?;
    steps.done(&format!(
        "looked up web.svc.mesh at {resolver} on {}: {address}",
        client.name()
    ));
    Ok(address)
}

fn rows(stage: &Stage) -> Result<Vec<Vec<String>>, Failure> {
    let mut rows = Vec::new();
    for (host, _) in &stage.nodes {
        let status = status_of(host)?;
        let direct = status
            .peers
            .iter()
            .filter(|p| p.state == PeerState::Direct)
            .count();
        if direct < status.peers.len() {
            return Err(Failure::Step(format!(
                "{} reaches {direct} of {} peers",
                host.name(),
                status.peers.len()
            )));
        }
        rows.push(vec![
            status
                .node
                .as_ref()
                .map(|n| n.name.to_string())
                .unwrap_or_default(),
            status
                .node
                .as_ref()
                .map(|n| n.address_v4.to_string())
                .unwrap_or_default(),
            format!(
                "{}:{}",
                host.v4(),
                status.interface.map_or(0, |i| i.listen_port)
            ),
            format!("{direct} direct"),
            status.services.local.to_string(),
        ]);
    }
    Ok(rows)
}

/// A command that runs this executable as another program in `host`.
fn program(host: &Host, name: &str) -> Result<Command, Failure> {
    let mut command = host.command("/proc/self/exe")?;
    command
        .arg0(name)
        .env_remove("NOTIFY_SOCKET")
        .env("MESHD_SOCKET", SOCKET)
        .env("MESH_ADMIN_SOCKET", ADMIN_SOCKET)
        .env("MESH_KEY", MESH_KEY);
    Ok(command)
}

/// Runs meshctl in `host`, and returns its output.
fn on(host: &Host, arguments: &[&str]) -> Result<String, Failure> {
    let output = program(host, "meshctl")?
        .args(arguments)
        .output()
        .map_err(|e| TestbedError::Io("run meshctl", e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let what = arguments.first().copied().unwrap_or_default();
    Err(Failure::Step(format!(
        "`meshctl {what}` on {} failed: {message}",
        host.name()
    )))
}

fn administer(stage: &Stage, arguments: &[&str]) -> Result<String, Failure> {
    on(&stage.coordinator_host, arguments)
}

fn status_of(host: &Host) -> Result<Status, Failure> {
    let text = on(host, &["status", "--json"])?;
    serde_json::from_str(&text)
        .map_err(|e| Failure::Step(format!("the status cannot be read: {e}")))
}

fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + STEP_TIMEOUT;
    while Instant::now() < end {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// The last lines of every log.
fn tail_of(stage: &Stage) -> String {
    let mut text = String::new();
    let names = std::iter::once(stage.coordinator_host.name())
        .chain(stage.nodes.iter().map(|(host, _)| host.name()));
    for name in names {
        let log = std::fs::read_to_string(stage.logs.path().join(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(4)) {
            text.push_str(&format!("  {name}: {line}\n"));
        }
    }
    text
}

/// Prints how to inspect the nodes, and waits until the user ends the demo.
fn keep(stage: &Stage) {
    table::line("\nthe demo runs until Ctrl-C. To inspect a node:");
    for (host, _) in &stage.nodes {
        table::line(&format!(
            "  {}: nsenter -t {} -n -m -u sh -c 'MESHD_SOCKET={SOCKET} meshctl status'",
            host.name(),
            host.pid()
        ));
    }
    loop {
        std::thread::park();
    }
}
