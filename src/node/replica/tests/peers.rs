use super::*;
use crate::os::log::captured;
use crate::records::kinds::Guest;

fn web(version: u64) -> Record {
    service_record(OWN, "web", version)
}

#[test]
fn peers_are_dialled_with_what_the_coordinator_does_not_confirm_in_time() {
    let mut kit = Kit::new(&[11, 12]);
    kit.open(STORE, 5);
    let publication = kit.publish(vec![web(1)]);
    kit.pass(Duration::from_millis(400));
    assert!(kit.dialled().is_empty());
    kit.published(publication.sequence.expect("a stream is open"), &[]);
    kit.pass(Duration::from_secs(5));
    assert!(kit.dialled().is_empty(), "it is confirmed");

    kit.publish(vec![web(2)]);
    kit.pass(Duration::from_millis(1100));
    let news = vec![service(OWN, "web", 2)];
    assert!(kit.dials.iter().all(|(_, opening)| opening.news == news));
    assert_eq!(kit.dialled().len(), 2);
    kit.pass(Duration::from_secs(5));
    assert!(kit.dialled().is_empty(), "each peer was brought up to date");
}

#[test]
fn a_publication_is_confirmed_by_the_answer_to_the_last_one_alone() {
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    kit.publish(vec![web(1)]);
    kit.publish(vec![web(2)]);
    kit.published(2, &[]);
    kit.published(3, &["no"]);
    kit.pass(Duration::from_secs(1));
    assert_eq!(kit.dialled().len(), 1);
}

#[test]
fn peers_are_dialled_at_once_when_the_coordinator_is_away() {
    let mut kit = Kit::new(&[11]);
    // It is not known yet whether a coordinator answers.
    kit.publish(vec![web(1)]);
    assert!(kit.dialled().is_empty());
    kit.close(None, false);
    assert_eq!(kit.dialled(), [id(11)]);
    kit.publish(vec![web(2)]);
    assert_eq!(kit.dialled(), [id(11)]);
    // Each that is reached has its turn.
    kit.pass(Duration::from_secs(6));
    assert!(kit.dialled().is_empty());
    kit.replica.handle_reach(&id(11), true, kit.now);
    kit.pass(Duration::from_secs(6));
    assert!(!kit.dialled().is_empty());
}

#[test]
fn a_conversation_that_failed_is_begun_again() {
    let mut kit = Kit::new(&[11]);
    kit.close(None, false);
    kit.publish(vec![web(1)]);
    assert_eq!(kit.dials.len(), 1);
    kit.replica
        .handle_conversation_ended(&id(11), false, kit.now);
    kit.pass(Duration::from_millis(900));
    assert_eq!(kit.dials.len(), 1);
    kit.pass(Duration::from_millis(600));
    assert_eq!(kit.dials.len(), 2);
}

#[test]
fn peers_are_dialled_when_the_records_are_on_disk_and_not_before() {
    let mut kit = Kit::new(&[11]);
    kit.close(None, false);
    kit.disk = Disk::Hangs;
    kit.publish(vec![web(1)]);
    kit.publish(vec![web(2)]);
    assert!(kit.dials.is_empty());
    kit.answer(true);
    assert!(kit.dials.is_empty(), "the second one is not on disk yet");
    kit.answer(true);
    assert_eq!(kit.dials.len(), 1);
}

#[test]
fn a_member_that_joins_is_dialled_and_one_that_is_removed_is_not() {
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    kit.changes(
        vec![membership(12), node(12, 1), membership(13), revocation(11)],
        6,
    );
    kit.close(None, false);
    kit.publish(vec![web(1)]);
    // Node 13 has not published where it is reached.
    assert_eq!(kit.dialled(), [id(12)]);
}

