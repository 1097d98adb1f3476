//! What streams may claim.

use super::*;

/// A mesh that came back from a backup, in which node 10 is a member; the token had 4 uses left.
fn restored_with_member() -> (tempfile::TempDir, Hub) {
    let (dir, hub) = state_dir();
    hub.join(&request(10, membership(10, "n10", 1, now())))
        .expect("a use left");
    publish(&hub, vec![node(&hub, 10, 1, 1)]).expect("writable");
    let backup = dir.path().join("backup");
    crate::coordinator::store::back_up(dir.path(), &["tls.key"], &backup).expect("a store");
    drop(hub);
    let hub = restored(&backup, dir.path());
    (dir, hub)
}

fn refusal(hub: &Hub, who: u8, record: &Envelope) -> Option<PublishRefused> {
    let published = hub.publish(&id(who), vec![record.clone()]);
    reasons(&published.expect("writable")).into_iter().next()
}

fn is_member(hub: &Hub, n: u8) -> bool {
    hub.standing(&id(n)) == Standing::Member
}

/// Ends the wait for the nodes, as the next join does.
fn end_wait(hub: &Hub) {
    let_pass(hub, MAX_REFILL);
    hub.handle_fully_offered(&id(10));
    let _ = hub.join(&request(99, membership(99, "n99", 1, now() - HOUR)));
    assert!(!hub.size().refilling);
}

/// The token, valid until then, in a version that holds.
fn token_until(expires_at: u64) -> Envelope {
    let Ok((_, Record::Token(token))) = Record::parse(&token(expires_at).payload) else {
        panic!("a token");
    };
    let newer = Token {
        version: 9,
        ..token
    };
    Envelope::seal(&Record::Token(newer), &key(MESH))
}

#[test]
fn after_a_restoration_a_leaked_token_with_uses_left_admits_nobody_by_a_stream() {
    let (_dir, hub) = restored_with_member();
    let leaked = membership(66, "thief", 1, now() - 100);
    for passed in [
        Duration::ZERO,
        NOBODY_TIMEOUT,
        MAX_REFILL - Duration::from_secs(60),
    ] {
        let_pass(&hub, passed);
        assert!(
            matches!(
                refusal(&hub, 66, &leaked),
                Some(PublishRefused::NotYet(left)) if left <= MAX_REFILL
            ),
            "{passed:?}"
        );
    }
    // Once the members have told, the clock decides: the token was revoked meanwhile, or is expired.
    end_wait(&hub);
    submit(&hub, None, token_until(now() - 10)).expect("signed");
    assert_eq!(
        refusal(&hub, 66, &leaked),
        Some(PublishRefused::NeverJoined)
    );
    submit(&hub, None, revocation(TOKEN, RevokedKind::Token)).expect("signed");
    let dated_back = membership(66, "thief", 1, now() - 3000);
    assert_eq!(
        refusal(&hub, 66, &dated_back),
        Some(PublishRefused::NeverJoined)
    );
    assert!(!is_member(&hub, 66));
}

#[test]
fn a_node_that_comes_late_is_held_to_the_coordinators_clock() {
    let (_dir, hub) = restored_with_member();
    end_wait(&hub);
    let ahead = membership(11, "n11", 1, now() + 700);
    assert_eq!(refusal(&hub, 11, &ahead), Some(PublishRefused::NeverJoined));
    let own = membership(11, "n11", 1, now() - 100);
    assert_eq!(
        refusal(&hub, 12, &own),
        Some(PublishRefused::NeverJoined),
        "a stranger brings nobody but itself"
    );
    assert_eq!(refusal(&hub, 11, &own), None);
    assert!(is_member(&hub, 11));
}

#[test]
fn a_member_vouches_while_the_store_misses_something_and_not_for_ever() {
    let (_dir, hub) = restored_with_member();
    submit(&hub, None, token_until(now() - 10)).expect("signed");
    let (early, late) = (
        membership(11, "n11", 1, now() - 100),
        membership(12, "n12", 1, now() - 100),
    );
    assert_eq!(refusal(&hub, 10, &early), None);
    assert!(is_member(&hub, 11));
    end_wait(&hub);
    assert_eq!(refusal(&hub, 10, &late), Some(PublishRefused::NeverJoined));
}

