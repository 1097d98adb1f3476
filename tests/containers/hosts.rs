//! Two hosts with container engines, joined by meshd, and the kernel's wiring of one of them in a test's hands.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshd::lab::{DockerHost, Host, Image, Running, World};
use meshd::node::host::wiring::{Firewall, Mapped, Wiring};
use meshd::wire::local::{Problem, Status, SystemEntry};
use tokio::sync::{mpsc, oneshot};

/// How long anything that is waited for may take: only a hang takes that long.
const PATIENCE: Duration = Duration::from_secs(60);
const SOCKET: &str = "/run/meshd.sock";
/// The image that every engine has, and the program in it.
pub(crate) const IMAGE: &str = "box";
pub(crate) const ECHO: &str = "/usr/local/bin/echo";
/// Where the program serves.
pub(crate) const PORT: u16 = 7777;

/// A mesh of hosts with engines.
pub(crate) struct Hosts {
    daemons: Vec<Running>,
    pub(crate) nodes: Vec<Arc<DockerHost>>,
    /// The coordinator's host, and in the tests of guards the neighbour on the network below.
    pub(crate) outside: Host,
    world: World,
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
        hosts.wait_until("all nodes reach each other", || {
            (0..count).all(|n| {
                let peers = hosts.status(n).peers;
                peers.len() == count - 1
                    && peers
                        .iter()
                        .all(|p| p.state == meshd::wire::local::PeerState::Direct)
            })
        });
        Some(hosts)
    }

    fn start(count: usize) -> Option<Self> {
        if let Err(why) = DockerHost::is_possible() {
            eprintln!("skipped: {why}");
            return None;
        }
        let world = World::new().expect("root may make namespaces");
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
                let host = world
                    .docker_host(&format!("n{n}"), &[programs.to_owned()])
                    .expect("an engine that starts");
                host.import(&image, IMAGE).expect("an image");
                Arc::new(host)
            })
            .collect();
        let outside = world.host("outside").expect("a namespace");
        let mut coordinator = outside
            .command(env!("CARGO_BIN_EXE_mesh-coordinator"))
            .expect("a namespace");
        coordinator.args([
            "--state-dir",
            "/run/coordinator",
            "--admin-socket",
            "/run/admin.sock",
        ]);
        let coordinator = outside
            .start(&mut coordinator, &logs.path().join("coordinator"))
            .expect("a program");
        let hosts = Self {
            daemons: vec![coordinator],
            nodes,
            outside,
            world,
            logs,
            echo,
        };
        hosts.wait_until("the coordinator answers", || {
            std::os::unix::net::UnixStream::connect(hosts.outside.path("/run/admin.sock")).is_ok()
        });
        hosts.meshctl(&hosts.outside, &["init"]);
        Some(hosts)
    }

    fn join(&mut self, n: usize) {
        let token = self.meshctl(&self.outside, &["token", "create"]);
        let host = self.nodes[n].host();
        let mut command = host.command(env!("CARGO_BIN_EXE_meshd")).expect("a host");
        command.args(["--state-dir", "/run/state", "--socket", SOCKET]);
        let log = self.logs.path().join(host.name());
        let daemon = host.start(&mut command, &log).expect("a program");
        let socket = host.path(SOCKET);
        self.wait_until("meshd answers", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        self.meshctl(host, &["join", token.trim()]);
        self.daemons.push(daemon);
    }

    /// Runs meshctl somewhere, and it must succeed.
    pub(crate) fn meshctl(&self, host: &Host, arguments: &[&str]) -> String {
        let output = host
            .command(env!("CARGO_BIN_EXE_meshctl"))
            .expect("a host")
            .args(arguments)
            .env("MESHD_SOCKET", SOCKET)
            .env("MESH_ADMIN_SOCKET", "/run/admin.sock")
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

    /// Starts a container that serves, on `network`.
    pub(crate) fn run(&self, n: usize, name: &str, network: &str) {
        let port = PORT.to_string();
        self.docker(
            n,
            &[
                "run",
                "-d",
                "--name",
                name,
                "--network",
                network,
                IMAGE,
                ECHO,
                "serve",
                &port,
            ],
        );
    }

    /// The address of a container on its one network, or on the last by name.
    pub(crate) fn container_address(&self, n: usize, name: &str) -> Ipv4Addr {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        let address = self.docker(n, &["inspect", "-f", format, name]);
        let last = address.split(' ').next_back();
        last.and_then(|a| a.parse().ok()).expect("an address")
    }

    fn container_pid(&self, n: usize, name: &str) -> Option<u32> {
        let pid = self.docker(n, &["inspect", "-f", "{{.State.Pid}}", name]);
        self.nodes[n].outer_pid(pid.parse().expect("a number"))
    }

    /// What the kernel of node `n` is to do so that `containers` have the node's addresses from host 2 up.
    pub(crate) fn wiring(&self, n: usize, containers: &[&str]) -> Wiring {
        let node = self.status(n).node.expect("it has joined");
        let prefix = "10.210.0.0/16".parse().expect("the default");
        let mut bridges = BTreeMap::new();
        for id in self
            .docker(n, &["network", "ls", "-q", "--filter", "driver=bridge"])
            .lines()
        {
            let format = "{{.Name}} {{.ID}} {{range .IPAM.Config}}{{.Subnet}}{{end}}";
            let shown = self.docker(n, &["network", "inspect", "-f", format, id]);
            let words: Vec<&str> = shown.split(' ').collect();
            let bridge = if words[0] == "bridge" {
                "docker0".to_owned()
            } else {
                format!("br-{}", &words[1][..12])
            };
            bridges.insert(bridge, vec![words[2].parse().expect("a subnet")]);
        }
        let mapped = |name: &&str| Mapped {
            container: self.container_address(n, name),
            pid: self.container_pid(n, name),
            name: (*name).to_owned(),
        };
        Wiring {
            interface: "mesh0".into(),
            prefix,
            block: node.block_v4,
            node: node.address_v4,
            bridges,
            mappings: containers
                .iter()
                .enumerate()
                .map(|(i, name)| (self.instance(n, i), mapped(name)))
                .collect(),
            service_addresses: BTreeMap::new(),
        }
    }

    /// The address of instance `i` of [`Hosts::wiring`].
    pub(crate) fn instance(&self, n: usize, i: usize) -> Ipv4Addr {
        let block = self.status(n).node.expect("it has joined").block_v4;
        block.hosts().nth(i + 1).expect("the block is large")
    }

    pub(crate) fn node(&self, n: usize) -> Ipv4Addr {
        self.status(n).node.expect("it has joined").address_v4
    }

    /// Asks a server, from a host (`container` empty) or a container, what it calls the caller.
    pub(crate) fn ask(
        &self,
        n: usize,
        container: &str,
        protocol: &str,
        server: Ipv4Addr,
    ) -> Result<String, String> {
        let server = format!("{server}:{PORT}");
        let echo = self.echo.to_str().expect("a plain path");
        let words: Vec<&str> = if container.is_empty() {
            vec![echo, "ask", protocol, &server]
        } else {
            vec!["docker", "exec", container, ECHO, "ask", protocol, &server]
        };
        self.nodes[n]
            .exec(&words)
            .map_err(|error| error.to_string())
    }

    /// The program that is in the image, on the machine.
    pub(crate) fn echo(&self) -> &str {
        self.echo.to_str().expect("a plain path")
    }

    /// Stops a node's engine with its containers, and starts it again.
    pub(crate) fn restart_engine(&mut self, n: usize) {
        let host = Arc::get_mut(&mut self.nodes[n]).expect("nobody else uses it now");
        host.stop_engine();
        host.start_engine(&[]).expect("it starts again");
    }

    /// Waits until `condition` holds; a hang shows the logs.
    pub(crate) fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
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

    /// Pulls a node's cable, or plugs it in again.
    #[expect(dead_code, reason = "for tests of hosts that are cut off")]
    pub(crate) fn set_cable(&self, n: usize, plugged: bool) {
        self.world
            .set_cable(self.nodes[n].host(), plugged)
            .expect("the kernel allows it");
    }
}

enum Order {
    Set(
        Box<Wiring>,
        oneshot::Sender<(bool, Vec<Problem>, Vec<SystemEntry>)>,
    ),
    Stop,
}

/// A firewall that runs inside a host's network.
pub(crate) struct Wired {
    orders: mpsc::UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Wired {
    pub(crate) fn start(host: &Arc<DockerHost>) -> Self {
        let (orders, mut receiver) = mpsc::unbounded_channel();
        // Entered through a path of its own, so that the host is not kept.
        let network = std::fs::File::open(format!("/proc/{}/ns/net", host.host().pid()))
            .expect("a namespace");
        let thread = std::thread::spawn(move || {
            nix::sched::setns(&network, nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let firewall = Firewall::start("fd00:1:2::/48".parse().ok());
                while let Some(Order::Set(wiring, reply)) = receiver.recv().await {
                    firewall.set(*wiring);
                    firewall.settled().await;
                    let _ =
                        reply.send((firewall.in_force(), firewall.problems(), firewall.entries()));
                }
                firewall.stop().await;
            });
        });
        Self {
            orders,
            thread: Some(thread),
        }
    }

    /// Carries a wiring out, without problems; gives what is on the machine then.
    pub(crate) fn set(&self, wiring: Wiring) -> Vec<SystemEntry> {
        let (reply, answer) = oneshot::channel();
        let order = Order::Set(Box::new(wiring), reply);
        self.orders
            .send(order)
            .unwrap_or_else(|_| panic!("it runs"));
        let (in_force, problems, entries) = answer.blocking_recv().expect("it runs");
        assert_eq!(problems, []);
        assert!(in_force);
        entries
    }

    pub(crate) fn stop(mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}
