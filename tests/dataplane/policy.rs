//! The policy in the packet path, between two tunnels. Each end has a node with an instance: `web` at the first, `db` at the second.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshd::model::{Label, Protocol};
use meshd::policy::{Asked, Offered, OfferedPort, Policy, Subject, Table};
use meshd::testbed::{Host, World};
use meshd::tunnel::drops::DropReason;
use meshd::tunnel::{Direction, PeerConfig, Tunnel, TunnelConfig};
use socket2::{Domain, Socket, Type};
use x25519_dalek::{PublicKey, StaticSecret};

/// How long anything may take: only a hang takes that long.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a test waits for a packet that must not arrive.
const SILENCE: Duration = Duration::from_millis(500);
/// The number of datagrams of a flood.
const FLOOD: u64 = 10_000;
const TCP_PORT: u16 = 5432;
const UDP_PORT: u16 = 53;
const CLOSED: u16 = 22;

const ALLOWED: &str = r#"
language = 1
default = "deny"
[[allow]]
from = ["web"]
to = ["db:5432", "db:53/udp"]
"#;
const NOTHING: &str = "language = 1\ndefault = \"deny\"\n";

/// The mesh address of host `host` of node `node`.
fn mesh(node: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, node, host)
}

fn secret(n: u8) -> StaticSecret {
    StaticSecret::from([n; 32])
}

fn label(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

fn subject(node: u8, host: u8, service: Option<&str>) -> Subject {
    let offered = service.map(|name| Offered {
        service: label(name).into(),
        ports: vec![OfferedPort {
            name: None,
            protocol: Protocol::Tcp,
            port: TCP_PORT,
        }],
        allow: Vec::new(),
    });
    Subject {
        addresses: vec![mesh(node, host).into()],
        node: label(&format!("n{node}")),
        tags: Vec::new(),
        is_node: offered.is_none(),
        guest: None,
        network: None,
        services: offered.into_iter().collect(),
    }
}

fn table(policy: &str) -> Arc<Table> {
    let policy = Policy::parse(policy).unwrap_or_else(|error| panic!("{error}"));
    let subjects = [
        subject(1, 1, None),
        subject(2, 1, None),
        subject(1, 2, Some("web")),
        subject(2, 2, Some("db")),
    ];
    Arc::new(Table::compile(Some(&policy), &subjects))
}

/// Two hosts with a tunnel each, whose blocks are routed to each other.
struct Pair {
    tunnels: [Tunnel; 2],
    hosts: [Host; 2],
    _world: World,
}

impl Pair {
    fn start() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            meshd::testbed::skip_test("network namespaces need root");
            return None;
        }
        let world = World::new().expect("root may make namespaces");
        let hosts = ["a", "b"].map(|name| world.host(name).expect("a namespace"));
        let [a, b] = &hosts;
        let tunnels = [start(a, 1, b.v4()), start(b, 2, a.v4())];
        Some(Self {
            tunnels,
            hosts,
            _world: world,
        })
    }

    fn set_policy(&self, node: usize, policy: &str) {
        self.tunnels[node - 1]
            .filter()
            .set_policy(table(policy), None);
    }

    fn dropped(&self, node: usize) -> u64 {
        self.tunnels[node - 1].counters().of(DropReason::Policy)
    }

    /// A connection of the instance `web` to a port of `db`.
    fn connect(&self, port: u16, limit: Duration) -> std::io::Result<TcpStream> {
        let connected = self.hosts[0].inside(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((mesh(1, 2), 0)).into())?;
            socket.connect_timeout(&SocketAddr::from((mesh(2, 2), port)).into(), limit)?;
            socket.set_nonblocking(false)?;
            socket.set_read_timeout(Some(LIMIT))?;
            Ok(TcpStream::from(socket))
        });
        connected.expect("a namespace")
    }

    fn listen(&self, port: u16) -> TcpListener {
        let listener = self.hosts[1].inside(|| TcpListener::bind((mesh(2, 2), port)));
        listener.expect("a namespace").expect("a free port")
    }

    fn socket(&self, node: u8, port: u16) -> UdpSocket {
        let host = &self.hosts[usize::from(node) - 1];
        let socket = host.inside(|| UdpSocket::bind((mesh(node, 2), port)));
        let socket = socket.expect("a namespace").expect("a free port");
        socket.set_read_timeout(Some(LIMIT)).expect("a socket");
        socket
    }
}

fn start(host: &Host, own: u8, endpoint: Ipv4Addr) -> Tunnel {
    let other = 3 - own;
    let config = TunnelConfig {
        interface: "wg0".to_owned(),
        mtu: 1420,
        listen_port: 51820,
        private_key: Some(secret(own)),
        workers: Some(2),
    };
    let tunnel = host.inside(|| Tunnel::start(config));
    let tunnel = tunnel
        .expect("a namespace")
        .expect("root may make a device");
    tunnel.set_local_addresses(vec![mesh(own, 1).into()]);
    tunnel.set_peers(vec![PeerConfig {
        public_key: PublicKey::from(&secret(other)).to_bytes(),
        preshared_key: None,
        endpoint: Some(SocketAddr::from((endpoint, 51820))),
        allowed_ips: vec![format!("10.9.{other}.0/24").parse().expect("a literal")],
        persistent_keepalive: None,
    }]);
    for arguments in [
        format!("address add 10.9.{own}.1/16 dev wg0"),
        format!("address add 10.9.{own}.2/16 dev wg0"),
        "link set wg0 up".to_owned(),
    ] {
        let mut ip = host.command("ip").expect("a namespace");
        let status = ip.args(arguments.split(' ')).status().expect("ip");
        assert!(status.success(), "ip {arguments}");
    }
    tunnel
}

