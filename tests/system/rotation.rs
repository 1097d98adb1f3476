//! The tunnel's key is changed, and no packet is lost.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meshd::testbed::Host;
use meshd::tunnel::{OVERLAP, Tunnel};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::mesh::{Mesh, world};
use crate::tunnels::{answers, inside, key, start};

/// Between two packets: 2,000 a second each way, far below what the machine carries, so that all that is lost is lost to the
/// change of keys.
const PACE: Duration = Duration::from_micros(500);

/// Sends numbered packets from one node to another until it is stopped.
struct Flow {
    stop: Arc<AtomicBool>,
    sender: std::thread::JoinHandle<u64>,
    receiver: std::thread::JoinHandle<u64>,
}

impl Flow {
    fn start(mesh: &Mesh, from: usize, to: usize) -> Self {
        let at = |n: usize, port| SocketAddr::new(mesh.addresses(n).0.into(), port);
        let bind = |n: usize, port| {
            let address = at(n, port);
            let host = &mesh.nodes[n].host;
            host.inside(|| UdpSocket::bind(address))
                .expect("a namespace")
                .expect("a free port")
        };
        Self::between(bind(from, 0), bind(to, 9000), at(to, 9000))
    }

    fn between(source: UdpSocket, sink: UdpSocket, there: SocketAddr) -> Self {
        socket2::SockRef::from(&sink)
            .set_recv_buffer_size(4 << 20)
            .expect("a socket");
        sink.set_read_timeout(Some(Duration::from_secs(2)))
            .expect("a socket");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            let mut sent = 0u64;
            while !stopped.load(Ordering::Relaxed) {
                source
                    .send_to(&sent.to_be_bytes(), there)
                    .expect("the way is there");
                sent += 1;
                std::thread::sleep(PACE);
            }
            sent
        });
        let receiver = std::thread::spawn(move || {
            let (mut received, mut buffer) = (0u64, [0; 64]);
            while sink.recv_from(&mut buffer).is_ok() {
                received += 1;
            }
            received
        });
        Self {
            stop,
            sender,
            receiver,
        }
    }

    /// Packets sent and received.
    fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("no panic");
        (sent, self.receiver.join().expect("no panic"))
    }
}

/// The hosts whose meshd runs.
fn running(mesh: &Mesh) -> Vec<&Host> {
    let nodes = mesh.nodes.iter().filter(|node| node.daemon.is_some());
    nodes.map(|node| &node.host).collect()
}

/// Nothing was lost but what the kernel had no room for in the devices' queues: their reader may wait long for a core here.
fn assert_lost_by_devices(hosts: &[&Host], lost: u64) {
    let dropped = |host: &&Host| {
        let mut command = host.command("ip").expect("a namespace");
        let output = command.args(["-s", "-j", "link", "show", "mesh0"]).output();
        let links: serde_json::Value =
            serde_json::from_slice(&output.expect("ip is there").stdout).expect("JSON");
        links[0]["stats64"]["tx"]["dropped"]
            .as_u64()
            .expect("a count")
    };
    let dropped: u64 = hosts.iter().map(dropped).sum();
    assert!(lost <= dropped, "{lost} lost, {dropped} by the devices");
}

