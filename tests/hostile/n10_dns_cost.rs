//! A query costs the threads that carry packets a bounded time, whatever the zone holds. The work for large answers is taken from
//! the client's own share of a core, so that it costs other clients nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use meshd::dns::TunnelDns;
use meshd::dns::in_tunnel::Handled;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use crate::resolver::{LIMIT, Lab, an_address, container, next_id, query, reply};

const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 210, 0, 53);

/// Passes a query to the resolver as a data thread does.
fn ask(inside: &TunnelDns, from: Ipv4Addr, name: &str, record_type: RecordType) -> (u16, Handled) {
    let id = next_id();
    let query = query(id, name, record_type);
    let client = SocketAddr::new(from.into(), 4_000);
    let taken = inside.datagram(client, SocketAddr::new(DNS_ADDRESS.into(), 53), &query);
    (id, taken)
}

/// Waits for the reply with this message id. Other replies are dropped.
async fn reply_of(
    id: u16,
    replies: &mut UnboundedReceiver<(SocketAddr, Vec<u8>)>,
) -> Option<Message> {
    let found = async {
        while let Some((_, bytes)) = replies.recv().await {
            if bytes.first_chunk() == Some(&id.to_be_bytes()) {
                return Message::from_vec(&bytes).ok();
            }
        }
        None
    };
    timeout(LIMIT, found).await.ok()?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_thread_hands_over_all_but_plain_names_with_few_instances() {
    let lab = Lab::start(an_address).await;
    let (inside, mut replies) = lab.inside();
    let client = container(1, 2);
    for (name, record_type, at_least) in [
        ("many.svc.mesh.", RecordType::SRV, 8),
        ("_many._tcp.svc.mesh.", RecordType::SRV, 8),
        ("many.svc.mesh.", RecordType::TXT, 4),
        // These are addresses of services with more instances than a data thread visits, names outside the mesh, and
        // another type.
        ("many.svc.mesh.", RecordType::A, 8),
        ("large.svc.mesh.", RecordType::A, 8),
        ("www.example.org.", RecordType::A, 1),
        ("2.1.210.127.in-addr.arpa.", RecordType::PTR, 1),
        ("web.svc.mesh.", RecordType::ANY, 1),
    ] {
        let (id, taken) = ask(&inside, client, name, record_type);
        assert_eq!(taken, Handled::Later, "{name} {record_type}");
        let reply = reply_of(id, &mut replies).await.expect("a reply");
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.answers.len() >= at_least, "{name}: {reply:?}");
    }
    for name in ["web.svc.mesh.", "n1.node.mesh.", "never.svc.mesh."] {
        let (_, taken) = ask(&inside, client, name, RecordType::A);
        assert!(matches!(taken, Handled::Reply(_)), "{name}: {taken:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_asks_for_large_answers_spends_its_own_share() {
    let lab = Lab::start(an_address).await;
    let (inside, mut replies) = lab.inside();
    let (greedy, other) = (container(1, 2), container(1, 3));
    let begin = Instant::now();
    let mut taken = 0;
    for _ in 0..20_000 {
        let (_, one) = ask(&inside, greedy, "many.svc.mesh.", RecordType::SRV);
        taken += usize::from(one == Handled::Later);
        assert!(matches!(one, Handled::Later | Handled::Overload), "{one:?}");
    }
    // The share is a tenth of a core with a burst of 100 ms, and each answer costs at least 0.2 ms.
    let milliseconds = begin.elapsed().as_millis() as usize;
    assert!(
        taken <= 100 * 5 + milliseconds,
        "{taken} in {milliseconds} ms"
    );
    for (name, record_type) in [
        ("many.svc.mesh.", RecordType::SRV),
        ("www.example.org.", RecordType::A),
    ] {
        let (id, taken) = ask(&inside, other, name, record_type);
        assert_eq!(taken, Handled::Later, "{name}");
        let reply = reply_of(id, &mut replies).await.expect("a reply");
        assert!(!reply.answers.is_empty(), "{name}");
    }
    // A query that costs next to nothing is answered for both clients.
    for client in [greedy, other] {
        let (_, taken) = ask(&inside, client, "web.svc.mesh.", RecordType::A);
        assert!(matches!(taken, Handled::Reply(_)), "{taken:?}");
    }
}

/// Docker lets a container forge the addresses of all others on its bridge, so a bridge has a share of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_of_forged_addresses_spends_what_one_bridge_may() {
    let lab = Lab::start(an_address).await;
    let (inside, mut replies) = lab.inside();
    for n in 0..20_000 {
        let (_, taken) = ask(&inside, container(1, n), "many.svc.mesh.", RecordType::TXT);
        assert!(
            matches!(taken, Handled::Later | Handled::Overload),
            "{taken:?}"
        );
    }
    let (id, taken) = ask(&inside, container(2, 2), "many.svc.mesh.", RecordType::SRV);
    assert_eq!(taken, Handled::Later);
    assert!(reply_of(id, &mut replies).await.is_some());
}

/// Answers over TCP are taken from the same shares, so connections with many queries do not delay other clients.
#[tokio::test(flavor = "multi_thread")]
async fn large_answers_over_streams_spend_the_same_share() {
    let lab = Lab::start(an_address).await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = lab.connect(container(1, 2)).await.expect("a place");
        let query = query(next_id(), "many.svc.mesh.", RecordType::SRV);
        let many = crate::resolver::framed(&query).repeat(500);
        tokio::io::AsyncWriteExt::write_all(&mut stream, &many)
            .await
            .expect("a connection");
        streams.push(stream);
    }
    let one = query(next_id(), "many.svc.mesh.", RecordType::SRV);
    for from in [container(1, 3), container(2, 2)] {
        let reply = lab.ask(from, &one).await.expect("a reply");
        assert!(!reply.answers.is_empty());
        let reply = lab.ask_streamed(from, &one).await.expect("a reply");
        assert_eq!(reply.answers.len(), 32);
    }
}

