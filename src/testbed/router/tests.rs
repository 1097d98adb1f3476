use std::net::{TcpListener, UdpSocket};

use super::*;
use crate::testbed::World;

/// How long a test waits for datagrams. Those that arrive need less than a millisecond.
const WAIT: Duration = Duration::from_millis(250);

fn world() -> Option<World> {
    if !nix::unistd::geteuid().is_root() {
        crate::testbed::skip_test("network namespaces need root");
        return None;
    }
    Some(World::routed().expect("root may make namespaces"))
}

fn socket(host: &Host, port: u16) -> UdpSocket {
    let open = || UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], port)));
    let socket = host.inside(open).expect("a namespace").expect("a port");
    socket.set_nonblocking(true).expect("a socket");
    socket
}

fn send(socket: &UdpSocket, text: &str, to: (Ipv4Addr, u16)) {
    // An ICMP error about an earlier datagram may be returned here.
    let _ = socket.send_to(text.as_bytes(), to);
}

/// The datagrams that a socket has received, with their senders.
fn received(socket: &UdpSocket) -> Vec<(String, SocketAddr)> {
    let mut buffer = [0; 100];
    let mut datagrams = Vec::new();
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let text = buffer.get(..length).unwrap_or_default();
                datagrams.push((String::from_utf8_lossy(text).into_owned(), from));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return datagrams,
            Err(_) => {}
        }
    }
}

fn texts(socket: &UdpSocket) -> Vec<String> {
    let datagrams = received(socket).into_iter();
    datagrams.map(|(text, _)| text).collect()
}

/// A host with public addresses, and its sockets.
struct Server {
    host: Host,
    socket: UdpSocket,
    other_port: UdpSocket,
}

impl Server {
    fn new(world: &World, name: &str) -> Self {
        let host = world.host(name).expect("a host");
        Self {
            socket: socket(&host, 7000),
            other_port: socket(&host, 7001),
            host,
        }
    }

    fn address(&self) -> (Ipv4Addr, u16) {
        (self.host.v4(), 7000)
    }

    /// From where this server saw the datagram of the host behind the router.
    fn seen(&self) -> Option<SocketAddr> {
        received(&self.socket).pop().map(|(_, from)| from)
    }
}

/// A line about a kind of router, measured by sending datagrams.
fn measure(world: &World, servers: &[Server; 3], nat: Nat) -> String {
    let router = world.router(nat).expect("a router");
    let (host, neighbour) = (
        router.host("a").expect("a host"),
        router.host("b").expect("a host"),
    );
    let (inner, beside) = (socket(&host, 51820), socket(&neighbour, 51820));
    let [first, second, stranger] = servers;
    for server in [first, second] {
        send(&inner, "hello", server.address());
    }
    std::thread::sleep(WAIT / 5);
    let (seen_first, seen_second) = (first.seen(), second.seen());
    let ports = match (seen_first, seen_second) {
        (Some(a), Some(b)) => {
            assert_eq!(a.ip(), IpAddr::V4(router.public_v4()), "{nat:?}");
            match (a.port() == b.port(), a.port() == 51820) {
                (true, true) => "kept",
                (true, false) => "one",
                (false, _) => "differ",
            }
        }
        _ => "none",
    };
    let public = router.public_v4();
    let (to_first, to_second) = (
        seen_first.map_or(51820, |a| a.port()),
        seen_second.map_or(51820, |a| a.port()),
    );
    send(&first.socket, "answer", (public, to_first));
    send(&second.other_port, "other port", (public, to_second));
    send(&stranger.socket, "stranger", (public, to_first));
    send(&beside, "neighbour", (public, to_first));
    std::thread::sleep(WAIT);
    let arrived = texts(&inner);
    let is_in = |text: &str| {
        if arrived.iter().any(|a| a == text) {
            "in"
        } else {
            "-"
        }
    };
    let tcp = host
        .inside(|| TcpStream::connect_timeout(&(first.host.v4(), 7000).into(), WAIT * 10))
        .expect("a namespace");
    format!(
        "{:<12} {:<7} {:<7} {:<11} {:<9} {:<10} {}",
        nat.as_str(),
        ports,
        is_in("answer"),
        is_in("other port"),
        is_in("stranger"),
        is_in("neighbour"),
        if tcp.is_ok() { "works" } else { "-" },
    )
}

#[test]
fn each_router_translates_and_lets_in_what_its_kind_says() {
    let Some(world) = world() else { return };
    let servers = ["s1", "s2", "s3"].map(|name| Server::new(&world, name));
    let listen = || TcpListener::bind(("0.0.0.0", 7000));
    let [first, ..] = &servers;
    let _listener = first.host.inside(listen).expect("a namespace");
    let lines: Vec<String> = Nat::ALL
        .iter()
        .map(|nat| measure(&world, &servers, *nat))
        .collect();
    assert_eq!(
        lines.join("\n"),
        "\
plain        kept    in      -           -         -          works
plain-open   kept    in      -           -         -          works
cone         kept    in      in          in        -          works
restricted   kept    in      -           -         -          works
symmetric    differ  in      -           -         -          works
cgnat        kept    in      -           -         -          works
hairpin      kept    in      -           -         in         works
udp-blocked  none    -       -           -         -          works
firewall6    kept    in      -           -         -          works"
    );
}

