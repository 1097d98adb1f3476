//! A connection costs little until the client has proved a key, and a node has one stream.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::future::join_all;
use meshd::node::control::stream::{Event, Position, Stream as NodeStream, StreamConfig};
use meshd::protocol::control::MAX_MESSAGE;
use meshd::records::Envelope;
use meshd::records::envelope::{Purpose, Signature};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;

use super::n03_rates::{empty_store_of, offer};
use crate::kit::{
    Coordinator, Hello, Identity, Member, Raw, Stream, WAIT_TIMEOUT, frame, frame_header, raw,
    record,
};

/// A time longer than the deadline of an opening, and shorter than three intervals of the coordinator's pings.
const OPENING: Duration = Duration::from_secs(25);
const MIB: u64 = 1024 * 1024;

fn loopback(third: u8, last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, third, last).into()
}

/// Asserts that the coordinator's memory has grown by less than `most` MiB since it was `before` bytes.
fn assert_grown(coordinator: &Coordinator, before: u64, most: u64) {
    let grown = coordinator.memory().saturating_sub(before);
    println!("{} KiB more than before", grown / 1024);
    assert!(grown < most * MIB, "{} MiB", grown / MIB);
}

async fn tls_from(source: IpAddr, coordinator: &Coordinator) -> Option<TlsStream<TcpStream>> {
    let tcp = raw::tcp(source, coordinator.address()).await.ok()?;
    let tls = tokio::time::timeout(WAIT_TIMEOUT, raw::tls(tcp)).await;
    tls.ok()?.ok()
}

async fn websocket_from(source: IpAddr, coordinator: &Coordinator) -> Option<Raw> {
    Raw::upgrade(tls_from(source, coordinator).await?).await
}

/// Sends `bytes` again and again. Returns whether the coordinator closes the connection within [`OPENING`].
async fn ends_though_sent(mut tls: TlsStream<TcpStream>, bytes: &[u8]) -> bool {
    let talk = async {
        let mut buffer = [0; 4096];
        loop {
            if tls.write_all(bytes).await.is_err() || tls.flush().await.is_err() {
                return;
            }
            let pause = tokio::time::timeout(Duration::from_millis(100), tls.read(&mut buffer));
            if let Ok(Ok(0) | Err(_)) = pause.await {
                return;
            }
        }
    };
    tokio::time::timeout(OPENING, talk).await.is_ok()
}

