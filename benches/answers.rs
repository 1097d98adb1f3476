//! Names of the mesh while others ask for names that the upstreams never answer.
//!
//! ```text
//! cargo bench --bench answers -- [SECONDS]
//! ```
//!
//! One node, which forwards to a socket that nobody reads. At its own address and at the DNS address (in the tunnel
//! device), one client asks for names of the mesh, [`ASKED`] a second, in open loop, so in ten seconds 50,000: alone, while another asks
//! for [`HANGING`] random names a second, while [`STREAMS`] TCP streams send to another node as fast as they can, and beside both.
//! Latencies are from the call that sends to the one that receives. The goal is that no query is lost.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meshd::testbed::{World, as_root};

use bulk::Stream;
use mesh::{Member, Mesh};
use queries::{answered, await_answer, client, query, query_of_service, services};

#[path = "rig/bulk.rs"]
mod bulk;
#[path = "rig/control.rs"]
#[expect(dead_code, reason = "the mesh has a function for it")]
mod control;
#[path = "rig/mesh.rs"]
#[expect(dead_code, reason = "only answers are measured, not the daemon")]
mod mesh;
#[path = "rig/queries.rs"]
mod queries;
#[path = "rig/table.rs"]
mod table;

/// Queries a second.
const ASKED: u32 = 5_000;
const HANGING: u32 = 20_000;
/// TCP streams through the tunnel.
const STREAMS: u16 = 4;
/// How long the streams and the hanging queries take to reach their full rate.
const WARM: Duration = Duration::from_secs(2);
/// How often a client sends what is due.
const TICK: Duration = Duration::from_micros(200);
/// How long replies are waited for after the last query, and how long one read waits.
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
    let programs = Path::new(env!("CARGO_BIN_EXE_meshd")).parent();
    let mesh = Mesh::start(&world, programs.expect("a program is in a directory"));
    let node = mesh.add("n1", &configuration());
    let other = mesh.add("n2", "");
    let _upstream = node
        .host
        .inside(|| UdpSocket::bind(UPSTREAM))
        .expect("a namespace")
        .expect("its address");
    let mut rows = Vec::new();
    let mut lost = 0;
    for (place, address) in [
        ("node's address", node.address),
        ("DNS address", DNS_ADDRESS),
    ] {
        let server = SocketAddr::new(address.into(), 53);
        await_answer(&node.host, server);
        for (hanging, streams) in [(0, 0), (HANGING, 0), (0, STREAMS), (HANGING, STREAMS)] {
            let bulk = Bulk::start(&node, &other, streams);
            let figures = node
                .host
                .inside(|| load(server, hanging, time))
                .expect("a namespace");
            lost += figures.lost();
            rows.push(row([place, &hanging.to_string(), &bulk.stop()], &figures));
        }
    }
    let head = [
        "asked at",
        "hanging/s",
        "streams, Gbit/s",
        "sent",
        "lost",
        "p50, us",
        "p99, us",
        "most, us",
    ];
    table::print_table(&head, &rows);
    let verdict = if lost == 0 { "met" } else { "MISSED" };
    println!("{lost} lost; goal: none: {verdict}");
}

fn configuration() -> String {
    let upstream = UPSTREAM.split(':').next().unwrap_or_default();
    let services = services();
    format!("[dns]\nupstreams = [\"{upstream}\"]\n{services}")
}

/// Streams from one node to another.
struct Bulk {
    streams: Vec<Stream>,
    began: Instant,
    before: u64,
}

impl Bulk {
    /// Starts the streams, and waits until they have their full rate.
    fn start(from: &Member, to: &Member, streams: u16) -> Self {
        let ports = 7_300..7_300 + streams;
        let streams = ports.map(|port| {
            let target = SocketAddr::new(to.address.into(), port);
            Stream::start(&from.host, &to.host, target, None)
        });
        let streams: Vec<Stream> = streams.collect();
        if !streams.is_empty() {
            std::thread::sleep(WARM);
        }
        Self {
            before: streams.iter().map(Stream::received).sum(),
            began: Instant::now(),
            streams,
        }
    }

    /// Ends the streams. Returns the sum of their rates in Gbit/s.
    fn stop(self) -> String {
        let after: u64 = self.streams.iter().map(Stream::received).sum();
        let bits = (after - self.before) as f64 * 8.0;
        let rate = bits / 1e9 / self.began.elapsed().as_secs_f64();
        let stopped = self.streams.into_iter().map(Stream::stop);
        if !stopped.fold(true, |all, is_complete| all & is_complete) {
            eprintln!("a stream did not arrive completely");
        }
        format!("{rate:.2}")
    }
}

/// The measurements of one client.
struct Figures {
    sent: u64,
    /// Microseconds, sorted.
    latencies: Vec<u64>,
}

impl Figures {
    fn lost(&self) -> u64 {
        self.sent - self.latencies.len() as u64
    }
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
            std::thread::sleep(WARM);
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
    let end = Instant::now() + time;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut buffer = [0; 1500];
            let mut latencies = Vec::new();
            loop {
                let received = socket.recv(&mut buffer);
                let now = Instant::now();
                let Ok(length) = received else {
                    if now >= end + GRACE {
                        break;
                    }
                    continue;
                };
                let Some(id) = answered(&buffer[..length]) else {
                    continue;
                };
                if let Some(sent) = asked.lock().expect("no panic").remove(&id) {
                    latencies.push((now - sent).as_micros() as u64);
                }
            }
            latencies.sort_unstable();
            latencies
        });
        let sent = ask(
            &socket,
            ASKED,
            || Instant::now() < end,
            query_of_service,
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

fn row(beside: [&str; 3], figures: &Figures) -> Vec<String> {
    let latencies = &figures.latencies;
    let at = |share: f64| {
        let index = (latencies.len().saturating_sub(1) as f64 * share) as usize;
        latencies.get(index).map_or("-".into(), ToString::to_string)
    };
    let counts = [figures.sent.to_string(), figures.lost().to_string()];
    let beside = beside.map(str::to_owned).into_iter();
    beside
        .chain(counts)
        .chain([at(0.5), at(0.99), at(1.0)])
        .collect()
}
