use super::*;

/// Proves a request and checks it.
fn check(request: &JoinRequest, ledger: &Ledger, now: UnixSeconds) -> Result<Granted, ApiError> {
    super::check(&prove(request)?, ledger, now).map_err(ApiError::from)
}
use crate::protocol::control::PROTOCOL;
use crate::records::Envelope;
use crate::records::envelope::Signature;
use crate::records::kinds::{Revocation, RevokedKind};
use crate::testbed::records as build;
use crate::testbed::records::{LATER as END, NOW, key, label};

const MESH: u8 = 1;
const TOKEN: u8 = 2;
const NODE: u8 = 10;

/// A mesh and a token for one node with the tag `db`.
fn ledger() -> Ledger {
    let mut ledger = Ledger::new(key(MESH).public());
    let token = Token {
        tags: vec![label("db")],
        ..build::token(&key(TOKEN).public())
    };
    for record in [Record::Mesh(build::mesh()), Record::Token(token)] {
        ledger
            .apply(Envelope::seal(&record, &key(MESH)))
            .expect("signed by the mesh key");
    }
    ledger
}

fn revoke(ledger: &mut Ledger, of: u8, revoked: RevokedKind) {
    let revocation = Revocation {
        id: key(of).public(),
        version: 1,
        revoked,
        at: NOW,
        stays: None,
    };
    ledger
        .apply(Envelope::seal(&Record::Revocation(revocation), &key(MESH)))
        .expect("signed by the mesh key");
}

fn membership(n: u8) -> Membership {
    Membership {
        tags: vec![label("db")],
        ..build::membership(&key(n).public(), &key(TOKEN).public(), "web")
    }
}

/// A request as a node makes it, with its proof by `prover` and its certificate signed by `signer`.
fn request_by(membership: Membership, signer: u8, prover: u8) -> JoinRequest {
    let envelope = Envelope::seal(&Record::Membership(membership), &key(signer));
    JoinRequest {
        protocol: PROTOCOL,
        oldest: None,
        proof: Signature::make(&key(prover), Purpose::Join, envelope.payload.as_bytes()),
        membership: envelope,
    }
}

fn request(membership: Membership) -> JoinRequest {
    request_by(membership, TOKEN, NODE)
}

fn refusal(request: &JoinRequest, ledger: &Ledger, now: UnixSeconds) -> (ErrorCode, String) {
    let error = check(request, ledger, now).expect_err("to be refused");
    (error.code, error.message)
}

#[test]
fn a_request_by_the_rules_is_granted() {
    let granted = check(&request(membership(NODE)), &ledger(), NOW).expect("by the rules");
    assert_eq!(
        granted,
        Granted {
            membership: membership(NODE),
            uses: 1,
            addresses: build::plan()
        }
    );
}

#[test]
fn another_protocol_version_is_refused_with_both_named() {
    for protocol in [0, PROTOCOL + 1] {
        let request = JoinRequest {
            protocol,
            ..request(membership(NODE))
        };
        let (code, message) = refusal(&request, &ledger(), NOW);
        assert_eq!(code, ErrorCode::Version);
        assert_eq!(
            message,
            format!(
                "the node speaks protocol {protocol}, this coordinator speaks {PROTOCOL}; upgrade the older of the two"
            )
        );
    }
}

#[test]
fn who_does_not_hold_the_identity_or_the_token_is_refused() {
    let stolen_identity = request_by(membership(NODE), TOKEN, 99);
    let no_token = request_by(membership(NODE), 99, NODE);
    let mut changed = request(membership(NODE));
    changed.membership.payload = changed.membership.payload.replace("web", "wob");
    let mut reused = request(membership(NODE));
    reused.proof = Signature::make(
        &key(NODE),
        Purpose::Control,
        reused.membership.payload.as_bytes(),
    );
    let mut other_kind = request(membership(NODE));
    other_kind.membership = Envelope::seal_payload("{}".into(), &key(TOKEN));
    for request in [stolen_identity, no_token, changed, reused, other_kind] {
        assert_eq!(
            refusal(&request, &ledger(), NOW).0,
            ErrorCode::BadRequest,
            "{request:?}"
        );
    }
}

