//! A mesh with a coordinator, nodes with public addresses, and nodes behind routers.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use meshd::protocol::local::{PeerState, PeerStatus, Status};
use meshd::testbed::{Host, Nat, Router, Running, World};

use crate::bulk::Stream;
use crate::control::{ADMIN_SOCKET, SOCKET, meshctl, wait_for};
use crate::scrape::scrape;

/// The configuration of a node, if it has one.
const CONFIG: &str = "/run/meshd.toml";
/// The file of a policy, where the mesh is administered.
const POLICY: &str = "/run/policy.toml";
/// How long something may take that always happens.
const HANG: Duration = Duration::from_secs(120);

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) host: Host,
    pub(crate) router: Option<usize>,
    pub(crate) daemon: Option<Running>,
    /// Its address in the mesh, once it has joined.
    pub(crate) address: Ipv4Addr,
}

pub(crate) struct Lab {
    pub(crate) nodes: Vec<Node>,
    pub(crate) routers: Vec<Router>,
    coordinator: Option<(Host, Running)>,
    logs: tempfile::TempDir,
    /// The directory of the programs. None for those that were built with this one.
    programs: Option<PathBuf>,
    pub(crate) world: World,
}

impl Node {
    /// Starts a TCP stream to a node, at most so many bytes in a second, or as many as pass.
    pub(crate) fn stream(&self, to: &Self, port: u16, rate: Option<f64>) -> Stream {
        let target = SocketAddr::from((to.address, port));
        Stream::start(&self.host, &to.host, target, rate)
    }
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with_programs(None)
    }

    /// A mesh that runs the programs in this directory.
    pub(crate) fn with_programs(programs: Option<PathBuf>) -> Self {
        let world =
            World::routed().expect("root may make namespaces, with the programs ip and nft");
        let host = world.host("coordinator").expect("a namespace");
        let mut lab = Self {
            nodes: Vec::new(),
            routers: Vec::new(),
            coordinator: None,
            logs: tempfile::tempdir().expect("a temporary directory"),
            programs,
            world,
        };
        let built = env!("CARGO_BIN_EXE_mesh-coordinator");
        let program = lab.program("mesh-coordinator", built);
        let mut command = host.command(&program).expect("a namespace");
        command.args(["--state-dir", "/run/state", "--admin-socket", ADMIN_SOCKET]);
        let log = lab.logs.path().join("coordinator");
        let running = host.start(&mut command, &log).expect("it is built");
        wait_for(&host, ADMIN_SOCKET);
        meshctl(&host, &["init"]);
        lab.coordinator = Some((host, running));
        lab
    }

    fn program(&self, name: &str, built: &str) -> String {
        match &self.programs {
            Some(directory) => directory.join(name).to_string_lossy().into_owned(),
            None => built.to_owned(),
        }
    }

    /// A node with a public address.
    pub(crate) fn public(&mut self, name: &str) -> usize {
        let host = self.world.host(name).expect("a namespace");
        self.add(name, host, None)
    }

    /// A node with a public address and this configuration.
    pub(crate) fn configured(&mut self, name: &str, config: &str) -> usize {
        let host = self.world.host(name).expect("a namespace");
        std::fs::write(host.path(CONFIG), config).expect("its own file system");
        self.add(name, host, None)
    }

    /// A node behind a router of its own.
    pub(crate) fn behind(&mut self, nat: Nat, name: &str) -> usize {
        let router = self.world.router(nat).expect("a router");
        let host = router.host(name).expect("a namespace");
        self.routers.push(router);
        self.add(name, host, Some(self.routers.len() - 1))
    }

    fn add(&mut self, name: &str, host: Host, router: Option<usize>) -> usize {
        self.nodes.push(Node {
            name: name.to_owned(),
            host,
            router,
            daemon: None,
            address: Ipv4Addr::UNSPECIFIED,
        });
        let number = self.nodes.len() - 1;
        self.start(number);
        self.await_start(number);
        number
    }

    /// Starts the daemon of a node, which listens some time later.
    pub(crate) fn start(&mut self, number: usize) {
        let other = std::env::var("BIN_MESHD").ok();
        let built = other.as_deref().unwrap_or(env!("CARGO_BIN_EXE_meshd"));
        let program = self.program("meshd", built);
        let node = &mut self.nodes[number];
        let mut command = node.host.command(&program).expect("a namespace");
        command
            .args(["--state-dir", "/run/state", "--socket", SOCKET])
            // Each change of a path is logged.
            .env("RUST_LOG", "info,meshd::node::joined=debug");
        if node.host.path(CONFIG).exists() {
            command.args(["--config", CONFIG]);
        }
        let log = self.logs.path().join(&node.name);
        node.daemon = Some(node.host.start(&mut command, &log).expect("it is built"));
    }

    /// Waits until the daemon of a node listens.
    pub(crate) fn await_start(&self, number: usize) {
        wait_for(&self.nodes[number].host, SOCKET);
    }

    /// Ends the daemon of a node with SIGKILL.
    pub(crate) fn kill(&mut self, number: usize) {
        self.nodes[number].daemon = None;
    }

    /// Lets all nodes join, one after the other.
    pub(crate) fn join(&mut self) {
        let uses = self.nodes.len().to_string();
        let (host, _) = self.coordinator.as_ref().expect("it runs");
        let token = meshctl(host, &["token", "create", "--uses", &uses]);
        for node in &self.nodes {
            meshctl(&node.host, &["join", token.trim()]);
        }
        let count = self.nodes.len();
        self.wait("each node knows the others", |lab| {
            (0..count).all(|n| lab.status(n).peers.len() + 1 == count)
        });
        for number in 0..count {
            let other = usize::from(number == 0);
            let status = self.status(other);
            let mut peers = status.peers.iter();
            let node = &mut self.nodes[number];
            let own = peers.find(|peer| peer.name.as_str() == node.name);
            node.address = own.expect("both are members").address_v4;
        }
    }

    pub(crate) fn status(&self, number: usize) -> Status {
        let text = meshctl(&self.nodes[number].host, &["status", "--json"]);
        serde_json::from_str(&text).expect("a status")
    }

    /// Puts a policy in force at the coordinator. The nodes follow some time later. Returns its version.
    pub(crate) fn sign(&self, policy: &str) -> u64 {
        let (host, _) = self.coordinator.as_ref().expect("it runs");
        std::fs::write(host.path(POLICY), policy).expect("its own file system");
        let document = meshctl(host, &["policy", "apply", POLICY, "--json"]);
        let document: serde_json::Value = serde_json::from_str(&document).expect("a document");
        document["version"].as_u64().expect("a version")
    }

    /// Puts a policy in force at all nodes.
    pub(crate) fn apply(&self, policy: &str) {
        let version = self.sign(policy);
        let follows = |node: &Node| {
            let denied = meshctl(&node.host, &["policy", "denied", "--json"]);
            let denied: serde_json::Value = serde_json::from_str(&denied).expect("a document");
            denied["policy"].as_u64() == Some(version)
        };
        self.wait("the policy is in force", |lab| {
            lab.nodes.iter().all(follows)
        });
    }

    /// How one node sees another one.
    pub(crate) fn peer(&self, number: usize, peer: usize) -> PeerStatus {
        let name = &self.nodes[peer].name;
        let mut peers = self.status(number).peers.into_iter();
        let found = peers.find(|peer| peer.name.as_str() == name);
        found.expect("both are members")
    }

    /// Whether both nodes send to each other by such a path.
    pub(crate) fn are(&self, one: usize, other: usize, state: PeerState) -> bool {
        [(one, other), (other, one)]
            .iter()
            .all(|(node, peer)| self.peer(*node, *peer).state == state)
    }

    /// Waits for something that always happens.
    pub(crate) fn wait(&self, what: &str, condition: impl FnMut(&Self) -> bool) {
        let took = self.wait_for(HANG, condition);
        if took.is_none() {
            self.show_logs();
        }
        assert!(took.is_some(), "waited in vain until {what}");
    }

    /// Waits for something for at most this time. Returns how long that took.
    pub(crate) fn wait_for(
        &self,
        limit: Duration,
        mut condition: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let began = Instant::now();
        while !condition(self) {
            if began.elapsed() > limit {
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(began.elapsed())
    }

    fn show_logs(&self) {
        for node in &self.nodes {
            let log = std::fs::read_to_string(self.log(&node.name)).unwrap_or_default();
            eprintln!("== {}\n{log}", node.name);
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.path().join(name)
    }

    /// How often a node has changed the path by which it sends to a peer.
    pub(crate) fn changes(&self, number: usize, peer: usize) -> usize {
        let log = std::fs::read_to_string(self.log(&self.nodes[number].name)).unwrap_or_default();
        let peer = &self.nodes[peer].name;
        let is_change =
            |line: &&str| line.contains("take another path") && line.contains(peer.as_str());
        log.lines().filter(is_change).count()
    }

    pub(crate) fn router(&self, number: usize) -> &Router {
        let router = self.nodes[number].router.expect("it is behind one");
        &self.routers[router]
    }

    /// Both directions between the routers of two nodes.
    pub(crate) fn ways(&self, one: usize, other: usize) -> [(Ipv4Addr, Ipv4Addr); 2] {
        let [one, other] = [one, other].map(|number| self.router(number).public_v4());
        [(one, other), (other, one)]
    }

    /// A counter of a node's interface, such as `rx_packets`.
    pub(crate) fn counter(&self, number: usize, name: &str) -> u64 {
        read_counter(&self.counter_file(number, name))
    }

    /// The file with a counter of a node's interface.
    pub(crate) fn counter_file(&self, number: usize, name: &str) -> PathBuf {
        let file = format!("/sys/class/net/eth0/statistics/{name}");
        self.nodes[number].host.path(&file)
    }

    /// A metric of a node.
    pub(crate) fn metric(&self, number: usize, name: &str) -> f64 {
        let page = scrape(&self.nodes[number].host);
        let mut values = page.lines().filter_map(|line| line.strip_prefix(name));
        let value = values.next().and_then(|rest| rest.trim().parse().ok());
        value.unwrap_or_else(|| panic!("there is no metric {name}"))
    }
}

pub(crate) fn read_counter(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).expect("the host has an interface");
    text.trim().parse().expect("a number")
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.daemon.take();
        }
    }
}
