//! A path that carries less than its ends believe, and says nothing about it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::mesh::Mesh;

/// The size of the largest outer packet that the path carries, in bytes.
const CARRIES: u16 = 1400;
/// The bytes that the tunnel adds to a packet over IPv4: 20 of IP, 8 of UDP, 32 of WireGuard.
const OVERHEAD: u16 = 60;
const TRANSFER: usize = 20_000_000;

/// Makes node `n` lose what is larger than the path carries, and pieces of it, in silence.
fn narrow(mesh: &Mesh, n: usize) {
    let rules = format!(
        "table inet narrow {{ chain in {{ type filter hook prerouting priority -300; \
         udp dport 51820 meta length > {CARRIES} drop; \
         ip frag-off & 0x1fff != 0 drop; }}; }}"
    );
    assert!(mesh.succeeds(n, "nft", &[&rules]), "nft {rules}");
}

/// Sends `TRANSFER` bytes from one node to an address of another. Returns whether all of them arrived.
fn transfers(mesh: &Mesh, from: usize, to: usize, address: IpAddr, port: u16) -> bool {
    let server = SocketAddr::new(address, port);
    let limit = Some(Duration::from_secs(30));
    let listener = mesh.nodes[to]
        .host
        .inside(|| TcpListener::bind(server))
        .expect("a namespace")
        .expect("a free port");
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(limit).expect("a socket");
        let (mut received, mut buffer) = (0, vec![0; 65_536]);
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            received += read;
        }
        received
    });
    let mut stream = mesh.nodes[from]
        .host
        .inside(|| TcpStream::connect(server))
        .expect("a namespace")
        .expect("the way through the tunnel");
    stream.set_write_timeout(limit).expect("a socket");
    let sent = stream.write_all(&vec![7; TRANSFER]);
    drop(stream);
    sent.is_ok() && receiver.join().expect("it only reads") == TRANSFER
}

#[test]
fn a_transfer_completes_over_a_path_that_silently_drops_large_packets() {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    for n in [0, 1] {
        // Merged datagrams would pass the rule as one; the cable carries each by itself.
        let separate = ["link", "set", "eth0", "gso_max_segs", "1"];
        assert!(mesh.succeeds(n, "ip", &separate));
        narrow(&mesh, n);
        let token = mesh.token(&[]);
        assert_eq!(mesh.on(n, &["join", &token]).code, 0);
    }
    let path_mtu = |mesh: &Mesh, n: usize| mesh.status(n).peers.first().and_then(|p| p.path_mtu);
    let fits = |mtu: Option<u16>| mtu.is_some_and(|mtu| mtu <= CARRIES - OVERHEAD);
    let (v4, v6) = mesh.addresses(1);
    // At once, while the path is still believed to be wide: the loss is made good by what is found meanwhile.
    assert!(transfers(&mesh, 0, 1, v4.into(), 9000));
    mesh.wait_until("both ends know what the path carries", || {
        fits(path_mtu(&mesh, 0)) && fits(path_mtu(&mesh, 1))
    });
    for n in [0, 1] {
        let found = path_mtu(&mesh, n).expect("a peer");
        eprintln!("n{} found {found} of {} bytes", n + 1, CARRIES - OVERHEAD);
        assert!(found > CARRIES - OVERHEAD - 20, "as wide as it is");
        assert_eq!(mesh.status(n).problems, []);
    }
    assert!(transfers(&mesh, 0, 1, v6.into(), 9001));
    assert!(transfers(&mesh, 1, 0, mesh.addresses(0).0.into(), 9002));
    mesh.kill_node(0);
}

#[test]
fn a_path_that_carries_everything_is_used_whole() {
    let Some(mesh) = Mesh::joined(2) else {
        return;
    };
    let peers = mesh.status(0).peers;
    assert_eq!(peers.first().and_then(|p| p.path_mtu), Some(1420));
    let address = mesh.addresses(1).0.to_string();
    let whole = ["-c", "1", "-w", "5", "-M", "do", "-s", "1392", &address];
    assert!(mesh.succeeds(0, "ping", &whole));
}
