//! The coordinator sends neither the name nor the revision of its store to strangers.

use meshd::protocol::control::{FromCoordinator, Refusal};
use meshd::protocol::join::{CHECK_PATH, PATH};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::kit::{Coordinator, End, Hello, Identity, Stream, proof, raw, record};

/// The name of the store and its revision, as a member receives them.
async fn store_of(coordinator: &Coordinator) -> (String, u64) {
    let member = coordinator.join("member").await;
    let mut stream = member.stream(coordinator).await;
    stream
        .await_record(&member.membership)
        .await
        .expect("a snapshot");
    let store = stream.store.clone().expect("a welcome");
    (store, stream.revision)
}

/// The hello of a stranger that names `store` as the store it knows.
fn knowing(store: &str) -> Hello {
    Hello {
        store: Some(store.to_owned()),
        revision: 1,
        ..Hello::default()
    }
}

#[tokio::test]
async fn a_stranger_receives_a_random_name_and_revision_0_whatever_it_claims_to_know() {
    let coordinator = Coordinator::start();
    let (store, _) = store_of(&coordinator).await;
    let stranger = Identity::new();
    let mut names = Vec::new();
    for hello in [
        Hello::default(),
        Hello::without_instance(),
        knowing(&store),
        knowing("another"),
    ] {
        let mut stream = Stream::silent(&coordinator).await.expect("it listens");
        let message = hello.message(stranger.id());
        stream.say(&message).await.expect("a hello");
        let nonce = match stream.hear().await.expect("a challenge") {
            FromCoordinator::Challenge { nonce } => nonce,
            other => panic!("{other:?}"),
        };
        let message = proof(stranger.key(), &nonce, coordinator.pin());
        stream.say(&message).await.expect("a proof");
        let shown = loop {
            match stream.hear().await.expect("a welcome") {
                FromCoordinator::Welcome {
                    store,
                    revision,
                    snapshot,
                    ..
                } => break (store, revision, snapshot),
                _ => continue,
            }
        };
        assert_eq!((shown.1, shown.2), (0, true));
        assert_ne!(shown.0, store);
        assert!(!names.contains(&shown.0), "a name is given twice");
        names.push(shown.0);
        // The answer to what the stranger publishes does not contain the name, and the stranger receives no records.
        let forged = record::membership(coordinator.token().key.public(), &stranger, "thief");
        let answer = stream.publish(vec![forged.signed_by(stranger.key())]).await;
        assert!(!format!("{answer:?}").contains(&store), "{answer:?}");
        assert_eq!(stream.received, []);
        assert_eq!(stream.revision, 0);
    }
}

#[tokio::test]
async fn who_was_removed_and_who_proves_nothing_is_told_no_more_than_that() {
    let coordinator = Coordinator::start();
    let (store, _) = store_of(&coordinator).await;
    let removed = coordinator.join("removed").await;
    let mut stream = removed.stream(&coordinator).await;
    coordinator.remove_node(removed.id());
    stream.end().await;
    let again = Stream::open(&coordinator, removed.key(), &knowing(&store)).await;
    let Err(End(Some((Refusal::Revoked, why)))) = again.map(drop) else {
        panic!("a removed node is let in");
    };
    assert!(!why.contains(&store), "{why}");

    // This client knows a member's id but does not have its key.
    let member = coordinator.join("another").await;
    let mut stream = Stream::silent(&coordinator).await.expect("it listens");
    let hello = knowing(&store).message(member.id());
    stream.say(&hello).await.expect("a hello");
    let FromCoordinator::Challenge { nonce } = stream.hear().await.expect("a challenge") else {
        panic!("no challenge");
    };
    let message = proof(Identity::new().key(), &nonce, coordinator.pin());
    stream.say(&message).await.expect("a proof");
    let End(Some((Refusal::Proof, why))) = stream.end().await else {
        panic!("a proof by another key holds");
    };
    assert!(stream.store.is_none() && !why.contains(&store), "{why}");
}

#[tokio::test]
async fn no_page_of_the_public_port_shows_the_store() {
    let coordinator = Coordinator::start();
    // The revision has to be a number that no text contains by chance.
    for _ in 0..60 {
        coordinator.token();
    }
    let (store, revision) = store_of(&coordinator).await;
    assert!(revision > 60);
    let requests = [
        "GET / HTTP/1.1".to_owned(),
        "GET /healthz HTTP/1.1".to_owned(),
        "GET /readyz HTTP/1.1".to_owned(),
        "GET /metrics HTTP/1.1".to_owned(),
        "GET /v1/mesh HTTP/1.1".to_owned(),
        "GET /v1/nodes HTTP/1.1".to_owned(),
        format!("GET {PATH} HTTP/1.1"),
        format!("POST {PATH} HTTP/1.1"),
        format!("POST {CHECK_PATH} HTTP/1.1"),
        "OPTIONS * HTTP/1.1".to_owned(),
        "GET / HTTP/9.9".to_owned(),
    ];
    let revision = revision.to_string();
    for request in requests {
        let tcp = raw::tcp([127, 0, 0, 1].into(), coordinator.address()).await;
        let mut tls = raw::tls(tcp.expect("it listens")).await.expect("TLS");
        let head = format!(
            "{request}\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        tls.write_all(head.as_bytes()).await.expect("it reads");
        let mut answer = Vec::new();
        // The coordinator may close the connection in the middle of a request that it does not accept.
        let _ = tls.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains(&store), "{request}: {answer}");
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let mut words = body.split(|c: char| !c.is_ascii_alphanumeric());
        assert!(!words.any(|word| word == revision), "{request}: {answer}");
    }
}