#[test]
fn a_peer_brings_newer_records_and_claims_to_nothing() {
    let mut kit = Kit::new(&[11, 12]);
    let moved = Envelope::seal(&Record::Node(node_record(12, 5, 77)), &key(12));
    let unknown = service(99, "db", 1);
    let of_removed = [revocation(13)];
    let applied = kit.apply(
        11,
        vec![
            node(12, 2),
            service(12, "web", 3),
            service(12, "web", 3),
            service(12, "web", 2),
            membership(14),
            moved.clone(),
            unknown,
            of_removed[0].clone(),
        ],
    );
    assert!(kit.holds(&node(12, 2)) && kit.holds(&service(12, "web", 3)));
    assert!(!kit.holds(&membership(14)) && !kit.holds(&moved));
    // What is known or claims something costs no signature.
    assert_eq!(
        (applied.verified, applied.changed, applied.forged),
        (3, true, false)
    );
    assert_eq!((applied.offences, applied.own_offences), (0, 0));
    let keys = [node(12, 2), service(12, "web", 3), revocation(13)];
    let keys: Vec<RecordKey> = keys.iter().filter_map(Envelope::key).collect();
    assert_eq!(kit.replica.take_changes().records, keys);
    // The records of a node that was removed are ignored.
    let applied = kit.apply(11, vec![revocation(12), service(12, "web", 9)]);
    assert_eq!(applied.verified, 1);
    assert!(!kit.apply(11, vec![]).changed);
}

#[test]
fn a_forged_record_ends_the_message_and_an_offence_is_counted() {
    let mut kit = Kit::new(&[11, 12]);
    let mut forged = service(12, "web", 3);
    forged.payload = forged.payload.replace("web", "wee");
    let token = Envelope::seal(&Record::Unknown, &key(11));
    let not_mine = Envelope::seal(
        &Record::Token(Token {
            id: id(50),
            version: 1,
            tags: vec![],
            uses: 1,
            created_at: START,
            expires_at: START,
            ephemeral: false,
        }),
        &key(11),
    );
    let applied = kit.apply(11, vec![token, not_mine.clone()]);
    assert_eq!(
        (applied.own_offences, applied.forged),
        (applied.offences, false)
    );
    assert!(applied.offences >= 1);
    let applied = kit.apply(12, vec![not_mine]);
    assert_eq!((applied.offences, applied.own_offences), (1, 0));
    let applied = kit.apply(11, vec![forged, service(12, "web", 4)]);
    assert!(applied.forged && applied.verified == 1);
    assert!(!kit.holds(&service(12, "web", 4)));
}

#[test]
fn a_record_with_this_node_s_key_from_a_peer_is_one_of_another_machine() {
    let mut kit = Kit::new(&[11]);
    let applied = kit.apply(11, vec![node(OWN, 1), service(OWN, "evil", 9)]);
    assert_eq!((applied.verified, applied.changed), (1, false));
    assert!(kit.replica.take_changes().own);
    assert!(!kit.holds(&service(OWN, "evil", 9)));
}

#[test]
fn departures_of_peers_are_published_until_they_are_answered() {
    let mut kit = Kit::new(&[11, 12]);
    kit.apply(11, vec![departure(12)]);
    assert!(kit.sent.is_empty());
    kit.open(STORE, 5);
    let is_departure = |p: &(u64, Vec<Envelope>)| p.1 == [departure(12)];
    let published = |kit: &mut Kit| kit.publications().into_iter().find(is_departure);
    let (sequence, _) = published(&mut kit).expect("it is published");
    kit.published(sequence, &["the store failed"]);
    kit.close(None, false);
    kit.open(STORE, 5);
    let (sequence, _) = published(&mut kit).expect("it is published again");
    kit.published(sequence, &[]);
    kit.close(None, false);
    kit.open(STORE, 5);
    assert!(published(&mut kit).is_none());
    // One that comes while the stream is open is published at once. Those of the coordinator are known to it.
    kit.apply(12, vec![departure(11)]);
    assert_eq!(kit.publications().len(), 1);
    // After a restart all that are held are published once.
    let mut records = records_of(&[11]);
    records.push(departure(11));
    let mut kit = Kit::with(&records, position(5), Some(60));
    kit.open(STORE, 5);
    let publications = kit.publications();
    assert_eq!(
        publications.last().map(|p| p.1.clone()),
        Some(vec![departure(11)])
    );
    kit.changes(vec![membership(13), node(13, 1), departure(13)], 7);
    assert!(kit.publications().is_empty());
}

