//! Hosts with container engines, joined by meshd, and containers on them that become services by their labels.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use meshd::protocol::local::{InstanceRow, PeerState, ServiceList, Status};
use meshd::records::kinds::Health;
use meshd::testbed::{DockerHost, Host, Image, Nat, Router, Running, World};

/// How long anything that is waited for may take: only a hang takes that long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const SOCKET: &str = "/run/meshd.sock";
const ADMIN_SOCKET: &str = "/run/admin.sock";
const CONFIG_FILE: &str = "/run/meshd.toml";
/// These hosts have a plain resolv.conf.
const CONFIG: &str = "[dns]\nmanage_resolv_conf = true\n";
/// The image that every engine has, and the program in it.
pub(crate) const IMAGE: &str = "box";
pub(crate) const ECHO: &str = "/usr/local/bin/echo";
/// Where the program serves.
pub(crate) const PORT: u16 = 7777;
/// The label for the same port over UDP.
pub(crate) const UDP_PORT: &str = "mesh.port.datagrams=7777/udp";

/// A mesh of hosts with engines.
pub(crate) struct Hosts {
    coordinator: Running,
    daemons: Vec<Option<Running>>,
    pub(crate) nodes: Vec<DockerHost>,
    /// The coordinator's host, and in the tests of guards the neighbour on the network below.
    pub(crate) outside: Host,
    /// The daemon of the coordinator's host, where it is a member.
    outside_daemon: Option<Running>,
    /// The routers before the nodes, if there are any.
    _routers: Vec<Router>,
    _world: World,
    logs: tempfile::TempDir,
    echo: PathBuf,
}

impl Hosts {
    /// `count` hosts that reach each other, or nothing where they cannot be.
    pub(crate) fn joined(count: usize) -> Option<Self> {
        let mut hosts = Self::start(count)?;
        for n in 0..count {
            hosts.join(n);
        }
        hosts.wait_for_peers();
        Some(hosts)
    }

    /// A host behind a router of each kind, in one mesh with the coordinator's host, which has a public address.
    pub(crate) fn joined_behind(kinds: &[Nat]) -> Option<Self> {
        let mut hosts = Self::start_behind(kinds.len(), kinds)?;
        hosts.join_outside();
        for n in 0..kinds.len() {
            hosts.join(n);
        }
        hosts.wait_until("all nodes reach each other", || {
            (0..kinds.len()).all(|n| {
                let peers = hosts.status(n).peers;
                let reached = [PeerState::Direct, PeerState::Relay, PeerState::Stream];
                peers.len() == kinds.len() && peers.iter().all(|p| reached.contains(&p.state))
            })
        });
        Some(hosts)
    }

    /// Waits until all nodes reach each other directly.
    pub(crate) fn wait_for_peers(&self) {
        let count = self.nodes.len();
        self.wait_until("all nodes reach each other", || {
            (0..count).all(|n| {
                let peers = self.status(n).peers;
                peers.len() == count - 1 && peers.iter().all(|p| p.state == PeerState::Direct)
            })
        });
    }

    /// `count` hosts in no mesh yet.
    pub(crate) fn start(count: usize) -> Option<Self> {
        Self::start_behind(count, &[])
    }

