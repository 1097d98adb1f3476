//! A member calls others at a limited rate, only members are called and call, and nobody calls for another one.

use std::net::SocketAddr;
use std::time::Duration;

use meshd::model::{PublicKey, SigningKey};
use meshd::protocol::call::Call;
use meshd::protocol::control::FromCoordinator;
use serde_json::{Value, json};

use crate::kit::{Coordinator, Hello, Identity, Stream};

/// How many calls a member has at once, and how many each second after that.
const BURST: u64 = 64;
const RATE: u64 = 5;

fn call(key: &SigningKey, to: &PublicKey, at: u64) -> Call {
    let victim = SocketAddr::from(([203, 0, 113, 7], 53));
    Call::sign(key, to, true, vec![victim], at)
}

fn message(to: &PublicKey, call: &Call) -> Value {
    json!({"type": "call", "to": to, "call": call})
}

/// The calls that arrive until the stream is silent.
async fn calls(stream: &mut Stream) -> Vec<(PublicKey, Call)> {
    let mut calls = Vec::new();
    while let Ok(Ok(heard)) = tokio::time::timeout(Duration::from_secs(2), stream.hear()).await {
        if let FromCoordinator::Call { from, call } = heard {
            calls.push((from, call));
        }
    }
    calls
}

#[tokio::test]
async fn a_member_that_calls_without_end_is_passed_on_seldom_and_under_its_own_name() {
    let coordinator = Coordinator::start();
    let caller = coordinator.join("caller").await;
    let called = coordinator.join("called").await;
    let mut from = caller.stream(&coordinator).await;
    let mut to = called.stream(&coordinator).await;
    let (id, own) = (called.id(), caller.id());
    let flood = async {
        for at in 0..2000 {
            let call = call(caller.key(), &id, at);
            from.say(&message(&id, &call)).await.expect("it goes on");
        }
    };
    let ((), passed) = tokio::join!(flood, calls(&mut to));
    let most = BURST + RATE * 30;
    assert!(
        (1..=most).contains(&(passed.len() as u64)),
        "{}",
        passed.len()
    );
    for (from, call) in &passed {
        assert_eq!(*from, own);
        assert!(call.is_authentic(&own, &id));
    }
    // A call in the name of another member is passed on with the name of the sender, and its signature does not hold for it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let forged = call(called.key(), &id, 1);
    from.say(&message(&id, &forged)).await.expect("it goes on");
    let passed = calls(&mut to).await;
    let [(from, passed)] = passed.as_slice() else {
        panic!("{passed:?}")
    };
    assert_eq!(*from, own);
    assert!(!passed.is_authentic(from, &id));
}

#[tokio::test]
async fn strangers_neither_call_nor_are_called() {
    let coordinator = Coordinator::start();
    let member = coordinator.join("member").await;
    let stranger = Identity::new();
    let mut inside = member.stream(&coordinator).await;
    let mut outside = Stream::open(&coordinator, stranger.key(), &Hello::default())
        .await
        .expect("it may prove a membership");
    let (id, other) = (member.id(), stranger.id());
    let to_member = message(&id, &call(stranger.key(), &id, 1));
    let to_stranger = message(&other, &call(member.key(), &other, 1));
    let to_itself = message(&id, &call(member.key(), &id, 2));
    outside.say(&to_member).await.expect("it goes on");
    inside.say(&to_stranger).await.expect("it goes on");
    inside.say(&to_itself).await.expect("it goes on");
    let (inside, outside) = tokio::join!(calls(&mut inside), calls(&mut outside));
    assert_eq!((inside, outside), (vec![], vec![]));
}
