//! The DNS address is the same on every node, and meshd answers it inside the tunnel device, independent of other programs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use meshd::testbed::Host;
use meshd::tunnel::{
    DropReason, Handled, LocalHandler, LocalService, PeerConfig, Tunnel, TunnelConfig,
};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::engine;
use crate::mesh::{Mesh, world, write};
use crate::query::{Answer, ask, serve_address};

const ADDRESS: &str = "10.210.0.53";
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

/// A resolver of the world outside: every name is [`ELSEWHERE`].
fn serve_elsewhere(host: &Host) {
    serve_address(host, ("0.0.0.0", 5300), ELSEWHERE, 60);
}

/// A host that lets nothing in but the tunnel and replies, and has another resolver on all its addresses.
fn make_hostile(mesh: &Mesh, n: usize) -> (UdpSocket, TcpListener) {
    let rules = "add table inet f; add chain inet f in { type filter hook input priority 0; policy drop; }; \
        add rule inet f in ct state established,related accept; add rule inet f in udp dport 51820 accept; \
        add rule inet f in icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept";
    assert!(mesh.succeeds(n, "nft", &[rules]));
    let host = &mesh.nodes[n].host;
    host.inside(|| {
        let all = "0.0.0.0:53";
        (UdpSocket::bind(all), TcpListener::bind(all))
    })
    .map(|(udp, tcp)| (udp.expect("a free port"), tcp.expect("a free port")))
    .expect("a namespace")
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii(name).expect("a literal");
    message.add_query(Query::query(name, RecordType::A));
    message.to_vec().expect("a small message")
}

fn found(data: &[String]) -> Option<Answer> {
    Some(Answer {
        code: ResponseCode::NoError,
        data: data.to_vec(),
        authority: vec![],
    })
}