    /// `count` hosts in no mesh yet. The first ones are behind routers of these kinds, each behind its own.
    fn start_behind(count: usize, kinds: &[Nat]) -> Option<Self> {
        if let Err(why) = DockerHost::is_possible() {
            meshd::testbed::skip_test(&why);
            return None;
        }
        let world = if kinds.is_empty() {
            World::new()
        } else {
            World::routed()
        };
        let world = world.expect("root may make namespaces");
        let routers = kinds.iter().map(|kind| world.router(*kind));
        let routers: Vec<Router> = routers.collect::<Result<_, _>>().expect("routers");
        let logs = tempfile::tempdir().expect("a temporary directory");
        let programs = Path::new(env!("CARGO_BIN_EXE_meshd"))
            .parent()
            .expect("a folder");
        let echo = programs.join("examples/echo");
        assert!(
            echo.exists(),
            "build the examples first: cargo build --examples"
        );
        let image = Image::pack(&logs.path().join("box.tar"), &[&echo]).expect("an image");
        let nodes: Vec<_> = (1..=count)
            .map(|n| {
                let (name, shared) = (format!("n{n}"), [programs.to_owned()]);
                let host = match routers.get(n - 1) {
                    Some(router) => router.docker_host(&name, &shared),
                    None => world.docker_host(&name, &shared),
                };
                let host = host.expect("an engine that starts");
                host.import(&image, IMAGE).expect("an image");
                std::fs::write(host.host().path(CONFIG_FILE), CONFIG).expect("its own file system");
                host
            })
            .collect();
        let outside = world.host("outside").expect("a namespace");
        let coordinator = start_coordinator(&outside, logs.path());
        let hosts = Self {
            coordinator,
            daemons: (0..count).map(|_| None).collect(),
            nodes,
            outside,
            outside_daemon: None,
            _routers: routers,
            _world: world,
            logs,
            echo,
        };
        hosts.wait_for_coordinator();
        hosts.meshctl(&hosts.outside, &["init"]);
        Some(hosts)
    }