#[test]
fn a_key_is_changed_under_traffic_and_no_packet_is_lost() {
    let Some(mut mesh) = Mesh::joined(3) else {
        return;
    };
    let key = |mesh: &Mesh, n: usize| mesh.status(n).node.expect("it has joined").public_key;
    let flows = [(0, 1), (1, 0), (0, 2)].map(|(from, to)| Flow::start(&mesh, from, to));
    std::thread::sleep(Duration::from_secs(1));
    let before = [0, 1].map(|n| key(&mesh, n));
    let rotated = mesh.on(0, &["rotate-key"]);
    assert_eq!(rotated.code, 0, "{rotated:?}");
    assert_ne!(key(&mesh, 0), before[0]);
    std::thread::sleep(Duration::from_secs(3));
    // The other end as well, while the first one's old key goes on.
    assert_eq!(mesh.on(1, &["rotate-key"]).code, 0);
    std::thread::sleep(Duration::from_secs(3));
    let mut lost = 0;
    for flow in flows {
        let (sent, received) = flow.end();
        eprintln!("{sent} packets sent, {received} received");
        assert!(sent > 2000);
        lost += sent - received;
    }
    assert_lost_by_devices(&running(&mesh), lost);
    let again = mesh.on(0, &["rotate-key"]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("changed less than"), "{again:?}");

    // Whoever starts now knows the new keys alone; and the one that was changed starts with both.
    let addresses = [0, 1, 2].map(|n| mesh.addresses(n).0.to_string());
    for n in [2, 0] {
        mesh.kill_node(n);
        mesh.start_node(n);
        for other in [0, 1, 2].into_iter().filter(|other| *other != n) {
            mesh.wait_until("the new keys work", || {
                mesh.pings(n, &addresses[other]) && mesh.pings(other, &addresses[n])
            });
        }
    }
}

#[test]
fn a_key_is_changed_with_no_coordinator_and_while_a_peer_is_off() {
    let Some(mut mesh) = Mesh::joined(3) else {
        return;
    };
    let addresses = [0, 1, 2].map(|n| mesh.addresses(n).0.to_string());
    mesh.coordinator.take().expect("it runs").kill();
    mesh.kill_node(2);
    let flow = Flow::start(&mesh, 1, 0);
    assert_eq!(mesh.on(0, &["rotate-key"]).code, 0);
    std::thread::sleep(Duration::from_secs(3));
    let (sent, received) = flow.end();
    eprintln!("{sent} packets sent, {received} received");
    assert_lost_by_devices(&running(&mesh), sent - received);
    // The node comes back with the old key of its peer, and receives the new one through the tunnel of the old one.
    mesh.start_node(2);
    mesh.wait_until("the one that was off is reached", || {
        mesh.pings(2, &addresses[0]) && mesh.pings(0, &addresses[2])
    });
}

#[test]
fn the_former_key_is_accepted_until_its_time_is_over() {
    const LIMIT: Duration = Duration::from_secs(20);
    let Some(world) = world() else { return };
    let hosts = ["node", "told", "late"].map(|name| world.host(name).expect("a namespace"));
    let place = SocketAddr::new(hosts[0].v4().into(), 51820);
    let node = start(&hosts[0], 1, &[(2, None), (3, None)]);
    let told = start(&hosts[1], 2, &[(1, Some(place))]);
    let late = start(&hosts[2], 3, &[(1, Some(place))]);
    assert!(answers(&told, 2, &key(1), LIMIT));
    assert!(answers(&late, 3, &key(1), LIMIT));

    let (before, fresh) = (PublicKey::from(&key(1)).to_bytes(), key(101));
    let now = Instant::now();
    node.keys().rotate(fresh.clone(), now);
    assert!(node.keys().is_rotating());
    // Neither node has received the other's new key yet.
    assert!(answers(&told, 2, &key(1), LIMIT));
    assert!(answers(&late, 3, &key(1), LIMIT));
    told.keys()
        .replace_key(&before, PublicKey::from(&fresh).to_bytes(), now);
    assert!(answers(&told, 2, &fresh, LIMIT));

    let over = now + OVERLAP + Duration::from_secs(1);
    for tunnel in [&node, &told] {
        tunnel.keys().settle(over);
    }
    assert!(!node.keys().is_rotating());
    assert!(answers(&told, 2, &fresh, LIMIT));
    assert!(!answers(&late, 3, &key(1), Duration::from_secs(6)));
    late.keys()
        .replace_key(&before, PublicKey::from(&fresh).to_bytes(), now);
    late.keys().settle(over);
    assert!(answers(&late, 3, &fresh, LIMIT));
    // Packets that the node sends first reach the late node, too.
    let to_late = node
        .probing()
        .ping(PublicKey::from(&key(3)).to_bytes(), inside(1), inside(3));
    assert!(to_late.wait(LIMIT).0.is_some());
}

