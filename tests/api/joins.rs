//! Joins that compete.

use std::sync::Arc;
use std::time::SystemTime;

use meshd::model::SigningKey;
use meshd::model::time::{UnixSeconds, next_version};
use meshd::node::control::join::{JoinError, join};
use meshd::protocol::JoinToken;
use meshd::protocol::api::ErrorCode;
use meshd::protocol::control::PROTOCOL;
use meshd::protocol::join::JoinRequest;
use meshd::records::Envelope;
use meshd::records::envelope::{Purpose, Signature};
use meshd::records::kinds::{Membership, Record};
use meshd::testbed::records as build;
use tokio::sync::Barrier;

use crate::coordinator::Coordinator;

/// Joins with one token at once.
const JOINS: usize = 200;
/// How many tokens are used, one after the other. A coordinator limits the refused joins of one source, which slows them down.
const ROUNDS: usize = 50;

/// A new node that asks to be let in under `name`.
pub(crate) fn request(token: &JoinToken, name: &str) -> JoinRequest {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).expect("the system has randomness");
    request_of(&SigningKey::from_seed(&seed), token, name)
}

/// A key that others of the test have not.
pub(crate) fn identity_of(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

/// The node with this key asks to be let in under `name`.
pub(crate) fn request_of(identity: &SigningKey, token: &JoinToken, name: &str) -> JoinRequest {
    let now = SystemTime::now();
    let membership = Membership {
        version: next_version(0, now),
        issued_at: UnixSeconds::from_system(now),
        ..build::membership(&identity.public(), &token.key.public(), name)
    };
    let membership = Envelope::seal(&Record::Membership(membership), &token.key);
    JoinRequest {
        protocol: PROTOCOL,
        oldest: None,
        proof: Signature::make(identity, Purpose::Join, membership.payload.as_bytes()),
        membership,
    }
}

async fn compete(token: Arc<JoinToken>, round: usize) -> Vec<Result<(), JoinError>> {
    let start = Arc::new(Barrier::new(JOINS));
    let tasks: Vec<_> = (0..JOINS)
        .map(|n| {
            let (token, start) = (Arc::clone(&token), Arc::clone(&start));
            tokio::spawn(async move {
                let request = request(&token, &format!("n{round}-{n}"));
                start.wait().await;
                join(&token.urls, token.pin, &request).await.map(drop)
            })
        })
        .collect();
    let mut ends = Vec::with_capacity(JOINS);
    for task in tasks {
        ends.push(task.await.expect("a join does not panic"));
    }
    ends
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_joins_with_one_token_exactly_one_succeeds() {
    let coordinator = Coordinator::start();
    for round in 0..ROUNDS {
        let ends = compete(Arc::new(coordinator.token()), round).await;
        let admitted = ends.iter().filter(|end| end.is_ok()).count();
        assert_eq!(admitted, 1, "round {round}");
        for end in ends {
            match end {
                Ok(()) => {}
                Err(JoinError::Refused(refusal)) => {
                    assert_eq!(refusal.code, ErrorCode::Forbidden, "{refusal}");
                    assert!(refusal.message.contains("spent"), "{refusal}");
                }
                Err(other) => panic!("no refusal: {other}"),
            }
        }
    }
    let nodes: meshd::protocol::admin::NodeList =
        serde_json::from_str(&coordinator.admin(&["node", "list", "--json"])).expect("a list");
    assert_eq!(nodes.nodes.len(), ROUNDS);
}