#[test]
fn a_departure_that_the_coordinator_could_not_store_is_published_again_over_the_same_stream() {
    let mut kit = Kit::new(&[11, 12]);
    kit.open(STORE, 5);
    kit.publications();
    kit.apply(11, vec![departure(12)]);
    assert_eq!(kit.publications(), [(2, vec![departure(12)])]);
    kit.published(2, &["the store failed"]);
    kit.pass(Duration::from_millis(14_500));
    assert!(kit.publications().is_empty());
    kit.pass(Duration::from_millis(500));
    assert_eq!(kit.publications(), [(3, vec![departure(12)])]);
}

#[test]
fn a_guest_that_is_removed_without_a_coordinator_is_removed_at_all_peers_and_later_at_the_coordinator()
 {
    let payload = Guest::removal_payload(WireGuardKey([7; 32]));
    let removal = Envelope::seal_payload(payload, &key(MESH));
    let mut kit = Kit::new(&[11, 12]);
    kit.close(None, false);
    kit.dialled();
    // The administrator gave it to this node.
    kit.apply(OWN, vec![removal.clone()]);
    assert!(kit.holds(&removal));
    let news = vec![removal.clone()];
    assert!(kit.dials.iter().all(|(_, opening)| opening.news == news));
    let mut dialled = kit.dialled();
    dialled.sort();
    assert_eq!(dialled, sorted([id(11), id(12)]));
    kit.open(STORE, 5);
    let published = kit.publications();
    assert!(published.iter().any(|(_, records)| *records == news));
    // A peer that received it dials nobody, and publishes it too.
    let mut kit = Kit::new(&[11, 12]);
    kit.close(None, false);
    kit.dialled();
    kit.apply(11, vec![removal.clone()]);
    kit.pass(Duration::from_secs(1));
    assert!(kit.dialled().is_empty());
    kit.open(STORE, 5);
    let published = kit.publications();
    assert!(published.iter().any(|(_, records)| *records == news));
}

fn sorted(mut ids: [PublicKey; 2]) -> Vec<PublicKey> {
    ids.sort();
    ids.to_vec()
}

#[test]
fn a_peer_gets_digests_of_all_and_the_records_of_the_signers_it_names() {
    let mut kit = Kit::new(&[11, 12]);
    let digests = |kit: &mut Kit| match kit.request(LedgerRequest::Digests) {
        Some(LedgerReply::Digests(digests)) => digests,
        other => panic!("{other:?}"),
    };
    let before = digests(&mut kit);
    assert_eq!(before, digests(&mut kit));
    kit.apply(11, vec![service(12, "web", 1)]);
    let after = digests(&mut kit);
    assert_eq!(before.differing(&after), [id(12)]);
    kit.publish(vec![web(1)]);
    assert_eq!(after.differing(&digests(&mut kit)), [id(OWN)]);
    let reply = kit.request(LedgerRequest::Records(vec![id(12), id(99)]));
    let Some(LedgerReply::Records(mut records)) = reply else {
        panic!("records")
    };
    records.sort_by_key(Envelope::key);
    assert_eq!(records, [node(12, 1), service(12, "web", 1)]);
}