/// Makes a reply whose SRV targets are long and compressed. SRV targets must not be compressed when a message is
/// encoded again, so 30 kB become 300 kB.
fn compressed(query: &Message, streamed: bool) -> Option<Vec<u8>> {
    let mut reply = reply(query);
    reply.metadata.truncation = !streamed;
    let mut bytes = reply.to_vec().ok()?;
    if !streamed {
        return Some(bytes);
    }
    let count: u16 = 1_400;
    bytes.get_mut(6..8)?.copy_from_slice(&count.to_be_bytes());
    let mut target = 0xc000;
    for n in 0..count {
        bytes.extend_from_slice(&[0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 60]);
        let name = match n {
            0 => {
                target |= bytes.len() as u16 + 8;
                let label = |byte| [&[63][..], &[byte; 63]].concat();
                [label(b'a'), label(b'b'), label(b'c'), vec![0]].concat()
            }
            _ => target.to_be_bytes().to_vec(),
        };
        bytes.extend_from_slice(&(6 + name.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 0]);
        bytes.extend_from_slice(&n.to_be_bytes());
        bytes.extend_from_slice(&name);
    }
    Some(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_stream_nothing_is_cut_so_no_client_asks_for_ever() {
    let lab = Lab::start(compressed).await;
    let query = query(next_id(), "_x._tcp.example.org.", RecordType::SRV);
    let cut = lab.ask(container(1, 2), &query).await.expect("a reply");
    assert!(cut.metadata.truncation, "it does not fit a datagram");
    let reply = lab.ask_streamed(container(1, 2), &query).await;
    let reply = reply.expect("a reply");
    assert!(!reply.metadata.truncation, "{:?}", reply.metadata);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    // The largest answers about names of the mesh fit into a message.
    let many = crate::resolver::query(next_id(), "many.svc.mesh.", RecordType::SRV);
    let reply = lab.ask_streamed(container(1, 2), &many).await;
    let reply = reply.expect("a reply");
    assert!(!reply.metadata.truncation);
    let targets = reply.answers.iter();
    assert_eq!(
        targets.filter(|r| matches!(r.data, RData::SRV(_))).count(),
        32
    );
}