#[test]
fn both_ends_may_change_their_keys_at_the_same_time() {
    const LIMIT: Duration = Duration::from_secs(20);
    let Some(world) = world() else { return };
    let hosts = ["one", "two"].map(|name| world.host(name).expect("a namespace"));
    let place = |n: usize| Some(SocketAddr::new(hosts[n].v4().into(), 51820));
    let one = start(&hosts[0], 1, &[(2, place(1))]);
    let two = start(&hosts[1], 2, &[(1, place(0))]);
    for (host, number) in hosts.iter().zip([1, 2]) {
        let address = format!("{}/24", inside(number));
        for arguments in [
            &["link", "set", "mesh0", "up"][..],
            &["address", "add", &address, "dev", "mesh0"],
        ] {
            let mut ip = host.command("ip").expect("a namespace");
            assert!(ip.args(arguments).status().expect("ip").success());
        }
    }
    assert!(answers(&two, 2, &key(1), LIMIT));
    let bind = |n: usize, port| {
        let address = SocketAddr::new(inside(n as u8 + 1), port);
        let bound = hosts[n].inside(|| UdpSocket::bind(address));
        bound.expect("a namespace").expect("a free port")
    };
    let flows = [(0, 1), (1, 0)].map(|(from, to)| {
        let there = SocketAddr::new(inside(to as u8 + 1), 9000);
        Flow::between(bind(from, 0), bind(to, 9000), there)
    });
    std::thread::sleep(Duration::from_millis(300));
    let public = |key: &StaticSecret| PublicKey::from(key).to_bytes();
    let (fresh_one, fresh_two) = (key(101), key(102));
    let now = Instant::now();
    // Each node replaces its own key before it receives the other's new key.
    one.keys().rotate(fresh_one.clone(), now);
    two.keys().rotate(fresh_two.clone(), now);
    std::thread::sleep(Duration::from_millis(300));
    one.keys()
        .replace_key(&public(&key(2)), public(&fresh_two), now);
    std::thread::sleep(Duration::from_millis(300));
    two.keys()
        .replace_key(&public(&key(1)), public(&fresh_one), now);
    std::thread::sleep(Duration::from_millis(300));
    let mut lost = 0;
    for flow in flows {
        let (sent, received) = flow.end();
        eprintln!("{sent} packets sent, {received} received");
        lost += sent - received;
    }
    assert_lost_by_devices(&hosts.iter().collect::<Vec<_>>(), lost);
    assert!(answers(&two, 2, &fresh_one, LIMIT));
    let (before, later) = (bytes(&one, &fresh_two), now + OVERLAP);
    for tunnel in [&one, &two] {
        tunnel.keys().settle(later);
        assert!(!tunnel.keys().is_rotating());
    }
    let after = bytes(&one, &fresh_two);
    assert!(
        after.0 >= before.0 && after.1 >= before.1,
        "{before:?} {after:?}"
    );
    assert!(answers(&two, 2, &fresh_one, LIMIT));
}

/// Returns how many bytes were received from a peer, and sent to it.
fn bytes(tunnel: &Tunnel, peer: &StaticSecret) -> (u64, u64) {
    let status = tunnel.peer(&PublicKey::from(peer).to_bytes());
    let status = status.expect("a peer");
    (status.rx_bytes, status.tx_bytes)
}

#[test]
fn a_node_without_peers_forgets_the_key_before_like_any_other() {
    let Some(world) = world() else { return };
    let host = world.host("alone").expect("a namespace");
    let alone = start(&host, 1, &[]);
    let now = Instant::now();
    alone.keys().rotate(key(101), now);
    alone.keys().settle(now + OVERLAP / 2);
    assert!(alone.keys().is_rotating());
    alone.keys().settle(now + OVERLAP);
    assert!(!alone.keys().is_rotating());
}
