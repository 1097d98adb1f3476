//! A token that is revoked or expired admits nobody, even after the coordinator was restored from a backup.

use std::process::Command;
use std::time::{Duration, Instant};

use meshd::node::control::join::JoinError;
use meshd::protocol::api::ErrorCode;
use meshd::protocol::control::Refusal;
use meshd::records::Envelope;

use crate::kit::{Answer, Coordinator, End, Hello, Identity, Member, Stream, WAIT_TIMEOUT, record};

/// A time longer than a restored coordinator waits for its members.
const WAIT: Duration = Duration::from_secs(60);

fn program(coordinator: &Coordinator, words: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"))
        .args(words)
        .arg("--state-dir")
        .arg(coordinator.state_directory())
        .output()
        .expect("it is built");
    assert!(output.status.success(), "{output:?}");
}

/// Does what a node does when the coordinator has a store that is new to the node: offers what the node holds, and says when
/// all of it was offered.
async fn offer(
    coordinator: &Coordinator,
    who: &Identity,
    records: &[Envelope],
) -> (Answer, Stream) {
    let mut stream = Stream::open(coordinator, who.key(), &Hello::default())
        .await
        .expect("anybody may say who it is");
    let answer = stream.publish(records.to_vec()).await;
    stream.told().await.expect("it listens");
    (answer, stream)
}

fn says(answer: &Answer, words: &str) -> bool {
    answer.refused().iter().any(|why| why.contains(words))
}

