//! No other member takes the name of a node at the coordinator.

use meshd::node::control::join::JoinError;
use meshd::protocol::api::ErrorCode;

use crate::kit::{Coordinator, Identity, record};

#[tokio::test]
async fn no_membership_on_a_stream_changes_the_name_of_a_node() {
    let coordinator = Coordinator::start();
    let thief = coordinator.join("thief").await;
    let victim = coordinator.join("victim").await;
    let again = |name: &str, issued_at| {
        record::membership(thief.token.key.public(), &thief.identity, name)
            .with("issued_at", issued_at)
            .signed_by(&thief.token.key)
    };
    let now = record::now();
    let mut stream = thief.stream(&coordinator).await;
    // The victim's name is claimed with dates before and after the victim's, one of them far in the future. A free name and the
    // thief's own name are claimed as well.
    for membership in [
        again("victim", now - 3000),
        again("victim", now + 60),
        again("victim", now + 3000),
        again("free", now + 60),
        again("thief", now + 60),
    ] {
        let answer = stream.publish(vec![membership]).await;
        assert_eq!(answer.accepted(), 0, "{answer:?}");
    }
    let mut names: Vec<String> = coordinator
        .nodes()
        .nodes
        .iter()
        .map(|node| node.name.to_string())
        .collect();
    names.sort();
    assert_eq!(names, ["thief", "victim"]);
    let rows = coordinator.nodes().nodes;
    let row = rows.iter().find(|row| row.name.as_str() == "victim");
    assert_eq!(row.map(|row| row.id), Some(victim.id()));
}

#[tokio::test]
async fn no_join_takes_a_name_by_an_early_date() {
    let coordinator = Coordinator::start();
    let victim = coordinator.join("victim").await;
    let token = coordinator.token_with(|draft| draft.with("created_at", 0));
    let thief = Identity::new();
    for issued_at in [0, record::now() - 3000, record::now()] {
        let draft = record::membership(token.key.public(), &thief, "victim");
        let joined = coordinator
            .join_with(&thief, &token, &draft.with("issued_at", issued_at))
            .await;
        let Err(JoinError::Refused(error)) = joined.map(|member| member.name) else {
            panic!("{issued_at} is let in");
        };
        assert!(
            matches!(error.code, ErrorCode::Configuration | ErrorCode::Conflict),
            "{error}"
        );
    }
    assert!(coordinator.has_node(&victim.id()) && !coordinator.has_node(&thief.id()));
}
