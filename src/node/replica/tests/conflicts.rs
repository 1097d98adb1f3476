//! Tests of records that are refused because another node has what they claim, until the other node no longer has it.

use super::*;
use crate::records::kinds::Name;

/// The record in which node 12 claims the block of node 11.
fn rival() -> Envelope {
    Envelope::seal(&Record::Node(node_record(12, 1, 11)), &key(12))
}

fn name(n: u8, version: u64, name: &str) -> Envelope {
    let record = Record::Name(Name {
        id: id(n),
        version,
        name: label(name),
    });
    Envelope::seal(&record, &key(n))
}

/// The revision of the position that was written to disk last.
fn on_disk(kit: &Kit) -> Option<u64> {
    let mut writes = kit.writes.iter().rev();
    let position = writes.find_map(|write| write.position.as_ref());
    position.map(|position| position.revision)
}

#[test]
fn a_record_whose_block_another_node_has_is_accepted_once_the_block_is_free() {
    let free: [Envelope; 3] = [
        Envelope::seal(&Record::Node(node_record(11, 2, 20)), &key(11)),
        departure(11),
        revocation(11),
    ];
    for (n, free) in free.into_iter().enumerate() {
        let mut kit = Kit::new(&[11]);
        kit.open(STORE, 5);
        kit.changes(vec![membership(12), rival()], 6);
        assert!(!kit.holds(&rival()));
        assert_eq!(kit.replica.position(), &position(6));
        assert_eq!(on_disk(&kit), Some(0), "a restart requests all records");
        kit.replica.take_changes();
        kit.changes(vec![free], 7);
        assert!(kit.holds(&rival()), "{n}");
        let changed = kit.replica.take_changes().records;
        assert!(changed.contains(&RecordKey::Node(id(12))), "{changed:?}");
        assert_eq!(on_disk(&kit), Some(7));
        assert_eq!(kit.requests_for_all(), 0, "nothing depends on it");
    }
}

#[test]
fn what_a_peer_frees_is_accepted_as_well() {
    let mut kit = Kit::new(&[11, 13]);
    kit.open(STORE, 5);
    kit.changes(vec![membership(12), rival()], 6);
    kit.apply(13, vec![departure(11)]);
    assert!(kit.holds(&rival()));
}

#[test]
fn a_membership_that_is_accepted_late_is_followed_by_a_request_for_its_other_records() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    let spent = |uses, version| {
        let token = Token {
            id: id(3),
            version,
            tags: vec![],
            uses,
            created_at: UnixSeconds(START.0 - DAY),
            expires_at: UnixSeconds(START.0 + DAY),
            ephemeral: false,
        };
        Envelope::seal(&Record::Token(token), &key(MESH))
    };
    let joined = |n| membership_by(n, 3, START);
    kit.changes(vec![spent(1, 1), joined(11), joined(12), node(12, 1)], 6);
    assert!(!kit.holds(&joined(12)) && !kit.holds(&node(12, 1)));
    kit.changes(vec![spent(2, 2)], 7);
    assert!(kit.holds(&joined(12)));
    assert_eq!(kit.requests_for_all(), 1);
    assert_eq!(on_disk(&kit), Some(0));
}

#[test]
fn a_node_that_holds_another_last_use_of_a_token_says_so_until_the_token_is_revoked() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    let token = Token {
        id: id(3),
        version: 1,
        tags: vec![],
        uses: 1,
        created_at: UnixSeconds(START.0 - DAY),
        expires_at: UnixSeconds(START.0 + DAY),
        ephemeral: false,
    };
    let token = Envelope::seal(&Record::Token(token), &key(MESH));
    let joined = |n| membership_by(n, 3, START);
    // A coordinator that was stolen admitted node 11 with a spent token. The owner's coordinator knows node 12.
    kit.changes(vec![token, joined(11), joined(12)], 6);
    assert!(kit.holds(&joined(11)) && !kit.holds(&joined(12)));
    let problems = kit.replica.problems(kit.now.monotonic);
    let problem = problems.first().expect("a problem");
    assert!(problem.what.ends_with(": n12"), "{problem:?}");
    let command = format!("`meshctl token revoke {}`", id(3).short());
    assert!(problem.fix.contains(&command), "{problem:?}");
    let revocation = Revocation {
        id: id(3),
        version: 1,
        revoked: RevokedKind::Token,
        at: START,
        stays: Some(vec![id(12)]),
    };
    let revocation = Envelope::seal(&Record::Revocation(revocation), &key(MESH));
    kit.changes(vec![revocation], 7);
    assert!(!kit.holds(&joined(11)) && kit.holds(&joined(12)));
    assert!(kit.replica.problems(kit.now.monotonic).is_empty());
    assert_eq!(kit.requests_for_all(), 1);
}

