//! Tests of memberships that are held back: when they are accepted, forgotten or requested again.

use super::*;

#[test]
fn a_membership_that_is_dated_before_the_node_was_in_step_is_held_back() {
    let expired = token_of(3, UnixSeconds(START.0 - 30 * DAY), false);
    let late = membership_by(20, 3, UnixSeconds(START.0 - 60 * DAY));
    let mut records = records_of(&[11]);
    records.push(expired);
    let mut kit = Kit::with(&records, position(5), Some(60));
    kit.open(STORE, 5);
    // A membership that the ledger refuses is refused whatever its date.
    let refused = membership_by(21, 4, UnixSeconds(START.0 - 60 * DAY));
    kit.changes(vec![late.clone(), node(20, 1), refused, membership(22)], 9);
    assert!(!kit.holds(&late) && kit.holds(&membership(22)));
    assert_eq!(kit.replica.take_changes().records.len(), 1);
    kit.pass(Duration::from_secs(20));
    let problems = kit.replica.problems(kit.now.monotonic);
    assert!(problems[0].what.contains("1 node(s)"), "{problems:?}");
    // Peers are asked about it, in turn.
    kit.replica.handle_reach(&id(11), true, kit.now);
    kit.pass(Duration::from_secs(6));
    let (peer, opening) = kit.dials.last().expect("a conversation");
    assert_eq!((peer, &opening.asks), (&id(11), &vec![id(20)]));

    let vouched = |peer: u8, memberships: &[Envelope]| LedgerRequest::Vouched {
        peer: id(peer),
        memberships: memberships.to_vec(),
    };
    let verified = |reply| match reply {
        Some(LedgerReply::Applied(applied)) => (applied.verified, applied.changed),
        other => panic!("{other:?}"),
    };
    kit.requests_for_all();
    for (peer, memberships) in [
        (
            11,
            vec![membership_by(20, 3, UnixSeconds(START.0 - 61 * DAY))],
        ),
        (20, vec![late.clone()]),
        (99, vec![late.clone()]),
    ] {
        assert_eq!(
            verified(kit.request(vouched(peer, &memberships))),
            (0, false)
        );
    }
    assert!(!kit.holds(&late));
    assert_eq!(kit.requests_for_all(), 0);
    let reply = kit.request(vouched(11, std::slice::from_ref(&late)));
    assert_eq!(
        verified(reply),
        (1, true),
        "the signature is charged to the peer"
    );
    assert!(kit.holds(&late));
    assert_eq!(
        kit.requests_for_all(),
        1,
        "the records of the node were refused"
    );
    // This node does not vouch for it in turn. It vouches for the membership that it saw when it was made.
    let vouched = kit.request(LedgerRequest::Memberships(vec![id(20), id(22), id(OWN)]));
    assert_eq!(
        vouched,
        Some(LedgerReply::Memberships(vec![membership(22)]))
    );
    assert!(kit.replica.problems(kit.now.monotonic).is_empty());
}

#[test]
fn memberships_that_are_held_back_without_prospect_are_forgotten() {
    let expired = token_of(3, UnixSeconds(START.0 - 30 * DAY), false);
    let late = membership_by(20, 3, UnixSeconds(START.0 - 60 * DAY));
    let mut records = records_of(&[]);
    records.push(expired);
    let mut kit = Kit::with(&records, position(5), Some(60));
    kit.open(STORE, 5);
    kit.published(1, &[]);
    kit.changes(vec![late], 9);
    kit.pass(Duration::from_secs(16));
    assert_eq!(kit.replica.problems(kit.now.monotonic).len(), 1);
    kit.changes(vec![revocation(20)], 10);
    kit.pass(Duration::from_secs(16));
    assert!(kit.replica.problems(kit.now.monotonic).is_empty());
}

/// A node that has held back the memberships of these nodes, all by the expired token 3.
fn holding_back(nodes: std::ops::Range<u8>) -> Kit {
    let mut records = records_of(&[]);
    records.push(token_of(3, UnixSeconds(START.0 - 30 * DAY), false));
    let mut kit = Kit::with(&records, position(5), Some(60));
    kit.open(STORE, 5);
    hold_back(&mut kit, nodes);
    kit
}

fn hold_back(kit: &mut Kit, nodes: std::ops::Range<u8>) {
    let issued_at = UnixSeconds(START.0 - 60 * DAY);
    let late = nodes.map(|n| membership_by(n, 3, issued_at));
    kit.changes(late.collect(), 9);
}

fn is_held_back(kit: &Kit, n: u8) -> bool {
    kit.replica.intake.newcomers.is_held_back(&id(n))
}

#[test]
fn memberships_without_prospect_are_forgotten_every_fifteen_seconds_and_not_before() {
    let mut kit = holding_back(20..21);
    for n in [20, 21] {
        hold_back(&mut kit, n..n + 1);
        kit.changes(vec![revocation(n)], 10);
        kit.pass(FORGET_INTERVAL - CHECK_INTERVAL);
        assert!(is_held_back(&kit, n), "{n}");
        kit.pass(CHECK_INTERVAL);
        assert!(!is_held_back(&kit, n), "{n}");
    }
}

#[test]
fn a_membership_is_forgotten_if_its_token_is_revoked_and_does_not_spare_it() {
    let revoked = |stays: &[u8]| {
        let revocation = Revocation {
            id: id(3),
            version: 1,
            revoked: RevokedKind::Token,
            at: START,
            stays: Some(stays.iter().map(|n| id(*n)).collect()),
        };
        Envelope::seal(&Record::Revocation(revocation), &key(MESH))
    };
    // A token without uses may get some again.
    let spent = Token {
        id: id(3),
        version: 2,
        tags: vec![],
        uses: 0,
        created_at: UnixSeconds(START.0 - 200 * DAY),
        expires_at: UnixSeconds(START.0 - 30 * DAY),
        ephemeral: false,
    };
    let spent = Envelope::seal(&Record::Token(spent), &key(MESH));
    for (n, (record, stays)) in [(spent, true), (revoked(&[]), false), (revoked(&[20]), true)]
        .into_iter()
        .enumerate()
    {
        let mut kit = holding_back(20..21);
        kit.changes(vec![record], 10);
        kit.pass(FORGET_INTERVAL);
        assert_eq!(is_held_back(&kit, 20), stays, "{n}");
    }
}

#[test]
fn memberships_for_which_there_was_no_room_are_requested_again_when_there_is() {
    // There is room for 32 memberships by one token.
    let mut kit = holding_back(20..53);
    kit.pass(FORGET_INTERVAL);
    assert_eq!(kit.requests_for_all(), 0);
    kit.changes((20..40).map(revocation).collect(), 10);
    kit.pass(FORGET_INTERVAL);
    assert_eq!(kit.requests_for_all(), 1);
}
