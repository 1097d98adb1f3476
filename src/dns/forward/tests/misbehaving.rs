//! Upstreams that misbehave, on loopback, and each combination of what they do wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use hickory_proto::rr::rdata::SOA;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Kept,
    /// The question comes back in lower case.
    Lost,
    /// Only lower case is found.
    Sensitive,
    /// Mixed case is not answered.
    Dropped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edns {
    Handled,
    Dropped,
    FormErr,
}

/// What stands before an upstream in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// One that does not answer.
    Silent,
    /// One whose port is closed.
    Closed,
    /// Three that no route leads to.
    Unreachable,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Behaviour {
    pub(super) delay: Duration,
    pub(super) case: Case,
    pub(super) edns: Edns,
    /// Whether it answers over TCP.
    pub(super) stream: bool,
    pub(super) ttl: u32,
}

pub(super) const GOOD: Behaviour = Behaviour {
    delay: Duration::ZERO,
    case: Case::Kept,
    edns: Edns::Handled,
    stream: true,
    ttl: 60,
};

/// A running server. Its behaviour may be changed.
pub(super) struct Misbehaving {
    pub(super) address: SocketAddr,
    pub(super) queries: Arc<AtomicUsize>,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Misbehaving {
    pub(super) async fn start(at: IpAddr, behaviour: Behaviour) -> Self {
        let (socket, listener) = one_port(at).await;
        let server = Self {
            address: socket.local_addr().expect("bound"),
            queries: Arc::default(),
            behaviour: Arc::new(Mutex::new(behaviour)),
        };
        let behaves = Arc::clone(&server.behaviour);
        if behaviour.stream {
            tokio::spawn(streams(listener, Arc::clone(&behaves)));
        }
        let (socket, count) = (Arc::new(socket), Arc::clone(&server.queries));
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::Relaxed);
                let query = Message::from_vec(&buffer[..length]).expect("ours");
                let (socket, behaviour) = (Arc::clone(&socket), *lock(&behaves));
                tokio::spawn(async move {
                    tokio::time::sleep(behaviour.delay).await;
                    if let Some(reply) = behaviour.reply(&query, false) {
                        let bytes = reply.to_vec().expect("a small message");
                        // The client may have gone.
                        let _ = socket.send_to(&bytes, client).await;
                    }
                });
            }
        });
        server
    }

    pub(super) fn behave(&self, behaviour: Behaviour) {
        *lock(&self.behaviour) = behaviour;
    }

    pub(super) fn count(&self) -> usize {
        self.queries.load(Ordering::Relaxed)
    }
}

async fn streams(listener: TcpListener, behaviour: Arc<Mutex<Behaviour>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let behaviour = *lock(&behaviour);
        tokio::spawn(async move {
            let length = stream.read_u16().await?;
            let mut bytes = vec![0; length.into()];
            stream.read_exact(&mut bytes).await?;
            tokio::time::sleep(behaviour.delay).await;
            let query = Message::from_vec(&bytes).expect("ours");
            if let Some(reply) = behaviour.reply(&query, true) {
                let bytes = reply.to_vec().expect("encodable");
                let length = u16::try_from(bytes.len()).expect("short");
                let framed = [&length.to_be_bytes()[..], &bytes].concat();
                stream.write_all(&framed).await?;
            }
            Ok::<(), std::io::Error>(())
        });
    }
}

