//! A device with nothing but a WireGuard app, here wireguard-go, which `wg` and `ip` configure as `wg-quick up` does.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use meshd::testbed::{Host, Running};

use crate::queries::{answered, client, query};

/// The address at which each node and each door answers for names.
const DNS: Ipv4Addr = Ipv4Addr::new(10, 210, 0, 53);
/// The C library sends a query again after this time (resolv.conf(5)).
const RETRY: Duration = Duration::from_secs(5);
const TRIES: usize = 3;
/// How long wireguard-go may take to listen.
const START: Duration = Duration::from_secs(20);
const QUERY: u64 = 7;

/// A device that is on. It is off when this is dropped.
pub(crate) struct Device {
    _daemon: Running,
}

impl Device {
    /// Takes the steps of `wg-quick up`, except for the resolver of the host.
    pub(crate) fn up(host: &Host, config: &str, logs: &Path) -> Self {
        // A wireguard-go that was killed leaves its socket behind.
        let _ = std::fs::remove_file(host.path("/run/wireguard/wg0.sock"));
        let own = |line: &&str| line.starts_with("Address") || line.starts_with("DNS");
        let stripped: Vec<&str> = config.lines().filter(|line| !own(line)).collect();
        let file = host.path("/run/wg0.conf");
        std::fs::write(file, stripped.join("\n") + "\n").expect("its own file system");
        let mut command = host.command("wireguard-go").expect("a namespace");
        command.args(["-f", "wg0"]).env("LOG_LEVEL", "error");
        let started = host.start(&mut command, &logs.join("wireguard-go"));
        let daemon = started.expect("wireguard-go is installed");
        await_socket(&daemon);
        run(host, "wg", "setconf wg0 /run/wg0.conf");
        for address in values(config, "Address") {
            let family = if address.contains(':') { "-6" } else { "-4" };
            run(
                host,
                "ip",
                &format!("{family} address add {address} dev wg0"),
            );
        }
        run(host, "ip", "link set mtu 1420 up dev wg0");
        for prefix in values(config, "AllowedIPs") {
            let family = if prefix.contains(':') { "-6" } else { "-4" };
            run(host, "ip", &format!("{family} route add {prefix} dev wg0"));
        }
        Self { _daemon: daemon }
    }
}

/// Waits until wireguard-go listens for `wg`. This reads the kernel's list of sockets, because `wg` removes a socket that does not listen
/// yet.
fn await_socket(daemon: &Running) {
    let list = format!("/proc/{}/net/unix", daemon.pid());
    let listening = |line: &str| line.ends_with("/wg0.sock") && line.contains(" 00010000 ");
    let end = Instant::now() + START;
    while !std::fs::read_to_string(&list).is_ok_and(|text| text.lines().any(listening)) {
        assert!(Instant::now() < end, "no socket for `wg`: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn run(host: &Host, program: &str, arguments: &str) {
    let mut command = host.command(program).expect("a namespace");
    let output = command.args(arguments.split(' ')).output();
    let output = output.expect("it is installed");
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
}

/// The values of a key of the configuration.
fn values<'a>(config: &'a str, key: &str) -> Vec<&'a str> {
    let mut lines = config.lines().filter_map(|line| line.split_once('='));
    let found = lines.find(|(name, _)| name.trim() == key);
    let (_, values) = found.expect("each configuration has it");
    values.split(',').map(str::trim).collect()
}

/// Whether the host gets an address for `web.svc.mesh`.
pub(crate) fn resolves(host: &Host) -> bool {
    let resolved = host.inside(|| {
        let socket = client(SocketAddr::from((DNS, 53)));
        socket.set_read_timeout(Some(RETRY)).expect("a socket");
        let question = query(QUERY, &["web", "svc", "mesh"]);
        let mut buffer = [0; 1500];
        (0..TRIES).any(|_| {
            let sent = socket.send(&question);
            let length = sent.and_then(|_| socket.recv(&mut buffer));
            length.is_ok_and(|length| has_address(&buffer[..length]))
        })
    });
    resolved.expect("a namespace")
}

/// Whether this is a reply to the query with at least one answer (RFC 1035 section 4.1.1).
fn has_address(reply: &[u8]) -> bool {
    answered(reply).map(u64::from) == Some(QUERY) && reply.get(6..8).is_some_and(|n| n != [0, 0])
}
