//! Names of the mesh while others ask for names that the upstreams never answer.
//!
//! ```text
//! cargo bench --bench answers -- [SECONDS]
//! ```
//!
//! One node, which forwards to a socket that nobody reads. At its own address and at the DNS address (in the tunnel
//! device), one client asks for names of the mesh, [`ASKED`] a second, in open loop: first alone, then while another asks for
//! [`HANGING`] random names a second. Latencies are from the call that sends to the one that receives.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meshd::protocol::local::Status;
use meshd::testbed::{Host, Running, World, as_root};

use control::{ADMIN_SOCKET, SOCKET, meshctl, wait_for};

#[path = "rig/control.rs"]
mod control;
#[path = "rig/table.rs"]
mod table;

const SERVICES: usize = 1_000;
/// Queries a second.
const ASKED: u32 = 5_000;
const HANGING: u32 = 20_000;
/// How often a client sends what is due.
const TICK: Duration = Duration::from_micros(200);
/// How long replies are waited for after the last query.
const GRACE: Duration = Duration::from_secs(1);
/// The upstream, an address of the host.
const UPSTREAM: &str = "127.0.0.99:53";
const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 210, 0, 53);

fn main() -> ExitCode {
    let seconds = std::env::args().find_map(|word| word.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(10));
    match as_root(|| {
        measure(time);
        0
    }) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(time: Duration) {
    let world = World::new().expect("a network");
    let logs = tempfile::tempdir().expect("a temporary directory");
    let host = world.host("n1").expect("a host");
    let _upstream = host
        .inside(|| UdpSocket::bind(UPSTREAM))
        .expect("a namespace")
        .expect("its address");
    let start = |program: &str, arguments: &[&str]| -> Running {
        let mut command = host.command(program).expect("a namespace");
        host.start(command.args(arguments), &logs.path().join("log"))
            .expect("it is built")
    };
    let admin = [
        "--state-dir",
        "/run/coordinator",
        "--admin-socket",
        ADMIN_SOCKET,
    ];
    let _coordinator = start(env!("CARGO_BIN_EXE_mesh-coordinator"), &admin);
    wait_for(&host, ADMIN_SOCKET);
    meshctl(&host, &["init"]);
    std::fs::write(host.path("/run/meshd.toml"), configuration()).expect("a directory");
    let node = [
        "--config",
        "/run/meshd.toml",
        "--state-dir",
        "/run/state",
        "--socket",
        SOCKET,
    ];
    let _node = start(env!("CARGO_BIN_EXE_meshd"), &node);
    wait_for(&host, SOCKET);
    let token = meshctl(&host, &["token", "create"]);
    meshctl(&host, &["join", token.trim()]);
    let status: Status =
        serde_json::from_str(&meshctl(&host, &["status", "--json"])).expect("a status");
    let own = status.node.expect("it has joined").address_v4;

    let mut rows = Vec::new();
    for (place, address) in [("node's address", own), ("DNS address", DNS_ADDRESS)] {
        let server = SocketAddr::new(address.into(), 53);
        await_answer(&host, server);
        for hanging in [0, HANGING] {
            let figures = host
                .inside(|| load(server, hanging, time))
                .expect("a namespace");
            rows.push(row(place, hanging, figures));
        }
    }
    table::print_table(
        &[
            "asked at",
            "hanging/s",
            "sent",
            "lost",
            "p50, us",
            "p99, us",
            "most, us",
        ],
        &rows,
    );
}

fn configuration() -> String {
    let upstream = UPSTREAM.split(':').next().unwrap_or_default();
    let mut text = format!("[dns]\nupstreams = [\"{upstream}\"]\n");
    for n in 0..SERVICES {
        // The first node of a mesh has the block 10.210.1.0/24.
        let last = n % 250 + 2;
        text +=
            &format!("[[service]]\nname = \"s{n}\"\nport = 80\naddress = \"10.210.1.{last}\"\n");
    }
    text
}

/// The measurements of one client.
struct Figures {
    sent: u64,
    /// Microseconds, sorted.
    latencies: Vec<u64>,
}

/// Asks for names of the mesh, beside `hanging` queries a second for random ones.
fn load(server: SocketAddr, hanging: u32, time: Duration) -> Figures {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if hanging > 0 {
            let until_done = || !done.load(Ordering::Relaxed);
            scope.spawn(move || {
                let name = |n: u64| format!("r{}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                // Its replies are of no interest: what the socket has no room for is dropped.
                ask(
                    &client(server),
                    hanging,
                    until_done,
                    |n| query(n, &[&name(n), "example", "org"]),
                    |_| (),
                );
            });
            std::thread::sleep(Duration::from_secs(2));
        }
        let figures = measured(server, time);
        done.store(true, Ordering::Relaxed);
        figures
    })
}

