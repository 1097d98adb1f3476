//! Names of the world outside, asked of upstreams that misbehave.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use meshd::testbed::Host;

use crate::mesh::{Mesh, write};
use crate::query::{Answer, ask};

const ADDRESS: &str = "10.210.0.53";
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

/// A resolver that takes a second for an answer, and does not answer questions with EDNS or in mixed case.
fn serve(host: &Host, at: SocketAddr) {
    let socket = host
        .inside(|| UdpSocket::bind(at))
        .expect("a namespace")
        .expect("a free port");
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..length]).expect("a query");
            let question = &query.queries[0];
            let mixed = !question.name().eq_case(&question.name().to_lowercase());
            if mixed || query.edns.is_some() {
                continue;
            }
            let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
            reply.add_query(question.clone());
            let data = RData::A(ELSEWHERE.into());
            reply.add_answer(Record::from_rdata(question.name().clone(), 60, data));
            let bytes = reply.to_vec().expect("a small message");
            let socket = socket.try_clone().expect("a descriptor");
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(1));
                let _ = socket.send_to(&bytes, client);
            });
        }
    });
}

#[test]
fn a_good_upstream_behind_three_unreachable_ones_is_queried_in_a_form_that_it_supports() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    let coordinator = &mesh.coordinator_host;
    let upstreams: [SocketAddr; 2] = [
        (coordinator.v4(), 5300).into(),
        (coordinator.v6(), 5300).into(),
    ];
    for upstream in upstreams {
        serve(coordinator, upstream);
    }
    let token = mesh.token(&[]);
    let ended = mesh.on(0, &["join", &token]);
    assert_eq!(ended.code, 0, "{ended:?}");
    // There may be none.
    mesh.succeeds(0, "ip", &["-6", "route", "del", "default"]);
    for (n, upstream) in upstreams.into_iter().enumerate() {
        mesh.kill_node(0);
        let text = format!(
            "[dns]\nupstreams = [\"2001:db8::1\", \"2001:db8::2\", \"2001:db8::3\", \"{upstream}\"]\n"
        );
        let file = write(&mesh.nodes[0].host, "/run/meshd.toml", &text);
        mesh.start_node_with(0, &["--config", &file]);
        let host = &mesh.nodes[0].host;
        let server: IpAddr = ADDRESS.parse().expect("a literal");
        mesh.wait_until("the node answers", || {
            ask(host, server, "n1.node.mesh.", RecordType::A, false).is_some()
        });
        for (again, tcp) in [true, false].into_iter().enumerate() {
            let name = format!("www{n}{again}.example.com.");
            let found = Answer {
                code: ResponseCode::NoError,
                data: vec![ELSEWHERE.to_string()],
                authority: vec![],
            };
            // Over UDP it has to be remembered: the client gives up after 2 s.
            assert_eq!(
                ask(host, server, &name, RecordType::A, tcp),
                Some(found),
                "{upstream} tcp: {tcp}"
            );
            // The node waits that long for a reply to the forms that are not answered.
            std::thread::sleep(Duration::from_secs(3));
        }
    }
}
