use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::node::replica::Applied;
use crate::protocol::gossip::{PROTOCOL, PeerMessage};
use crate::records::Ledger;
use crate::records::digest::Digests;
use crate::records::kinds::Record;
use crate::testbed::records::{id, key, token};

/// Only a hang lasts this long.
const HANG: Duration = Duration::from_secs(30);

/// A node whose peer has key 2 and the address 127.0.0.1, with the address on which it listens and the requests of its
/// conversations.
async fn node() -> (Line, SocketAddr, mpsc::Receiver<PeerEvent>) {
    let (events, receiver) = mpsc::channel(MAX_EVENTS);
    let address = Ipv4Addr::LOCALHOST;
    let peer = key(2).public();
    let index = AddressIndex {
        by_address: [(address, peer)].into(),
        by_id: [(peer, address)].into(),
    };
    let line = Line {
        key: key(1),
        own: address,
        interface: "lo".into(),
        index: Arc::new(ArcSwap::from_pointee(index)),
        events,
        limits: Arc::default(),
    };
    let listener = TcpListener::bind((address, 0)).await.expect("loopback");
    let at = listener.local_addr().expect("bound");
    let listening = line.clone();
    tokio::spawn(async move { accept(&listening, &listener).await });
    (line, at, receiver)
}

/// Answers the requests of conversations from an empty ledger, and counts the messages with records.
fn agent(mut events: mpsc::Receiver<PeerEvent>) -> tokio::sync::watch::Receiver<usize> {
    let (sender, receiver) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        let mut ledger = Ledger::new(key(9).public());
        while let Some(event) = events.recv().await {
            let PeerEvent::Request(request, reply) = event else {
                continue;
            };
            let answer = match request {
                LedgerRequest::Digests => LedgerReply::Digests(Arc::new(Digests::of(&ledger))),
                LedgerRequest::Apply { peer, records } => {
                    let mut applied = Applied::default();
                    for record in records {
                        applied.verified += 1;
                        if let Err(why) = ledger.apply(record.clone()) {
                            applied.add(&peer, &record.signer, &why);
                        }
                    }
                    sender.send_modify(|count| *count += 1);
                    LedgerReply::Applied(applied)
                }
                LedgerRequest::Records(_) => LedgerReply::Records(vec![]),
                LedgerRequest::Memberships(_) => LedgerReply::Memberships(vec![]),
                LedgerRequest::Vouched { .. } => LedgerReply::Applied(Applied::default()),
            };
            let _ = reply.send(answer);
        }
    });
    receiver
}

async fn connect_to(at: SocketAddr) -> TcpStream {
    TcpStream::connect(at).await.expect("it listens")
}

/// Runs a conversation that the peer begins, to its end.
async fn talk_to(at: SocketAddr, news: Vec<Envelope>) -> Result<(), session::Failure> {
    let (events, receiver) = mpsc::channel(MAX_EVENTS);
    let _agent = agent(receiver);
    let opening = Opening {
        news,
        asks: Vec::new(),
    };
    let slot = ConversationSlot {
        limits: Arc::default(),
        peer: key(1).public(),
        number: None,
    };
    let exchange = Exchange::dial(key(2), key(1).public(), nonce()?, opening);
    session::run(connect_to(at).await, exchange, events, slot).await
}

/// Whether the other side hangs up.
async fn is_ended(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 1];
    let read = timeout(HANG, stream.read(&mut bytes)).await;
    !matches!(read.expect("no hang"), Ok(1..))
}

async fn say(stream: &mut TcpStream, message: &PeerMessage) -> io::Result<()> {
    let text = serde_json::to_vec(message).expect("plain data");
    let length = u32::try_from(text.len()).expect("short");
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&text).await
}

