//! Names of the world outside, as they reach programs: what upstreams say in the wrong order, with impossible TTLs or of the
//! mesh, names for special use, and one connection with many queries.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use meshd::testbed::Host;

use crate::host_dns::own_etc;
use crate::mesh::{Mesh, run, write};
use crate::query::ask;

const DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 210, 0, 53));
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a literal")
}

fn alias(of: &Name, to: &str) -> Record {
    Record::from_rdata(of.clone(), 60, RData::CNAME(CNAME(name(to))))
}

/// The answers of the upstream of this test. It does not answer names that begin with `dead`.
fn said(query: &Message) -> Option<Message> {
    let question = query.queries.first()?;
    let asked = question.name();
    let lower = asked.to_lowercase().to_string();
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    let address = |of: &Name, ttl| Record::from_rdata(of.clone(), ttl, RData::A(ELSEWHERE.into()));
    let of_type_a = question.query_type() == RecordType::A;
    match lower.split('.').next().unwrap_or_default() {
        "dead" => return None,
        "backwards" if of_type_a => {
            reply.add_answer(address(&name("edge.example.net."), u32::MAX));
            reply.add_answer(alias(&name("cdn.example.net."), "edge.example.net."));
            reply.add_answer(alias(asked, "cdn.example.net."));
        }
        "door" => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.add_answer(alias(asked, "web.svc.mesh."));
            let soa = SOA::new(Name::root(), Name::root(), 1, 900, 900, 900, 900);
            reply.add_authority(Record::from_rdata(Name::root(), 900, RData::SOA(soa)));
        }
        _ if of_type_a => {
            reply.add_answer(address(asked, 60));
        }
        _ => {}
    }
    Some(reply)
}

/// Serves that on port 5300; notes the names it was asked for.
fn serve(host: &Host) -> Arc<Mutex<Vec<String>>> {
    let socket = host
        .inside(|| UdpSocket::bind("0.0.0.0:5300"))
        .expect("a namespace")
        .expect("a free port");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let Ok(query) = Message::from_vec(&buffer[..length]) else {
                continue;
            };
            let names = query.queries.iter();
            let names = names.map(|q| q.name().to_lowercase().to_string());
            noted.lock().expect("nobody panics with it").extend(names);
            if let Some(reply) = said(&query) {
                let bytes = reply.to_vec().expect("a small message");
                let _ = socket.send_to(&bytes, client);
            }
        }
    });
    asked
}

fn query(id: u16, text: &str) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), RecordType::A));
    let bytes = message.to_vec().expect("a small message");
    let length = u16::try_from(bytes.len()).expect("short");
    [&length.to_be_bytes()[..], &bytes].concat()
}

/// Sends queries ahead over one connection; gives the numbers of the replies as they come.
fn pipelined(host: &Host, server: IpAddr, queries: &[(u16, &str)]) -> Vec<u16> {
    let bytes: Vec<u8> = queries.iter().flat_map(|(id, n)| query(*id, n)).collect();
    let replies = || -> std::io::Result<Vec<u16>> {
        let limit = Duration::from_secs(60);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(server, 53), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(&bytes)?;
        let mut replies = Vec::new();
        for _ in queries {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut reply)?;
            let reply = Message::from_vec(&reply).expect("a reply that parses");
            replies.push(reply.metadata.id);
        }
        Ok(replies)
    };
    host.inside(replies)
        .expect("a namespace")
        .expect("replies to all")
}

#[test]
fn names_of_the_world_outside_reach_programs_in_good_order_and_never_lead_into_the_mesh() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    let asked = serve(&mesh.coordinator_host);
    let upstream = SocketAddr::new(mesh.coordinator_host.v4().into(), 5300);
    mesh.kill_node(0);
    own_etc(&mesh, 0, "nameserver 10.210.0.53\noptions attempts:1\n");
    let text = format!("[dns]\nupstreams = [\"{upstream}\"]\n");
    let file = write(&mesh.nodes[0].host, "/run/meshd.toml", &text);
    mesh.start_node_with(0, &["--config", &file]);
    let token = mesh.token(&[]);
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
    assert_eq!(
        mesh.on(0, &["service", "add", "web", "--port", "80"]).code,
        0
    );
    let own = mesh.addresses(0).0;
    let getent = |name: &str| {
        let mut command = mesh.nodes[0].host.command("getent").expect("a namespace");
        run(command.args(["ahostsv4", name])).stdout
    };

    // From the upstream, and then from the cache.
    for _ in 0..2 {
        let found = getent("backwards.example.org");
        assert!(found.contains("192.0.2.77"), "{found:?}");
    }
    let resolved = mesh.on(0, &["resolve", "backwards.example.org"]);
    let ttls = resolved.stdout.lines();
    let ttls: Vec<&str> = ttls
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(ttls, ["60", "60", "0"], "{resolved:?}");

    // An alias into the mesh is not followed, and that is explained.
    for tcp in [false, true] {
        for name in ["door.example.org.", "door.example.com."] {
            let answer = ask(&mesh.nodes[0].host, DNS, name, RecordType::A, tcp);
            let answer = answer.expect("an answer");
            assert_eq!(answer.code, ResponseCode::NoError);
            assert_eq!((answer.data.len(), answer.authority.len()), (0, 0));
        }
    }
    let resolved = mesh.on(0, &["resolve", "door.example.org"]);
    assert_eq!(resolved.code, 2, "{resolved:?}");
    assert!(
        resolved
            .stderr
            .contains("left out: 1 alias(es) to a name of the mesh"),
        "{resolved:?}"
    );
    let found = getent("web.svc.mesh");
    assert!(found.contains(&own.to_string()), "{found:?}");

    // Names for special use are asked of nobody.
    for (name, record_type, data) in [
        ("localhost.", RecordType::A, Some("127.0.0.1")),
        ("db.localhost.", RecordType::AAAA, Some("::1")),
        (
            "1.0.0.127.in-addr.arpa.",
            RecordType::PTR,
            Some("localhost."),
        ),
        ("secret.onion.", RecordType::A, None),
        ("_dns.resolver.arpa.", RecordType::SVCB, None),
    ] {
        let answer = ask(&mesh.nodes[0].host, DNS, name, record_type, false);
        let answer = answer.expect("an answer");
        let data: Vec<&str> = data.into_iter().collect();
        assert_eq!(answer.data, data, "{name}");
    }
    let asked: Vec<String> = asked.lock().expect("nobody panics with it").clone();
    let special = ["localhost.", ".arpa.", "onion."];
    assert!(
        !asked.iter().any(|n| special.iter().any(|s| n.ends_with(s))),
        "{asked:?}"
    );

    // A name of which nobody says anything holds up no other, inside the tunnel device and on the node's own address.
    for (n, server) in [DNS, own.into()].into_iter().enumerate() {
        let (dead, alive) = (
            format!("dead.n{n}.example.org."),
            format!("alive.n{n}.example.org."),
        );
        let queries = [
            (1, dead.as_str()),
            (2, "web.svc.mesh."),
            (3, alive.as_str()),
        ];
        let replies = pipelined(&mesh.nodes[0].host, server, &queries);
        assert_eq!(replies, [2, 3, 1], "{server}");
    }
}
