//! No HTTPS or SVCB record from outside leads into the mesh: neither by its address hints, nor by its target, nor through other
//! records.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, SVCB};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use meshd::testbed::Host;

use crate::mesh::{Mesh, write};
use crate::query::serve_answers;

const DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 210, 0, 53));
const PUBLIC: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a literal")
}

fn binding(priority: u16, target: &str, hints: &[IpAddr]) -> SVCB {
    let v4 = hints.iter().filter_map(|hint| match hint {
        IpAddr::V4(v4) => Some(A(*v4)),
        IpAddr::V6(_) => None,
    });
    let v6 = hints.iter().filter_map(|hint| match hint {
        IpAddr::V6(v6) => Some(AAAA(*v6)),
        IpAddr::V4(_) => None,
    });
    let (v4, v6): (Vec<A>, Vec<AAAA>) = (v4.collect(), v6.collect());
    let mut params = Vec::new();
    if !v4.is_empty() {
        let value = SvcParamValue::Ipv4Hint(IpHint(v4));
        params.push((SvcParamKey::Ipv4Hint, value));
    }
    if !v6.is_empty() {
        let value = SvcParamValue::Ipv6Hint(IpHint(v6));
        params.push((SvcParamKey::Ipv6Hint, value));
    }
    SVCB::new(priority, name(target), params)
}

/// The node whose addresses the attacker wants browsers to connect to.
#[derive(Debug, Clone, Copy)]
struct Target(Ipv4Addr, Ipv6Addr);

/// Makes the reply of the attacker's server: the answers, and the additional records. The first label of the name
/// selects the trick.
fn said(asked: &Name, target: Target) -> (Vec<Record>, Vec<Record>) {
    let https = |owner: &Name, binding: SVCB| {
        Record::from_rdata(owner.clone(), 60, RData::HTTPS(HTTPS(binding)))
    };
    let (v4, v6): (IpAddr, IpAddr) = (target.0.into(), target.1.into());
    let mapped: IpAddr = target.0.to_ipv6_mapped().into();
    let cdn = name("cdn.example.net.");
    let lower = asked.to_lowercase().to_string();
    let answers = match lower.split('.').next().unwrap_or_default() {
        "honest" => vec![https(asked, binding(1, ".", &[PUBLIC.into()]))],
        "hint4" => vec![https(asked, binding(1, ".", &[PUBLIC.into(), v4]))],
        "hint6" => vec![https(asked, binding(1, ".", &[PUBLIC.into(), v6]))],
        "mapped" => vec![https(asked, binding(1, ".", &[mapped]))],
        // In AliasMode (RFC 9460 section 2.4.2) a client asks for the records of the target next.
        "alias" => vec![https(asked, binding(0, "web.svc.mesh.", &[]))],
        "alias-hint" => vec![https(asked, binding(0, "cdn.example.net.", &[v4]))],
        "target" => vec![https(asked, binding(1, "Web.Svc.MESH.", &[PUBLIC.into()]))],
        "chain" => vec![
            https(asked, binding(0, "cdn.example.net.", &[])),
            https(&cdn, binding(1, ".", &[v6, PUBLIC.into()])),
        ],
        "cname" => vec![
            Record::from_rdata(asked.clone(), 60, RData::CNAME(CNAME(cdn.clone()))),
            https(&cdn, binding(0, "web.svc.mesh.", &[])),
        ],
        "svcb" => {
            let data = RData::SVCB(binding(1, ".", &[v4, v6]));
            vec![Record::from_rdata(asked.clone(), 60, data)]
        }
        _ => vec![],
    };
    let web = name("web.svc.mesh.");
    let additional = vec![
        Record::from_rdata(asked.clone(), 60, RData::A(A(target.0))),
        Record::from_rdata(web.clone(), 60, RData::AAAA(AAAA(target.1))),
        https(asked, binding(1, ".", &[v4])),
    ];
    (answers, additional)
}

/// Serves these replies on port 5300 of `host` until the test ends.
fn serve(host: &Host, target: Target) {
    serve_answers(host, ("0.0.0.0", 5300), move |question| {
        said(question.name(), target)
    });
}

/// Asks the node's resolver from the node's own host.
fn ask(host: &Host, text: &str, record_type: RecordType) -> Message {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name(text), record_type));
    let bytes = query.to_vec().expect("a small message");
    let reply = host.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.send_to(&bytes, SocketAddr::new(DNS, 53))?;
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        std::io::Result::Ok(buffer)
    });
    let reply = reply.expect("a namespace").expect("a reply");
    Message::from_vec(&reply).expect("a reply that parses")
}

#[test]
fn a_service_binding_from_outside_leads_nowhere_into_the_mesh() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    mesh.kill_node(0);
    let upstream = SocketAddr::new(mesh.coordinator_host.v4().into(), 5300);
    let text = format!("[dns]\nupstreams = [\"{upstream}\"]\n");
    let file = write(&mesh.nodes[0].host, "/run/meshd.toml", &text);
    mesh.start_node_with(0, &["--config", &file]);
    let token = mesh.token(&[]);
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
    let (v4, v6) = mesh.addresses(0);
    serve(&mesh.coordinator_host, Target(v4, v6));
    let host = &mesh.nodes[0].host;

    let honest = ask(host, "honest.example.org.", RecordType::HTTPS);
    let kept: Vec<String> = honest.answers.iter().map(|r| r.data.to_string()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(kept[0].contains(&PUBLIC.to_string()), "{kept:?}");

    for trick in [
        "hint4",
        "hint6",
        "mapped",
        "alias",
        "alias-hint",
        "target",
        "chain",
        "cname",
        "svcb",
        "honest",
    ] {
        for record_type in [RecordType::HTTPS, RecordType::SVCB, RecordType::ANY] {
            // The first answer comes from the upstream, the second from the cache.
            for _ in 0..2 {
                let reply = ask(host, &format!("{trick}.example.org."), record_type);
                let all = reply.answers.iter().chain(&reply.authorities);
                for record in all.chain(&reply.additionals) {
                    let text = record.to_string().to_ascii_lowercase();
                    let leads_in = text.contains(&v4.to_string())
                        || text.contains(&v6.to_string())
                        || text.contains(".mesh.");
                    assert!(!leads_in, "{trick} {record_type}: {text}");
                }
            }
        }
    }
}
