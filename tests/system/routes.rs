//! Networks outside the mesh, behind nodes: hosts there are reached from other nodes as far as the policy permits, and another node takes
//! over when the one in use fails.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use meshd::protocol::local::RouteState;
use meshd::testbed::Host;

use crate::mesh::{Mesh, programs, write};

const NETWORK: &str = "192.168.77.0/24";
/// The host behind the nodes.
const PRINTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
const PORT: u16 = 7000;
const CLOSED: u16 = 7001;
/// The goal is one second. Only a fail-over that waits until the member counts as unreachable takes longer than this.
const LONGEST_OUTAGE: Duration = Duration::from_secs(5);

const POLICY: &str = r#"
language = 1
default = "deny"
[[route]]
node = "n2"
prefix = "192.168.77.0/24"
[[route]]
node = "n3"
prefix = "192.168.77.0/24"
[[allow]]
from = ["node:n1"]
to = ["route:*:7000", "route:*:icmp"]
"#;

/// A mesh of n1, and of n2 and n3 that are in the network of the printer and offer it. The printer is the coordinator's host.
fn mesh() -> Option<Mesh> {
    let mut mesh = Mesh::hosts(programs(), 3)?;
    let at = |last: u8| IpAddr::V4(Ipv4Addr::new(192, 168, 77, last));
    mesh.coordinator_host
        .add_address(PRINTER.into(), 24)
        .expect("an address");
    mesh.start_coordinator();
    for (n, last) in [(0, None), (1, Some(2)), (2, Some(3))] {
        let Some(last) = last else {
            mesh.start_node(n);
            continue;
        };
        let host = &mesh.nodes[n].host;
        host.add_address(at(last), 24).expect("an address");
        let text = format!("[route]\nadvertise = [\"{NETWORK}\"]\n");
        let file = write(host, "/run/meshd.toml", &text);
        mesh.start_node_with(n, &["--config", &file]);
    }
    assert_eq!(mesh.admin(&["init"]).code, 0);
    for n in 0..3 {
        let token = mesh.token(&[]);
        let ended = mesh.on(n, &["join", &token]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    mesh.wait_until("all nodes reach each other", || {
        (0..3).all(|n| mesh.reaches(n) == 2)
    });
    Some(mesh)
}

fn apply(mesh: &Mesh, text: &str) {
    let file = write(&mesh.coordinator_host, "/run/policy.toml", text);
    let ended = mesh.admin(&["policy", "apply", &file]);
    assert_eq!(ended.code, 0, "{ended:?}");
}

/// The nodes that route to the network, as node n1 uses them.
fn routes(mesh: &Mesh) -> Vec<(String, RouteState)> {
    let routes = mesh.status(0).routes.into_iter();
    routes
        .filter(|route| route.network.to_string() == NETWORK)
        .map(|route| (route.node.to_string(), route.state))
        .collect()
}

/// The number of the node by which n1 reaches the network.
fn in_use(mesh: &Mesh) -> Option<usize> {
    let routes = routes(mesh).into_iter();
    let mut used = routes.filter(|(_, state)| *state == RouteState::InUse);
    let (name, _) = used.next()?;
    mesh.nodes.iter().position(|node| node.host.name() == name)
}

/// A host that sends back what it receives.
fn serve(host: &Host, port: u16) {
    let listener = host.inside(|| TcpListener::bind((PRINTER, port)));
    let listener = listener.expect("a namespace").expect("a free port");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo(stream));
        }
    });
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 1000];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn connect(mesh: &Mesh, port: u16, limit: Duration) -> std::io::Result<TcpStream> {
    let to = SocketAddr::from((PRINTER, port));
    let connected = mesh.nodes[0].host.inside(|| {
        let stream = TcpStream::connect_timeout(&to, limit)?;
        stream.set_read_timeout(Some(limit))?;
        Ok(stream)
    });
    connected.expect("a namespace")
}

/// What becomes of a stream whose way has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    GoesOn,
    Closed,
    Error(ErrorKind),
    /// There is no answer, and no error either.
    Silent,
}

/// Sends on a stream until something comes back, for at most `limit`.
fn fate_of(mut stream: TcpStream, limit: Duration) -> Fate {
    let pause = Duration::from_millis(50);
    let prepared = stream.set_nonblocking(false);
    prepared
        .and_then(|()| stream.set_read_timeout(Some(pause)))
        .expect("a socket");
    let end = Instant::now() + limit;
    let mut buffer = [0; 100];
    while Instant::now() < end {
        let sent = stream.write_all(b"ping");
        let received = sent.and_then(|()| stream.read(&mut buffer));
        match received {
            Ok(0) => return Fate::Closed,
            Ok(_) => return Fate::GoesOn,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                kind => return Fate::Error(kind),
            },
        }
    }
    Fate::Silent
}

/// Whether what is sent on a connection comes back.
fn answers(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut buffer).is_ok()
}

