use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

mod misbehaving;

/// What a server of the test does with a query.
type Reply = fn(&Message) -> Option<Message>;

/// A port that is free for both; some that are free for UDP are not for TCP.
async fn one_port(at: IpAddr) -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let socket = UdpSocket::bind((at, 0)).await.expect("loopback");
        let address = socket.local_addr().expect("bound");
        if let Ok(listener) = TcpListener::bind(address).await {
            return (socket, listener);
        }
    }
    panic!("no port is free for UDP and TCP");
}

/// Serves UDP and TCP on one port; counts the queries.
async fn server(udp: Reply, tcp: Reply) -> (SocketAddr, Arc<AtomicUsize>) {
    let (socket, listener) = one_port(Ipv4Addr::LOCALHOST.into()).await;
    let address = socket.local_addr().expect("bound");
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            counted.fetch_add(1, Ordering::Relaxed);
            let query = Message::from_vec(&buffer[..length]).expect("ours");
            if let Some(reply) = udp(&query) {
                let bytes = reply.to_vec().expect("a small message");
                socket.send_to(&bytes, client).await.expect("loopback");
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let length = stream.read_u16().await.expect("a length");
            let mut bytes = vec![0; length.into()];
            stream.read_exact(&mut bytes).await.expect("a query");
            if let Some(reply) = tcp(&Message::from_vec(&bytes).expect("ours")) {
                let bytes = reply.to_vec().expect("encodable");
                let length = u16::try_from(bytes.len()).expect("short");
                let framed = [&length.to_be_bytes()[..], &bytes].concat();
                stream.write_all(&framed).await.expect("loopback");
            }
        }
    });
    (address, count)
}

fn silent(_: &Message) -> Option<Message> {
    None
}

fn empty(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.queries.clone_from(&query.queries);
    reply
}

fn good(query: &Message) -> Option<Message> {
    let mut reply = empty(query);
    reply.metadata.authentic_data = query.metadata.checking_disabled;
    let data = RData::A(std::net::Ipv4Addr::new(192, 0, 2, 1).into());
    let name = query.queries.first()?.name().clone();
    reply.add_answer(Record::from_rdata(name, 1, data));
    Some(reply)
}

fn cut(query: &Message) -> Option<Message> {
    let mut reply = empty(query);
    reply.metadata.truncation = true;
    Some(reply)
}

/// Returns a good reply with the query name in lower case.
fn lower(query: &Message) -> Option<Message> {
    let mut reply = good(query)?;
    for query in &mut reply.queries {
        query.set_name(query.name().to_lowercase());
    }
    Some(reply)
}

fn failing(query: &Message) -> Option<Message> {
    let mut reply = empty(query);
    reply.metadata.response_code = ResponseCode::ServFail;
    Some(reply)
}

/// Knows no EDNS.
fn old(query: &Message) -> Option<Message> {
    if query.edns.is_none() {
        return good(query);
    }
    let mut reply = empty(query);
    reply.metadata.response_code = ResponseCode::FormErr;
    Some(reply)
}

fn asked() -> Question {
    Question::new(
        Name::from_ascii("www.example.org.").expect("a literal"),
        RecordType::A,
    )
}

fn upstream(servers: &[SocketAddr]) -> Upstream {
    let upstream = Upstream::new();
    let servers: Vec<Server> = servers.iter().copied().map(Server::from).collect();
    upstream.set(&servers, &BTreeSet::new());
    upstream
}

