//! The connections and forwarded queries of a resolver are for its own node and its containers. Another node counts as
//! one client, however many addresses it has: it may hold few connections and gets answers about names of the mesh
//! only. No client fills the memory.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::resolver::{
    LIMIT, Lab, an_address, container, framed, name_of, next_id, of_peer, query, reply,
    resident_kib,
};

fn extended_error(reply: &Message) -> Option<u16> {
    match reply.edns.as_ref()?.option(EdnsCode::from(15))? {
        EdnsOption::Unknown(_, bytes) => Some(u16::from_be_bytes(*bytes.first_chunk()?)),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_is_answered_names_of_the_mesh_and_nothing_is_asked_for_it() {
    let lab = Lab::start(an_address).await;
    let peer = of_peer(7, 2);
    for (name, record_type) in [
        ("www.example.org.", RecordType::A),
        // These are queries that the fast path does not answer, and a reverse name outside the mesh.
        ("www.example.org.", RecordType::ANY),
        ("*.example.org.", RecordType::TXT),
        ("1.2.0.192.in-addr.arpa.", RecordType::PTR),
    ] {
        let query = query(next_id(), name, record_type);
        let replies = [
            lab.ask(peer, &query).await,
            lab.ask_streamed(peer, &query).await,
        ];
        for reply in replies {
            let reply = reply.expect("a reply");
            assert_eq!(
                reply.metadata.response_code,
                ResponseCode::Refused,
                "{name}"
            );
            assert!(!reply.metadata.recursion_available, "{name}");
            assert_eq!(extended_error(&reply), Some(18), "{name}: prohibited");
        }
    }
    assert_eq!(lab.asked_for(""), 0, "the upstream was asked");
    for (name, record_type) in [
        ("web.svc.mesh.", RecordType::A),
        ("web.svc.mesh.", RecordType::SRV),
        ("2.1.210.127.in-addr.arpa.", RecordType::PTR),
    ] {
        let query = query(next_id(), name, record_type);
        let reply = lab.ask(peer, &query).await.expect("a reply");
        assert!(!reply.answers.is_empty(), "{name}");
    }
    let query = query(next_id(), "www.example.org.", RecordType::A);
    let reply = lab.ask(container(1, 2), &query).await.expect("a reply");
    assert_eq!(reply.answers.len(), 1, "containers have recursion");
}

/// Whether the server still holds the connection open, so that a query on it is answered.
async fn is_held(stream: &mut TcpStream) -> bool {
    let query = query(next_id(), "web.svc.mesh.", RecordType::A);
    if stream.write_all(&framed(&query)).await.is_err() {
        return false;
    }
    matches!(timeout(LIMIT, stream.read_u16()).await, Ok(Ok(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_idle_connections_are_few_from_however_many_addresses() {
    let lab = Lab::start(an_address).await;
    let mut streams = Vec::new();
    for n in 2..18 {
        for _ in 0..32 {
            streams.extend(lab.connect(of_peer(7, n)).await);
        }
    }
    // A container and other nodes can still connect.
    let query = query(next_id(), "web.svc.mesh.", RecordType::A);
    for from in [container(1, 2), of_peer(1, 1), of_peer(8, 1)] {
        let reply = lab.ask_streamed(from, &query).await;
        assert_eq!(reply.map(|r| r.answers.len()), Some(1), "{from}");
    }
    let mut held = 0;
    for stream in &mut streams {
        held += usize::from(is_held(stream).await);
    }
    assert!((1..=8).contains(&held), "{held} of {}", streams.len());
}

/// All containers of one bridge together leave room for forwarded queries of others.
#[tokio::test(flavor = "multi_thread")]
async fn hanging_queries_of_a_whole_bridge_leave_forwarding_to_others() {
    let lab = Lab::start(an_address).await;
    let (inside, _replies) = lab.inside();
    let at = std::net::SocketAddr::from(([127, 210, 0, 53], 53));
    for n in 0..2_000 {
        let from = container(1, 2 + n % 50);
        let query = query(next_id(), &format!("hang{n}.example.org."), RecordType::A);
        let _ = inside.datagram((from, 4_000).into(), at, &query);
    }
    let hanging = async {
        while lab.asked_for("hang") < 100 {
            sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, hanging)
        .await
        .expect("the queries are forwarded");
    let query = query(next_id(), "www.example.org.", RecordType::A);
    let reply = lab.ask(container(2, 2), &query).await.expect("a reply");
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(reply.answers.len(), 1);
}

/// Replies over TCP with 57 kB of text for names that begin with `text`, and with 120 addresses for other names. Replies over UDP
/// are truncated.
fn large(query: &Message, streamed: bool) -> Option<Vec<u8>> {
    let mut reply = reply(query);
    reply.metadata.truncation = !streamed;
    if !streamed {
        return reply.to_vec().ok();
    }
    let name = query.queries.first()?.name().clone();
    let data: Vec<RData> = match name_of(query).starts_with("text") {
        true => {
            let strings = || (0..4).map(|_| "t".repeat(250)).collect();
            (0..57).map(|_| RData::TXT(TXT::new(strings()))).collect()
        }
        false => (0..120).map(|n| RData::A(A::new(192, 0, 2, n))).collect(),
    };
    for data in data {
        reply.add_answer(Record::from_rdata(name.clone(), 3_600, data));
    }
    reply.to_vec().ok()
}

/// Looks up `count` names over TCP from eight clients. Returns how many were answered.
async fn look_up(lab: &std::sync::Arc<Lab>, start: &'static str, count: u16) -> usize {
    let mut clients = JoinSet::new();
    for client in 0..8 {
        let lab = std::sync::Arc::clone(lab);
        clients.spawn(async move {
            let record_type = match start {
                "text" => RecordType::TXT,
                _ => RecordType::A,
            };
            let mut answered = 0;
            for n in (client..count).step_by(8) {
                let query = query(next_id(), &format!("{start}{n}.example.org."), record_type);
                let reply = lab.ask_streamed(container(1, 2 + client), &query).await;
                answered += usize::from(reply.is_some_and(|r| r.answers.len() > 50));
            }
            answered
        });
    }
    clients.join_all().await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_do_not_fill_the_memory() {
    let lab = std::sync::Arc::new(Lab::start(large).await);
    assert!(look_up(&lab, "text", 40).await > 0);
    assert!(look_up(&lab, "addresses", 40).await > 0);
    let before = resident_kib();
    // The second kind of answer has many small records, which take ten times as much memory as they take in a message.
    for start in ["text", "addresses"] {
        let answered = look_up(&lab, start, 1_500).await;
        let grown = resident_kib().saturating_sub(before);
        println!("{answered} large answers to {start}: {grown} KiB more");
        assert!(answered > 1_000, "{answered}");
        assert!(grown < 24 * 1024, "{grown} KiB");
    }
}

/// A client sends queries for large answers over many connections and reads no reply.
#[tokio::test(flavor = "multi_thread")]
async fn large_answers_that_nobody_reads_do_not_fill_the_memory() {
    let lab = std::sync::Arc::new(Lab::start(large).await);
    assert!(look_up(&lab, "text", 40).await > 0);
    let before = resident_kib();
    let mut streams = Vec::new();
    for _ in 0..32 {
        let mut stream = lab.connect(container(1, 9)).await.expect("a place");
        let queries = (0..64).flat_map(|n| {
            let name = format!("text{}.example.org.", n % 32);
            framed(&query(next_id(), &name, RecordType::TXT))
        });
        let queries: Vec<u8> = queries.collect();
        stream.write_all(&queries).await.expect("a connection");
        streams.push(stream);
    }
    // Another client is answered, and the replies that wait for the first client are bounded.
    let one = query(next_id(), "text1.example.org.", RecordType::TXT);
    let reply = lab.ask_streamed(container(2, 2), &one).await;
    assert_eq!(reply.map(|r| r.answers.len()), Some(57));
    let grown = resident_kib().saturating_sub(before);
    println!(
        "{} connections that read nothing: {grown} KiB more",
        streams.len()
    );
    assert!(grown < 24 * 1024, "{grown} KiB");
}