/// Two hosts behind routers of this kind send to each other's public address, in turn. Returns whether each one receives. With
/// `knock`, each sends a datagram first that ends before it arrives at the other's router.
fn punch(world: &World, nat: Nat, knock: bool) -> [bool; 2] {
    let routers = [0, 1].map(|_| world.router(nat).expect("a router"));
    let [left, right] = &routers;
    let hosts = [left, right].map(|router| router.host("h").expect("a host"));
    let sockets = [0, 1].map(|n: usize| socket(hosts.get(n).expect("two"), 51820));
    let [a, b] = &sockets;
    let ways = [(a, right.public_v4()), (b, left.public_v4())];
    if knock {
        for (socket, to) in ways {
            socket.set_ttl(4).expect("a socket");
            send(socket, "", (to, 51820));
            socket.set_ttl(64).expect("a socket");
        }
    }
    for _ in 0..3 {
        for (socket, to) in ways {
            send(socket, "punch", (to, 51820));
            std::thread::sleep(WAIT / 10);
        }
    }
    [a, b].map(|socket| texts(socket).iter().any(|text| text == "punch"))
}

#[test]
fn a_datagram_that_nobody_asked_for_spoils_an_open_router_and_one_that_ends_on_the_way_opens_it() {
    let Some(world) = world() else { return };
    assert_eq!(punch(&world, Nat::Plain, false), [true, true]);
    assert_eq!(punch(&world, Nat::PlainOpen, false), [false, false]);
    assert_eq!(punch(&world, Nat::PlainOpen, true), [true, true]);
    assert_eq!(punch(&world, Nat::Symmetric, true), [false, false]);
}

#[test]
fn a_firewall_for_ipv6_translates_nothing_and_lets_in_what_was_asked_for() {
    let Some(world) = world() else { return };
    let router = world.router(Nat::Firewall6).expect("a router");
    let (host, server) = (
        router.host("h").expect("a host"),
        world.host("s").expect("a host"),
    );
    let open = |host: &Host, port: u16| {
        let own = SocketAddr::from((host.v6(), port));
        let socket = host.inside(|| UdpSocket::bind(own)).expect("a namespace");
        let socket = socket.expect("the host has IPv6");
        socket.set_nonblocking(true).expect("a socket");
        socket
    };
    let (inner, outer, other) = (open(&host, 51820), open(&server, 7000), open(&server, 7001));
    let inner_address = inner.local_addr().expect("it is bound");
    let send = |socket: &UdpSocket, text: &str, to: SocketAddr| {
        let _ = socket.send_to(text.as_bytes(), to);
        std::thread::sleep(WAIT / 5);
    };
    send(&outer, "unasked", inner_address);
    send(&inner, "hello", outer.local_addr().expect("it is bound"));
    assert_eq!(
        received(&outer),
        [("hello".to_owned(), inner_address)],
        "no translation"
    );
    send(&outer, "answer", inner_address);
    send(&other, "other port", inner_address);
    assert_eq!(texts(&inner), ["answer"]);
}

#[test]
fn a_router_that_is_rebound_uses_another_port_and_lets_the_old_one_answer_no_more() {
    let Some(world) = world() else { return };
    let server = Server::new(&world, "s");
    for nat in [Nat::Plain, Nat::Cgnat] {
        let router = world.router(nat).expect("a router");
        let host = router.host("h").expect("a host");
        let inner = socket(&host, 51820);
        let mut ports = Vec::new();
        for _ in 0..3 {
            send(&inner, "hello", server.address());
            std::thread::sleep(WAIT / 5);
            let seen = server.seen().expect("a datagram");
            send(&server.socket, "answer", (router.public_v4(), seen.port()));
            std::thread::sleep(WAIT / 5);
            assert_eq!(texts(&inner), ["answer"]);
            ports.push(seen.port());
            router.rebind().expect("the programs are there");
            send(&server.socket, "late", (router.public_v4(), seen.port()));
            std::thread::sleep(WAIT / 5);
            assert!(texts(&inner).is_empty(), "{nat:?}");
        }
        ports.dedup();
        assert_eq!(ports.len(), 3, "{nat:?}: {ports:?}");
    }
}

#[test]
fn a_fault_loses_datagrams_in_one_direction_or_all_and_ends_when_it_is_taken_back() {
    let Some(world) = world() else { return };
    let server = Server::new(&world, "s");
    let router = world.router(Nat::Plain).expect("a router");
    let host = router.host("h").expect("a host");
    let inner = socket(&host, 51820);
    let public = (router.public_v4(), 51820);
    send(&inner, "hello", server.address());
    std::thread::sleep(WAIT / 5);
    let counts = |fault: Option<Fault>| {
        router.set_fault(fault).expect("nft");
        let _ = (received(&inner), received(&server.socket));
        for _ in 0..40 {
            send(&inner, "out", server.address());
            send(&server.socket, "in", public);
        }
        std::thread::sleep(WAIT / 2);
        let of = |count: usize| match count {
            0 => "none",
            40 => "all",
            _ => "some",
        };
        [
            of(received(&server.socket).len()),
            of(received(&inner).len()),
        ]
    };
    assert_eq!(counts(None), ["all", "all"]);
    assert_eq!(counts(Some(Fault::LoseInward(100))), ["all", "none"]);
    assert_eq!(counts(Some(Fault::LoseOutward(50))), ["some", "all"]);
    assert_eq!(counts(Some(Fault::DropUdp)), ["none", "none"]);
    assert_eq!(counts(None), ["all", "all"]);
}