#[test]
fn all_records_are_requested_again_for_each_of_two_nodes_for_which_a_peer_vouches() {
    let mut kit = Kit::with(&records_of(&[11]), position(5), Some(60));
    kit.changes(vec![token_of(3, UnixSeconds(START.0 - 30 * DAY), false)], 6);
    let old = |n| membership_by(n, 3, UnixSeconds(START.0 - 100 * DAY));
    kit.open(STORE, 6);
    kit.changes(vec![old(12), old(13)], 7);
    let vouch = |kit: &mut Kit, n| {
        let (peer, memberships) = (id(11), vec![old(n)]);
        kit.request(LedgerRequest::Vouched { peer, memberships });
        assert!(kit.holds(&old(n)));
    };
    vouch(&mut kit, 12);
    assert_eq!(kit.requests_for_all(), 1);
    kit.close(None, false);
    kit.open(STORE, 8);
    kit.changes(vec![], 8);
    vouch(&mut kit, 13);
    assert_eq!(kit.requests_for_all(), 0, "one was made a moment ago");
    assert_eq!(on_disk(&kit), Some(0));
    kit.pass(Duration::from_secs(31));
    assert_eq!(kit.requests_for_all(), 1);
}

/// A node that has published these versions of its name record. The coordinator refuses the last one because another node has the
/// name.
fn with_refused_name(wanted: &[(u64, &str)]) -> Kit {
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    for (version, wanted) in wanted {
        let record = Record::Name(Name {
            id: id(OWN),
            version: *version,
            name: label(wanted),
        });
        kit.publish(vec![record]);
    }
    let (sequence, records) = kit.publications().pop().expect("an offer");
    kit.refuse(sequence, &records[0], RefusedReason::Name);
    kit
}

fn own_name(kit: &Kit) -> &str {
    let name = kit.replica.ledger().wanted_name(&id(OWN));
    name.expect("a name record").name.as_str()
}

#[test]
fn a_name_that_another_node_took_first_is_given_up_and_that_is_shown() {
    for (wanted, instead) in [(&[(1, "web")][..], "n10"), (&[(1, "db"), (2, "web")], "db")] {
        let mut kit = with_refused_name(wanted);
        kit.pass(Duration::from_secs(2));
        assert_eq!(own_name(&kit), "web", "no node claims the name");
        kit.changes(vec![name(11, 1, "web")], 6);
        assert!(!kit.holds(&name(11, 1, "web")));
        kit.replica.take_changes();
        kit.publications();
        kit.pass(Duration::from_secs(1));
        assert_eq!(own_name(&kit), instead);
        assert!(kit.holds(&name(11, 1, "web")));
        let changes = kit.replica.take_changes();
        assert_eq!(changes.name, Some(label(instead)));
        let published = kit.publications();
        let [(sequence, records)] = &published[..] else {
            panic!("{published:?}")
        };
        let held = kit.replica.ledger().entry(&RecordKey::Name(id(OWN)));
        assert_eq!(held.map(|held| &held.envelope), records.first());
        kit.published(*sequence, &[]);
        let problems = kit.replica.problems(kit.now.monotonic);
        let [problem] = &problems[..] else {
            panic!("{problems:?}")
        };
        assert_eq!(problem.what, "this node could not keep the name web");
        assert!(problem.why.contains(instead), "{}", problem.why);
        let again = Record::Name(Name {
            id: id(OWN),
            version: u64::MAX - 1,
            name: label("other"),
        });
        kit.publish(vec![again]);
        assert!(kit.replica.problems(kit.now.monotonic).is_empty());
    }
}

#[test]
fn a_name_is_given_up_to_a_node_that_joined_with_it() {
    let mut kit = with_refused_name(&[(1, "n12")]);
    kit.changes(vec![membership(12)], 6);
    kit.pass(Duration::from_secs(1));
    assert_eq!(own_name(&kit), "n10");
}

#[test]
fn a_node_takes_no_former_name_that_another_node_has_by_now() {
    let mut kit = with_refused_name(&[(1, "db"), (2, "web")]);
    kit.changes(
        vec![membership(12), name(11, 1, "web"), name(12, 1, "db")],
        6,
    );
    assert!(kit.holds(&name(12, 1, "db")));
    kit.pass(Duration::from_secs(1));
    assert_eq!(own_name(&kit), "n10");
}