#[tokio::test]
async fn silent_connections_from_a_peers_address_do_not_keep_its_own_conversation_waiting() {
    let (line, at, asks) = node().await;
    let _agent = agent(asks);
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(connect_to(at).await);
    }
    let begun = Instant::now();
    talk_to(at, vec![]).await.expect("it is heard");
    assert!(
        begun.elapsed() < inbound_limit::PROOF_TIMEOUT,
        "it did not wait for those that are silent to be given up"
    );
    // The silent connections end by themselves, and no state of them remains.
    for stream in &mut silent {
        assert!(is_ended(stream).await);
    }
    let end = Instant::now() + HANG;
    while line.limits.with(|_, tasks| !tasks.is_empty()) {
        assert!(Instant::now() < end, "conversations are still there");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn one_that_says_hello_slowly_is_given_up_by_one_limit_for_all_of_it() {
    let (_line, at, asks) = node().await;
    let _agent = agent(asks);
    let mut slow = connect_to(at).await;
    let begun = Instant::now();
    // It sends one byte at a time without end.
    let mut bytes = 1000u32
        .to_be_bytes()
        .into_iter()
        .chain(std::iter::repeat(b' '));
    let (mut read, mut write) = slow.split();
    let written = async {
        while let Some(byte) = bytes.next()
            && write.write_all(&[byte]).await.is_ok()
        {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = written => {}
        _ = read.read_to_end(&mut answer) => {}
        () = sleep(HANG) => panic!("it is listened to for ever"),
    }
    assert!(answer.is_empty());
    assert!(begun.elapsed() >= inbound_limit::PROOF_TIMEOUT / 2);
}

#[tokio::test]
async fn who_has_not_proved_who_it_is_is_not_listened_to_at_length() {
    let (_line, at, asks) = node().await;
    let _agent = agent(asks);
    let mut stream = connect_to(at).await;
    let announced = 1024u32 * 1024;
    stream
        .write_all(&announced.to_be_bytes())
        .await
        .expect("room");
    let begun = Instant::now();
    assert!(is_ended(&mut stream).await);
    assert!(begun.elapsed() < inbound_limit::PROOF_TIMEOUT);
    // A connection that names another node ends as well.
    let mut stream = connect_to(at).await;
    let hello = PeerMessage::Hello {
        protocol: PROTOCOL,
        node: key(3).public(),
        nonce: "n".into(),
    };
    say(&mut stream, &hello).await.expect("room");
    assert!(is_ended(&mut stream).await);
}

#[tokio::test]
async fn a_peer_that_sends_what_breaks_the_rules_is_heard_out_for_few_messages() {
    let (_line, at, asks) = node().await;
    let messages = agent(asks);
    // The peer signed these tokens, which only the mesh key may sign.
    let claims: Vec<Envelope> = (10..110)
        .map(|n| Envelope::seal(&Record::Token(token(&id(n))), &key(2)))
        .collect();
    assert!(talk_to(at, claims.clone()).await.is_err());
    assert_eq!(*messages.borrow(), 1, "all were in one message");
    // A forged record ends a conversation as well.
    let mut forged = claims[0].clone();
    forged.payload.push(' ');
    assert!(talk_to(at, vec![forged]).await.is_err());
    // A valid conversation of the same peer is accepted afterwards.
    talk_to(at, vec![]).await.expect("it is heard");
}

#[tokio::test]
async fn the_newest_conversation_of_a_peer_is_the_one() {
    let (line, at, asks) = node().await;
    let _agent = agent(asks);
    let mut first = connect_to(at).await;
    let mut exchange = Exchange::dial(key(2), key(1).public(), "n".into(), Opening::default());
    // It proves its identity and sends nothing more.
    for step in exchange.begin() {
        if let exchange::Step::Send(message) = step {
            say(&mut first, &message).await.expect("room");
        }
    }
    let hello = {
        let length = first.read_u32().await.expect("its hello") as usize;
        let mut text = vec![0; length];
        first.read_exact(&mut text).await.expect("its hello");
        serde_json::from_slice(&text).expect("a message")
    };
    for step in exchange.handle_message(hello).expect("in turn") {
        if let exchange::Step::Send(message) = step {
            say(&mut first, &message).await.expect("room");
        }
    }
    let end = Instant::now() + HANG;
    let proven = || {
        line.limits
            .with(|limit, _| limit.has_proven(&key(2).public()))
    };
    while !proven() {
        assert!(Instant::now() < end, "its proof is not accepted");
        sleep(Duration::from_millis(10)).await;
    }
    talk_to(at, vec![]).await.expect("it is heard");
    let mut rest = Vec::new();
    let ended = timeout(HANG, first.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the first one is still there");
}
