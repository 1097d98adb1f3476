//! A mesh under test: a coordinator and nodes, each in a namespace of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use meshd::protocol::local::{PeerState, Status};
use meshd::testbed::{Host, Running, World};

/// How long anything that is waited for may take: only a hang takes that long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const SOCKET: &str = "/run/meshd.sock";

/// A host with meshd on it.
pub(crate) struct Node {
    pub(crate) host: Host,
    pub(crate) daemon: Option<Running>,
}

/// The exit code of a program and what it printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) struct Mesh {
    pub(crate) coordinator: Option<Running>,
    pub(crate) coordinator_host: Host,
    pub(crate) nodes: Vec<Node>,
    /// Held, since everything ends with it.
    _world: World,
    pub(crate) logs: tempfile::TempDir,
    /// The directory of the programs that are started next. They can be of this version or of an earlier one.
    pub(crate) programs: PathBuf,
}

/// The directory of this version's programs.
pub(crate) fn programs() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_meshd"));
    program.parent().expect("in a directory").to_owned()
}

/// A world for a test, or nothing where the rights for one are missing.
pub(crate) fn world() -> Option<World> {
    if !nix::unistd::geteuid().is_root() {
        meshd::testbed::skip_test("network namespaces need root");
        return None;
    }
    Some(World::new().expect("root may make namespaces"))
}

impl Mesh {
    /// A coordinator with a mesh, and `count` nodes that have not joined.
    pub(crate) fn start(count: usize) -> Option<Self> {
        Self::start_from(programs(), count)
    }

    /// Does the same as [`Mesh::start`] with the programs in the directory `programs`.
    pub(crate) fn start_from(programs: PathBuf, count: usize) -> Option<Self> {
        let mut mesh = Self::hosts(programs, count)?;
        mesh.start_coordinator();
        for n in 0..count {
            mesh.start_node(n);
        }
        assert_eq!(mesh.admin(&["init"]).code, 0);
        Some(mesh)
    }

    /// Makes the hosts of a coordinator and of `count` nodes, and starts no program on them.
    pub(crate) fn hosts(programs: PathBuf, count: usize) -> Option<Self> {
        let world = world()?;
        let logs = tempfile::tempdir().expect("a temporary directory");
        let coordinator_host = world.host("coordinator").expect("a namespace");
        let nodes = (1..=count)
            .map(|n| Node {
                host: world.host(&format!("n{n}")).expect("a namespace"),
                daemon: None,
            })
            .collect();
        Some(Self {
            coordinator: None,
            coordinator_host,
            nodes,
            _world: world,
            logs,
            programs,
        })
    }

    /// The same, and all of them have joined and reach each other.
    pub(crate) fn joined(count: usize) -> Option<Self> {
        let mesh = Self::start(count)?;
        for n in 0..count {
            let token = mesh.token(&[]);
            let ended = mesh.on(n, &["join", &token]);
            assert_eq!(ended.code, 0, "{ended:?}");
        }
        mesh.wait_until("all nodes reach each other", || {
            (0..count).all(|n| mesh.reaches(n) == count - 1)
        });
        Some(mesh)
    }

    pub(crate) fn start_coordinator(&mut self) {
        self.coordinator = Some(self.spawn_coordinator());
    }

