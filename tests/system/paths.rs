//! The paths between two nodes: which one is used, and what happens when it fails.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::mesh::Mesh;

const PORT: u16 = 5000;
/// The time between two packets.
const INTERVAL: Duration = Duration::from_millis(5);
/// Before paths had standbys, another endpoint was tried after five seconds.
const LONGEST_OUTAGE: Duration = Duration::from_secs(4);

/// The endpoint by which node `n` reaches its only peer.
fn endpoint(mesh: &Mesh, n: usize) -> Option<IpAddr> {
    let status = mesh.status(n);
    Some(status.peers.first()?.endpoint?.ip())
}

/// Drops the tunnel's datagrams of one family, to this node and from it.
fn cut(mesh: &Mesh, n: usize, is_ipv4: bool) {
    let protocol = if is_ipv4 { "ipv4" } else { "ipv6" };
    for chain in [
        "add table inet cut",
        "add chain inet cut in { type filter hook input priority -300 ; }",
        "add chain inet cut out { type filter hook output priority -300 ; }",
    ] {
        assert!(mesh.succeeds(n, "nft", &[chain]), "{chain}");
    }
    for chain in ["in", "out"] {
        let rule =
            format!("add rule inet cut {chain} meta nfproto {protocol} udp dport 51820 drop");
        assert!(mesh.succeeds(n, "nft", &[&rule]), "{rule}");
    }
}

/// Sends packets from node 0 to node 1, which answers each, until `until` is over. Returns the longest time without an answer.
fn longest_gap(near: &UdpSocket, far: &UdpSocket, until: Duration) -> Duration {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 100];
            while !is_over.load(Ordering::Relaxed) {
                if let Ok((length, from)) = far.recv_from(&mut buffer) {
                    let _ = far.send_to(&buffer[..length], from);
                }
            }
        });
        let (start, mut heard, mut gap) = (Instant::now(), Instant::now(), Duration::ZERO);
        let mut buffer = [0; 100];
        while start.elapsed() < until {
            let _ = near.send(&[7; 100]);
            std::thread::sleep(INTERVAL);
            while near.recv(&mut buffer).is_ok() {
                gap = gap.max(heard.elapsed());
                heard = Instant::now();
            }
        }
        is_over.store(true, Ordering::Relaxed);
        gap.max(heard.elapsed())
    })
}

#[test]
fn when_the_path_in_use_fails_under_traffic_another_one_takes_over_and_it_stays() {
    let Some(mesh) = Mesh::joined(2) else { return };
    let addresses = [mesh.addresses(0).0, mesh.addresses(1).0];
    let [near, far] = [0, 1].map(|n| {
        let at = SocketAddr::from((addresses[n], PORT));
        let socket = mesh.nodes[n].host.inside(|| UdpSocket::bind(at));
        socket.expect("a namespace").expect("a free port")
    });
    near.connect((addresses[1], PORT)).expect("a route");
    near.set_nonblocking(true).expect("a socket");
    far.set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a socket");

    let before = longest_gap(&near, &far, Duration::from_secs(3));
    let in_use = endpoint(&mesh, 0).expect("an endpoint");
    eprintln!("{in_use} is in use; the longest gap is {before:?}");
    cut(&mesh, 0, in_use.is_ipv4());
    let outage = longest_gap(&near, &far, Duration::from_secs(6));
    let after = endpoint(&mesh, 0).expect("an endpoint");
    eprintln!("{after} took over after {outage:?}");
    assert_ne!(after.is_ipv4(), in_use.is_ipv4());
    assert!(outage < LONGEST_OUTAGE, "{outage:?}");
    assert_eq!(
        endpoint(&mesh, 1).map(|e| e.is_ipv4()),
        Some(after.is_ipv4())
    );

    // The path that failed is not tried at the cost of packets.
    let gap = longest_gap(&near, &far, Duration::from_secs(5));
    eprintln!("the longest gap afterwards is {gap:?}");
    assert_eq!(endpoint(&mesh, 0), Some(after));
}