    fn wait_for_coordinator(&self) {
        let socket = self.outside.path(ADMIN_SOCKET);
        self.wait_until("the coordinator answers", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// Stops the coordinator as its service manager does, and starts it again.
    pub(crate) fn restart_coordinator(&mut self) {
        assert!(self.coordinator.stop().is_some(), "it ends in time");
        self.coordinator = start_coordinator(&self.outside, self.logs.path());
        self.wait_for_coordinator();
    }

    /// Adds to the configuration of node `n`, for the next start of its meshd.
    pub(crate) fn configure(&self, n: usize, more: &str) {
        let path = self.nodes[n].host().path(CONFIG_FILE);
        std::fs::write(path, format!("{CONFIG}{more}")).expect("its own file system");
    }

    /// Joins node `n` to the mesh.
    pub(crate) fn join(&mut self, n: usize) {
        let token = self.meshctl(&self.outside, &["token", "create"]);
        self.start_daemon(n);
        self.meshctl(self.nodes[n].host(), &["join", token.trim()]);
    }

    /// Joins the coordinator's host to the mesh. It also relays over TLS.
    fn join_outside(&mut self) {
        let config = "[relay]\nlisten = \"0.0.0.0:443\"\n";
        std::fs::write(self.outside.path(CONFIG_FILE), config).expect("its own file system");
        self.outside_daemon = Some(self.launch(&self.outside));
        let token = self.meshctl(&self.outside, &["token", "create"]);
        self.meshctl(&self.outside, &["join", token.trim()]);
    }

    /// Starts meshd on node `n`.
    pub(crate) fn start_daemon(&mut self, n: usize) {
        self.daemons[n] = Some(self.launch(self.nodes[n].host()));
    }

    /// Starts meshd on a host, and waits until it answers.
    fn launch(&self, host: &Host) -> Running {
        let mut command = host.command(env!("CARGO_BIN_EXE_meshd")).expect("a host");
        command.args(["--state-dir", "/run/state", "--socket", SOCKET]);
        command.args(["--config", CONFIG_FILE]);
        let log = self.logs.path().join(host.name());
        let daemon = host.start(&mut command, &log).expect("a program");
        let socket = host.path(SOCKET);
        self.wait_until("meshd answers", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        daemon
    }

    /// Stops meshd on node `n`, as its service manager does.
    pub(crate) fn stop_daemon(&mut self, n: usize) {
        let mut daemon = self.daemons[n].take().expect("it runs");
        let status = daemon.stop().expect("it ends in time");
        assert!(status.success(), "{status}");
    }

    /// Runs meshctl somewhere, and it must succeed.
    pub(crate) fn meshctl(&self, host: &Host, arguments: &[&str]) -> String {
        let output = host
            .command(env!("CARGO_BIN_EXE_meshctl"))
            .expect("a host")
            .args(arguments)
            .env("MESHD_SOCKET", SOCKET)
            .env("MESH_ADMIN_SOCKET", ADMIN_SOCKET)
            .env("MESH_KEY", "/run/mesh.key")
            .output()
            .expect("a program");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn status(&self, n: usize) -> Status {
        let text = self.meshctl(self.nodes[n].host(), &["status", "--json"]);
        serde_json::from_str(&text).expect("a status")
    }

    /// Runs a program on a node; gives what it printed.
    pub(crate) fn exec(&self, n: usize, words: &[&str]) -> String {
        self.nodes[n]
            .exec(words)
            .unwrap_or_else(|error| panic!("on {n}: {error}"))
    }

    /// Runs the engine's client on a node; gives what it printed.
    pub(crate) fn docker(&self, n: usize, words: &[&str]) -> String {
        self.exec(n, &[&["docker"], words].concat())
    }

    /// Starts a container that serves, on `network`; with further arguments for the engine.
    pub(crate) fn run(&self, n: usize, name: &str, network: &str, arguments: &[&str]) {
        let port = PORT.to_string();
        let start = ["run", "-d", "--name", name, "--network", network];
        let program = [IMAGE, ECHO, "serve", &port, "0"];
        self.docker(n, &[&start, arguments, &program].concat());
    }

    /// The same, as a service of the mesh.
    pub(crate) fn serve(&self, n: usize, name: &str, network: &str, service: &str) {
        let service = format!("mesh.service={service}");
        let port = format!("mesh.port={PORT}");
        let labels = ["--label", &service, "--label", &port, "--label", UDP_PORT];
        self.run(n, name, network, &labels);
    }

    /// The instances of a service that node `n` knows.
    pub(crate) fn instances(&self, n: usize, service: &str) -> Vec<InstanceRow> {
        let text = self.meshctl(self.nodes[n].host(), &["service", "list", "--json"]);
        let list: ServiceList = serde_json::from_str(&text).expect("a list");
        let (name, project) = match service.split_once('.') {
            Some((name, project)) => (name, Some(project)),
            None => (service, None),
        };
        list.services
            .into_iter()
            .filter(|row| row.name.as_str() == name)
            .filter(|row| row.project.as_ref().map(|p| p.as_str()) == project)
            .flat_map(|row| row.instances)
            .collect()
    }

    /// Waits until node `n` knows `count` healthy instances of a service.
    pub(crate) fn wait_for(&self, n: usize, service: &str, count: usize) -> Vec<Ipv4Addr> {
        let mut found = Vec::new();
        self.wait_until(&format!("{count} of {service} are up"), || {
            found = self
                .instances(n, service)
                .into_iter()
                .filter(|row| row.health == Health::Healthy)
                .filter_map(|row| match row.address {
                    IpAddr::V4(address) => Some(address),
                    IpAddr::V6(_) => None,
                })
                .collect();
            // An instance has a row for each of its ports.
            found.dedup();
            found.len() == count
        });
        found
    }

    /// Waits until node `n` knows a healthy instance of a service that has an IPv6 address.
    pub(crate) fn wait_for_v6(&self, n: usize, service: &str) -> Ipv6Addr {
        let mut found = None;
        self.wait_until(&format!("{service} is up with IPv6"), || {
            let rows = self.instances(n, service).into_iter();
            let healthy = rows.filter(|row| row.health == Health::Healthy);
            found = healthy
                .flat_map(|row| row.addresses)
                .find_map(|address| match address {
                    IpAddr::V6(address) => Some(address),
                    IpAddr::V4(_) => None,
                });
            found.is_some()
        });
        found.expect("it was waited for")
    }

    /// Creates a network of both families on node `n`, which is to forward IPv6. `number` tells it from the others.
    pub(crate) fn create_dual_network(&self, n: usize, name: &str, number: u8) {
        let forward = "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
        self.exec(n, &["sh", "-c", forward]);
        let v4 = format!("192.168.{number}.0/24");
        let v6 = format!("fd00:{number}:{n}::/64");
        let create = ["network", "create", "--ipv6", "--subnet", &v4];
        self.docker(n, &[&create[..], &["--subnet", &v6, name]].concat());
    }

    /// Whether these hosts have IPv6. Otherwise the test is skipped.
    pub(crate) fn have_ipv6(&self) -> bool {
        let found = self.exec(0, &["sh", "-c", "cat /proc/net/if_inet6 || true"]);
        if found.is_empty() {
            meshd::testbed::skip_test("this machine has no IPv6");
        }
        !found.is_empty()
    }

    pub(crate) fn node_v6(&self, n: usize) -> Ipv6Addr {
        self.status(n).node.expect("it has joined").address_v6
    }

    pub(crate) fn node(&self, n: usize) -> Ipv4Addr {
        self.status(n).node.expect("it has joined").address_v4
    }

    /// The address of a container on its one network, or on the last by name.
    pub(crate) fn container_address(&self, n: usize, name: &str) -> Ipv4Addr {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        let address = self.docker(n, &["inspect", "-f", format, name]);
        let last = address.split(' ').next_back();
        last.and_then(|a| a.parse().ok()).expect("an address")
    }

    /// The IPv6 address of a container on its one network.
    pub(crate) fn container_address_v6(&self, n: usize, name: &str) -> Ipv6Addr {
        let format = "{{range .NetworkSettings.Networks}}{{.GlobalIPv6Address}}{{end}}";
        let address = self.docker(n, &["inspect", "-f", format, name]);
        address.parse().expect("an address")
    }

    /// Asks a server, from a host (`container` empty) or a container, what it calls the caller.
    pub(crate) fn ask(
        &self,
        n: usize,
        container: &str,
        protocol: &str,
        server: impl std::fmt::Display,
    ) -> Result<String, String> {
        let server = format!("{server}:{PORT}");
        let ask = ["ask", protocol, &server];
        self.nodes[n]
            .exec(&self.words(container, &ask))
            .map_err(|error| error.to_string())
    }

    /// The place where the test's program runs: a host, or a container.
    pub(crate) fn words<'a>(&'a self, container: &'a str, words: &[&'a str]) -> Vec<&'a str> {
        let way = if container.is_empty() {
            vec![self.echo()]
        } else {
            vec!["docker", "exec", container, ECHO]
        };
        [&way, words].concat()
    }

    /// The program that is in the image, on the machine.
    pub(crate) fn echo(&self) -> &str {
        self.echo.to_str().expect("a plain path")
    }

    /// Restarts a node's engine, with these arguments.
    pub(crate) fn restart_engine(&mut self, n: usize, arguments: &[&str]) {
        self.nodes[n].stop_engine();
        self.nodes[n]
            .start_engine(arguments)
            .expect("it starts again");
    }

    /// Waits until `condition` holds; a hang shows the logs.
    pub(crate) fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + WAIT_TIMEOUT;
        while !condition() {
            if Instant::now() > end {
                for entry in std::fs::read_dir(self.logs.path()).expect("ours").flatten() {
                    let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    eprintln!("== {}\n{text}", entry.file_name().to_string_lossy());
                }
                panic!("waited in vain until {what}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Starts the coordinator on a host. Its state is still there after a restart.
fn start_coordinator(host: &Host, logs: &Path) -> Running {
    let mut command = host
        .command(env!("CARGO_BIN_EXE_mesh-coordinator"))
        .expect("a namespace");
    command.args(["--state-dir", "/run/coordinator"]);
    command.args(["--admin-socket", ADMIN_SOCKET]);
    let log = logs.join("coordinator");
    host.start(&mut command, &log).expect("a program")
}