    /// Starts a coordinator and waits until it answers.
    pub(crate) fn spawn_coordinator(&self) -> Running {
        let mut command = self
            .coordinator_host
            .command(&self.program("mesh-coordinator"))
            .expect("a namespace");
        command.args([
            "--state-dir",
            "/run/coordinator",
            "--admin-socket",
            "/run/admin.sock",
        ]);
        let log = self.logs.path().join("coordinator");
        let coordinator = self
            .coordinator_host
            .start(&mut command, &log)
            .expect("a program");
        let socket = self.coordinator_host.path("/run/admin.sock");
        self.wait_until("the coordinator answers", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        coordinator
    }

    pub(crate) fn start_node(&mut self, n: usize) {
        self.start_node_with(n, &[]);
    }

    pub(crate) fn start_node_with(&mut self, n: usize, arguments: &[&str]) {
        let daemon = self.spawn_node(n, arguments);
        self.nodes[n].daemon = Some(daemon);
        let socket = self.nodes[n].host.path(SOCKET);
        self.wait_until("meshd answers", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// Starts meshd and does not wait for it.
    pub(crate) fn spawn_node(&self, n: usize, arguments: &[&str]) -> Running {
        let host = &self.nodes[n].host;
        let mut command = host.command(&self.program("meshd")).expect("a namespace");
        command
            .args(["--state-dir", "/run/state", "--socket", SOCKET])
            .args(arguments);
        host.start(&mut command, &self.log(n)).expect("a program")
    }

    fn program(&self, name: &str) -> String {
        let path = self.programs.join(name);
        path.into_os_string().into_string().expect("a plain path")
    }

    pub(crate) fn log(&self, n: usize) -> PathBuf {
        self.logs.path().join(self.nodes[n].host.name())
    }

    /// Kills a node's daemon, as a loss of power would.
    pub(crate) fn kill_node(&mut self, n: usize) {
        self.nodes[n].daemon.take().expect("it runs").kill();
    }

    /// Runs meshctl on a node.
    pub(crate) fn on(&self, n: usize, arguments: &[&str]) -> Ended {
        meshctl(&self.nodes[n].host, arguments)
    }

    /// Runs meshctl where the mesh is administered.
    pub(crate) fn admin(&self, arguments: &[&str]) -> Ended {
        meshctl(&self.coordinator_host, arguments)
    }

    /// A new join token.
    pub(crate) fn token(&self, options: &[&str]) -> String {
        let ended = self.admin(&[&["token", "create"], options].concat());
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.stdout.trim().to_owned()
    }

    pub(crate) fn status(&self, n: usize) -> Status {
        let ended = self.on(n, &["status", "--json"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        serde_json::from_str(&ended.stdout).expect("a status")
    }

    /// How many peers a node has a working tunnel to.
    pub(crate) fn reaches(&self, n: usize) -> usize {
        self.status(n)
            .peers
            .iter()
            .filter(|p| p.state == PeerState::Direct)
            .count()
    }

    /// A node's mesh addresses.
    pub(crate) fn addresses(&self, n: usize) -> (std::net::Ipv4Addr, std::net::Ipv6Addr) {
        let node = self.status(n).node.expect("it has joined");
        (node.address_v4, node.address_v6)
    }

    /// Waits until `condition` holds; a hang shows the logs.
    pub(crate) fn wait_until(&self, what: &str, condition: impl FnMut() -> bool) {
        self.wait_within(WAIT_TIMEOUT, what, condition);
    }

    /// Does the same as [`Mesh::wait_until`] for a condition that may take longer than a test usually waits.
    pub(crate) fn wait_within(&self, limit: Duration, what: &str, condition: impl FnMut() -> bool) {
        wait_until(self.logs.path(), limit, what, condition);
    }

    /// Runs a program on a node; gives whether it succeeded.
    pub(crate) fn succeeds(&self, n: usize, program: &str, arguments: &[&str]) -> bool {
        let mut command = self.nodes[n].host.command(program).expect("a namespace");
        command
            .args(arguments)
            .output()
            .is_ok_and(|output| output.status.success())
    }

    /// Runs `ip` on a node, which has to succeed.
    pub(crate) fn ip(&self, n: usize, arguments: &str) {
        let words: Vec<&str> = arguments.split(' ').collect();
        assert!(self.succeeds(n, "ip", &words), "ip {arguments}");
    }

    /// Whether the status of a node has a problem with all of `words` in its text.
    pub(crate) fn has_problem(&self, n: usize, words: &[&str]) -> bool {
        self.status(n).problems.iter().any(|problem| {
            let text = format!("{} {} {}", problem.what, problem.why, problem.fix);
            words.iter().all(|word| text.contains(word))
        })
    }

    /// Whether an echo from node `from` to `address` is answered within five tries.
    pub(crate) fn pings(&self, from: usize, address: &str) -> bool {
        self.succeeds(from, "ping", &["-c", "1", "-w", "5", "-i", "0.2", address])
    }
}

/// Waits until `condition` holds. If that takes longer than `limit`, the logs in the directory `logs` are shown.
pub(crate) fn wait_until(
    logs: &Path,
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) {
    let end = Instant::now() + limit;
    while !condition() {
        if Instant::now() > end {
            show_logs(logs);
            panic!("waited in vain until {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn show_logs(logs: &Path) {
    for entry in std::fs::read_dir(logs).expect("our directory").flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        eprintln!("== {}\n{text}", entry.file_name().to_string_lossy());
    }
}

/// Runs meshctl in a host.
pub(crate) fn meshctl(host: &Host, arguments: &[&str]) -> Ended {
    let mut command = host
        .command(env!("CARGO_BIN_EXE_meshctl"))
        .expect("a namespace");
    run(command.args(arguments))
}

/// Runs a program to its end, with the sockets and the key where the tests have them.
pub(crate) fn run(command: &mut Command) -> Ended {
    let output = command
        .env("MESHD_SOCKET", SOCKET)
        .env("MESH_ADMIN_SOCKET", "/run/admin.sock")
        .env("MESH_KEY", "/run/mesh.key")
        .output()
        .expect("a program");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Writes a file into a host.
pub(crate) fn write(host: &Host, path: &str, text: &str) -> String {
    std::fs::write(host.path(path), text).expect("the host's own file system");
    Path::new(path).to_str().expect("a plain path").to_owned()
}
