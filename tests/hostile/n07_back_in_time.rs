//! A coordinator on SQLite notices that its disk was put back to a snapshot, and gives out no address and no use of a
//! token twice.

use std::time::Instant;

use meshd::node::control::join::JoinError;
use meshd::protocol::api::ErrorCode;
use meshd::protocol::control::Refusal;
use serde_json::json;

use crate::kit::{Coordinator, End, Hello, Identity, Member, Stream, WAIT_TIMEOUT, record};

async fn store_of(coordinator: &Coordinator, member: &Member) -> String {
    let stream = member.stream(coordinator).await;
    stream.store.expect("a member is told")
}

async fn return_mark(coordinator: &Coordinator, who: &Identity, mark: &str) -> Stream {
    let mut stream = Stream::open(coordinator, who.key(), &Hello::default())
        .await
        .expect("it may say who it is");
    let returned = stream.say(&json!({"type": "mark", "mark": mark})).await;
    returned.expect("it listens");
    stream
}

/// Waits until the coordinator ends the stream because its store was restored.
async fn await_another_store(stream: &mut Stream) {
    let End(refusal) = stream.end().await;
    assert!(
        matches!(&refusal, Some((Refusal::Busy, why)) if why.contains("restored")),
        "{refusal:?}"
    );
}

#[tokio::test]
async fn a_mark_proves_that_the_store_went_back_and_a_spent_token_stays_spent() {
    let mut coordinator = Coordinator::start();
    let early = coordinator.join("early").await;
    let token = coordinator.token();
    let snapshot = coordinator.snapshot();
    let late = coordinator
        .join_as(&Identity::new(), &token, "late")
        .await
        .expect("an unspent token");
    let mut stream = late.stream(&coordinator).await;
    let proof = stream.mark().await;
    let before = store_of(&coordinator, &early).await;

    coordinator.go_back(&snapshot);
    assert!(!coordinator.has_node(&late.id()));
    let mut stream = return_mark(&coordinator, &late.identity, &proof).await;
    await_another_store(&mut stream).await;
    assert_ne!(store_of(&coordinator, &early).await, before);
    // The use of the token that the coordinator no longer knows is not given to another node.
    let again = coordinator.join_as(&Identity::new(), &token, "thief").await;
    assert!(
        matches!(&again, Err(JoinError::Refused(error)) if error.code == ErrorCode::Busy),
        "{:?}",
        again.map(|member| member.name)
    );
    // A member that connects again brings the membership that the coordinator had lost.
    let mut stream = early.stream(&coordinator).await;
    let answer = stream.publish(vec![late.membership.clone()]).await;
    assert_eq!(answer.accepted(), 1, "{answer:?}");
    assert!(coordinator.has_node(&late.id()));
    assert!(coordinator.log().contains("went back in time"));
}

#[tokio::test]
async fn a_record_of_the_administrator_proves_the_same_for_nodes_without_marks() {
    let mut coordinator = Coordinator::start();
    let early = coordinator.join("early").await;
    let snapshot = coordinator.snapshot();
    let key = meshd::model::SigningKey::from_seed(&[7; 32]);
    let certificate = record::token(key.public()).signed_by(coordinator.mesh_key());
    coordinator
        .submit(vec![certificate.clone()])
        .expect("signed");
    coordinator.go_back(&snapshot);
    let before = store_of(&coordinator, &early).await;
    let mut stream = early.stream(&coordinator).await;
    // A forged record proves nothing.
    let forged = record::token(key.public()).forged(early.key(), coordinator.mesh_key().public());
    stream.publish(vec![forged]).await;
    assert_eq!(store_of(&coordinator, &early).await, before);
    let mut stream = early.stream(&coordinator).await;
    stream.publish(vec![certificate.clone()]).await;
    await_another_store(&mut stream).await;
    let after = store_of(&coordinator, &early).await;
    assert_ne!(after, before);
    let mut stream = early.stream(&coordinator).await;
    stream.publish(vec![certificate]).await;
    assert_eq!(store_of(&coordinator, &early).await, after, "once");
}

#[tokio::test]
async fn no_member_puts_the_coordinator_back_to_waiting_by_claims() {
    let mut coordinator = Coordinator::start();
    let liar = coordinator.join("liar").await;
    let other = coordinator.join("other").await;
    let mut stream = liar.stream(&coordinator).await;
    let own = stream.mark().await;
    let of_other = other.stream(&coordinator).await.mark().await;
    let store = store_of(&coordinator, &other).await;
    let greatest = 1u64 << 63;
    let mut changed = own.clone();
    changed.replace_range(..own.find('.').expect("a revision"), &greatest.to_string());
    for claim in [
        own.clone(),
        of_other,
        changed,
        format!("{greatest}.{store}.{}", "0".repeat(64)),
        "x".repeat(100_000),
        String::new(),
    ] {
        let mut stream = return_mark(&coordinator, &liar.identity, &claim).await;
        let hello = Hello {
            store: Some(store.clone()),
            revision: greatest,
            ..Hello::default()
        };
        let answer = stream.publish(vec![]).await;
        assert_eq!(answer.refused(), [""; 0]);
        drop(stream);
        let opened = Stream::open(&coordinator, liar.key(), &hello).await;
        assert!(opened.is_ok_and(|stream| stream.snapshot));
        assert_eq!(store_of(&coordinator, &other).await, store);
    }
    // Other nodes join as if nothing had been claimed.
    let end = Instant::now() + WAIT_TIMEOUT;
    coordinator.join("third").await;
    assert!(Instant::now() < end);
    // A mark that has proved that the store went back proves it only once.
    let snapshot = coordinator.snapshot();
    let fourth = coordinator.join("fourth").await;
    let late = fourth.stream(&coordinator).await.mark().await;
    coordinator.go_back(&snapshot);
    await_another_store(&mut return_mark(&coordinator, &fourth.identity, &late).await).await;
    let after = store_of(&coordinator, &other).await;
    assert_ne!(after, store);
    let mut again = return_mark(&coordinator, &fourth.identity, &late).await;
    // The coordinator has read the mark when it answers this.
    let answer = again.publish(vec![]).await;
    assert!(!answer.has_ended(), "{answer:?}");
    assert_eq!(store_of(&coordinator, &other).await, after);
}
