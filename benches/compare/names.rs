//! The names of a node: answers a second at its own address, and its memory.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use meshd::testbed::World;

use crate::mesh::Mesh;
use crate::queries::{answered, await_answer, client, query_of_service, services};
use crate::rig::{process_cpu, resident_kib};

/// Clients that ask at the same time.
const CLIENTS: u64 = 2;
/// Queries of a client that wait for their replies.
const OUTSTANDING: u64 = 50;
/// After this time without a reply, the outstanding queries count as lost.
const LOST: Duration = Duration::from_millis(200);

/// The figures of a node with a thousand services.
pub(crate) fn measure(programs: &Path, seconds: u32) -> Vec<(&'static str, f64)> {
    let world = World::new().expect("root may make namespaces");
    let mesh = Mesh::start(&world, programs);
    let node = mesh.add("n1", &services());
    let server = SocketAddr::new(node.address.into(), 53);
    await_answer(&node.host, server);
    let before = process_cpu(&node.daemon);
    let began = Instant::now();
    let time = Duration::from_secs(seconds.into());
    let replies = node.host.inside(|| saturate(server, time));
    let replies = replies.expect("a namespace") as f64;
    let took = began.elapsed().as_secs_f64();
    let cpu = (process_cpu(&node.daemon) - before).as_secs_f64();
    vec![
        ("DNS at the node's address, queries/s", replies / took),
        (
            "DNS at the node's address, CPU us/query",
            cpu * 1e6 / replies,
        ),
        (
            "memory of a node with 1,000 services, MiB",
            resident_kib(&node.daemon) / 1024.0,
        ),
    ]
}

/// Asks as fast as replies come; gives how many came.
fn saturate(server: SocketAddr, time: Duration) -> u64 {
    // A thread is in the network of the one that starts it.
    std::thread::scope(|scope| {
        let clients = (0..CLIENTS).map(|_| scope.spawn(move || ask(server, time)));
        let clients: Vec<_> = clients.collect();
        let replies = clients.into_iter().map(|client| client.join());
        replies.map(|replies| replies.expect("no panic")).sum()
    })
}

/// One client; gives how many replies came.
fn ask(server: SocketAddr, time: Duration) -> u64 {
    let socket = client(server);
    socket.set_read_timeout(Some(LOST)).expect("a socket");
    let end = Instant::now() + time;
    let mut buffer = [0; 1500];
    let (mut sent, mut outstanding, mut replies) = (0u64, 0u64, 0u64);
    while Instant::now() < end {
        while outstanding < OUTSTANDING {
            // A query that the kernel does not accept counts as lost.
            let _ = socket.send(&query_of_service(sent));
            sent += 1;
            outstanding += 1;
        }
        match socket.recv(&mut buffer) {
            Ok(length) => {
                outstanding = outstanding.saturating_sub(1);
                replies += u64::from(answered(&buffer[..length]).is_some());
            }
            Err(_) => outstanding = 0,
        }
    }
    replies
}