#[test]
fn the_dns_address_answers_names_whatever_runs_on_the_machine() {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    serve_elsewhere(&mesh.coordinator_host);
    let upstream = SocketAddr::new(mesh.coordinator_host.v4().into(), 5300);
    mesh.kill_node(0);
    let text = format!("[dns]\nupstreams = [\"{upstream}\"]\n");
    let file = write(&mesh.nodes[0].host, "/run/meshd.toml", &text);
    mesh.start_node_with(0, &["--config", &file]);
    let _others = make_hostile(&mesh, 0);
    let token = mesh.token(&["--uses", "2"]);
    for n in 0..2 {
        let ended = mesh.on(n, &["join", &token]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    for port in 1..=60 {
        let port = port.to_string();
        assert_eq!(
            mesh.on(1, &["service", "add", "web", "--port", &port]).code,
            0
        );
    }
    let (v4, v6) = mesh.addresses(1);
    let host = &mesh.nodes[0].host;
    let status = mesh.status(0);
    let listen: Vec<String> = status
        .dns
        .iter()
        .flat_map(|dns| &dns.listen)
        .map(ToString::to_string)
        .collect();
    assert_eq!(listen.first().map(String::as_str), Some("10.210.0.53:53"));
    let address_v6 = listen
        .iter()
        .find_map(|at| at.parse::<SocketAddr>().ok().filter(SocketAddr::is_ipv6))
        .expect("one of each family")
        .ip();
    assert!(address_v6.to_string().ends_with("::35"), "{address_v6}");
    assert!(
        status
            .problems
            .iter()
            .any(|p| p.why.contains("in use by another resolver")),
        "{:?}",
        status.problems
    );
    let routes = host
        .command("ip")
        .map(|mut ip| ip.args(["route", "get", ADDRESS]).output());
    let routes = routes.expect("a namespace").expect("a program").stdout;
    let routes = String::from_utf8_lossy(&routes).into_owned();
    assert!(
        !routes.contains("local"),
        "the host must not own it: {routes}"
    );

    let ports: BTreeSet<String> = (1..=60)
        .map(|port| format!("0 10 {port} n2-{port}.web.svc.mesh."))
        .collect();
    for server in [ADDRESS.parse().expect("a literal"), address_v6] {
        mesh.wait_until("the last instance is known", || {
            ask(host, server, "n2-60.web.svc.mesh.", RecordType::A, false)
                .is_some_and(|a| !a.data.is_empty())
        });
        for tcp in [false, true] {
            let ask = |name: &str, record_type| ask(host, server, name, record_type, tcp);
            assert_eq!(
                ask("web.svc.mesh.", RecordType::A),
                found(&[v4.to_string()])
            );
            assert_eq!(
                ask("web.svc.mesh.", RecordType::AAAA),
                found(&[v6.to_string()])
            );
            assert_eq!(
                ask("n2-7.web.svc.mesh.", RecordType::A),
                found(&[v4.to_string()])
            );
            assert_eq!(
                ask("www.example.com.", RecordType::A),
                found(&[ELSEWHERE.to_string()]),
                "{server} tcp: {tcp}"
            );
            let all = ask("web.svc.mesh.", RecordType::SRV).expect("an answer");
            let different: BTreeSet<&String> = all.data.iter().collect();
            assert_eq!(different.len(), all.data.len(), "{all:?}");
            assert!(all.data.iter().all(|one| ports.contains(one)), "{all:?}");
            if tcp {
                assert_eq!(all.data.len(), 32, "{all:?}");
            } else {
                // A datagram has what fits, and is marked as cut.
                assert!((1..32).contains(&all.data.len()), "{all:?}");
            }
        }
    }
    assert!(mesh.pings(0, ADDRESS));
    assert!(mesh.pings(0, &address_v6.to_string()));

    assert_eq!(mesh.on(0, &["leave"]).code, 0);
    let gone = ask(host, IpAddr::V4(v4), "web.svc.mesh.", RecordType::A, false);
    assert_eq!(gone, None);
}

#[test]
fn many_queries_at_once_are_answered_at_the_dns_address() {
    let Some(mesh) = Mesh::joined(1) else { return };
    let host = &mesh.nodes[0].host;
    const COUNT: u16 = 20_000;
    let (answered, elapsed) = host
        .inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.connect((ADDRESS, 53)).expect("a route");
            socket
                .set_read_timeout(Some(std::time::Duration::from_secs(2)))
                .expect("a socket");
            let begin = std::time::Instant::now();
            let mut answered = 0;
            let mut buffer = [0; 2048];
            // So many under way that none is lost in a queue.
            for ids in (0..COUNT).collect::<Vec<_>>().chunks(16) {
                for id in ids {
                    socket.send(&query(*id, "n1.node.mesh.")).expect("a route");
                }
                for _ in ids {
                    answered += u32::from(socket.recv(&mut buffer).is_ok_and(|length| length > 12));
                }
            }
            (answered, begin.elapsed())
        })
        .expect("a namespace");
    eprintln!(
        "{answered} queries at the DNS address in {:.2} s: {:.0} a second (this build, 16 under way)",
        elapsed.as_secs_f64(),
        f64::from(answered) / elapsed.as_secs_f64()
    );
    assert_eq!(answered, u32::from(COUNT));
}

#[test]
fn queries_sent_ahead_over_tcp_are_answered_in_order() {
    use std::io::{Read as _, Write as _};
    let Some(mesh) = Mesh::joined(1) else { return };
    let names = ["n1.node.mesh.", "never.svc.mesh.", "mesh."];
    let mut sent = Vec::new();
    for (id, name) in names.iter().enumerate() {
        let bytes = query(id as u16, name);
        sent.extend((bytes.len() as u16).to_be_bytes());
        sent.extend(bytes);
    }
    let ids: Vec<u16> = mesh.nodes[0]
        .host
        .inside(|| {
            let mut stream = std::net::TcpStream::connect((ADDRESS, 53)).expect("the DNS address");
            stream
                .set_read_timeout(Some(std::time::Duration::from_secs(10)))
                .expect("a socket");
            // In pieces that have nothing to do with the queries.
            for piece in sent.chunks(7) {
                stream.write_all(piece).expect("a connection");
            }
            stream
                .shutdown(std::net::Shutdown::Write)
                .expect("a connection");
            let mut replies = Vec::new();
            stream
                .read_to_end(&mut replies)
                .expect("it is closed in order");
            let mut ids = Vec::new();
            let mut rest = &replies[..];
            while let [a, b, tail @ ..] = rest {
                let (reply, after) = tail.split_at(usize::from(u16::from_be_bytes([*a, *b])));
                ids.push(Message::from_vec(reply).expect("a reply").metadata.id);
                rest = after;
            }
            ids
        })
        .expect("a namespace");
    assert_eq!(ids, [0, 1, 2]);
}