#[test]
fn a_node_vouches_for_others_alone_and_not_for_those_that_were_removed() {
    let mut kit = Kit::new(&[11, 12]);
    kit.open(STORE, 5);
    kit.changes(vec![revocation(12)], 6);
    let all = vec![id(OWN), id(11), id(12), id(99)];
    let reply = kit.request(LedgerRequest::Memberships(all));
    assert_eq!(reply, Some(LedgerReply::Memberships(vec![membership(11)])));
    let many = vec![id(11); 100];
    let Some(LedgerReply::Memberships(memberships)) = kit.request(LedgerRequest::Memberships(many))
    else {
        panic!("memberships")
    };
    assert_eq!(memberships.len(), crate::protocol::gossip::MAX_ASKED);
}

#[test]
fn a_node_vouches_for_no_membership_that_it_accepted_on_trust() {
    let mut kit = Kit::with(&records_of(&[11]), position(5), Some(DAY));
    kit.open(STORE, 9);
    // It was made while this node was not in step.
    let earlier = membership_by(12, TOKEN, UnixSeconds(START.0 - 7200));
    kit.changes(vec![earlier.clone(), membership(13)], 9);
    assert!(kit.holds(&earlier) && kit.holds(&membership(13)));
    let reply = kit.request(LedgerRequest::Memberships(vec![id(12), id(13)]));
    let vouched = LedgerReply::Memberships(vec![membership(13)]);
    assert_eq!(reply, Some(vouched));
}

#[test]
fn the_records_of_strangers_are_counted_and_those_of_nodes_that_are_held_back_are_not() {
    let mut records = records_of(&[11]);
    records.push(token_of(3, UnixSeconds(START.0 - 30 * DAY), false));
    let mut kit = Kit::with(&records, position(5), Some(60));
    kit.open(STORE, 5);
    let late = membership_by(20, 3, UnixSeconds(START.0 - 60 * DAY));
    let of_coordinator = vec![late, node(20, 1), node(21, 1)];
    let lines = captured::lines(|| kit.changes(of_coordinator, 9));
    let refused = lines.iter().filter(|line| line.contains("is refused"));
    assert_eq!(refused.count(), 1, "{lines:?}");
    kit.apply(11, vec![service(20, "web", 1), service(21, "web", 1)]);
    let counted = kit.replica.intake.refusals.poll(kit.now.monotonic);
    let why = ledger::Refused::NotAMember.to_string();
    assert_eq!(counted, [(id(11), 1, why)]);
}

#[test]
fn a_node_that_is_out_answers_and_begins_no_conversation() {
    let duplicate = |kit: &mut Kit| kit.close(Some(Refusal::Clone), true);
    let removed = |kit: &mut Kit| {
        kit.changes(vec![revocation(OWN)], 6);
        kit.close(None, false);
    };
    for (by, end) in [
        ("a duplicate", &duplicate as &dyn Fn(&mut Kit)),
        ("removed", &removed),
    ] {
        let mut kit = Kit::new(&[11]);
        kit.replica.handle_reach(&id(11), true, kit.now);
        end(&mut kit);
        kit.dialled();
        kit.pass(Duration::from_secs(30));
        kit.publish(vec![web(1)]);
        assert!(kit.dials.is_empty(), "{by}");
        let peer = id(11);
        for request in [
            LedgerRequest::Apply {
                peer,
                records: vec![],
            },
            LedgerRequest::Vouched {
                peer,
                memberships: vec![],
            },
            LedgerRequest::Memberships(vec![]),
            LedgerRequest::Records(vec![]),
        ] {
            assert_eq!(kit.request(request), None, "{by}");
        }
        assert!(kit.request(LedgerRequest::Digests).is_some(), "{by}");
    }
}

#[test]
fn a_record_that_the_own_ledger_refuses_is_returned_and_not_sent() {
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    kit.sent.clear();
    let taken = Record::Node(node_record(OWN, 9, 11));
    let publication = kit.publish(vec![taken]);
    assert!(publication.accepted.is_empty() && publication.sequence.is_none());
    assert_eq!(publication.refused.len(), 1);
    assert!(kit.sent.is_empty());
    assert!(kit.publish(vec![]).refused.is_empty());
}