#[tokio::test]
async fn the_next_upstream_is_queried_when_one_fails_and_the_order_stays() {
    let (bad, tries) = server(failing, silent).await;
    let (working, _) = server(good, silent).await;
    let upstream = upstream(&[bad, working]);
    let answer = upstream.ask(&asked()).await;
    assert_eq!(answer.source, Source::Upstream(working));
    assert_eq!(answer.answers.len(), 1);
    let other = Question::new(
        Name::from_ascii("other.example.org.").expect("a literal"),
        RecordType::A,
    );
    assert_eq!(upstream.ask(&other).await.source, Source::Upstream(working));
    assert_eq!(tries.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_truncated_response_or_one_with_changed_case_is_queried_again_over_a_stream() {
    for udp in [cut as Reply, lower] {
        let (address, _) = server(udp, good).await;
        let answer = upstream(&[address]).ask(&asked()).await;
        assert_eq!(answer.code, ResponseCode::NoError);
        assert_eq!(answer.answers.len(), 1);
    }
}

#[tokio::test]
async fn a_server_without_edns_is_queried_without_it() {
    let (address, _) = server(old, silent).await;
    assert_eq!(upstream(&[address]).ask(&asked()).await.answers.len(), 1);
}

#[tokio::test]
async fn the_clients_cd_goes_up_and_the_upstreams_ad_comes_down() {
    let (address, _) = server(good, silent).await;
    let upstream = upstream(&[address]);
    assert!(!upstream.ask(&asked()).await.authentic);
    let unchecked = Question {
        checking_disabled: true,
        ..asked()
    };
    assert!(upstream.ask(&unchecked).await.authentic);
}

#[tokio::test]
async fn the_same_query_is_sent_once_and_then_answered_from_the_cache() {
    let (address, count) = server(good, silent).await;
    let upstream = Arc::new(upstream(&[address]));
    let all: Vec<_> = (0..50)
        .map(|_| {
            let upstream = Arc::clone(&upstream);
            tokio::spawn(async move { upstream.ask(&asked()).await })
        })
        .collect();
    for one in all {
        assert_eq!(one.await.expect("no panic").answers.len(), 1);
    }
    assert_eq!(count.load(Ordering::Relaxed), 1);
    let again = upstream.ask(&asked()).await.source;
    assert!(matches!(again, Source::Cache { from, .. } if from == address));
}

#[tokio::test]
async fn without_an_answer_a_query_fails_and_a_cached_one_gets_a_stale_answer() {
    let nobody = upstream(&[]);
    assert_eq!(nobody.ask(&asked()).await.code, ResponseCode::ServFail);
    let (address, _) = server(good, silent).await;
    let upstream = upstream(&[address]);
    upstream.ask(&asked()).await;
    upstream.set(&[address.into()], &BTreeSet::from([address.ip()]));
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for _ in 0..2 {
        let stale = upstream.ask(&asked()).await;
        assert!(matches!(stale.source, Source::Stale { .. }));
        assert_eq!((stale.answers.len(), stale.answers[0].ttl), (1, 1));
    }
}

#[tokio::test]
async fn this_node_is_not_queried_at_an_ipv4_mapped_address_either() {
    let (address, _) = server(good, good).await;
    let SocketAddr::V4(v4) = address else {
        panic!("a server at 127.0.0.1");
    };
    let mapped = SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()));
    let upstream = upstream(&[]);
    upstream.set(&[mapped.into()], &BTreeSet::from([address.ip()]));
    assert_eq!(upstream.ask(&asked()).await.code, ResponseCode::ServFail);
}

/// A server over TLS with a certificate for `dns.test`. Returns its address, a pool that trusts it, and its number of
/// connections. After `replies` on a connection it is silent there.
async fn tls_server(replies: usize) -> (SocketAddr, Pool, Arc<AtomicUsize>) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["dns.test".to_owned()])
        .and_then(|parameters| parameters.self_signed(&key))
        .expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).expect("a certificate");
    let private = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("these versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private.into())
        .expect("a key that fits");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut left = replies;
                while let Ok(length) = stream.read_u16().await {
                    let mut bytes = vec![0; length.into()];
                    stream.read_exact(&mut bytes).await.expect("a query");
                    if left == 0 {
                        continue;
                    }
                    left -= 1;
                    let reply = good(&Message::from_vec(&bytes).expect("ours")).expect("an answer");
                    let bytes = reply.to_vec().expect("encodable");
                    let length = u16::try_from(bytes.len()).expect("short");
                    let framed = [&length.to_be_bytes()[..], &bytes].concat();
                    stream.write_all(&framed).await.expect("it waits");
                    stream.flush().await.expect("it waits");
                }
            });
        }
    });
    (address, Pool::with_roots(roots), calls)
}

/// Asks for two names over TLS of one who has to be `name`; gives the codes.
async fn over_tls(address: SocketAddr, pool: Pool, name: &str) -> [ResponseCode; 2] {
    let shared = Shared {
        pool,
        ..Shared::default()
    };
    let upstream = Upstream {
        shared: Arc::new(shared),
    };
    let server = format!("tls://{name}@{address}")
        .parse()
        .expect("an upstream");
    upstream.set(&[server], &BTreeSet::new());
    let ask = async |name: &str| {
        let name = Name::from_ascii(name).expect("a literal");
        upstream.ask(&Question::new(name, RecordType::A)).await.code
    };
    [ask("one.example.org.").await, ask("two.example.org.").await]
}

#[tokio::test]
async fn over_tls_one_connection_serves_for_several_questions() {
    let (address, tls, calls) = tls_server(usize::MAX).await;
    let codes = over_tls(address, tls, "dns.test").await;
    assert_eq!(codes, [ResponseCode::NoError; 2]);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_silent_tls_connection_is_replaced() {
    let (address, tls, calls) = tls_server(1).await;
    let codes = over_tls(address, tls, "dns.test").await;
    assert_eq!(codes, [ResponseCode::NoError; 2]);
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_server_with_a_wrong_certificate_receives_no_query() {
    let (address, tls, calls) = tls_server(usize::MAX).await;
    let codes = over_tls(address, tls, "other.test").await;
    assert_eq!(codes, [ResponseCode::ServFail; 2]);
    assert_eq!(calls.load(Ordering::Relaxed), 0, "no handshake ends");
    let nobody = Pool::with_roots(rustls::RootCertStore::empty());
    let codes = over_tls(address, nobody, "dns.test").await;
    assert_eq!(codes, [ResponseCode::ServFail; 2]);
}