#[test]
fn containers_are_answered_and_neighbours_on_the_lan_are_not() {
    let Some(mesh) = Mesh::start(2) else { return };
    let [host, inside] = [&mesh.nodes[0].host, &mesh.nodes[1].host];
    engine::attach(host, inside);
    let neighbour = &mesh.coordinator_host;
    engine::ip(
        neighbour,
        &format!("route add 10.210.0.0/16 via {}", host.v4()),
    );
    // The bridge is one of containers by the engine's word, and by nothing else.
    engine::start(host, "docker0", "172.17.0.0/16", None);
    let token = mesh.token(&[]);
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
    let own = mesh.addresses(0).0.to_string();
    let address = ADDRESS.parse().expect("a literal");
    mesh.wait_until("the engine has named its networks", || {
        ask(inside, address, "n1.node.mesh.", RecordType::A, false).is_some()
    });
    for tcp in [false, true] {
        let ask = |from: &Host| ask(from, address, "n1.node.mesh.", RecordType::A, tcp);
        // It asks again, as a resolver does: a datagram may be lost while the firewall's first rules are applied.
        let own = found(std::slice::from_ref(&own));
        mesh.wait_until("the container is answered", || ask(inside) == own);
        assert_eq!(ask(neighbour), None, "tcp: {tcp}");
    }
}

/// Queries to an address that the world reaches.
const STRANGERS_QUERIES: u16 = 10_000;

#[test]
fn a_stranger_that_asks_at_the_underlay_address_gets_no_reply_at_all() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    mesh.kill_node(0);
    // The worst that can be configured: to listen there.
    let underlay = mesh.nodes[0].host.v4();
    let text = format!("[dns]\nlisten = [\"{underlay}\"]\n");
    let file = write(&mesh.nodes[0].host, "/run/meshd.toml", &text);
    mesh.start_node_with(0, &["--config", &file]);
    let token = mesh.token(&[]);
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
    let listen = mesh.status(0).dns.map(|dns| dns.listen).unwrap_or_default();
    let address = SocketAddr::new(underlay.into(), 53);
    assert!(listen.contains(&address), "{listen:?}");
    let host = &mesh.nodes[0].host;
    let own = ask(host, underlay.into(), "n1.node.mesh.", RecordType::A, false);
    assert!(own.is_some(), "the host itself is answered there");
    let names = ["n1.node.mesh.", "never.svc.mesh.", "example.org.", "."];
    let replies = mesh
        .coordinator_host
        .inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.set_nonblocking(true).expect("a socket of ours");
            let (mut replies, mut buffer) = (0, [0; 4096]);
            let mut take = || {
                while socket.recv_from(&mut buffer).is_ok() {
                    replies += 1;
                }
            };
            for id in 0..STRANGERS_QUERIES {
                let name = names[usize::from(id) % names.len()];
                socket.send_to(&query(id, name), address).expect("sent");
                if id % 64 == 0 {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    take();
                }
            }
            std::thread::sleep(std::time::Duration::from_secs(1));
            take();
            replies
        })
        .expect("a namespace");
    assert_eq!(replies, 0);
    let streamed = ask(
        &mesh.coordinator_host,
        underlay.into(),
        "n1.node.mesh.",
        RecordType::A,
        true,
    );
    assert_eq!(streamed, None);
}

struct Shout;