/// Sends a text and reads it again at the other end.
fn say(mut from: &TcpStream, mut to: &TcpStream) -> std::io::Result<()> {
    from.write_all(b"hello")?;
    let mut read = [0; 5];
    to.read_exact(&mut read)
}

#[test]
fn what_the_policy_allows_passes_and_the_sender_of_anything_else_learns_it_at_once() {
    let Some(pair) = Pair::start() else { return };
    let (open, _closed) = (pair.listen(TCP_PORT), pair.listen(CLOSED));
    pair.set_policy(1, ALLOWED);
    pair.set_policy(2, ALLOWED);

    let client = pair.connect(TCP_PORT, LIMIT).expect("it is allowed");
    let (server, _) = open.accept().expect("a connection");
    server.set_read_timeout(Some(LIMIT)).expect("a socket");
    say(&client, &server).expect("it arrives");
    say(&server, &client).expect("it arrives");
    let refused = pair.connect(CLOSED, LIMIT).expect_err("it is denied");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    let (near, far) = (pair.socket(1, 4000), pair.socket(2, UDP_PORT));
    let mut buffer = [0; 16];
    near.send_to(b"ask", (mesh(2, 2), UDP_PORT))
        .expect("a route");
    let (_, from) = far.recv_from(&mut buffer).expect("it arrives");
    far.send_to(b"answer", from).expect("a route");
    assert_eq!(near.recv_from(&mut buffer).expect("an answer").0, 6);
    let other = pair.socket(2, 54);
    other.connect((mesh(1, 2), 4000)).expect("a route");
    other.send(b"unasked").expect("a route");
    let refused = other.recv(&mut buffer).expect_err("it is denied");
    assert_eq!(refused.kind(), ErrorKind::HostUnreachable);

    let denied = pair.tunnels[0].filter().denied();
    let [denied] = &denied[..] else {
        panic!("one denial: {denied:?}")
    };
    assert_eq!(denied.denial.asked, Asked::Port(Protocol::Tcp, CLOSED));
    assert_eq!(denied.denial.direction, Direction::Outgoing);
    assert_eq!(denied.denial.to, IpAddr::from(mesh(2, 2)));
    assert_eq!(pair.dropped(1), denied.count);
    let first = pair.tunnels[0].filter().take_first_denials();
    assert_eq!(first, [denied.denial]);
}

#[test]
fn a_change_of_the_policy_ends_established_connections() {
    let Some(pair) = Pair::start() else { return };
    let open = pair.listen(TCP_PORT);
    pair.set_policy(1, ALLOWED);
    pair.set_policy(2, ALLOWED);
    let mut client = pair.connect(TCP_PORT, LIMIT).expect("it is allowed");
    let (server, _) = open.accept().expect("a connection");
    server.set_read_timeout(Some(LIMIT)).expect("a socket");
    say(&client, &server).expect("it arrives");

    // Only the receiver denies it: nothing arrives, and its acknowledgements do not leave. The sender waits.
    pair.set_policy(2, NOTHING);
    server.set_read_timeout(Some(SILENCE)).expect("a socket");
    let lost = say(&client, &server).expect_err("it is denied").kind();
    let kinds = [ErrorKind::WouldBlock, ErrorKind::ConnectionReset];
    assert!(kinds.contains(&lost), "{lost}");
    assert!(pair.dropped(2) > 0);
    // Both deny it: the sender's next segment, here a retransmission, is answered with a reset.
    pair.set_policy(1, NOTHING);
    let reset = client.read(&mut [0]).expect_err("it is reset");
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);

    pair.set_policy(1, ALLOWED);
    pair.set_policy(2, ALLOWED);
    pair.connect(TCP_PORT, LIMIT).expect("it is allowed again");
}

#[test]
fn none_of_ten_thousand_packets_that_only_the_receiver_denies_passes() {
    let Some(pair) = Pair::start() else { return };
    let _open = pair.listen(CLOSED);
    let (near, far) = (pair.socket(1, 4000), pair.socket(2, 54));
    let to = SocketAddr::from((mesh(2, 2), 54));
    let mut buffer = [0; 16];
    near.send_to(b"first", to).expect("a route");
    far.recv_from(&mut buffer)
        .expect("without a policy it arrives");

    pair.set_policy(2, ALLOWED);
    let arrived = || {
        far.set_nonblocking(true).expect("a socket");
        far.recv_from(&mut [0; 16]).is_ok()
    };
    let end = Instant::now() + LIMIT;
    for n in 0..FLOOD {
        near.send_to(b"denied", to).expect("a route");
        // The kernel drops what the device cannot take, so the flood is no faster than the check.
        while pair.dropped(2) + 64 < n && Instant::now() < end {
            std::thread::yield_now();
        }
        if n % 2500 == 0 {
            // Replacing the table by an equal one opens no gap.
            pair.set_policy(2, ALLOWED);
        }
        assert!(!arrived(), "datagram {n}");
    }
    let opened = pair.connect(CLOSED, SILENCE).expect_err("it is denied");
    assert_eq!(opened.kind(), ErrorKind::TimedOut);
    assert!(!arrived());
    let dropped = pair.dropped(2);
    assert!(
        dropped > FLOOD * 9 / 10,
        "{dropped} of {FLOOD} came to the check"
    );
}
