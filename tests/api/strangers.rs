//! Nodes that prove an identity and no membership.

use meshd::node::control::join::join;
use meshd::protocol::control::{FromCoordinator, PROTOCOL};
use serde_json::json;

use crate::coordinator::Coordinator;
use crate::joins::{identity_of, request_of};
use crate::versions::{greet, hear, hello, open};

#[tokio::test]
async fn a_stranger_receives_the_stores_name_and_revision_only_once_it_is_a_member() {
    let coordinator = Coordinator::start();
    let token = coordinator.token();
    let member = identity_of(40);
    join(
        &token.urls,
        token.pin,
        &request_of(&member, &token, "member"),
    )
    .await
    .expect("an unspent token");
    let mut socket = open(&token).await;
    let greeting = hello(member.public(), None, PROTOCOL);
    let FromCoordinator::Welcome {
        store: held,
        revision: reached,
        ..
    } = greet(&mut socket, &token, &member, greeting).await
    else {
        panic!("a member is not welcome");
    };
    assert!(reached > 0);

    let stranger = identity_of(41);
    let mut names = Vec::new();
    for known in [None, Some(&held)] {
        let mut socket = open(&token).await;
        let mut greeting = hello(stranger.public(), None, PROTOCOL);
        greeting["store"] = json!(known);
        let shown = greet(&mut socket, &token, &stranger, greeting).await;
        let FromCoordinator::Welcome {
            store,
            revision: 0,
            snapshot: true,
            ..
        } = shown
        else {
            panic!("{shown:?}");
        };
        assert_ne!(store, held);
        assert!(!names.contains(&store), "{store} is given again");
        names.push(store);
    }

    // It becomes a member while its stream is open.
    let mut socket = open(&token).await;
    let greeting = hello(stranger.public(), None, PROTOCOL);
    greet(&mut socket, &token, &stranger, greeting).await;
    let token = coordinator.token();
    let request = request_of(&stranger, &token, "stranger");
    join(&token.urls, token.pin, &request)
        .await
        .expect("an unspent token");
    let mut named = false;
    loop {
        match hear(&mut socket).await {
            FromCoordinator::Welcome { store, .. } => {
                assert_eq!(store, held);
                named = true;
            }
            FromCoordinator::Changes { records, .. } => {
                assert!(named, "changes of a store without a name");
                if records.contains(&request.membership) {
                    break;
                }
            }
            FromCoordinator::Mark { .. } | FromCoordinator::Summary { .. } => {
                assert!(named, "a mark or a summary for a node that is no member");
            }
            other => panic!("{other:?}"),
        }
    }
}