fn measured(server: SocketAddr, time: Duration) -> Figures {
    let socket = client(server);
    socket.set_read_timeout(Some(GRACE)).expect("a socket");
    let asked: Mutex<HashMap<u16, Instant>> = Mutex::default();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut buffer = [0; 1500];
            let mut latencies = Vec::new();
            while let Ok(length) = socket.recv(&mut buffer) {
                let now = Instant::now();
                let [a, b, _, code, ..] = buffer[..length] else {
                    continue;
                };
                let sent = asked
                    .lock()
                    .expect("no panic")
                    .remove(&u16::from_be_bytes([a, b]));
                if let Some(sent) = sent.filter(|_| code & 15 == 0) {
                    latencies.push((now - sent).as_micros() as u64);
                }
            }
            latencies.sort_unstable();
            latencies
        });
        let end = Instant::now() + time;
        let sent = ask(
            &socket,
            ASKED,
            || Instant::now() < end,
            |n| {
                let name = format!("s{}", n.wrapping_mul(7_919) % SERVICES as u64);
                query(n, &[&name, "svc", "mesh"])
            },
            |n| {
                asked
                    .lock()
                    .expect("no panic")
                    .insert(n as u16, Instant::now());
            },
        );
        let latencies = receiver.join().expect("no panic");
        Figures { sent, latencies }
    })
}

/// Sends queries at a rate while `goes_on`; gives how many.
fn ask(
    socket: &UdpSocket,
    rate: u32,
    goes_on: impl Fn() -> bool,
    query: impl Fn(u64) -> Vec<u8>,
    before: impl Fn(u64),
) -> u64 {
    let start = Instant::now();
    let mut sent = 0;
    while goes_on() {
        let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while sent < due {
            before(sent);
            // One that the kernel does not take is lost, and counted so.
            let _ = socket.send(&query(sent));
            sent += 1;
        }
        std::thread::sleep(TICK);
    }
    sent
}

fn client(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect(server).expect("a route");
    socket
}

/// A query for an address (RFC 1035 section 4.1), of which the id is the end of `number`.
fn query(number: u64, labels: &[&str]) -> Vec<u8> {
    let mut bytes = (number as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in labels {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

fn await_answer(host: &Host, server: SocketAddr) {
    let end = Instant::now() + Duration::from_secs(30);
    let answered = || {
        host.inside(|| {
            let socket = client(server);
            let second = Some(Duration::from_secs(1));
            socket.set_read_timeout(second).expect("a socket");
            let sent = socket.send(&query(0, &["s7", "svc", "mesh"])).is_ok();
            let mut buffer = [0; 1500];
            sent && socket.recv(&mut buffer).is_ok() && buffer[3] & 15 == 0
        })
        .expect("a namespace")
    };
    while !answered() {
        assert!(Instant::now() < end, "no answer at {server}");
    }
}

fn row(place: &str, hanging: u32, figures: Figures) -> Vec<String> {
    let Figures { sent, latencies } = figures;
    let at = |share: f64| {
        let index = (latencies.len().saturating_sub(1) as f64 * share) as usize;
        latencies.get(index).map_or("-".into(), ToString::to_string)
    };
    let lost = sent - latencies.len() as u64;
    [
        place.into(),
        hanging.to_string(),
        sent.to_string(),
        lost.to_string(),
    ]
    .into_iter()
    .chain([at(0.5), at(0.99), at(1.0)])
    .collect()
}