#[test]
fn a_stream_never_changes_the_name_of_a_node() {
    let hub = hub();
    for (n, name) in [(10, "a"), (11, "b")] {
        hub.join(&request(n, membership(n, name, 1, now() - 50)))
            .expect("a use left");
    }
    // The victim's name with an earlier date, and with a later one; a free name; the same name.
    for (name, issued_at) in [
        ("a", now() - 400),
        ("a", now()),
        ("free", now()),
        ("b", now()),
    ] {
        assert_eq!(
            refusal(&hub, 11, &membership(11, name, 2, issued_at)),
            Some(PublishRefused::ChangedMembership)
        );
    }
    // Nor while the store misses something.
    let (_dir, restored) = restored_with_member();
    let renamed = membership(10, "other", 2, now());
    for by in [10, 66] {
        assert_eq!(
            refusal(&restored, by, &renamed),
            Some(PublishRefused::ChangedMembership)
        );
    }
    assert_eq!(
        refusal(&restored, 10, &membership(10, "n10", 2, now())),
        None
    );
}

#[test]
fn a_node_that_proves_its_membership_replaces_one_that_it_did_not_sign() {
    let (_dir, hub) = restored_with_member();
    let forged = membership(12, "stolen", 1, now());
    assert_eq!(refusal(&hub, 10, &forged), None, "a member vouches");
    let own = Membership {
        name: Label::parse("n12").expect("a literal"),
        ..membership_in(&forged)
    };
    let own = own.proven_by(&key(12));
    let own = Envelope::seal(&Record::Membership(own), &key(TOKEN));
    assert_eq!(refusal(&hub, 12, &own), None);
    assert_eq!(hub.screen(&own), Screened::Held);
    let later = membership(12, "n12", 2, now() + 1);
    assert_eq!(
        refusal(&hub, 10, &later),
        Some(PublishRefused::Ledger(Refused::Unproven))
    );
}

