//! Hosts with a WireGuard each: started, configured with `wg`, loaded with iperf3, and read in `/proc`.

mod load;
mod median;
mod read;
mod table;

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use meshd::testbed::{Host, Running, World};
use x25519_dalek::{PublicKey, StaticSecret};

pub(crate) use load::{Flow, listen, send};
pub(crate) use median::median;
pub(crate) use read::{machine_cpu, process_cpu, resident_kib};
pub(crate) use table::print_table;

/// The tunnel device's name.
pub(crate) const DEVICE: &str = "wg0";
/// UDP port of every daemon.
pub(crate) const PORT: u16 = 51820;
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// A key pair as `wg` writes it.
pub(crate) struct Keys {
    private: String,
    pub(crate) public: PublicKey,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the system has randomness");
        let secret = StaticSecret::from(bytes);
        Self {
            private: BASE64_STANDARD.encode(secret.as_bytes()),
            public: PublicKey::from(&secret),
        }
    }
}

/// A host in a tunnel.
pub(crate) struct Node {
    pub(crate) host: Host,
    pub(crate) keys: Keys,
    /// Its address in the tunnel.
    pub(crate) address: Ipv4Addr,
}

/// A peer as another node's configuration has it.
pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    pub(crate) endpoint: Option<Ipv4Addr>,
    pub(crate) allowed: String,
}

impl Node {
    pub(crate) fn new(world: &World, name: &str, address: Ipv4Addr) -> Self {
        Self {
            host: world.host(name).expect("a namespace"),
            keys: Keys::new(),
            address,
        }
    }

    /// The node as a peer of others.
    pub(crate) fn as_peer(&self) -> Peer {
        Peer {
            key: self.keys.public,
            endpoint: Some(self.host.v4()),
            allowed: format!("{}/32", self.address),
        }
    }

    /// Starts `program`, which makes the device; brings it up with `peers`.
    pub(crate) fn start(&self, mut program: Command, peers: &[Peer], logs: &Path) -> Running {
        let log = logs.join(self.host.name());
        let daemon = self.host.start(&mut program, &log).expect("a program");
        let began = Instant::now();
        while !self.listens(&daemon) {
            assert!(
                began.elapsed() < WAIT_TIMEOUT,
                "no socket for `wg`: {}",
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut config = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n",
            self.keys.private
        );
        for peer in peers {
            config += &peer.section();
        }
        let file = self.host.path("/run/wg0.conf");
        std::fs::write(file, config).expect("the host's own file system");
        self.run("wg", &format!("setconf {DEVICE} /run/wg0.conf"));
        self.run(
            "ip",
            &format!("address add {}/8 dev {DEVICE}", self.address),
        );
        self.run("ip", &format!("link set {DEVICE} mtu 1420 up"));
        daemon
    }

    /// Whether the daemon listens on its socket. This reads the kernel's list of sockets, because `wg` removes a socket that
    /// does not listen yet.
    fn listens(&self, daemon: &Running) -> bool {
        let list = format!("/proc/{}/net/unix", daemon.pid());
        let listening =
            |line: &str| line.ends_with(&format!("/{DEVICE}.sock")) && line.contains(" 00010000 ");
        std::fs::read_to_string(list).is_ok_and(|text| text.lines().any(listening))
    }

    /// Runs a program of the system to its end.
    pub(crate) fn run(&self, program: &str, arguments: &str) {
        let output = self
            .command(program)
            .args(arguments.split(' '))
            .output()
            .expect("an installed program");
        assert!(
            output.status.success(),
            "{program} {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// A command in the host.
    pub(crate) fn command(&self, program: &str) -> Command {
        self.host.command(program).expect("a namespace")
    }

    /// Whether an echo is answered within `seconds`.
    pub(crate) fn reaches(&self, to: Ipv4Addr, seconds: u32) -> bool {
        let arguments = format!("-q -c 1 -i 0.2 -w {seconds} {to}");
        self.command("ping")
            .args(arguments.split(' '))
            .output()
            .is_ok_and(|output| output.status.success())
    }
}

impl Peer {
    fn section(&self) -> String {
        let key = BASE64_STANDARD.encode(self.key.as_bytes());
        let endpoint = self
            .endpoint
            .map_or_else(String::new, |at| format!("Endpoint = {at}:{PORT}\n"));
        format!(
            "[Peer]\nPublicKey = {key}\n{endpoint}AllowedIPs = {}\n",
            self.allowed
        )
    }
}
