//! Two hosts with a WireGuard each, configured by `wg`.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use meshd::testbed::{Host, Running, World, skip_test};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Meshd,
    WireguardGo,
}

pub(crate) struct Pair {
    ends: [End; 2],
    _world: World,
    logs: tempfile::TempDir,
}

struct End {
    kind: Kind,
    host: Host,
    daemon: Option<Running>,
    /// One that was started while the other still ran.
    next: Option<Running>,
    keys: (String, String),
    /// Another network namespace, for the interface alone.
    namespace: Option<Running>,
}

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
static NUMBER: AtomicU32 = AtomicU32::new(1);

fn installed(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output()
        .is_ok_and(|o| o.status.success())
}

fn output(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("a program");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes())
        .expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Pair {
    pub(crate) fn start(a: Kind, b: Kind) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip_test("network namespaces need root");
            return None;
        }
        for program in ["wg", "wireguard-go"] {
            if !installed(program) {
                skip_test(&format!("{program} is not installed"));
                return None;
            }
        }
        let world = World::new().expect("root may make namespaces");
        let end = |kind, name: &str| {
            let private = output(Command::new("wg").arg("genkey"), "");
            let public = output(Command::new("wg").arg("pubkey"), &private);
            End {
                kind,
                host: world.host(name).expect("a namespace"),
                daemon: None,
                next: None,
                keys: (private, public),
                namespace: None,
            }
        };
        let ends = [end(a, "a"), end(b, "b")];
        let mut pair = Self {
            ends,
            _world: world,
            logs: tempfile::tempdir().expect("a temporary directory"),
        };
        for n in [0, 1] {
            pair.bring_up(n);
        }
        Some(pair)
    }

    fn bring_up(&mut self, n: usize) {
        let daemon = self.spawn(n);
        let socket = self.ends[n].host.path("/run/wireguard/wg0.sock");
        let limit = Instant::now() + WAIT_TIMEOUT;
        // `wg` deletes a socket that does not listen yet; to look at the kernel's list is what rigs do.
        while !socket.exists() {
            assert!(Instant::now() < limit, "no socket: {}", daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(50));
        self.configure(n);
        self.ends[n].daemon = Some(daemon);
    }

    fn spawn(&self, n: usize) -> Running {
        let end = &self.ends[n];
        let mut command = match end.kind {
            Kind::Meshd => {
                let mut command = end
                    .host
                    .command(env!("CARGO_BIN_EXE_meshd"))
                    .expect("a namespace");
                command.args(["wireguard", "wg0"]);
                command
            }
            Kind::WireguardGo => {
                let mut command = end.host.command("wireguard-go").expect("a namespace");
                command.args(["-f", "wg0"]).env("LOG_LEVEL", "error");
                command
            }
        };
        end.host
            .start(&mut command, &self.logs.path().join(end.host.name()))
            .expect("a program")
    }

    fn configure(&self, n: usize) {
        let other = &self.ends[1 - n];
        let psk = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let config = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 51820\n[Peer]\nPublicKey = {}\nPresharedKey = {psk}\nEndpoint = {}:51820\nAllowedIPs = 10.9.0.{}/32, fd09::{}/128\n",
            self.ends[n].keys.0,
            other.keys.1,
            other.host.v4(),
            2 - n,
            2 - n
        );
        std::fs::write(self.ends[n].host.path("/run/wg0.conf"), config)
            .expect("the host's own file system");
        self.wg(n, &["setconf", "wg0", "/run/wg0.conf"]);
        let own = n + 1;
        self.ip(n, &format!("addr add 10.9.0.{own}/24 dev wg0"));
        self.ip(n, &format!("addr add fd09::{own}/64 dev wg0 nodad"));
        self.ip(n, "link set wg0 mtu 1420 up");
    }

    pub(crate) fn ip(&self, n: usize, arguments: &str) {
        output(
            self.ends[n]
                .host
                .command("ip")
                .expect("a namespace")
                .args(arguments.split(' ')),
            "",
        );
    }

    pub(crate) fn add_address(&self, n: usize, address: &str) {
        self.ip(n, &format!("addr add {address} dev wg0"));
    }

    pub(crate) fn wg(&self, n: usize, arguments: &[&str]) -> String {
        output(
            self.ends[n]
                .host
                .command("wg")
                .expect("a namespace")
                .args(arguments),
            "",
        )
    }

    fn ping(&self, from: usize, to: &str, arguments: &[&str]) -> Command {
        let mut command = self.ends[from].host.command("ping").expect("a namespace");
        command.args(arguments).arg(to);
        command
    }

    /// Whether one of some echoes of `size` bytes is answered within ten seconds.
    pub(crate) fn pings(&self, from: usize, to: &str, size: usize) -> bool {
        let arguments = ["-c", "1", "-w", "10", "-i", "0.2", "-s", &size.to_string()];
        self.ping(from, to, &arguments)
            .output()
            .is_ok_and(|o| o.status.success())
    }

    pub(crate) fn pings_from(&self, from: usize, source: &str, to: &str) -> bool {
        self.ping(from, to, &["-c", "3", "-w", "2", "-i", "0.2", "-I", source])
            .output()
            .is_ok_and(|o| o.status.success())
    }

    /// `count` echoes, five a second, in the background.
    pub(crate) fn start_pings(&self, from: usize, to: &str, count: u32) -> Running {
        let mut command = self.ping(from, to, &["-q", "-i", "0.2", "-c", &count.to_string()]);
        let log = self
            .logs
            .path()
            .join(format!("ping-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        self.ends[from]
            .host
            .start(&mut command, &log)
            .expect("a program")
    }

    /// Seconds since 1970 of the last handshake.
    pub(crate) fn last_handshake(&self, n: usize) -> u64 {
        let shown = self.wg(n, &["show", "wg0", "latest-handshakes"]);
        shown
            .split_whitespace()
            .last()
            .and_then(|word| word.parse().ok())
            .expect("a number")
    }

    /// Gives an end another address on the network below, and takes the old one away.
    pub(crate) fn move_to_another_address(&self, n: usize) {
        let old = self.ends[n].host.v4();
        let new = format!("198.51.100.{}", 200 + n);
        self.ip(n, &format!("addr add {new}/24 dev eth0"));
        self.ip(n, &format!("addr del {old}/24 dev eth0"));
        // Removing the first address of a network takes the others of that network with it, unless told otherwise.
        let _ = self.ends[n]
            .host
            .command("ip")
            .expect("a namespace")
            .args(["addr", "add", &format!("{new}/24"), "dev", "eth0"])
            .output();
        // This wireguard-go keeps sending from the address it had (two of them do not find each other again either), until
        // it has a new socket.
        if self.ends[n].kind == Kind::WireguardGo {
            self.wg(n, &["set", "wg0", "listen-port", "40405"]);
        }
    }

    /// The address of an end on the network below.
    pub(crate) fn underlay(&self, n: usize) -> String {
        self.ends[n].host.v4().to_string()
    }

    /// Where an end sends to.
    pub(crate) fn endpoint(&self, n: usize) -> String {
        let shown = self.wg(n, &["show", "wg0", "endpoints"]);
        let endpoint = shown.split_whitespace().last();
        endpoint.expect("one peer").to_owned()
    }

    /// Returns how many bytes an end has sent.
    pub(crate) fn sent(&self, n: usize) -> u64 {
        let shown = self.wg(n, &["show", "wg0", "transfer"]);
        let sent = shown.split_whitespace().last();
        sent.and_then(|word| word.parse().ok()).expect("a number")
    }

    /// Has an end send to `endpoint`.
    pub(crate) fn set_endpoint(&self, n: usize, endpoint: &str) {
        let peer = &self.ends[1 - n].keys.1;
        self.wg(n, &["set", "wg0", "peer", peer, "endpoint", endpoint]);
    }

    /// Ends the sessions of an end.
    pub(crate) fn renew_keys(&self, n: usize) {
        let private = self.ends[n].host.path("/run/private");
        std::fs::write(private, &self.ends[n].keys.0).expect("the host's own file system");
        self.wg(n, &["set", "wg0", "private-key", "/run/private"]);
    }

    /// Gives an end a second interface in the network below, with the address 198.51.100.220.
    pub(crate) fn second_interface(&self, n: usize) {
        // Each interface speaks for its own addresses: what is sent to the first one's arrives there.
        let script =
            "cd /proc/sys/net/ipv4/conf/all && echo 1 > arp_ignore && echo 2 > arp_announce";
        output(
            self.ends[n]
                .host
                .command("sh")
                .expect("a namespace")
                .args(["-c", script]),
            "",
        );
        self.ip(n, "link add link eth0 name other0 type macvlan mode bridge");
        self.ip(n, "addr add 198.51.100.220/32 dev other0");
        self.ip(n, "link set other0 up");
    }

    /// Leads to the other end through that.
    pub(crate) fn second_way(&self, n: usize) {
        self.second_interface(n);
        let to = self.underlay(1 - n);
        self.ip(
            n,
            &format!("route add {to}/32 dev other0 src 198.51.100.220"),
        );
    }

    pub(crate) fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        let limit = Instant::now() + WAIT_TIMEOUT;
        while !condition() {
            assert!(Instant::now() < limit, "waited in vain");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Moves an interface of an end to a network namespace of its own.
    pub(crate) fn move_device(&mut self, n: usize, name: &str) {
        let mut command = self.ends[n].host.command("unshare").expect("a namespace");
        command.args(["--net", "sleep", "1000"]);
        let log = self.logs.path().join("namespace");
        let namespace = self.ends[n]
            .host
            .start(&mut command, &log)
            .expect("a program");
        let pid = namespace.pid();
        // Until the program is in it.
        let of = |pid: String| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let host = of(self.ends[n].host.pid().to_string());
        self.wait_until(|| of(pid.to_string()) != host && of(pid.to_string()).is_some());
        self.ip(n, &format!("link set {name} netns {pid}"));
        self.ends[n].namespace = Some(namespace);
    }

    fn enter(&self, n: usize, program: &str) -> Command {
        let pid = self.ends[n].namespace.as_ref().expect("made").pid();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid.to_string(), "-n", program]);
        command
    }

    pub(crate) fn ip_inside(&self, n: usize, arguments: &str) {
        output(self.enter(n, "ip").args(arguments.split(' ')), "");
    }

    pub(crate) fn pings_inside(&self, n: usize, to: &str) -> bool {
        let mut command = self.enter(n, "ping");
        command.args(["-c", "1", "-w", "10", "-i", "0.2", to]);
        command.output().is_ok_and(|o| o.status.success())
    }

    pub(crate) fn end_namespace(&mut self, n: usize) {
        self.ends[n].namespace.take().expect("made").kill();
    }

    pub(crate) fn still_runs(&mut self, n: usize) -> bool {
        let daemon = self.ends[n].daemon.as_mut().expect("started");
        daemon.wait(Duration::ZERO).is_none()
    }

    /// Whether the daemon ends by itself, and in order.
    pub(crate) fn ends_at_once(&mut self, n: usize) -> bool {
        let daemon = self.ends[n].daemon.as_mut().expect("started");
        daemon
            .wait(WAIT_TIMEOUT)
            .is_some_and(|status| status.success())
            && daemon.log().contains("the interface was deleted")
    }

    pub(crate) fn log(&self, n: usize) -> String {
        let daemon = self.ends[n].daemon.as_ref().expect("started");
        daemon.log()
    }

    /// Starts another daemon for the same interface.
    pub(crate) fn start_beside(&mut self, n: usize) {
        self.ends[n].next = Some(self.spawn(n));
    }

    /// Configures the daemon that was started beside the one that has ended.
    pub(crate) fn take_over(&mut self, n: usize) {
        self.ends[n].daemon = self.ends[n].next.take();
        // Both write into one log.
        self.wait_until(|| {
            let log = self.log(n);
            let ended = log.rfind("the interface was deleted");
            log.rfind("ready for `wg set`") > ended
        });
        self.configure(n);
    }

    pub(crate) fn restart(&mut self, n: usize) {
        self.ends[n].daemon.take().expect("it runs").kill();
        let gone = Instant::now() + WAIT_TIMEOUT;
        let exists = |pair: &Self| {
            pair.ends[n]
                .host
                .command("ip")
                .expect("a namespace")
                .args(["link", "show", "wg0"])
                .output()
                .is_ok_and(|o| o.status.success())
        };
        while exists(self) {
            assert!(Instant::now() < gone, "the device goes with its process");
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = std::fs::remove_file(self.ends[n].host.path("/run/wireguard/wg0.sock"));
        self.bring_up(n);
    }

    /// How long it takes until echoes pass while both ends send them.
    pub(crate) fn time_until_both_talk(&self) -> Duration {
        let began = Instant::now();
        let mut back = self.start_pings(1, "10.9.0.1", 50);
        assert!(self.pings(0, "10.9.0.2", 56));
        let took = began.elapsed();
        back.kill();
        took
    }

    /// Sends random bytes both ways at once and compares.
    pub(crate) fn assert_same_bytes_over_tcp(&self, from: usize, to: IpAddr, length: usize) {
        let server = SocketAddr::new(to, 5300);
        let listener = self.ends[1 - from]
            .host
            .inside(|| TcpListener::bind(server))
            .expect("a namespace")
            .expect("a free port");
        let stream = self.ends[from]
            .host
            .inside(|| TcpStream::connect_timeout(&server, WAIT_TIMEOUT))
            .expect("a namespace")
            .expect("the way through");
        let (echo, _) = listener.accept().expect("a connection");
        let pattern = |at: usize| {
            (at as u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(23) as u8
        };
        let both = [stream, echo].map(|stream| {
            stream
                .set_read_timeout(Some(WAIT_TIMEOUT))
                .expect("a socket");
            let mut writer = stream.try_clone().expect("a socket");
            let write = std::thread::spawn(move || {
                let mut at = 0;
                while at < length {
                    // Odd sizes now and then: segments that do not line up.
                    let chunk = (1 + (at * 7919) % 9000).min(length - at);
                    let bytes: Vec<u8> = (at..at + chunk).map(pattern).collect();
                    writer.write_all(&bytes).expect("the other end reads");
                    at += chunk;
                }
                writer
                    .shutdown(std::net::Shutdown::Write)
                    .expect("a socket");
            });
            let read = std::thread::spawn(move || {
                let mut reader = stream;
                let (mut at, mut buffer) = (0, vec![0; 65_536]);
                loop {
                    let read = reader.read(&mut buffer).expect("the other end writes");
                    if read == 0 {
                        break;
                    }
                    for byte in &buffer[..read] {
                        assert_eq!(*byte, pattern(at), "byte {at}");
                        at += 1;
                    }
                }
                assert_eq!(at, length);
            });
            [write, read]
        });
        for thread in both.into_iter().flatten() {
            thread.join().expect("the same bytes");
        }
    }

    /// Sends bursts of datagrams of every size and compares what arrives.
    pub(crate) fn assert_same_bytes_over_udp(&self, from: usize, to: IpAddr) {
        let server = SocketAddr::new(to, 5301);
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let receiver = self.ends[1 - from]
            .host
            .inside(|| UdpSocket::bind(server))
            .expect("a namespace")
            .expect("a free port");
        let sender = self.ends[from]
            .host
            .inside(|| UdpSocket::bind(any))
            .expect("a namespace")
            .expect("a free port");
        receiver
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("a socket");
        let mut arrived = 0;
        let most = if to.is_ipv4() { 1392 } else { 1372 };
        for size in (1..=most).step_by(13).chain([most]) {
            for burst in 0..4u8 {
                let bytes: Vec<u8> = (0..size)
                    .map(|i| (i as u8).wrapping_mul(31) ^ burst)
                    .collect();
                sender.send_to(&bytes, server).expect("a route");
            }
            let mut buffer = [0; 2000];
            for _ in 0..4 {
                let Ok((length, _)) = receiver.recv_from(&mut buffer) else {
                    continue;
                };
                assert_eq!(length, size);
                let burst = buffer[0];
                assert!(
                    (0..size).all(|i| buffer[i] == (i as u8).wrapping_mul(31) ^ burst),
                    "{size} bytes"
                );
                arrived += 1;
            }
        }
        assert!(arrived > 300, "{arrived} datagrams arrived");
    }

    /// Says things to the socket that nobody should, and asks whether it still works.
    pub(crate) fn assert_survives_nonsense(&self, n: usize) {
        let path = self.ends[n].host.path("/run/wireguard/wg0.sock");
        for text in [
            "\n\n",
            "get=2\n\n",
            "set=1\npublic_key=zz\n\n",
            "set=1\nlisten_port=99999\n\n",
            "x\n\n",
        ] {
            let mut stream = std::os::unix::net::UnixStream::connect(&path).expect("it listens");
            stream
                .set_read_timeout(Some(WAIT_TIMEOUT))
                .expect("a socket");
            stream.write_all(text.as_bytes()).expect("it reads");
            let mut answer = [0; 64];
            let length = stream.read(&mut answer).expect("it answers");
            let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
            assert!(
                answer.starts_with("errno=") && !answer.starts_with("errno=0"),
                "{text:?}: {answer:?}"
            );
        }
        self.wg(n, &["show", "wg0"]);
    }
}