fn membership_in(envelope: &Envelope) -> Membership {
    match Record::parse(&envelope.payload) {
        Ok((_, Record::Membership(membership))) => membership,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_second_of_two_nodes_that_want_one_name_receives_the_reason_name() {
    let hub = hub();
    for (n, name) in [(10, "a"), (11, "b")] {
        hub.join(&request(n, membership(n, name, 1, now())))
            .expect("a use left");
    }
    let wanted = |n| {
        let record = crate::records::kinds::Name {
            id: id(n),
            version: 1,
            name: Label::parse("web").expect("a literal"),
        };
        Envelope::seal(&Record::Name(record), &key(n))
    };
    assert_eq!(refusal(&hub, 10, &wanted(10)), None);
    let refused = refusal(&hub, 11, &wanted(11)).expect("node 10 has the name");
    assert_eq!(
        refused.reason(),
        crate::protocol::control::RefusedReason::Name
    );
}

fn leases_are_kept(hub: &Hub, other: &Hub) {
    for (n, name) in [(10, "a"), (11, "b")] {
        hub.join(&request(n, membership(n, name, 1, now())))
            .expect("a use left");
    }
    let taken = |n: u8, version, block| {
        let record = node(hub, n, version, block);
        other.handle_news();
        let published = other.publish(&id(n), vec![record]).expect("writable");
        reasons(&published).into_iter().next()
    };
    // The joiner has said nothing yet.
    let refused = taken(10, 1, 2);
    assert!(
        matches!(&refused, Some(PublishRefused::Leased(block)) if block == "10.210.2.0/24"),
        "{refused:?}"
    );
    assert!(
        matches!(taken(10, 1, 3), Some(PublishRefused::Leased(_))),
        "a free one in place of its own"
    );
    assert_eq!(taken(10, 1, 1), None);
    assert!(matches!(taken(10, 2, 3), Some(PublishRefused::Leased(_))));
    assert_eq!(taken(11, 1, 2), None);
    // Who is removed leaves its block, and nobody else moves there.
    submit(hub, None, revocation(11, RevokedKind::Node)).expect("signed");
    assert!(matches!(taken(10, 3, 2), Some(PublishRefused::Leased(_))));
    assert_eq!(taken(10, 4, 1), None);
}

#[test]
fn a_block_leased_at_a_join_is_kept_for_the_node_and_no_node_moves() {
    let hub = hub();
    leases_are_kept(&hub, &hub);
}

#[cfg(feature = "etcd")]
#[test]
fn a_block_leased_by_one_coordinator_is_kept_by_the_other() {
    let Some(etcd) = crate::coordinator::store::EtcdFixture::start() else {
        return;
    };
    let (one, other) = two_on_one_store(&etcd);
    leases_are_kept(&one, &other);
}

#[test]
fn after_the_refill_a_node_keeps_its_block_once_the_node_that_had_it_too_is_removed() {
    let (_dir, hub) = restored_with_member();
    let records = vec![
        membership(11, "n11", 1, now()),
        membership(12, "n12", 1, now()),
        node(&hub, 12, 1, 5),
    ];
    let vouched = hub.publish(&id(10), records).expect("writable");
    assert_eq!(vouched.refused, []);
    let own = |version, block| refusal(&hub, 11, &node(&hub, 11, version, block));
    assert!(matches!(
        own(1, 5),
        Some(PublishRefused::Ledger(Refused::BlockTaken(_)))
    ));
    // The node asks for its lease, and does not move to the other block before its rival is removed.
    let leased = hub
        .join(&request(11, membership(11, "n11", 1, now())))
        .expect("it is a member");
    assert_ne!(block_index(&hub, &leased), Some(5));
    submit(&hub, None, revocation(12, RevokedKind::Node)).expect("signed");
    end_wait(&hub);
    assert!(
        matches!(own(1, 1), Some(PublishRefused::Leased(_))),
        "it is leased to another node"
    );
    assert_eq!(own(1, 5), None);
    assert!(
        matches!(own(2, 6), Some(PublishRefused::Leased(_))),
        "it has used its block"
    );
}

fn revocation_that_spares(stays: &[u8]) -> Envelope {
    let revocation = Revocation {
        id: id(TOKEN),
        version: now() * 1000,
        revoked: RevokedKind::Token,
        at: UnixSeconds(now()),
        stays: Some(stays.iter().map(|n| id(*n)).collect()),
    };
    Envelope::seal(&Record::Revocation(revocation), &key(MESH))
}

#[test]
fn a_revocation_that_leaves_out_a_member_is_a_conflict_and_cuts_nobody() {
    let hub = hub();
    for n in [10, 11, 12] {
        hub.join(&request(n, membership(n, &format!("n{n}"), 1, now())))
            .expect("a use left");
    }
    submit(&hub, None, revocation(12, RevokedKind::Node)).expect("signed");
    let listed = hub.memberships_by(&id(TOKEN)).memberships;
    assert_eq!(listed.len(), 2, "who is removed is not listed");
    let error = submit(&hub, None, revocation_that_spares(&[10])).expect_err("11 joined since");
    assert_eq!(error.code, ErrorCode::Conflict);
    assert!(error.message.contains("n11"), "{error}");
    assert!(is_member(&hub, 11));
    assert!(matches!(
        hub.tokens().tokens.first(),
        Some(token) if token.state == crate::protocol::admin::TokenState::Valid
    ));
    submit(&hub, None, revocation_that_spares(&[10, 11])).expect("all are named");
    assert!(is_member(&hub, 10) && is_member(&hub, 11));
}

#[test]
fn a_revocation_that_names_those_that_stay_holds_against_every_other_whoever_vouches() {
    let (dir, hub) = restored_with_member();
    // A member that means harm vouches for a thief, before an honest one brings the revocation.
    let thief = membership(66, "thief", 1, now() - 3000);
    assert_eq!(refusal(&hub, 10, &thief), None);
    let own = vec![service(66, "web", 1), node(&hub, 66, 1, 9)];
    assert_eq!(publish(&hub, own).expect("writable").accepted, 2);
    hub.publish(&id(10), vec![revocation_that_spares(&[10])])
        .expect("writable");
    assert!(is_member(&hub, 10) && !is_member(&hub, 66));
    for again in [thief, membership(66, "thief", 9, now() - 1000)] {
        assert!(matches!(
            refusal(&hub, 10, &again),
            Some(PublishRefused::Ledger(Refused::TokenRevoked))
        ));
    }
    // Nothing of it is left, on disk either, and its name and block are free.
    let before = hub.snapshot();
    assert!(before.0.iter().all(|record| record.signer != id(66)));
    drop(hub);
    let mut store = Sqlite::open(&dir.path().join("records.db")).expect("writable");
    let stored = store.load().expect("readable").records;
    assert!(
        stored
            .iter()
            .all(|s| !s.key.id().contains(&id(66).to_string()))
    );
    assert!(store.may_lease(&id(67), 9).expect("readable"));
    drop(store);
    assert_eq!(open(&dir.path().join("records.db")).snapshot(), before);
}

#[test]
fn a_removed_node_counts_as_a_use_of_its_token_whichever_is_told_first() {
    let (_dir, hub) = restored_with_member();
    let removal = revocation(12, RevokedKind::Node);
    let records = vec![
        removal,
        membership(12, "n12", 1, now() - 100),
        membership(11, "n12", 1, now() - 50),
    ];
    let published = hub.publish(&id(10), records).expect("writable");
    assert_eq!((published.accepted, published.refused), (3, vec![]));
    let used = hub.tokens().tokens.first().map(|token| token.used);
    assert_eq!(used, Some(3));
    assert_eq!(hub.standing(&id(12)), Standing::Revoked);
    end_wait(&hub);
    for (n, admitted) in [(13, true), (14, true), (15, false)] {
        let joined = hub.join(&request(n, membership(n, &format!("n{n}"), 1, now())));
        assert_eq!(joined.is_ok(), admitted, "{n}: {joined:?}");
    }
}