impl Behaviour {
    fn reply(&self, query: &Message, stream: bool) -> Option<Message> {
        let name = query.queries.first()?.name();
        let mixed = !name.eq_case(&name.to_lowercase());
        if mixed && self.case == Case::Dropped {
            return None;
        }
        let mut reply = empty(query);
        if query.edns.is_some() {
            match self.edns {
                Edns::Handled => {}
                Edns::Dropped if stream => {}
                Edns::Dropped => return None,
                Edns::FormErr => {
                    reply.metadata.response_code = ResponseCode::FormErr;
                    return Some(reply);
                }
            }
        }
        let exists = name.to_lowercase().to_string().starts_with("www");
        if exists && !(mixed && self.case == Case::Sensitive) {
            let data = RData::A(Ipv4Addr::new(192, 0, 2, 1).into());
            reply.add_answer(Record::from_rdata(name.clone(), self.ttl, data));
        } else {
            reply.metadata.response_code = ResponseCode::NXDomain;
            let zone = || Name::from_ascii("example.org.").expect("a literal");
            let soa = RData::SOA(SOA::new(zone(), zone(), 1, 1, 1, 1, 20));
            reply.authorities = vec![Record::from_rdata(zone(), 900, soa)];
        }
        if self.case == Case::Lost {
            for query in &mut reply.queries {
                query.set_name(query.name().to_lowercase());
            }
        }
        Some(reply)
    }
}

/// Loopback of both families, where there are both.
fn families() -> Vec<IpAddr> {
    let all = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ];
    let there = |ip: &IpAddr| std::net::UdpSocket::bind((*ip, 0)).is_ok();
    all.into_iter().filter(there).collect()
}

pub(super) async fn code(upstream: &Upstream, name: &str) -> ResponseCode {
    let name = Name::from_ascii(name).expect("a literal");
    let answer = upstream.ask(&Question::new(name, RecordType::A)).await;
    assert_eq!(
        answer.answers.is_empty(),
        answer.code != ResponseCode::NoError
    );
    answer.code
}