#[tokio::test]
async fn nothing_that_is_sent_renews_the_deadline_of_an_opening() {
    let coordinator = Coordinator::start();
    let ping = frame(raw::PING, b"still here");
    let hello_that_goes_on = [
        frame_header(raw::CONTINUATION, false, 1).as_slice(),
        b" ",
        ping.as_slice(),
    ]
    .concat();
    let silent = async {
        let socket = websocket_from(loopback(0, 2), &coordinator).await;
        socket.expect("a WebSocket").ends_within(OPENING).await
    };
    let pings = async {
        let socket = websocket_from(loopback(0, 3), &coordinator).await;
        ends_though_sent(socket.expect("a WebSocket").0, &ping).await
    };
    let fragments = async {
        let mut socket = websocket_from(loopback(0, 4), &coordinator)
            .await
            .expect("a WebSocket");
        let begin = [frame_header(raw::TEXT, false, 1).as_slice(), b"{"].concat();
        socket.write(&begin).await.expect("it listens");
        ends_though_sent(socket.0, &hello_that_goes_on).await
    };
    let head = async {
        let mut tls = tls_from(loopback(0, 5), &coordinator).await.expect("TLS");
        tls.write_all(b"GET / HTTP/1.1\r\n")
            .await
            .expect("it listens");
        ends_though_sent(tls, b"a: b\r\n").await
    };
    let body = async {
        let mut tls = tls_from(loopback(0, 6), &coordinator).await.expect("TLS");
        let head = "POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 30000\r\n\r\n";
        tls.write_all(head.as_bytes()).await.expect("it listens");
        ends_though_sent(tls, b" ").await
    };
    let requests = async {
        let tls = tls_from(loopback(0, 7), &coordinator).await.expect("TLS");
        ends_though_sent(tls, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await
    };
    let handshake = async {
        let tcp = raw::tcp(loopback(0, 8), coordinator.address())
            .await
            .expect("it listens");
        // This is the header of a TLS record whose content is never sent.
        let mut tcp = tcp;
        tcp.write_all(&[0x16, 3, 1, 0x20, 0])
            .await
            .expect("it listens");
        let mut buffer = [0; 64];
        let ended = tokio::time::timeout(OPENING, tcp.read(&mut buffer)).await;
        matches!(ended, Ok(Ok(0) | Err(_)))
    };
    // This client names a key and never answers the challenge.
    let challenge = async {
        let mut stream = Stream::silent_from(&coordinator, loopback(0, 9))
            .await
            .expect("a WebSocket");
        let hello = Hello::default().message(Identity::of(1).id());
        stream.say(&hello).await.expect("it listens");
        tokio::time::timeout(OPENING, stream.end()).await.is_ok()
    };
    let ended = tokio::join!(
        silent, pings, fragments, head, body, requests, handshake, challenge
    );
    assert_eq!(ended, (true, true, true, true, true, true, true, true));
}

/// Opens `count` connections on which nothing is sent. The caller holds them open.
async fn silent(coordinator: &Coordinator, source: IpAddr, count: usize) -> Vec<TcpStream> {
    let opened = (0..count).map(|_| raw::tcp(source, coordinator.address()));
    join_all(opened).await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_one_source_and_of_many_keep_nobody_out() {
    let coordinator = Coordinator::start();
    let member = coordinator.join("early").await;
    let mut held = silent(&coordinator, loopback(1, 1), 3000).await;
    assert!(held.len() >= 1000, "{}", held.len());
    coordinator.join("other-source").await;
    member.stream(&coordinator).await;
    // These come from the address of the honest nodes.
    held.extend(silent(&coordinator, loopback(0, 1), 1000).await);
    coordinator.join("same-source").await;
    member.stream(&coordinator).await;
    // These come from many addresses, none of which reaches the limit of one source.
    for last in 1..200 {
        held.extend(silent(&coordinator, loopback(2, last), 30).await);
    }
    coordinator.join("many-sources").await;
    let mut stream = member.stream(&coordinator).await;
    let service = member.service("web").signed_by(member.key());
    assert_eq!(stream.publish(vec![service]).await.accepted(), 1);
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_prove_a_key_do_not_keep_out_a_node_that_lost_its_coordinators_store() {
    let coordinator = Coordinator::start();
    let mut strangers = Vec::new();
    for n in 0..100u8 {
        let mut stream = Stream::silent_from(&coordinator, loopback(3, n))
            .await
            .expect("a WebSocket");
        let identity = Identity::new();
        if stream
            .greet(coordinator.pin(), identity.key(), &Hello::default())
            .await
            .is_ok()
        {
            strangers.push(stream);
        }
    }
    assert!(strangers.len() >= 60, "{}", strangers.len());
    // After five seconds the coordinator gives the place of one stranger to a newcomer. Real nodes try again as well.
    let identity = Identity::new();
    let mut open = Stream::open(&coordinator, identity.key(), &Hello::default()).await;
    for _ in 0..20 {
        if open.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        open = Stream::open(&coordinator, identity.key(), &Hello::default()).await;
    }
    assert!(open.is_ok());
    drop(strangers);
}

/// Opens the streams of all `members` from one address, as meshd does, and waits until all are open.
async fn all_open(coordinator: &Coordinator, members: &[Member]) -> Vec<NodeStream> {
    let (sender, mut opened) = mpsc::unbounded_channel();
    let streams: Vec<NodeStream> = members
        .iter()
        .enumerate()
        .map(|(n, member)| {
            let (events, mut heard) = mpsc::channel(64);
            let opened = sender.clone();
            tokio::spawn(async move {
                while let Some(event) = heard.recv().await {
                    if let Event::Opened { .. } = event {
                        let _ = opened.send(n);
                    }
                }
            });
            let config = StreamConfig {
                urls: vec![coordinator.url()],
                pin: coordinator.pin(),
                identity: member.key().clone(),
            };
            NodeStream::start(config, Position::default(), events)
        })
        .collect();
    await_all(&mut opened, members.len()).await;
    streams
}

async fn await_all(opened: &mut mpsc::UnboundedReceiver<usize>, count: usize) {
    let mut open = std::collections::HashSet::new();
    while open.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(60), opened.recv()).await;
        open.extend(next.unwrap_or_else(|_| panic!("{} of {count} are open", open.len())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_nodes_behind_one_address_join_and_come_back_together() {
    let mut coordinator = Coordinator::start();
    let token = coordinator.token_for(200);
    let identities: Vec<Identity> = (0..200).map(|_| Identity::new()).collect();
    // Each node tries to join once, so each must be admitted at its first attempt.
    let joins = identities.iter().enumerate().map(|(n, identity)| {
        let (coordinator, token) = (&coordinator, &token);
        async move { coordinator.join_as(identity, token, &format!("n{n}")).await }
    });
    let members: Vec<Member> = join_all(joins)
        .await
        .into_iter()
        .map(|joined| joined.expect("a use left"))
        .collect();
    let streams = all_open(&coordinator, &members).await;
    drop(streams);
    coordinator.restart();
    drop(all_open(&coordinator, &members).await);
}

#[tokio::test]
async fn unfinished_messages_hold_next_to_no_memory() {
    let coordinator = Coordinator::start();
    let member = coordinator.join("member").await;
    drop(member.stream(&coordinator).await);
    let before = coordinator.memory();
    let piece = vec![b' '; 1000 * 1000];
    let mut held = Vec::new();
    // These clients send a large message before they have proved a key.
    for last in 1..=60 {
        let mut socket = websocket_from(loopback(4, last), &coordinator)
            .await
            .expect("a WebSocket");
        let head = frame_header(raw::TEXT, true, MAX_MESSAGE as u64 - 1);
        let _ = socket.write(&head).await;
        let _ = socket.write(&piece).await;
        held.push(socket.0);
    }
    assert_grown(&coordinator, before, 12);
    drop(held);
    // These strangers have proved a key, so their messages may be larger. They send them in one frame and in several.
    let mut strangers = Vec::new();
    for last in 1..=60 {
        let mut stream = Stream::silent_from(&coordinator, loopback(5, last))
            .await
            .expect("a WebSocket");
        let identity = Identity::new();
        if stream
            .greet(coordinator.pin(), identity.key(), &Hello::default())
            .await
            .is_err()
        {
            continue;
        }
        let mut raw = Raw(stream.socket.into_inner());
        let head = frame_header(raw::TEXT, last % 2 == 0, piece.len() as u64 + 1);
        let sent = async {
            let _ = raw.write(&head).await;
            let _ = raw.write(&piece).await;
        };
        // The coordinator does not read from a stranger that waits for a place.
        let _ = tokio::time::timeout(Duration::from_millis(100), sent).await;
        strangers.push(raw);
    }
    assert!(strangers.len() >= 40, "{}", strangers.len());
    assert_grown(&coordinator, before, 16);
}

#[tokio::test]
async fn a_message_that_takes_many_times_its_size_to_parse_is_not_kept_in_pieces() {
    let coordinator = Coordinator::start();
    let member = coordinator.join("member").await;
    let mut stream = member.stream(&coordinator).await;
    let before = coordinator.memory();
    for kind in ["farewell", "vouch", "song", "publish"] {
        let text = format!(r#"{{"type":"{kind}","x":[{}0]}}"#, "[],".repeat(400_000));
        let sent = stream
            .send(tokio_tungstenite::tungstenite::Message::text(text))
            .await;
        if kind == "publish" {
            // A `publish` without its fields ends the stream, and the coordinator has parsed it by then.
            stream.end().await;
        } else {
            sent.expect("it is passed over");
            let service = member.service(kind).signed_by(member.key());
            assert_eq!(stream.publish(vec![service]).await.accepted(), 1, "{kind}");
        }
    }
    assert_grown(&coordinator, before, 12);
}

/// Joins members that publish nearly as many bytes as one member may.
async fn fill(coordinator: &Coordinator, members: usize) {
    for n in 0..members {
        let member = coordinator.join(&format!("full-{n}")).await;
        let mut stream = member.stream(coordinator).await;
        let services: Vec<Envelope> = (0..8)
            .map(|n| {
                member
                    .service(&format!("s{n}"))
                    .padded(60_000)
                    .signed_by(member.key())
            })
            .collect();
        for services in services.chunks(4) {
            assert_eq!(stream.publish(services.to_vec()).await.accepted(), 4);
        }
    }
}

#[tokio::test]
async fn a_node_has_one_stream_whether_or_not_it_names_an_instance_and_readers_that_do_not_read_hold_little()
 {
    let coordinator = Coordinator::start();
    fill(&coordinator, 6).await;
    let member = coordinator.join("member").await;
    drop(Stream::open(&coordinator, member.key(), &Hello::without_instance()).await);
    let before = coordinator.memory();
    let named = Hello::default();
    for hello in [Hello::without_instance(), named] {
        let mut streams = Vec::new();
        for _ in 0..8 {
            let stream = Stream::open(&coordinator, member.key(), &hello).await;
            streams.push(stream.expect("the last one has the seat"));
        }
        assert_grown(&coordinator, before, 6);
        let mut last = streams.pop().expect("eight");
        for mut stream in streams {
            stream.end().await;
        }
        let service = member.service("web").signed_by(member.key());
        assert_eq!(last.publish(vec![service]).await.accepted(), 1);
        // The stream is closed before the next kind of stream is opened, as when a process ends.
        last.socket.close(None).await.expect("it is open");
        last.end().await;
    }
}

#[tokio::test]
async fn a_node_that_opens_streams_all_the_time_is_told_to_wait() {
    let coordinator = Coordinator::start();
    let member = coordinator.join("member").await;
    let hello = Hello::default();
    let mut refused = 0;
    for _ in 0..40 {
        let stream = Stream::open(&coordinator, member.key(), &hello).await;
        refused += usize::from(stream.is_err());
    }
    assert!(refused >= 10, "{refused}");
    // Other members do not have to wait.
    let other = coordinator.join("other").await;
    other.stream(&coordinator).await;
}

#[tokio::test]
async fn a_node_of_an_earlier_version_gets_in_again_after_the_store_was_emptied() {
    let before = Coordinator::start();
    let member = before.join("member").await;
    let mut stream = member.stream(&before).await;
    let mark = stream.mark().await;
    stream
        .await_record(&member.membership)
        .await
        .expect("all records come");
    let mut records = stream.received.clone();
    records.push(member.node().signed_by(member.key()));
    records.extend((0..80).map(|n| {
        let service = member.service(&format!("s{n}")).padded(6000);
        service.signed_by(member.key())
    }));
    let bytes: usize = records.iter().map(|record| record.payload.len()).sum();
    assert!((400_000..=512 * 1024).contains(&bytes), "{bytes}");

    let emptied = empty_store_of(&before);
    let (pin, at) = (before.pin(), (emptied.address(), before.pin()));
    // Two other clients in the same state never finish their large message.
    let mut slow = Vec::new();
    for last in 1..=2 {
        let mut stream = Stream::silent_from(&at, loopback(6, last))
            .await
            .expect("a WebSocket");
        let key = Identity::new();
        stream
            .greet(pin, key.key(), &Hello::default())
            .await
            .expect("a stranger");
        let mut raw = Raw(stream.socket.into_inner());
        let head = frame_header(raw::TEXT, true, 1_000_000);
        raw.write(&[head.as_slice(), &[b' '; 100_000]].concat())
            .await
            .expect("it reads");
        slow.push(raw);
    }
    let answer = offer(&emptied, pin, &member, &mark, &records).await;
    // The mesh record that `init` has made is newer, and the token was accepted in an earlier attempt.
    assert!(
        answer.accepted() as usize >= records.len() - 2,
        "{answer:?}"
    );
    assert_eq!(answer.refused().len(), 1, "{answer:?}");
}

#[tokio::test]
async fn joins_that_prove_nothing_do_not_hold_up_others() {
    let coordinator = Coordinator::start();
    let token = coordinator.token();
    let stranger = Identity::new();
    // The signatures are valid, but the coordinator holds no such token.
    let own_token = Identity::new();
    let draft = record::membership(own_token.id(), &stranger, "thief");
    let membership = draft.signed_by(own_token.key());
    let proof = Signature::make(stranger.key(), Purpose::Join, membership.payload.as_bytes());
    let body = json!({"protocol": 1, "membership": membership, "proof": proof}).to_string();
    let request = format!(
        "POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let target = &coordinator;
    let flood_is_under_way = tokio::sync::Notify::new();
    let flood = async {
        for round in 0u64.. {
            if round == 4 {
                flood_is_under_way.notify_one();
            }
            let joins = (0..16).map(|n| async move { (n, tls_from(loopback(7, n), target).await) });
            for (_, tls) in join_all(joins).await {
                if let Some(mut tls) = tls {
                    let _ = tls.write_all(request.as_bytes()).await;
                    let _ = tls.flush().await;
                }
            }
        }
    };
    let honest = async {
        flood_is_under_way.notified().await;
        let identity = Identity::new();
        coordinator.join_as(&identity, &token, "honest").await
    };
    let joined = tokio::select! {
        () = flood => unreachable!("it goes on"),
        joined = honest => joined,
    };
    joined.expect("an unspent token");
    assert!(!coordinator.has_node(&stranger.id()));
}
