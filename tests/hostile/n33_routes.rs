//! A member that is permitted to reach a network behind another node sends to networks beside it, and as hosts of that network. Nothing
//! of that passes: the node that routes checks the destination, and each receiver checks who routes to the source.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use meshd::model::PublicKey;
use meshd::protocol::local::RouteState;
use meshd::testbed::Host;

use crate::mesh::{Mesh, write};
use crate::node_kit::put_plain_device;

/// The node that routes, the member that attacks, and another member.
const GATEWAY: usize = 0;
const ATTACKER: usize = 1;
const VICTIM: usize = 2;

/// How often each of the four attacks is tried.
const TRIES: usize = 2_500;
const PORT: u16 = 7000;
const OTHER_PORT: u16 = 7001;
/// A host of the network that is permitted, and one of another network that the node offers too.
const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 10);
/// An address of the permitted network, with which the attacker sends.
const PRETENDED: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 55);

const OFFER: &str = "[route]\nadvertise = [\"192.168.77.0/24\", \"192.168.78.0/24\"]\n";
const POLICY: &str = r#"
language = 1
default = "deny"
[[route]]
node = "n1"
prefix = "192.168.77.0/24"
[[allow]]
from = ["node:n2"]
to = ["route:n1:7000/udp"]
[[allow]]
from = ["node:n2", "route:n1"]
to = ["node:n3:7000/udp"]
"#;

fn socket(host: &Host, at: (Ipv4Addr, u16)) -> UdpSocket {
    let socket = host.inside(|| UdpSocket::bind(at));
    let socket = socket.expect("a namespace").expect("a free port");
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("a socket");
    socket
}

/// What arrives at a socket until nothing arrives for half a second.
fn received(socket: &UdpSocket) -> Vec<(String, SocketAddr)> {
    let mut all = Vec::new();
    let mut buffer = [0; 100];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        all.push((text, from));
    }
    all
}

fn flood(from: &UdpSocket, to: (Ipv4Addr, u16)) {
    for n in 0..TRIES {
        let _ = from.send_to(b"attack", to);
        if n % 50 == 49 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Lets the plain device of the attacker send packets for both networks to the gateway.
fn widen(mesh: &Mesh, gateway: PublicKey) {
    let mut set = format!("set=1\npublic_key={gateway}\n");
    for network in ["192.168.77.0/24", "192.168.78.0/24"] {
        writeln!(set, "allowed_ip={network}").expect("memory");
    }
    set.push('\n');
    let host = &mesh.nodes[ATTACKER].host;
    let mut socket = UnixStream::connect(host.path("/run/wireguard/mesh0.sock")).expect("it runs");
    socket.write_all(set.as_bytes()).expect("it listens");
    let mut answer = [0; 9];
    socket.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"errno=0\n\n");
    mesh.ip(ATTACKER, "route add 192.168.77.0/24 dev mesh0");
    mesh.ip(ATTACKER, "route add 192.168.78.0/24 dev mesh0");
}

/// A mesh whose first node routes to a network of the coordinator's host, by a policy that permits one of the two that it offers.
fn mesh() -> Option<Mesh> {
    let mut mesh = Mesh::start(3)?;
    let lan = &mesh.coordinator_host;
    let gateway = &mesh.nodes[GATEWAY].host;
    for (third, inside) in [(77, INSIDE), (78, OUTSIDE)] {
        lan.add_address(inside.into(), 24).expect("an address");
        let own = Ipv4Addr::new(192, 168, third, 1);
        gateway.add_address(own.into(), 24).expect("an address");
    }
    let file = write(gateway, "/run/meshd.toml", OFFER);
    mesh.kill_node(GATEWAY);
    mesh.start_node_with(GATEWAY, &["--config", &file]);
    for n in 0..3 {
        let token = mesh.token(&[]);
        let ended = mesh.on(n, &["join", &token]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    let file = write(&mesh.coordinator_host, "/run/policy.toml", POLICY);
    let ended = mesh.admin(&["policy", "apply", &file]);
    assert_eq!(ended.code, 0, "{ended:?}");
    for n in [ATTACKER, VICTIM] {
        mesh.wait_until("the network is routed", || {
            let routes = mesh.status(n).routes;
            routes.iter().any(|route| route.state == RouteState::InUse)
        });
    }
    Some(mesh)
}

#[test]
fn none_of_ten_thousand_packets_to_or_from_networks_outside_the_permission_of_a_member_passes() {
    let Some(mut mesh) = mesh() else { return };
    let gateway = mesh.status(GATEWAY).node.expect("it has joined");
    let victim = mesh.addresses(VICTIM).0;
    let own = mesh.addresses(ATTACKER).0;
    assert!(mesh.has_problem(GATEWAY, &["offers to route to 192.168.78.0/24"]));
    let _device = put_plain_device(&mut mesh, ATTACKER, &[GATEWAY, VICTIM]);
    // The killed meshd left its rules, which an attacker removes.
    assert!(mesh.succeeds(ATTACKER, "nft", &["flush", "ruleset"]));
    widen(&mesh, PublicKey(gateway.public_key.0));
    mesh.ip(ATTACKER, &format!("address add {PRETENDED}/32 dev lo"));
    let spoofed = gateway.address_v4;
    mesh.ip(ATTACKER, &format!("address add {spoofed}/32 dev lo"));

    let inside = socket(&mesh.coordinator_host, (INSIDE, PORT));
    let closed = socket(&mesh.coordinator_host, (INSIDE, OTHER_PORT));
    let outside = socket(&mesh.coordinator_host, (OUTSIDE, PORT));
    let at_victim = socket(&mesh.nodes[VICTIM].host, (victim, PORT));
    let attacker = &mesh.nodes[ATTACKER].host;
    let honest = socket(attacker, (own, 0));
    let as_host = socket(attacker, (PRETENDED, 0));
    let as_gateway = socket(attacker, (spoofed, 0));

    // What is permitted passes, so the attacks are about nothing else.
    let arrives = |socket: &UdpSocket, to: (Ipv4Addr, u16)| {
        mesh.wait_until("what is permitted passes", || {
            let _ = honest.send_to(b"honest", to);
            received(socket).iter().any(|(text, _)| text == "honest")
        });
    };
    arrives(&inside, (INSIDE, PORT));
    arrives(&at_victim, (victim, PORT));

    flood(&honest, (OUTSIDE, PORT));
    flood(&honest, (INSIDE, OTHER_PORT));
    flood(&as_host, (victim, PORT));
    flood(&as_gateway, (victim, PORT));
    for socket in [&outside, &closed, &at_victim, &inside] {
        let passed = received(socket).into_iter();
        let passed: Vec<_> = passed.filter(|(text, _)| text == "attack").collect();
        assert!(
            passed.is_empty(),
            "{} passed: {:?}",
            passed.len(),
            passed.first()
        );
    }
    arrives(&inside, (INSIDE, PORT));
    arrives(&at_victim, (victim, PORT));
}