#[tokio::test]
async fn after_a_restore_neither_revoked_nor_expired_tokens_admit_a_node_by_a_stream() {
    let mut coordinator = Coordinator::start();
    let member = coordinator.join("member").await;
    let now = record::now();
    let expired = coordinator.token_with(|draft| {
        draft
            .with("uses", 9)
            .with("created_at", now - 7200)
            .with("expires_at", now - 3600)
    });
    let revoked = coordinator.token_for(9);
    let backup = tempfile::tempdir().expect("a temporary directory");
    let file = backup.path().join("backup");
    let file = file.to_str().expect("UTF-8");
    program(&coordinator, &["backup", file]);
    let revocation = record::revocation_of_token(revoked.key.public())
        .with("stays", [""; 0])
        .signed_by(coordinator.mesh_key());
    coordinator
        .submit(vec![revocation.clone()])
        .expect("signed");
    coordinator.kill();
    program(&coordinator, &["restore", file]);
    coordinator.restart();

    let thief = Identity::new();
    let dated_back = |token: &meshd::protocol::JoinToken, at| {
        record::membership(token.key.public(), &thief, "thief")
            .with("issued_at", at)
            .signed_by(&token.key)
    };
    let by_expired = dated_back(&expired, now - 5000);
    let by_revoked = dated_back(&revoked, now - 5);
    // The restored coordinator still waits for its members, admits nobody, and tells the thief when to try again.
    let (answer, mut stream) = offer(
        &coordinator,
        &thief,
        &[by_expired.clone(), by_revoked.clone()],
    )
    .await;
    assert_eq!(answer.accepted(), 0, "{answer:?}");
    assert!(says(&answer, "try again in"), "{answer:?}");
    let End(refusal) = stream.end().await;
    assert!(
        matches!(&refusal, Some((Refusal::Busy, why)) if why.contains("try again in")),
        "{refusal:?}"
    );
    // The member comes back and brings the revocation, which is not in the backup.
    let (answer, _open) = offer(&coordinator, &member.identity, &[revocation]).await;
    assert_eq!(answer.accepted(), 1, "{answer:?}");
    // When all members have offered what they hold, the coordinator decides by its clock and by the revocation.
    let end = Instant::now() + WAIT;
    loop {
        let (answer, _) = offer(
            &coordinator,
            &thief,
            &[by_expired.clone(), by_revoked.clone()],
        )
        .await;
        assert_eq!(answer.accepted(), 0, "{answer:?}");
        if !says(&answer, "try again in") {
            assert!(says(&answer, "has to join"), "{answer:?}");
            break;
        }
        assert!(Instant::now() < end, "{answer:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // The coordinator does not accept the memberships from a malicious member either.
    let mut stream = member.stream(&coordinator).await;
    let answer = stream.publish(vec![by_expired, by_revoked]).await;
    assert_eq!(answer.accepted(), 0, "{answer:?}");
    assert!(!coordinator.has_node(&thief.id()));
    assert!(coordinator.has_node(&member.id()));
}

async fn two_by(coordinator: &Coordinator, token: &meshd::protocol::JoinToken) -> [Member; 2] {
    let mut members = Vec::new();
    for name in ["one", "two"] {
        let joined = coordinator.join_as(&Identity::new(), token, name).await;
        members.push(joined.expect("a use left"));
    }
    members.try_into().unwrap_or_else(|_| panic!("two"))
}

#[tokio::test]
async fn meshctl_names_the_nodes_that_stay_and_no_other_is_ever_admitted_by_the_token() {
    let coordinator = Coordinator::start();
    let token = coordinator.token_for(9);
    let [one, two] = two_by(&coordinator, &token).await;
    let id = token.key.public().to_string();
    let output = coordinator.admin(&["token", "revoke", &id]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("one, two"), "{text}");
    assert!(coordinator.has_node(&one.id()) && coordinator.has_node(&two.id()));
    let mut stream = one.stream(&coordinator).await;
    while stream.revision < coordinator.tokens().tokens.len() as u64 {
        stream.hear().await.expect("a snapshot");
    }
    let revocation = stream
        .received
        .iter()
        .find(|record| record.payload.contains("\"revocation\""))
        .expect("it is told");
    for member in [&one, &two] {
        assert!(revocation.payload.contains(&member.id().to_string()));
    }
    // The membership is dated before those of the nodes that stay.
    let thief = Identity::new();
    let membership = record::membership(token.key.public(), &thief, "thief")
        .with("issued_at", record::now() - 3000)
        .signed_by(&token.key);
    for who in [one.key(), thief.key()] {
        let mut stream = Stream::open(&coordinator, who, &Hello::default())
            .await
            .expect("it may say who it is");
        let answer = stream.publish(vec![membership.clone()]).await;
        assert_eq!(answer.accepted(), 0, "{answer:?}");
    }
    assert!(coordinator.join_by(&thief, membership).await.is_err());
}

#[tokio::test]
async fn a_revocation_that_leaves_a_member_out_is_refused_so_that_nobody_is_cut_by_a_race() {
    let coordinator = Coordinator::start();
    let token = coordinator.token_for(9);
    let [one, two] = two_by(&coordinator, &token).await;
    let revocation = |stays: &[&Member]| {
        let ids: Vec<_> = stays.iter().map(|member| member.id()).collect();
        record::revocation_of_token(token.key.public())
            .with("stays", ids)
            .signed_by(coordinator.mesh_key())
    };
    let refused = coordinator.submit(vec![revocation(&[&one])]);
    assert_eq!(
        refused.map_err(|error| error.code),
        Err(ErrorCode::Conflict)
    );
    assert!(coordinator.has_node(&two.id()));
    coordinator
        .submit(vec![revocation(&[&one, &two])])
        .expect("both are named");
    assert!(coordinator.has_node(&one.id()) && coordinator.has_node(&two.id()));
}

/// How many nodes try to join while their token is revoked. The address range of the mesh has blocks for 255 nodes.
const JOINS: u32 = 250;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_join_while_their_token_is_revoked_are_in_or_refused_and_never_cut() {
    let coordinator = std::sync::Arc::new(Coordinator::start());
    let token = coordinator.token_for(JOINS);
    let id = token.key.public().to_string();
    let first = coordinator.join_as(&Identity::new(), &token, "n0").await;
    let mut joined = vec![first.expect("a use left").id()];
    let revoking = {
        let coordinator = std::sync::Arc::clone(&coordinator);
        tokio::task::spawn_blocking(move || coordinator.admin(&["token", "revoke", &id]))
    };
    for n in 1..JOINS {
        // Without a pause, all nodes would join before `meshctl` has started.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let member = coordinator
            .join_as(&Identity::new(), &token, &format!("n{n}"))
            .await;
        match member {
            Ok(member) => joined.push(member.id()),
            Err(JoinError::Refused(error)) => {
                assert!(error.message.contains("revoked"), "{error}");
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let revoked = revoking.await.expect("no panic");
    // Nodes may join faster than `meshctl` lists them. Then it revokes nothing and tells the administrator to try again.
    let text = String::from_utf8_lossy(&revoked.stderr);
    assert!(
        revoked.status.success() || text.contains("try again"),
        "{text}"
    );
    for node in joined {
        assert!(coordinator.has_node(&node));
    }
}

#[tokio::test]
async fn a_join_whose_date_is_not_now_is_refused_with_the_difference() {
    let coordinator = Coordinator::start();
    let token = coordinator.token_with(|draft| draft.with("uses", 9).with("created_at", 0));
    let (now, node) = (record::now(), Identity::new());
    for (issued_at, says) in [
        (0, " days behind the coordinator's"),
        (now - 3600, " 60 min behind the coordinator's"),
        (now + 900, " min ahead of the coordinator's"),
    ] {
        let draft = record::membership(token.key.public(), &node, "node");
        let joined = coordinator
            .join_with(&node, &token, &draft.with("issued_at", issued_at))
            .await;
        let Err(JoinError::Refused(error)) = joined.map(|member| member.name) else {
            panic!("{issued_at} is let in");
        };
        assert_eq!(error.code, ErrorCode::Configuration, "{error}");
        assert!(error.message.contains(says), "{error}");
    }
    let end = Instant::now() + WAIT_TIMEOUT;
    let joined = coordinator.join_as(&node, &token, "node").await;
    assert!(joined.is_ok() && Instant::now() < end);
}
