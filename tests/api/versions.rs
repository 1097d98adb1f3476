//! Programs of other versions at a coordinator of this one.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use meshd::model::{PublicKey, SigningKey};
use meshd::node::control::join::{JoinError, join};
use meshd::os::dial::dial;
use meshd::protocol::JoinToken;
use meshd::protocol::api::ErrorCode;
use meshd::protocol::control::{FromCoordinator, OLDEST, PATH, PROTOCOL, Refusal, proof_message};
use meshd::protocol::join::JoinRequest;
use meshd::records::Envelope;
use meshd::records::envelope::{Purpose, Signature};
use meshd::records::kinds::Record;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::coordinator::Coordinator;
use crate::joins::{identity_of, request_of};

pub(crate) type Socket = WebSocketStream<TlsStream<TcpStream>>;

pub(crate) async fn open(token: &JoinToken) -> Socket {
    let tls = dial(&token.urls[0], token.pin).await.expect("it listens");
    let url = format!("wss://{}{PATH}", token.urls[0].authority());
    let opened = tokio_tungstenite::client_async(url, tls).await;
    opened.expect("a stream").0
}

async fn say(socket: &mut Socket, message: Value) {
    let text = message.to_string();
    socket
        .send(Message::Text(text.into()))
        .await
        .expect("it listens");
}

pub(crate) async fn hear(socket: &mut Socket) -> FromCoordinator {
    loop {
        let heard = tokio::time::timeout(Duration::from_secs(30), socket.next());
        let heard = heard.await.expect("no hang").expect("it goes on");
        if let Message::Text(text) = heard.expect("a message") {
            return serde_json::from_str(&text).expect("a message");
        }
    }
}

/// Opens a stream with this hello; gives what the coordinator says to the proof, or instead of a challenge.
pub(crate) async fn greet(
    socket: &mut Socket,
    token: &JoinToken,
    key: &SigningKey,
    hello: Value,
) -> FromCoordinator {
    say(socket, hello).await;
    match hear(socket).await {
        FromCoordinator::Challenge { nonce } => {
            let message = proof_message(&nonce, &token.pin);
            let signature = Signature::make(key, Purpose::Control, &message);
            say(
                socket,
                json!({"type": "proof", "signature": signature, "mood": "good"}),
            )
            .await;
            hear(socket).await
        }
        other => other,
    }
}

pub(crate) fn hello(node: PublicKey, oldest: Option<u32>, newest: u32) -> Value {
    let mut hello = json!({
        "type": "hello", "protocol": newest, "version": "9.9.9", "node": node, "store": null,
        "revision": 0, "of_a_later_version": {"a": [1, 2]},
    });
    if let Some(oldest) = oldest {
        hello["oldest"] = oldest.into();
    }
    hello
}

#[tokio::test]
async fn a_node_and_a_coordinator_of_adjacent_versions_use_a_common_version_or_end_with_an_error() {
    let coordinator = Coordinator::start();
    let token = coordinator.token();
    let key = identity_of(7);
    let joined = join(&token.urls, token.pin, &request_of(&key, &token, "web")).await;
    joined.expect("an unspent token");

    for (oldest, newest, spoken) in [
        (None, PROTOCOL, true),
        (Some(OLDEST), PROTOCOL + 1, true),
        (Some(OLDEST - 1), PROTOCOL, true),
        (None, PROTOCOL + 1, false),
        (Some(PROTOCOL + 1), PROTOCOL + 1, false),
        (None, OLDEST - 1, false),
        (Some(PROTOCOL), OLDEST - 1, false),
    ] {
        let mut socket = open(&token).await;
        let answer = greet(
            &mut socket,
            &token,
            &key,
            hello(key.public(), oldest, newest),
        )
        .await;
        match answer {
            FromCoordinator::Welcome { protocol, .. } => {
                assert!(spoken, "{oldest:?} to {newest}");
                assert_eq!(protocol, PROTOCOL);
            }
            FromCoordinator::Refuse {
                reason, message, ..
            } => {
                assert!(!spoken, "{oldest:?} to {newest}: {message}");
                assert_eq!(reason, Refusal::Version);
                assert!(
                    message.contains("upgrade the older of the two"),
                    "{message}"
                );
            }
            other => panic!("{other:?}"),
        }
    }

    // Joins are held to the same.
    for (oldest, newest, spoken) in [
        (Some(OLDEST), PROTOCOL + 1, true),
        (None, PROTOCOL + 1, false),
        (None, OLDEST - 1, false),
    ] {
        let token = coordinator.token();
        let request = JoinRequest {
            protocol: newest,
            oldest,
            ..request_of(
                &identity_of(20 + newest as u8),
                &token,
                &format!("n{newest}"),
            )
        };
        match join(&token.urls, token.pin, &request).await {
            Ok(_) => assert!(spoken),
            Err(JoinError::Refused(refusal)) => {
                assert!(!spoken, "{refusal}");
                assert_eq!(refusal.code, ErrorCode::Version);
            }
            Err(other) => panic!("no refusal: {other}"),
        }
    }
}

#[tokio::test]
async fn kinds_of_message_and_record_and_fields_of_a_later_version_are_passed_over_kept_and_passed_on()
 {
    let coordinator = Coordinator::start();
    let keys = [identity_of(8), identity_of(9)];
    let mut sockets = Vec::new();
    let token = coordinator.token();
    for (n, key) in keys.iter().enumerate() {
        let request = request_of(key, &coordinator.token(), &format!("n{n}"));
        join(&token.urls, token.pin, &request)
            .await
            .expect("an unspent token");
        let mut socket = open(&token).await;
        let answer = greet(
            &mut socket,
            &token,
            key,
            hello(key.public(), None, PROTOCOL),
        )
        .await;
        assert!(
            matches!(answer, FromCoordinator::Welcome { .. }),
            "{answer:?}"
        );
        sockets.push(socket);
    }
    let weather = json!({"kind": "weather", "id": "here", "version": 1, "sky": "blue"}).to_string();
    let service = json!({
        "kind": "service", "id": format!("{}/db", keys[0].public()), "version": 5,
        "node": keys[0].public(), "name": "db", "instances": [], "owner": {"team": "storage"},
    })
    .to_string();
    let records = [weather, service].map(|payload| Envelope::seal_payload(payload, &keys[0]));
    say(
        &mut sockets[0],
        json!({"type": "sing", "song": "a later one"}),
    )
    .await;
    say(
        &mut sockets[0],
        json!({"type": "publish", "sequence": 1, "records": records}),
    )
    .await;

    // The other node gets both, byte for byte.
    let mut heard = Vec::new();
    while !records.iter().all(|record| heard.contains(record)) {
        if let FromCoordinator::Changes { records, .. } = hear(&mut sockets[1]).await {
            heard.extend(records);
        }
    }
    // And one that comes later, from a coordinator that was restarted.
    let mut coordinator = coordinator;
    coordinator.kill();
    coordinator.restart();
    let mut socket = open(&token).await;
    let key = &keys[1];
    greet(
        &mut socket,
        &token,
        key,
        hello(key.public(), None, PROTOCOL),
    )
    .await;
    let mut heard = Vec::new();
    while !records.iter().all(|record| heard.contains(record)) {
        if let FromCoordinator::Changes { records, .. } = hear(&mut socket).await {
            heard.extend(records);
        }
    }
    assert_eq!(
        Record::parse(&records[0].payload).map(|(_, record)| record),
        Ok(Record::Unknown)
    );
}