/// Queries names that exist and one that does not. An upstream with `behaviour` stands behind the upstreams `before`.
async fn combination(at: IpAddr, before: Before, behaviour: Behaviour) {
    let closed = async || one_port(at).await.0.local_addr().expect("bound");
    let silent = one_port(at).await;
    let unreachable: SocketAddr = match at {
        // Broadcasting needs a permission, and a link-local address needs an interface.
        IpAddr::V4(_) => (Ipv4Addr::BROADCAST, 53).into(),
        IpAddr::V6(_) => "[fe80::1]:53".parse().expect("a literal"),
    };
    let mut servers = match before {
        Before::Nothing => Vec::new(),
        Before::Silent => vec![silent.0.local_addr().expect("bound")],
        Before::Closed => vec![closed().await],
        Before::Unreachable => vec![unreachable; 3],
    };
    servers.push(Misbehaving::start(at, behaviour).await.address);
    let upstream = upstream(&servers);
    for (name, expected) in [
        ("www.example.org.", ResponseCode::NoError),
        ("none.example.org.", ResponseCode::NXDomain),
        ("www2.example.org.", ResponseCode::NoError),
        ("none2.example.org.", ResponseCode::NXDomain),
    ] {
        let found = code(&upstream, name).await;
        assert_eq!(
            found, expected,
            "{name} of {behaviour:?} at {at} behind {before:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_combination_of_misbehaviours_is_answered_right_in_both_families() {
    let mut tasks = tokio::task::JoinSet::new();
    for at in families() {
        for before in [
            Before::Nothing,
            Before::Silent,
            Before::Closed,
            Before::Unreachable,
        ] {
            for case in [Case::Kept, Case::Lost, Case::Sensitive, Case::Dropped] {
                for edns in [Edns::Handled, Edns::Dropped, Edns::FormErr] {
                    for (delay, stream) in [(0, false), (0, true), (1_300, false)] {
                        let behaviour = Behaviour {
                            delay: Duration::from_millis(delay),
                            case,
                            edns,
                            stream,
                            ..GOOD
                        };
                        tasks.spawn(combination(at, before, behaviour));
                    }
                }
            }
        }
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn the_first_upstream_is_queried_again_as_soon_as_it_answers_again() {
    let at = Ipv4Addr::LOCALHOST.into();
    let first = Misbehaving::start(
        at,
        Behaviour {
            edns: Edns::Dropped,
            case: Case::Dropped,
            delay: Duration::from_secs(60),
            ..GOOD
        },
    )
    .await;
    let second = Misbehaving::start(at, GOOD).await;
    let upstream = upstream(&[first.address, second.address]);
    let source = async |n: usize| {
        let name = Name::from_ascii(format!("www{n}.example.org.")).expect("a name");
        upstream
            .ask(&Question::new(name, RecordType::A))
            .await
            .source
    };
    assert_eq!(source(0).await, Source::Upstream(second.address));
    first.behave(Behaviour {
        edns: Edns::Dropped,
        ..GOOD
    });
    let mut n = 1;
    while source(n).await != Source::Upstream(first.address) {
        n += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // It stays the first, and the second is not needed.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let count = second.count();
    assert_eq!(source(n + 1).await, Source::Upstream(first.address));
    assert_eq!(second.count(), count);
}

#[tokio::test]
async fn an_upstream_that_answers_after_a_second_and_a_half_is_used() {
    for at in families() {
        let delay = Duration::from_millis(1_500);
        let slow = Misbehaving::start(at, Behaviour { delay, ..GOOD }).await;
        let upstream = upstream(&[slow.address]);
        for name in ["www1.example.org.", "www2.example.org."] {
            assert_eq!(code(&upstream, name).await, ResponseCode::NoError);
        }
    }
}

#[tokio::test]
async fn the_refresh_goes_on_when_the_client_is_answered_stale() {
    let at = Ipv4Addr::LOCALHOST.into();
    let server = Misbehaving::start(at, Behaviour { ttl: 1, ..GOOD }).await;
    let upstream = upstream(&[server.address]);
    upstream.ask(&asked()).await;
    server.behave(Behaviour {
        delay: STALE_TIMEOUT + Duration::from_millis(500),
        ..GOOD
    });
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let stale = upstream.ask(&asked()).await.source;
    assert!(matches!(stale, Source::Stale { .. }), "{stale:?}");
    let mut fresh = upstream.ask(&asked()).await.source;
    while matches!(fresh, Source::Stale { .. }) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fresh = upstream.ask(&asked()).await.source;
    }
    assert!(matches!(fresh, Source::Cache { .. }), "{fresh:?}");
}

#[tokio::test]
async fn flights_without_clients_are_bounded() {
    let silent = one_port(Ipv4Addr::LOCALHOST.into()).await;
    let upstream = upstream(&[silent.0.local_addr().expect("bound")]);
    let leave = async |n: usize| {
        let name = Name::from_ascii(format!("n{n}.example.org.")).expect("a name");
        let asked = Question::new(name, RecordType::A);
        let _ = timeout(Duration::from_millis(1), upstream.ask(&asked)).await;
    };
    for n in 0..BACKGROUND + 50 {
        leave(n).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(lock(&upstream.shared.flights).len() <= BACKGROUND);
    assert_eq!(upstream.shared.background.available_permits(), 0);
}

#[tokio::test]
async fn unanswered_queries_use_a_limited_number_of_sockets_and_do_not_block_others() {
    const HANGING: usize = 300;
    let at = Ipv4Addr::LOCALHOST.into();
    let open = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let server = Misbehaving::start(
        at,
        Behaviour {
            delay: Duration::from_secs(60),
            ..GOOD
        },
    )
    .await;
    let upstream = Arc::new(upstream(&[server.address]));
    let before = open();
    let mut hanging = tokio::task::JoinSet::new();
    for n in 0..HANGING {
        let upstream = Arc::clone(&upstream);
        hanging.spawn(async move { code(&upstream, &format!("www{n}.example.org.")).await });
    }
    // The first form, two simpler ones and the simplest. Only a hang takes as long as this waits.
    let end = Instant::now() + Duration::from_secs(30);
    while server.count() <= 3 * HANGING {
        assert!(Instant::now() < end, "{}", server.count());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let sockets = open() - before;
    assert!(sockets <= HANGING + SOCKETS, "{sockets}");
    server.behave(GOOD);
    assert_eq!(
        code(&upstream, "www.example.org.").await,
        ResponseCode::NoError
    );
    for found in hanging.join_all().await {
        assert_eq!(found, ResponseCode::ServFail);
    }
}