#[test]
fn a_host_behind_a_node_is_reached_from_another_node_as_far_as_the_policy_permits() {
    let Some(mesh) = mesh() else { return };
    for port in [PORT, CLOSED] {
        serve(&mesh.coordinator_host, port);
    }
    // Without permission the offer is a problem, and nothing else.
    assert!(mesh.has_problem(
        1,
        &["offers to route to 192.168.77.0/24", "[[route]]", "n2"]
    ));
    assert!(routes(&mesh).is_empty());
    assert!(!mesh.succeeds(0, "ping", &["-c", "1", "-w", "1", "192.168.77.10"]));
    let limit = Duration::from_secs(2);
    assert!(connect(&mesh, PORT, limit).is_err());

    apply(&mesh, POLICY);
    mesh.wait_until("the host is reached", || mesh.pings(0, "192.168.77.10"));
    let mut stream = connect(&mesh, PORT, limit).expect("it is permitted");
    assert!(answers(&mut stream));
    assert!(connect(&mesh, CLOSED, limit).is_err(), "no rule opens it");
    assert!(!mesh.has_problem(1, &["offers to route"]));
    let states: Vec<RouteState> = routes(&mesh).into_iter().map(|(_, state)| state).collect();
    let standby = states.iter().filter(|state| **state == RouteState::Standby);
    assert_eq!((states.len(), standby.count()), (2, 1));
    let shown = mesh.on(0, &["status"]).stdout;
    assert!(shown.contains("192.168.77.0/24"), "{shown}");
    let own = mesh.status(1).routes;
    assert!(own.iter().any(|route| route.state == RouteState::Own));
    assert!(mesh.succeeds(
        0,
        "sh",
        &["-c", "ip route show 192.168.77.0/24 | grep -q mesh0"]
    ));

    // A policy without the permission ends established connections too.
    let (before, after) = POLICY.split_once("[[allow]]").expect("it has a rule");
    let (language, _) = before.split_once("[[route]]").expect("it has a route");
    apply(&mesh, &format!("{language}[[allow]]{after}"));
    mesh.wait_until("the connection is dead", || !answers(&mut stream));
    mesh.wait_until("the route is gone", || {
        mesh.succeeds(
            0,
            "sh",
            &["-c", "test -z \"$(ip route show 192.168.77.0/24)\""],
        )
    });
    assert!(routes(&mesh).is_empty());
}

#[test]
fn another_node_takes_over_when_the_one_by_which_a_network_is_reached_fails_under_a_tcp_stream() {
    let Some(mut mesh) = mesh() else { return };
    serve(&mesh.coordinator_host, PORT);
    apply(&mesh, POLICY);
    let limit = Duration::from_secs(5);
    mesh.wait_until("both nodes are there", || {
        in_use(&mesh).is_some() && routes(&mesh).len() == 2
    });
    let mut stream = None;
    mesh.wait_until("the host is reached", || {
        stream = connect(&mesh, PORT, limit).ok();
        stream.is_some()
    });
    let mut stream = stream.expect("just connected");
    for _ in 0..20 {
        assert!(answers(&mut stream));
        std::thread::sleep(Duration::from_millis(20));
    }
    let first = in_use(&mesh).expect("one is used");
    mesh.kill_node(first);
    // The machine stays up, and its kernel would still forward.
    let failed = Instant::now();
    let outage = loop {
        // The stream sends on, as its program does not know yet.
        let _ = stream.set_nonblocking(true);
        let _ = stream.write_all(b"ping");
        let attempt = connect(&mesh, PORT, Duration::from_millis(150));
        if attempt.is_ok_and(|mut stream| answers(&mut stream)) {
            break failed.elapsed();
        }
        assert!(failed.elapsed() < Duration::from_secs(30), "no fail-over");
    };
    eprintln!("a new connection was answered {outage:?} after the failure");
    let fate = fate_of(stream, limit);
    eprintln!(
        "the stream: {fate:?}, {:?} after the failure",
        failed.elapsed()
    );
    // The other node does not have the translation of its addresses.
    assert_ne!(fate, Fate::GoesOn);
    assert!(outage < LONGEST_OUTAGE, "{outage:?}");
    assert_eq!(in_use(&mesh), Some(3 - first));
}

#[test]
fn a_node_that_is_in_the_network_itself_does_not_send_it_into_the_tunnel() {
    let Some(mesh) = mesh() else { return };
    let host = &mesh.nodes[0].host;
    host.add_address(Ipv4Addr::new(192, 168, 77, 4).into(), 24)
        .expect("an address");
    apply(&mesh, POLICY);
    mesh.wait_until("the problem says why", || {
        mesh.has_problem(
            0,
            &["192.168.77.0/24", "this machine is in that network itself"],
        )
    });
    assert!(
        routes(&mesh)
            .iter()
            .all(|(_, state)| *state == RouteState::NotUsed)
    );
    assert!(mesh.pings(0, "192.168.77.10"), "by its own interface");
    assert!(mesh.succeeds(
        0,
        "sh",
        &["-c", "! ip route show 192.168.77.0/24 | grep -q mesh0"]
    ));
}
