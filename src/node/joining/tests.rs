use super::*;
use crate::model::PublicKey;
use crate::model::SigningKey;
use crate::protocol::token::SpkiPin;

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
fn requested(dir: &StateDir, n: u8) -> Pending {
    let pending = Pending {
        asked: true,
        ..prepare(dir, &token(n), &name("a"), Duration::MAX).expect("room on the disk")
    };
    dir.set_pending(&pending).expect("room on the disk");
    pending
}

#[test]
fn a_join_whose_url_does_not_resolve_says_so_and_how_the_token_gets_another_url() {
    let url = "https://coord.example.com:7443".parse().expect("a literal");
    let why = "Name or service not known".to_owned();
    let error = dial_error(&DialError::Unresolved { url, why });
    assert_eq!(error.code, ErrorCode::Unreachable);
    for part in [
        "the name coord.example.com ",
        "does not resolve on this machine (Name or service not known)",
        "--public-url",
        "make a new token",
    ] {
        assert!(error.message.contains(part), "{}", error.message);
    }
}

#[test]
fn the_same_join_is_asked_for_again_with_the_same_keys() {
    let (_parent, dir) = dir();
    let first = requested(&dir, 2);
    let again = prepare(&dir, &token(2), &name("a"), Duration::MAX).expect("readable");
    assert_eq!(again.membership, first.membership);
    let renamed = prepare(&dir, &token(2), &name("b"), Duration::MAX).expect("readable");
    assert_eq!(
        (renamed.keys.identity.public(), renamed.asked),
        (first.keys.identity.public(), true)
    );
    assert!(dir.departing().is_empty());
}

#[test]
fn a_certificate_that_is_too_old_for_a_coordinator_is_made_anew_with_the_same_keys() {
    let (_parent, dir) = dir();
    let first = requested(&dir, 2);
    let key = &token(2).key;
    let Some(Record::Membership(held)) = Record::parse(&first.membership.payload)
        .ok()
        .map(|(_, record)| record)
    else {
        panic!("a membership");
    };
    let long_ago = Membership {
        issued_at: UnixSeconds(held.issued_at.0 - 3600),
        version: held.version - 3_600_000,
        ..held
    };
    let pending = Pending {
        membership: Envelope::seal(&Record::Membership(long_ago.clone()), key),
        ..first
    };
    dir.set_pending(&pending).expect("room on the disk");
    let prepare = |oldest| prepare(&dir, &token(2), &name("a"), oldest).expect("readable");
    assert_eq!(prepare(Duration::MAX).membership, pending.membership);
    let anew = prepare(MAX_CERTIFICATE_AGE);
    assert!(anew.asked);
    let made = membership_in(&anew.membership).expect("a membership");
    assert_eq!(made.id, long_ago.id);
    assert!(made.issued_at > long_ago.issued_at && made.version > long_ago.version);
    assert_eq!(prepare(MAX_CERTIFICATE_AGE).membership, anew.membership);
}

#[test]
fn a_join_with_another_token_leaves_no_member_behind_that_the_first_may_have_made() {
    let (_parent, dir) = dir();
    let first = requested(&dir, 2);
    let second = prepare(&dir, &token(3), &name("a"), Duration::MAX).expect("readable");
    assert_ne!(second.keys.identity.public(), first.keys.identity.public());
    let departing = dir.departing();
    let departed: Vec<_> = departing.iter().map(|d| (d.id(), d.way.pin)).collect();
    assert_eq!(departed, [(first.keys.identity.public(), SpkiPin([2; 32]))]);
}

#[test]
fn a_join_that_no_coordinator_received_has_nothing_to_give_back() {
    let (_parent, dir) = dir();
    let pending = prepare(&dir, &token(2), &name("a"), Duration::MAX).expect("room on the disk");
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
    let context = JoinContext {
        dir: dir.clone(),
        interface: "mesh0".to_owned(),
        listen_port: 0,
    };
    for before in [false, true] {
        let pending = Pending {
            asked: before,
            ..prepare(&dir, &token(2), &name("a"), Duration::MAX).expect("room on the disk")
        };
        assert!(request_membership(&context, &pending, &way).await.is_err());
        let kept = dir.pending().expect("readable").expect("it was written");
        assert_eq!(kept.asked, before);
    }
}