impl LocalHandler for Shout {
    fn datagram(&self, _: SocketAddr, _: SocketAddr, payload: &[u8]) -> Handled {
        Handled::Reply(payload.to_ascii_uppercase())
    }

    fn segment(&self, _: IpAddr, _: &[u8]) -> Handled {
        Handled::Refused
    }
}

#[test]
fn a_peer_reaches_neither_what_every_node_answers_for_itself_nor_what_lies_behind_a_node() {
    let Some(world) = world() else { return };
    let hosts = ["a", "b"].map(|name| world.host(name).expect("a namespace"));
    let keys = [[1; 32], [2; 32]].map(StaticSecret::from);
    let tunnels = [0, 1].map(|n| {
        let (host, other) = (&hosts[n], 1 - n);
        let config = TunnelConfig {
            interface: "mesh0".into(),
            mtu: 1420,
            listen_port: 51_820,
            private_key: Some(keys[n].clone()),
            workers: None,
        };
        let tunnel = host
            .inside(|| Tunnel::start(config))
            .expect("a namespace")
            .expect("a tunnel");
        // The other end is said to own all: what it sends to, and what it sends from.
        tunnel.set_peers(vec![PeerConfig {
            public_key: PublicKey::from(&keys[other]).to_bytes(),
            preshared_key: None,
            endpoint: Some(SocketAddr::new(hosts[other].v4().into(), 51_820)),
            allowed_ips: vec!["10.99.0.0/16".parse().expect("a literal")],
            persistent_keepalive: None,
        }]);
        for arguments in [
            format!("address add 10.99.{}.1/16 dev mesh0", n + 1),
            "link set mesh0 up".into(),
        ] {
            let mut ip = host.command("ip").expect("a namespace");
            let done = ip.args(arguments.split(' ')).status();
            assert!(done.is_ok_and(|status| status.success()), "{arguments}");
        }
        tunnel
    });
    let [answering, _asking] = &tunnels;
    answering.set_peers(vec![PeerConfig {
        public_key: PublicKey::from(&keys[1]).to_bytes(),
        preshared_key: None,
        endpoint: None,
        allowed_ips: vec!["10.99.2.0/24".parse().expect("a literal")],
        persistent_keepalive: None,
    }]);
    answering.set_local_service(Some(LocalService {
        addresses: vec!["10.99.0.53".parse().expect("a literal")],
        handler: std::sync::Arc::new(Shout),
    }));
    let shout = |host: &Host, to: &str| {
        host.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket
                .set_read_timeout(Some(std::time::Duration::from_secs(2)))
                .expect("a socket");
            socket.send_to(b"hello", (to, 53)).expect("a route");
            let mut buffer = [0; 100];
            socket
                .recv_from(&mut buffer)
                .ok()
                .map(|(length, _)| buffer[..length].to_vec())
        })
        .expect("a namespace")
    };
    assert_eq!(
        shout(&hosts[0], "10.99.0.53").as_deref(),
        Some(&b"HELLO"[..])
    );
    assert_eq!(shout(&hosts[1], "10.99.0.53"), None);
    assert!(answering.counters().of(DropReason::ForeignDestination) > 0);

    let foreign = || answering.counters().of(DropReason::ForeignDestination);
    let send = |to: &str| {
        let sent = hosts[1].inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.send_to(b"hello", (to, 9)).expect("a route")
        });
        assert_eq!(sent.expect("a namespace"), 5);
    };
    let receiver = hosts[0]
        .inside(|| UdpSocket::bind("10.99.1.1:9").expect("its address"))
        .expect("a namespace");
    let patience = std::time::Duration::from_secs(10);
    receiver.set_read_timeout(Some(patience)).expect("a socket");
    answering
        .filter()
        .set_own_networks(&["10.99.1.0/24".parse().expect("a literal")]);
    let before = foreign();
    send("10.99.7.7");
    // A packet that is sent later arrives later.
    send("10.99.1.1");
    assert_eq!(receiver.recv(&mut [0; 100]).expect("what was sent"), 5);
    assert_eq!(foreign(), before + 1);
}
