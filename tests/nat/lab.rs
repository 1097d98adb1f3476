//! A mesh under test whose nodes are behind routers. The coordinator has a public address.

use std::process::Command;
use std::time::Duration;

use meshd::protocol::local::{Netcheck, PeerState, PeerStatus, Status, Why};
use meshd::testbed::{Host, Nat, Router, Running, World};
use serde::de::DeserializeOwned;

use crate::mesh::{self, Ended, SOCKET, meshctl};
use crate::tool::find_program;

/// How long anything that is waited for may take: only a hang takes that long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(90);

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) host: Host,
    /// The number of its router. None if it has a public address.
    pub(crate) router: Option<usize>,
    daemon: Option<Running>,
}

pub(crate) struct Lab {
    pub(crate) nodes: Vec<Node>,
    routers: Vec<Router>,
    coordinator_host: Host,
    coordinator: Option<Running>,
    logs: tempfile::TempDir,
    world: World,
}

impl Lab {
    /// A coordinator with a mesh that has no node yet, or nothing where the rights for namespaces are missing.
    pub(crate) fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            meshd::testbed::skip_test("network namespaces need root");
            return None;
        }
        let world = World::routed().expect("root may make namespaces");
        let mut lab = Self {
            nodes: Vec::new(),
            routers: Vec::new(),
            coordinator_host: world.host("coordinator").expect("a namespace"),
            coordinator: None,
            logs: tempfile::tempdir().expect("a temporary directory"),
            world,
        };
        let host = &lab.coordinator_host;
        let mut command = host
            .command(env!("CARGO_BIN_EXE_mesh-coordinator"))
            .expect("a namespace");
        command.args(["--state-dir", "/run/coordinator"]);
        command.args(["--admin-socket", "/run/admin.sock"]);
        let log = lab.logs.path().join("coordinator");
        lab.coordinator = Some(host.start(&mut command, &log).expect("a program"));
        lab.wait_for_socket(&lab.coordinator_host, "/run/admin.sock");
        assert_eq!(lab.admin(&["init"]).code, 0);
        Some(lab)
    }

    /// Starts a node with a public address.
    pub(crate) fn public(&mut self, name: &str) -> usize {
        self.public_with(name, "")
    }

    /// Starts a node with a public address that relays over TLS as well.
    pub(crate) fn relay(&mut self, name: &str) -> usize {
        self.public_with(name, "[relay]\nlisten = \"0.0.0.0:443\"\n")
    }

    fn public_with(&mut self, name: &str, settings: &str) -> usize {
        let host = self.world.host(name).expect("a namespace");
        self.public_on(name, host, settings)
    }

    /// Starts a node on a host with a public address.
    pub(crate) fn public_on(&mut self, name: &str, host: Host, settings: &str) -> usize {
        self.start(name, host, None, settings, &[])
    }

    /// Kills the program of a node, and starts it again.
    pub(crate) fn restart(&mut self, n: usize) {
        self.nodes[n].daemon.take();
        let node = &self.nodes[n];
        let daemon = self.daemon(&node.name, &node.host, &[]);
        self.nodes[n].daemon = Some(daemon);
    }

    /// Starts a node behind a router of its own, with these variables of its environment.
    pub(crate) fn behind_with(
        &mut self,
        nat: Nat,
        name: &str,
        settings: &str,
        variables: &[(&str, &str)],
    ) -> usize {
        let router = self.add_router(nat);
        let host = self.routers[router].host(name).expect("a namespace");
        self.start(name, host, Some(router), settings, variables)
    }

    /// A host with a public address and no node.
    pub(crate) fn host(&self, name: &str) -> Host {
        self.world.host(name).expect("a namespace")
    }

    /// Starts another program.
    pub(crate) fn start_program(&self, host: &Host, command: &mut Command, name: &str) -> Running {
        let log = self.logs.path().join(name);
        host.start(command, &log).expect("a program")
    }

    /// Starts a node behind a router of its own.
    pub(crate) fn behind(&mut self, nat: Nat, name: &str) -> usize {
        self.behind_with(nat, name, "", &[])
    }

    /// Makes a router, behind which [`Lab::beside`] starts nodes. Returns its number.
    pub(crate) fn add_router(&mut self, nat: Nat) -> usize {
        self.routers.push(self.world.router(nat).expect("a router"));
        self.routers.len() - 1
    }

    /// Lets a router map ports on request, by PCP and NAT-PMP, by UPnP, or by all of them. None where the program is missing.
    pub(crate) fn serve_mappings(&self, router: usize, protocols: (bool, bool)) -> Option<Running> {
        let Some(program) = find_program("miniupnpd") else {
            meshd::testbed::skip_test("miniupnpd is missing; tests/run unpacks it");
            return None;
        };
        let log = self.logs.path().join(format!("miniupnpd-{router}"));
        let served = self.routers[router].serve_mappings(&program, protocols, &log);
        Some(served.expect("a program"))
    }

    /// Kills the coordinator.
    pub(crate) fn stop_coordinator(&mut self) {
        self.coordinator.take();
    }

    /// Stops a node. Returns whether it ended in time.
    pub(crate) fn stop(&mut self, n: usize) -> bool {
        let daemon = self.nodes[n].daemon.take();
        daemon.is_some_and(|mut daemon| daemon.stop().is_some())
    }

    /// Starts a node behind a router that is there.
    pub(crate) fn beside(&mut self, router: usize, name: &str) -> usize {
        let host = self.routers[router].host(name).expect("a namespace");
        self.start(name, host, Some(router), "", &[])
    }

    fn start(
        &mut self,
        name: &str,
        host: Host,
        router: Option<usize>,
        settings: &str,
        variables: &[(&str, &str)],
    ) -> usize {
        std::fs::write(host.path("/run/meshd.toml"), settings).expect("our directory");
        let daemon = self.daemon(name, &host, variables);
        self.nodes.push(Node {
            name: name.to_owned(),
            host,
            router,
            daemon: Some(daemon),
        });
        self.nodes.len() - 1
    }

    fn daemon(&self, name: &str, host: &Host, variables: &[(&str, &str)]) -> Running {
        let mut command = host
            .command(env!("CARGO_BIN_EXE_meshd"))
            .expect("a namespace");
        command.args(["--config", "/run/meshd.toml"]);
        command.args(["--state-dir", "/run/state", "--socket", SOCKET]);
        command.envs(variables.iter().copied());
        let log = self.logs.path().join(name);
        let daemon = host.start(&mut command, &log).expect("a program");
        self.wait_for_socket(host, SOCKET);
        daemon
    }

    fn wait_for_socket(&self, host: &Host, path: &str) {
        let socket = host.path(path);
        self.wait_until("a program answers", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// A token for all nodes.
    pub(crate) fn token(&self) -> String {
        let uses = self.nodes.len().to_string();
        let token = self.admin(&["token", "create", "--uses", &uses]);
        assert_eq!(token.code, 0, "{token:?}");
        token.stdout.trim().to_owned()
    }

    /// Lets all nodes join at once. Returns how each join ended.
    pub(crate) fn join_all(&self) -> Vec<Ended> {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.join(&all)
    }

    /// Lets these nodes join at once. Returns how each join ended.
    pub(crate) fn join(&self, nodes: &[usize]) -> Vec<Ended> {
        let token = self.token();
        let token = token.as_str();
        std::thread::scope(|scope| {
            let joins: Vec<_> = nodes
                .iter()
                .map(|n| scope.spawn(move || self.on(*n, &["join", token])))
                .collect();
            let ends = joins.into_iter().map(|join| join.join().expect("no panic"));
            let ends: Vec<Ended> = ends.collect();
            for ended in &ends {
                assert_eq!(ended.code, 0, "{ended:?}");
            }
            ends
        })
    }

    pub(crate) fn router(&self, n: usize) -> &Router {
        let router = self.nodes[n].router.expect("the node is behind a router");
        &self.routers[router]
    }

    pub(crate) fn routers(&self) -> &[Router] {
        &self.routers
    }

    pub(crate) fn name(&self, n: usize) -> &str {
        &self.nodes[n].name
    }

    /// Runs meshctl on a node.
    pub(crate) fn on(&self, n: usize, arguments: &[&str]) -> Ended {
        meshctl(&self.nodes[n].host, arguments)
    }

    pub(crate) fn admin(&self, arguments: &[&str]) -> Ended {
        meshctl(&self.coordinator_host, arguments)
    }

    fn document<T: DeserializeOwned>(&self, n: usize, arguments: &[&str]) -> T {
        let ended = self.on(n, arguments);
        assert_eq!(ended.code, 0, "{ended:?}");
        serde_json::from_str(&ended.stdout).expect("a document")
    }

    pub(crate) fn status(&self, n: usize) -> Status {
        self.document(n, &["status", "--json"])
    }

    pub(crate) fn netcheck(&self, n: usize) -> Netcheck {
        self.document(n, &["netcheck", "--json"])
    }

    pub(crate) fn why(&self, n: usize, peer: usize) -> Why {
        self.document(n, &["why", self.name(peer), "--json"])
    }

    /// How node `n` sees node `peer`.
    pub(crate) fn peer(&self, n: usize, peer: usize) -> PeerStatus {
        let peers = self.status(n).peers.into_iter();
        let mut peers = peers.filter(|p| p.name.as_str() == self.name(peer));
        peers.next().expect("both are members")
    }

    pub(crate) fn reaches(&self, n: usize, peer: usize) -> bool {
        is_reached(&self.peer(n, peer))
    }

    /// Whether an echo from node `from` to the mesh address of node `to` is answered within five tries.
    pub(crate) fn pings(&self, from: usize, to: usize) -> bool {
        self.pings_at(from, &self.peer(from, to).address_v4.to_string())
    }

    /// As [`Lab::pings`], for a mesh address.
    pub(crate) fn pings_at(&self, from: usize, address: &str) -> bool {
        let mut command = self.nodes[from].host.command("ping").expect("a namespace");
        command
            .args(["-c", "1", "-w", "5", "-i", "0.2", address])
            .output()
            .is_ok_and(|output| output.status.success())
    }

    /// Waits until `condition` holds. If it never does, the logs are shown.
    pub(crate) fn wait_until(&self, what: &str, condition: impl FnMut() -> bool) {
        mesh::wait_until(self.logs.path(), WAIT_TIMEOUT, what, condition);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.daemon.take();
        }
        self.coordinator.take();
    }
}

/// Whether packets of a peer arrive, on whichever path.
pub(crate) fn is_reached(peer: &PeerStatus) -> bool {
    matches!(
        peer.state,
        PeerState::Direct | PeerState::Relay | PeerState::Stream
    )
}