#[test]
fn a_token_that_is_unknown_revoked_expired_or_spent_is_told_apart() {
    let asked = request(membership(NODE));
    let with_mesh_only = {
        let mut other = Ledger::new(key(MESH).public());
        let mesh = ledger().envelopes().next().expect("the mesh").clone();
        other.apply(mesh).expect("signed by the mesh key");
        other
    };
    let mut revoked = ledger();
    revoke(&mut revoked, TOKEN, RevokedKind::Token);
    let mut spent = ledger();
    spent
        .apply(request(membership(11)).membership)
        .expect("a use left");
    for (ledger, now, says) in [
        (&with_mesh_only, NOW, "does not know this token"),
        (&revoked, NOW, "the token is revoked"),
        (&ledger(), END, "the token expired 0 s ago"),
        (
            &ledger(),
            UnixSeconds(END.0 + 7200),
            "the token expired 2 h ago",
        ),
        (&spent, NOW, "the token is spent: it has admitted 1 node"),
    ] {
        let (code, message) = refusal(&asked, ledger, now);
        assert_eq!(code, ErrorCode::Forbidden);
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn a_coordinator_without_a_mesh_says_so() {
    let empty = Ledger::new(key(MESH).public());
    let (code, message) = refusal(&request(membership(NODE)), &empty, NOW);
    assert_eq!(code, ErrorCode::Conflict);
    assert!(message.contains("meshctl init"), "{message}");
}

#[test]
fn a_certificate_beyond_its_token_is_refused() {
    let mut tagged = membership(NODE);
    tagged.tags.push(label("admin"));
    let (code, message) = refusal(&request(tagged), &ledger(), NOW);
    assert_eq!(code, ErrorCode::Forbidden);
    assert!(message.contains("admin"), "{message}");
}

#[test]
fn the_same_request_is_granted_again_whatever_became_of_its_token() {
    let asked = request(membership(NODE));
    let mut ledger = ledger();
    ledger.apply(asked.membership.clone()).expect("a use left");
    revoke(&mut ledger, TOKEN, RevokedKind::Token);
    let late = UnixSeconds(END.0 + 1);
    assert_eq!(check(&asked, &ledger, late).map(drop), Ok(()));
    // Another certificate of the same node is no repetition.
    let mut renamed = membership(NODE);
    renamed.version = 2;
    assert_eq!(
        refusal(&request(renamed), &ledger, late).0,
        ErrorCode::Forbidden
    );
}

#[test]
fn a_removed_node_stays_out_even_with_the_request_that_let_it_in() {
    let asked = request(membership(NODE));
    let mut ledger = ledger();
    ledger.apply(asked.membership.clone()).expect("a use left");
    revoke(&mut ledger, NODE, RevokedKind::Node);
    let (code, message) = refusal(&asked, &ledger, NOW);
    assert_eq!(code, ErrorCode::Forbidden);
    assert!(message.contains("removed"), "{message}");
}

/// Checks a join of a node whose clock is wrong by `by` seconds.
fn with_clock_off(by: i64, ledger: &Ledger) -> Result<(), ApiError> {
    let skewed = Membership {
        issued_at: UnixSeconds(NOW.0.saturating_add_signed(by)),
        ..membership(NODE)
    };
    check(&request(skewed), ledger, NOW).map(drop)
}

#[test]
fn a_clock_some_minutes_off_is_no_hindrance() {
    for by in [-600, -60, 60, 600] {
        assert_eq!(with_clock_off(by, &ledger()), Ok(()), "{by}");
    }
}

#[test]
fn a_clock_further_off_is_told_with_the_difference_and_never_admits() {
    for (by, says) in [
        (601, "the node's clock is 10 min ahead of the coordinator's"),
        (
            3660,
            "the node's clock is 61 min ahead of the coordinator's",
        ),
        (-601, "the node's clock is 10 min behind the coordinator's"),
        (
            -86_400 * 3,
            "the node's clock is 3 days behind the coordinator's",
        ),
        // The clock of a machine without a battery starts in 1970.
        (
            i64::MIN,
            "the node's clock is 20833 days behind the coordinator's",
        ),
    ] {
        let error = with_clock_off(by, &ledger()).expect_err("too far");
        assert_eq!(error.code, ErrorCode::Configuration);
        assert!(error.message.starts_with(says), "{}", error.message);
        assert!(error.message.contains("systemd-timesyncd"));
    }
}

#[test]
fn a_join_that_is_repeated_is_granted_however_long_ago_it_was_begun() {
    let mut ledger = ledger();
    let asked = request(membership(NODE));
    ledger.apply(asked.membership.clone()).expect("a use left");
    let later = UnixSeconds(NOW.0 + 3000);
    assert_eq!(check(&asked, &ledger, later).map(drop), Ok(()));
}
