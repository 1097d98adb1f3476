//! The opening of streams, with both ends in one process.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{DuplexStream, duplex};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::opening::{self, Admission, Members};
use super::*;
use crate::protocol::control::Refusal;
use crate::protocol::stream::{FromNode, FromRelay, PROTOCOL, proof_message};
use crate::records::envelope::{Purpose, Signature};
use crate::testbed::records::key;

type Socket = WebSocketStream<DuplexStream>;

const ADDRESS: NodeAddress = NodeAddress(std::net::Ipv4Addr::new(10, 210, 1, 1));

/// Both ends of a stream: the node's and the relay's.
async fn sockets() -> (Socket, Socket) {
    let (node, relay) = duplex(64 * 1024);
    let limits = || Some(carrying::limits());
    (
        WebSocketStream::from_raw_socket(node, Role::Client, limits()).await,
        WebSocketStream::from_raw_socket(relay, Role::Server, limits()).await,
    )
}

/// A relay with the key 9, of which the node with the key 1 is a member.
fn relay() -> (watch::Sender<Members>, Admission) {
    let members = Members {
        addresses: Arc::new([(key(1).public(), ADDRESS)].into()),
        is_relaying: true,
    };
    let (sender, members) = watch::channel(members);
    let own = key(9).public();
    let openings = Arc::new(Openings::new(Instant::now()));
    let admission = Admission {
        own,
        members,
        openings,
    };
    (sender, admission)
}

async fn receive(socket: &mut Socket) -> FromRelay {
    let message = socket.next().await.expect("open").expect("a message");
    serde_json::from_str(message.to_text().expect("a text")).expect("a message of a relay")
}

async fn send(socket: &mut Socket, message: &FromNode) {
    let text = serde_json::to_string(message).expect("plain data");
    socket.send(Message::Text(text.into())).await.expect("open");
}

/// What the relay answers to a node that is `claimed` and answers the challenge with this signature.
async fn answer(
    admission: &Admission,
    claimed: PublicKey,
    sign: impl FnOnce(&str) -> Signature,
) -> FromRelay {
    let (mut node, mut relay) = sockets().await;
    let talk = async {
        let hello = FromNode::Hello {
            protocol: PROTOCOL,
            node: claimed,
        };
        send(&mut node, &hello).await;
        let FromRelay::Challenge { nonce } = receive(&mut node).await else {
            panic!("a challenge")
        };
        let signature = sign(&nonce);
        send(&mut node, &FromNode::Proof { signature }).await;
        receive(&mut node).await
    };
    let (answer, _) = tokio::join!(talk, opening::accept(&mut relay, admission));
    answer
}

fn signed(n: u8, nonce: &str, relay: &PublicKey) -> Signature {
    let message = proof_message(nonce, relay);
    Signature::make(&key(n), Purpose::Relay, &message)
}

fn refusal(answer: FromRelay) -> Option<Refusal> {
    match answer {
        FromRelay::Refuse { reason, .. } => Some(reason),
        _ => None,
    }
}

#[tokio::test]
async fn a_member_that_proves_its_identity_is_accepted_with_its_address() {
    let (_members, admission) = relay();
    let (mut node, mut server) = sockets().await;
    let (key, own) = (key(1), admission.own);
    let opened = opening::open(&mut node, &key, &own);
    let accepted = opening::accept(&mut server, &admission);
    let (opened, accepted) = tokio::join!(opened, accepted);
    assert_eq!(opened, Ok(()));
    assert_eq!(accepted, Ok((key.public(), ADDRESS)));
}

#[tokio::test]
async fn a_proof_by_another_key_for_another_relay_or_of_another_stream_is_refused() {
    let (_members, admission) = relay();
    let (member, own) = (key(1).public(), admission.own);
    let forged = answer(&admission, member, |nonce| signed(2, nonce, &own)).await;
    assert_eq!(refusal(forged), Some(Refusal::Proof));
    let other = key(8).public();
    let forwarded = answer(&admission, member, |nonce| signed(1, nonce, &other)).await;
    assert_eq!(refusal(forwarded), Some(Refusal::Proof));
    let mut before = None;
    let accepted = answer(&admission, member, |nonce| {
        *before.insert(signed(1, nonce, &own))
    });
    assert_eq!(accepted.await, FromRelay::Welcome { protocol: PROTOCOL });
    let before = before.expect("it was signed");
    let replayed = answer(&admission, member, |_| before).await;
    assert_eq!(refusal(replayed), Some(Refusal::Proof));
}

