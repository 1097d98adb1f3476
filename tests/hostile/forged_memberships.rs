//! A membership that no valid token has signed admits nobody.

use meshd::model::SigningKey;
use meshd::node::control::join::JoinError;
use meshd::protocol::api::ErrorCode;

use crate::kit::{Coordinator, Hello, Identity, Stream, apply_all, ledger_of, record};

#[tokio::test]
async fn a_forged_membership_is_refused_at_a_join_and_on_a_stream() {
    let coordinator = Coordinator::start();
    let token = coordinator.token();
    let stranger = Identity::new();
    let draft = record::membership(token.key.public(), &stranger, "thief");
    let forgeries = [
        draft.signed_by(stranger.key()),
        draft.forged(stranger.key(), token.key.public()),
        draft
            .clone()
            .with("token", stranger.id())
            .signed_by(stranger.key()),
    ];
    for forged in forgeries {
        let refused = coordinator.join_by(&stranger, forged.clone()).await;
        assert!(
            matches!(&refused, Err(JoinError::Refused(error)) if error.code != ErrorCode::Internal),
            "{refused:?}"
        );
        let mut stream = Stream::open(&coordinator, stranger.key(), &Hello::default())
            .await
            .expect("a stranger may say who it is");
        let answer = stream.publish(vec![forged]).await;
        assert_eq!(answer.accepted(), 0, "{answer:?}");
    }
    assert!(!coordinator.has_node(&stranger.id()));

    // The same membership is accepted when the token's key has signed it.
    let joined = coordinator.join_with(&stranger, &token, &draft).await;
    let member = joined.expect("an unspent token");
    let node = member.node().signed_by(member.key());
    let mut stream = member.stream(&coordinator).await;
    assert_eq!(stream.publish(vec![node.clone()]).await.accepted(), 1);
    stream
        .await_record(&node)
        .await
        .expect("the stream goes on");
}

#[test]
fn a_ledger_refuses_a_membership_by_a_key_that_the_mesh_key_did_not_sign() {
    let coordinator_key = SigningKey::from_seed(&[1; 32]);
    let token = SigningKey::from_seed(&[2; 32]);
    let mut ledger = ledger_of(
        coordinator_key.public(),
        [record::token(token.public()).signed_by(&coordinator_key)],
    );
    let thief = Identity::of(3);
    let draft = record::membership(token.public(), &thief, "thief");
    let results = apply_all(
        &mut ledger,
        [
            draft.signed_by(thief.key()),
            draft.forged(thief.key(), token.public()),
            draft.signed_by(&token),
        ],
    );
    assert!(
        matches!(results.as_slice(), [Err(_), Err(_), Ok(_)]),
        "{results:?}"
    );
}
