use super::*;
use crate::model::PublicKey;
use crate::model::SigningKey;
use crate::wire::token::SpkiPin;

fn dir() -> (tempfile::TempDir, StateDir) {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let dir = StateDir::open(&parent.path().join("state")).expect("a new directory");
    (parent, dir)
}

fn token(n: u8) -> JoinToken {
    JoinToken {
        urls: vec!["https://192.0.2.1:7443".parse().expect("a literal")],
        pin: SpkiPin([n; 32]),
        mesh_key: PublicKey([n; 32]),
        key: SigningKey::from_seed(&[n; 32]),
    }
}

fn name(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

/// A join with token `n` that a coordinator may have granted.
fn asked(dir: &StateDir, n: u8) -> Pending {
    let pending = Pending {
        asked: true,
        ..prepare(dir, &token(n), &name("a")).expect("room on the disk")
    };
    dir.set_pending(&pending).expect("room on the disk");
    pending
}

#[test]
fn the_same_join_is_asked_for_again_with_the_same_keys() {
    let (_parent, dir) = dir();
    let first = asked(&dir, 2);
    let again = prepare(&dir, &token(2), &name("a")).expect("readable");
    assert_eq!(again.membership, first.membership);
    let renamed = prepare(&dir, &token(2), &name("b")).expect("readable");
    assert_eq!(
        (renamed.keys.identity.public(), renamed.asked),
        (first.keys.identity.public(), true)
    );
    assert!(dir.departing().is_empty());
}

#[test]
fn a_join_with_another_token_leaves_no_member_behind_that_the_first_may_have_made() {
    let (_parent, dir) = dir();
    let first = asked(&dir, 2);
    let second = prepare(&dir, &token(3), &name("a")).expect("readable");
    assert_ne!(second.keys.identity.public(), first.keys.identity.public());
    let departing = dir.departing();
    let departed: Vec<_> = departing.iter().map(|d| (d.id(), d.way.pin)).collect();
    assert_eq!(departed, [(first.keys.identity.public(), SpkiPin([2; 32]))]);
}

#[test]
fn a_join_that_no_coordinator_received_has_nothing_to_give_back() {
    let (_parent, dir) = dir();
    let pending = prepare(&dir, &token(2), &name("a")).expect("room on the disk");
    abandon(&dir, &pending).expect("room on the disk");
    assert!(dir.departing().is_empty());
    assert!(dir.pending().expect("readable").is_none());
}

#[test]
fn only_a_clear_refusal_decides_that_nobody_was_admitted() {
    let refused = |code| JoinError::Refused(ApiError::new(code, "no"));
    for code in [ErrorCode::Busy, ErrorCode::Internal] {
        assert!(is_undecided(&refused(code)));
    }
    for code in [
        ErrorCode::Forbidden,
        ErrorCode::Conflict,
        ErrorCode::BadRequest,
    ] {
        assert!(!is_undecided(&refused(code)));
    }
    let broken = JoinError::Broken {
        url: "https://192.0.2.1:7443".parse().expect("a literal"),
        why: "cut off".to_owned(),
    };
    assert!(is_undecided(&broken));
}

#[tokio::test]
async fn a_coordinator_that_cannot_be_reached_decides_nothing_about_an_earlier_request() {
    let (_parent, dir) = dir();
    // Nobody listens on the discard port of this host.
    let way = Way {
        urls: vec!["https://127.0.0.1:9".parse().expect("a literal")],
        ..way_of(&token(2))
    };
    let ground = Ground {
        dir: dir.clone(),
        interface: "mesh0".to_owned(),
        listen_port: 0,
    };
    for before in [false, true] {
        let pending = Pending {
            asked: before,
            ..prepare(&dir, &token(2), &name("a")).expect("room on the disk")
        };
        assert!(ask(&ground, &pending, &way).await.is_err());
        let kept = dir.pending().expect("readable").expect("it was written");
        assert_eq!(kept.asked, before);
    }
}