#[tokio::test]
async fn a_node_that_is_no_member_and_one_of_a_node_that_does_not_relay_are_refused() {
    let (members, admission) = relay();
    let (stranger, own) = (key(2).public(), admission.own);
    let refused = answer(&admission, stranger, |nonce| signed(2, nonce, &own)).await;
    assert_eq!(refusal(refused), Some(Refusal::NotAMember));
    members.send_modify(|members| members.is_relaying = false);
    let member = key(1).public();
    let refused = answer(&admission, member, |nonce| signed(1, nonce, &own)).await;
    assert_eq!(refusal(refused), Some(Refusal::Busy));
}

#[tokio::test]
async fn a_member_that_opens_its_stream_again_and_again_is_refused_for_a_while() {
    let (_members, admission) = relay();
    let (member, own) = (key(1).public(), admission.own);
    let mut refused = 0;
    for _ in 0..30 {
        let answer = answer(&admission, member, |nonce| signed(1, nonce, &own)).await;
        match refusal(answer) {
            Some(reason) => {
                assert_eq!(reason, Refusal::Busy);
                refused += 1;
            }
            None => assert_eq!(refused, 0, "the first ones are accepted"),
        }
    }
    assert!(refused >= 15, "{refused}");
    assert_eq!(admission.openings.refused(), refused);
    // Somebody else who only claims to be the member uses up nothing.
    let forged = answer(&admission, member, |nonce| signed(2, nonce, &own)).await;
    assert_eq!(refusal(forged), Some(Refusal::Proof));
    assert_eq!(admission.openings.refused(), refused);
}

#[tokio::test]
async fn what_is_no_hello_of_a_known_version_is_refused() {
    let signature = signed(1, "", &key(9).public());
    let old = FromNode::Hello {
        protocol: 0,
        node: key(1).public(),
    };
    for (first, expected) in [
        (FromNode::Proof { signature }, Refusal::Protocol),
        (old, Refusal::Version),
    ] {
        let (_members, admission) = relay();
        let (mut node, mut server) = sockets().await;
        let talk = async {
            send(&mut node, &first).await;
            receive(&mut node).await
        };
        let (answer, accepted) = tokio::join!(talk, opening::accept(&mut server, &admission));
        assert_eq!(refusal(answer), Some(expected));
        assert!(accepted.is_err());
    }
}

#[tokio::test]
async fn a_message_of_the_opening_that_is_too_large_or_binary_ends_it() {
    for message in [
        Message::Text("x".repeat(5000).into()),
        Message::Binary(vec![0; 100].into()),
    ] {
        let (_members, admission) = relay();
        let (mut node, mut server) = sockets().await;
        let sent = node.send(message);
        let (_, accepted) = tokio::join!(sent, opening::accept(&mut server, &admission));
        assert!(accepted.is_err());
    }
}

#[tokio::test]
async fn a_member_that_is_removed_or_gets_another_address_loses_its_stream() {
    let member = key(1).public();
    let changes: [fn(&mut Members); 3] = [
        |members| members.addresses = Arc::default(),
        |members| {
            let other = NodeAddress([10, 210, 7, 1].into());
            members.addresses = Arc::new([(key(1).public(), other)].into());
        },
        |members| members.is_relaying = false,
    ];
    for change in changes {
        let (members, admission) = relay();
        let mut revoked = std::pin::pin!(admission.revoked(&member, ADDRESS));
        let early = timeout(Duration::from_millis(20), revoked.as_mut()).await;
        assert!(early.is_err(), "it is a member");
        members.send_modify(change);
        let revoked = timeout(Duration::from_secs(10), revoked).await;
        assert!(revoked.is_ok());
    }
}

#[test]
fn an_event_of_a_stream_that_was_replaced_is_none_of_the_stream_in_its_place() {
    let mut dialled = Dialled::default();
    let (relay, other) = (key(1).public(), key(2).public());
    let begin = |dialled: &mut Dialled<()>, relay| {
        let mut number = 0;
        dialled.begin(relay, |given| number = given);
        number
    };
    let first = begin(&mut dialled, relay);
    assert!(dialled.is_current(&relay, first));
    dialled.end(&relay);
    assert!(!dialled.is_current(&relay, first));
    let second = begin(&mut dialled, relay);
    assert!(!dialled.is_current(&relay, first) && dialled.is_current(&relay, second));
    assert!(!dialled.is_current(&other, second));
    begin(&mut dialled, other);
    assert!(dialled.is_current(&relay, second));
}
