//! Over a pipe, with an upstream that answers when it likes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{DuplexStream, duplex};
use tokio::net::UdpSocket;

use super::*;
use crate::dns::answer::tests::{HEALTHY, netmap, zone_of};
use crate::dns::forward::Server;
use crate::dns::zone::WhenNoneUsable;
use crate::dns::{Allowed, Upstream};

const CLIENT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 210, 1, 7)), 4711);

fn query(id: u16, name: &str) -> Vec<u8> {
    typed_query(id, name, RecordType::A)
}

fn typed_query(id: u16, name: &str, record_type: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).expect("a literal");
    message.add_query(Query::query(name, record_type));
    let bytes = message.to_vec().expect("a small message");
    let length = u16::try_from(bytes.len()).expect("short");
    [&length.to_be_bytes()[..], &bytes].concat()
}

/// The client's end of a connection. Names outside the mesh are forwarded to `upstream`.
fn connect(upstream: SocketAddr) -> DuplexStream {
    let zone = zone_of(&netmap(HEALTHY), &[], WhenNoneUsable::All);
    let servers = Upstream::new();
    servers.set(&[Server::from(upstream)], &BTreeSet::new());
    let all = Allowed::new(vec!["10.210.0.0/16".parse().expect("a literal")]);
    let resolver = Arc::new(Resolver::new(
        Arc::new(ArcSwap::from_pointee(zone)),
        Arc::new(ArcSwap::from_pointee(all)),
        Arc::new(servers),
    ));
    let (here, there) = duplex(64 * 1024);
    tokio::spawn(async move { converse(there, CLIENT, &resolver).await });
    here
}

async fn socket() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

/// The number of the next reply.
async fn next(stream: &mut DuplexStream) -> u16 {
    let reply = async {
        let length = stream.read_u16().await?;
        let mut bytes = vec![0; length.into()];
        stream.read_exact(&mut bytes).await?;
        Ok::<_, io::Error>(Message::from_vec(&bytes).expect("a reply that parses"))
    };
    let reply = timeout(Duration::from_secs(60), reply).await;
    reply
        .expect("a reply in time")
        .expect("the connection stays")
        .metadata
        .id
}

fn empty(query: &Message) -> Vec<u8> {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.queries.clone_from(&query.queries);
    reply.to_vec().expect("a small message")
}

#[tokio::test]
async fn a_query_without_an_answer_delays_no_other() {
    let (socket, upstream) = socket().await;
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..length]).expect("ours");
            let name = query.queries[0].name().to_lowercase().to_string();
            if name.starts_with("alive") {
                let _ = socket.send_to(&empty(&query), client).await;
            }
        }
    });
    let mut stream = connect(upstream);
    let queries = [
        query(1, "dead.example.org."),
        query(2, "web.svc.mesh."),
        query(3, "alive.example.org."),
    ];
    stream.write_all(&queries.concat()).await.expect("a pipe");
    // The client sends no more queries, and waits.
    stream.shutdown().await.expect("a pipe");
    assert_eq!(next(&mut stream).await, 2);
    assert_eq!(next(&mut stream).await, 3);
    assert_eq!(next(&mut stream).await, 1);
    assert_eq!(stream.read(&mut [0]).await.expect("a pipe"), 0);
}

#[tokio::test]
async fn so_many_queries_of_a_connection_are_forwarded_at_once_and_no_more() {
    let (socket, upstream) = socket().await;
    let most = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&most);
    tokio::spawn(async move {
        let mut waiting: BTreeMap<String, (Vec<u8>, SocketAddr)> = BTreeMap::new();
        let mut answered = BTreeSet::new();
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..length]).expect("ours");
            let name = query.queries[0].name().to_lowercase().to_string();
            if !answered.contains(&name) {
                waiting.insert(name, (empty(&query), client));
            }
            {
                let mut most = counted.lock().expect("nobody panics with it");
                *most = waiting.len().max(*most);
            }
            if waiting.len() < MAX_IN_FLIGHT {
                continue;
            }
            for (name, (reply, client)) in std::mem::take(&mut waiting) {
                let _ = socket.send_to(&reply, client).await;
                answered.insert(name);
            }
        }
    });
    let mut stream = connect(upstream);
    let count = 2 * MAX_IN_FLIGHT as u16;
    for id in 0..count {
        let query = query(id, &format!("n{id}.example.org."));
        stream.write_all(&query).await.expect("a pipe");
    }
    let mut replied = BTreeSet::new();
    for _ in 0..count {
        replied.insert(next(&mut stream).await);
    }
    assert_eq!(replied.len(), usize::from(count));
    assert_eq!(
        *most.lock().expect("nobody panics with it"),
        MAX_IN_FLIGHT,
        "all at once, and not one more"
    );
}

#[tokio::test]
async fn over_a_stream_a_client_without_a_place_waits_and_loses_nothing() {
    let (_socket, upstream) = socket().await;
    let mut stream = connect(upstream);
    // The fast path does not answer this type, and there are more queries than a client has places.
    let count = 500;
    let queries = (0..count).flat_map(|id| typed_query(id, "web.svc.mesh.", RecordType::SRV));
    let queries: Vec<u8> = queries.collect();
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let send = async { writer.write_all(&queries).await.expect("a pipe") };
    let receive = async {
        let mut replied = BTreeSet::new();
        while replied.len() < usize::from(count) {
            let length = reader.read_u16().await.expect("the connection stays");
            let mut bytes = vec![0; length.into()];
            reader.read_exact(&mut bytes).await.expect("a pipe");
            let reply = Message::from_vec(&bytes).expect("a reply that parses");
            assert!(!reply.answers.is_empty() && !reply.metadata.truncation);
            replied.insert(reply.metadata.id);
        }
    };
    let both = async { tokio::join!(send, receive) };
    timeout(Duration::from_secs(60), both)
        .await
        .expect("a reply to each");
}

#[tokio::test]
async fn queries_may_arrive_in_any_pieces_and_one_that_is_too_long_closes_the_connection() {
    let (_socket, upstream) = socket().await;
    let mut stream = connect(upstream);
    let queries = [query(1, "web.svc.mesh."), query(2, "n1.node.mesh.")].concat();
    for byte in queries {
        stream.write_all(&[byte]).await.expect("a pipe");
    }
    assert_eq!(next(&mut stream).await, 1);
    assert_eq!(next(&mut stream).await, 2);
    let long = [&query(3, "web.svc.mesh.")[..], &[0xff; 64]].concat();
    stream.write_all(&long).await.expect("a pipe");
    assert_eq!(next(&mut stream).await, 3);
    assert_eq!(stream.read(&mut [0]).await.expect("a pipe"), 0);
}
