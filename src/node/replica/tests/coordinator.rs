use super::*;
use crate::os::log::captured;
use crate::records::kinds::Name;

#[test]
fn a_node_offers_its_own_records_to_the_store_it_knows_and_all_records_to_another() {
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    assert_eq!(kit.publications(), [(1, vec![node(OWN, 1)])]);
    kit.close(None, false);
    // What makes this node a member comes before the other records, and its own record comes last.
    kit.open("another", 9);
    let [(2, others), (3, own)] = &kit.publications()[..] else {
        panic!("two publications")
    };
    assert_eq!(others.len(), records_of(&[11]).len() - 1);
    assert_eq!(own, &[node(OWN, 1)]);
    let first = |record: &Envelope| others[..2].contains(record);
    assert!(first(&token()) && first(&membership(OWN)));
    kit.published(2, &[]);
    assert!(kit.sent.is_empty());
    kit.published(3, &["the record is refused"]);
    assert_eq!(kit.sent, [FromNode::Told]);
}

#[test]
fn an_offer_of_all_records_that_the_coordinator_could_not_store_is_made_again() {
    let mut kit = Kit::new(&[11]);
    kit.open("another", 9);
    let mut first = 1;
    for pause in [15, 30] {
        let offered = kit.publications().len() as u64;
        assert_eq!(offered, 2);
        kit.fail(first);
        kit.published(first + 1, &[]);
        kit.pass(Duration::from_secs(pause - 1));
        assert!(kit.sent.is_empty(), "nothing is offered yet");
        assert!(kit.writes.iter().all(|write| write.position.is_none()));
        kit.pass(Duration::from_secs(2));
        first += offered;
    }
    kit.publications();
    kit.published(first, &[]);
    kit.published(first + 1, &[]);
    assert_eq!(kit.sent, [FromNode::Told]);
}

#[test]
fn an_offer_of_all_records_is_not_complete_if_two_of_its_publications_failed() {
    let mut kit = Kit::new(&[11]);
    kit.open("another", 9);
    kit.publications();
    kit.fail(1);
    kit.fail(2);
    assert!(kit.sent.is_empty());
}

#[test]
fn an_offer_of_all_records_is_complete_although_a_publication_before_it_failed() {
    let mut kit = Kit::new(&[11]);
    kit.open("another", 9);
    kit.fail(1);
    kit.published(2, &[]);
    kit.publish(vec![service_record(OWN, "web", 1)]);
    kit.publications();
    kit.pass(Duration::from_secs(16));
    let sequences: Vec<u64> = kit.publications().iter().map(|(n, _)| *n).collect();
    assert_eq!(sequences, [4, 5]);
    kit.fail(3);
    kit.published(4, &[]);
    kit.published(5, &[]);
    assert_eq!(kit.sent, [FromNode::Told]);
}

/// What a coordinator sends at revision 5 if it has lost what node 11 published.
fn summary_without_node_11() -> StreamEvent {
    StreamEvent::Summary(Summary {
        revision: 5,
        fingerprint: ledger_of(&records_of(&[])).fingerprint(),
    })
}

#[test]
fn other_records_are_requested_while_a_stream_is_open_and_not_without_one() {
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    kit.event(summary_without_node_11());
    kit.close(None, false);
    kit.pass(Duration::from_secs(61));
    assert_eq!(kit.requests_for_all(), 0);
    kit.open(STORE, 5);
    kit.pass(Duration::from_secs(1));
    assert_eq!(kit.requests_for_all(), 1);
}

#[test]
fn the_records_are_summed_up_only_for_a_summary_whose_revision_is_reached() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    let now = kit.now;
    let compare = |kit: &mut Kit, why: &str| kit.replica.uplink.compare(|| panic!("{why}"), now);
    compare(&mut kit, "there is no summary");
    let fingerprint = kit.replica.ledger().fingerprint();
    kit.event(StreamEvent::Summary(Summary {
        revision: 6,
        fingerprint,
    }));
    compare(&mut kit, "its revision is not reached");
}

#[test]
fn a_node_that_holds_other_records_than_its_coordinator_requests_and_offers_all() {
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    kit.publications();
    let fingerprint = kit.replica.ledger().fingerprint();
    kit.event(StreamEvent::Summary(Summary {
        revision: 5,
        fingerprint,
    }));
    kit.pass(Duration::from_secs(300));
    assert_eq!(kit.requests_for_all(), 0);
    kit.event(summary_without_node_11());
    kit.pass(Duration::from_secs(61));
    assert_eq!(kit.requests_for_all(), 1);
    kit.close(None, false);
    kit.open(STORE, 5);
    let offered: Vec<Envelope> = kit
        .publications()
        .into_iter()
        .flat_map(|(_, r)| r)
        .collect();
    assert_eq!(offered.len(), records_of(&[11]).len());
}

#[test]
fn a_position_is_noted_once_the_store_has_all_that_this_node_offered() {
    let mut kit = Kit::new(&[]);
    kit.open("another", 9);
    let (last, _) = *kit
        .publications()
        .last()
        .map(|(n, r)| (*n, r.len()))
        .as_ref()
        .expect("an offer");
    let noted = |kit: &mut Kit| {
        let others = std::mem::take(&mut kit.others);
        let positions = others.into_iter().filter_map(|effect| match effect {
            Effect::SetPosition(position) => Some(position.revision),
            _ => None,
        });
        positions.collect::<Vec<_>>()
    };
    kit.changes(vec![], 9);
    kit.published(last - 1, &[]);
    assert!(noted(&mut kit).is_empty());
    assert!(kit.writes.iter().all(|write| write.position.is_none()));
    // The stream breaks before the last answer. The next one offers everything again.
    kit.close(None, false);
    kit.open(STORE, 9);
    let sequences: Vec<u64> = kit.publications().iter().map(|(n, _)| *n).collect();
    assert_eq!(sequences, [last + 1, last + 2]);
    kit.changes(vec![], 10);
    kit.published(last + 2, &[]);
    assert_eq!(noted(&mut kit), [10]);
    assert_eq!(
        kit.writes.back().and_then(|w| w.position.clone()),
        Some(position(10))
    );
    kit.changes(vec![], 11);
    assert_eq!(noted(&mut kit), [11]);
    assert_eq!(kit.replica.position(), &position(11));
}

#[test]
fn the_link_is_away_revoked_or_a_duplicate_until_a_stream_opens() {
    let why = "no route".to_owned();
    let mut kit = Kit::new(&[]);
    let link = |kit: &Kit| kit.replica.link().state().clone();
    assert_eq!(link(&kit), Link::Connecting);
    assert!(!kit.replica.link().is_away() && kit.replica.link().url() == url().to_string());
    kit.close(None, false);
    assert_eq!(link(&kit), Link::Away { why: why.clone() });
    assert!(kit.replica.link().is_away() && !kit.replica.is_removed());
    for refusal in [Some(Refusal::Revoked), Some(Refusal::Revoked), None] {
        kit.close(refusal, false);
    }
    assert_eq!(link(&kit), Link::Revoked { why: why.clone() });
    assert!(
        kit.replica.is_removed() && !kit.replica.is_out(),
        "nothing is signed"
    );
    for _ in 0..2 {
        kit.close(Some(Refusal::Clone), false);
    }
    assert!(kit.replica.link().is_called_duplicate() && !kit.replica.link().is_duplicate());
    assert!(kit.replica.take_changes().is_empty());
    kit.close(Some(Refusal::Clone), true);
    assert_eq!(link(&kit), Link::Duplicate { why: why.clone() });
    assert!(kit.replica.is_out() && kit.replica.take_changes().duplicate);
    kit.close(Some(Refusal::Clone), true);
    assert!(!kit.replica.take_changes().duplicate, "it is known");
    assert_eq!(kit.replica.link().last_received(), None);
    kit.open(STORE, 5);
    assert_eq!(
        link(&kit),
        Link::Connected {
            since: kit.now.monotonic
        }
    );
    assert!(kit.replica.take_changes().duplicate);
    assert!(!kit.replica.is_removed() && !kit.replica.link().is_called_duplicate());
    assert_eq!(kit.replica.link().failure(), None);
    // A node that was connected is the original, whatever a coordinator answers.
    kit.close(Some(Refusal::Clone), true);
    assert_eq!(link(&kit), Link::Away { why });
    assert!(!kit.replica.is_out() && !kit.replica.take_changes().duplicate);
    let heard = kit.now.monotonic;
    kit.wait(Duration::from_secs(9));
    assert_eq!(kit.replica.link().last_received(), Some(heard));
    kit.open(STORE, 5);
    kit.wait(Duration::from_secs(9));
    kit.event(StreamEvent::Alive);
    assert_eq!(kit.replica.link().last_received(), Some(kit.now.monotonic));
}

#[test]
fn a_node_that_was_a_duplicate_between_two_calls_of_the_shell_has_changed() {
    let mut kit = Kit::new(&[]);
    kit.close(Some(Refusal::Clone), true);
    kit.open(STORE, 5);
    assert!(kit.replica.take_changes().duplicate);
}

#[test]
fn the_shell_takes_each_turn_of_the_link_once() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    kit.close(None, false);
    assert_eq!(take_link_turns(&mut kit.replica).len(), 2);
    assert!(take_link_turns(&mut kit.replica).is_empty());
}

#[test]
fn the_address_at_which_a_coordinator_sees_the_node_is_known_with_its_time() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    assert_eq!(kit.replica.link().seen(), None);
    let address = "192.0.2.9".parse().expect("a literal");
    kit.event(StreamEvent::Seen(address));
    let seen = Some((address, kit.now.monotonic));
    assert_eq!(kit.replica.link().seen(), seen);
}

#[test]
fn records_of_the_coordinator_are_verified_and_what_is_accepted_is_a_change() {
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    let mut forged = service(11, "db", 3);
    forged.payload = forged.payload.replace("db", "dc");
    kit.changes(
        vec![
            forged,
            service(12, "web", 1),
            membership(12),
            node(12, 1),
            service(11, "web", 2),
            service(11, "web", 1),
        ],
        7,
    );
    let keys = [membership(12), node(12, 1), service(11, "web", 2)];
    let keys: Vec<RecordKey> = keys.iter().filter_map(Envelope::key).collect();
    assert_eq!(kit.replica.take_changes().records, keys);
    assert!(kit.replica.take_changes().is_empty());
    assert!(
        !kit.holds(&service(12, "web", 1)),
        "it came before its membership"
    );
    let written = kit.writes.iter().filter_map(|write| write.records.as_ref());
    let written: Vec<_> = written.collect();
    let expected = vec![membership(12), node(12, 1), service(11, "web", 2)];
    assert_eq!(written, [&RecordsWrite::Append(expected)]);
}

#[test]
fn a_mesh_record_that_names_coordinators_sets_them_and_the_token_s_come_last() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    kit.changes(vec![mesh(2, &["https://198.51.100.7:7443"])], 6);
    let urls = kit.others.iter().find_map(|effect| match effect {
        Effect::SetUrls(urls) => Some(urls.clone()),
        _ => None,
    });
    let listed: CoordinatorUrl = "https://198.51.100.7:7443".parse().expect("a literal");
    assert_eq!(urls, Some(vec![listed, url()]));
    assert_eq!(kit.replica.coordinators().len(), 2);
    kit.others.clear();
    kit.changes(vec![membership(11)], 7);
    assert!(
        !kit.others
            .iter()
            .any(|effect| matches!(effect, Effect::SetUrls(_)))
    );
}

#[test]
fn a_publication_is_answered_once_by_stored_settled_or_refused() {
    let mut kit = Kit::new(&[]);
    assert_eq!(
        kit.publish(vec![service_record(OWN, "web", 1)]).sequence,
        None
    );
    kit.open(STORE, 5);
    let settled = ledger::Refused::NodeRevoked.to_string();
    for (refused, answer) in [
        (vec![], Answer::Stored),
        (vec![settled.as_str()], Answer::Settled),
        (vec!["the store failed"], Answer::Refused),
    ] {
        kit.others.clear();
        kit.published(1, &refused);
        let found = kit.others.iter().find_map(|effect| match effect {
            Effect::Answered {
                sequence: 1,
                answer,
            } => Some(*answer),
            _ => None,
        });
        assert_eq!(found, Some(answer));
    }
    kit.close(None, false);
    assert!(
        kit.others
            .iter()
            .any(|effect| matches!(effect, Effect::Unanswered))
    );
}

#[test]
fn a_refused_record_is_offered_again_and_the_second_time_all_records_are_requested() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    kit.refuse(1, &node(OWN, 1), RefusedReason::Block);
    kit.publications();
    kit.pass(Duration::from_secs(4));
    assert!(kit.publications().is_empty());
    kit.pass(Duration::from_secs(2));
    assert_eq!(kit.publications(), [(2, vec![node(OWN, 1)])]);
    let leases = |kit: &Kit| {
        let asked = kit
            .others
            .iter()
            .filter(|e| matches!(e, Effect::AskLease { .. }));
        asked.count()
    };
    assert_eq!((leases(&kit), kit.requests_for_all()), (1, 0));
    kit.refuse(2, &node(OWN, 1), RefusedReason::Block);
    kit.pass(Duration::from_secs(11));
    assert_eq!(kit.publications(), [(3, vec![node(OWN, 1)])]);
    assert_eq!(leases(&kit), 0, "the coordinator was asked a moment ago");
    assert_eq!(kit.requests_for_all(), 1);
    assert_eq!(kit.replica.position().revision, 0);
    assert_eq!(kit.replica.problems(kit.now.monotonic).len(), 1);
    // Until the stream closes, what it brings does not change the position.
    kit.changes(vec![], 8);
    assert_eq!(kit.replica.position().revision, 0);
    kit.close(None, false);
    kit.open(STORE, 8);
    kit.changes(vec![], 8);
    assert_eq!(kit.replica.position().revision, 8);
    kit.published(4, &[]);
    assert!(kit.replica.problems(kit.now.monotonic).is_empty());
    // All records are requested rarely for this reason.
    for sequence in 5..8 {
        kit.refuse(sequence - 1, &node(OWN, 1), RefusedReason::Other);
        kit.pass(Duration::from_secs(6));
    }
    assert_eq!((leases(&kit), kit.requests_for_all()), (0, 0));
}

#[test]
fn a_record_that_is_refused_for_another_reason_than_its_block_leads_to_no_question_for_the_lease() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    kit.refuse(1, &node(OWN, 1), RefusedReason::Other);
    kit.pass(Duration::from_secs(6));
    assert_eq!(kit.publications().len(), 2, "it is offered again");
    let is_question = |effect: &Effect| matches!(effect, Effect::AskLease { .. });
    assert!(!kit.others.iter().any(is_question));
}

#[test]
fn a_node_that_its_coordinator_does_not_know_joins_again() {
    let mut kit = Kit::new(&[]);
    let joins = |kit: &mut Kit| {
        let effects = std::mem::take(&mut kit.others).into_iter();
        let joins = effects.filter_map(|effect| match effect {
            Effect::AskLease { request, .. } => Some(request.membership),
            _ => None,
        });
        joins.collect::<Vec<_>>()
    };
    for refusal in [None, Some(Refusal::Busy), Some(Refusal::Revoked)] {
        kit.close(refusal, false);
        assert!(joins(&mut kit).is_empty(), "{refusal:?}");
    }
    kit.open(STORE, 5);
    kit.close(Some(Refusal::NotAMember), false);
    assert_eq!(joins(&mut kit), [membership(OWN)]);
    kit.close(Some(Refusal::NotAMember), false);
    assert!(joins(&mut kit).is_empty(), "it asked a moment ago");
    kit.pass(Duration::from_secs(60));
    kit.close(Some(Refusal::NotAMember), false);
    assert_eq!(joins(&mut kit), [membership(OWN)]);
    let mut removed = Kit::new(&[]);
    removed.open(STORE, 5);
    removed.changes(vec![revocation(OWN)], 6);
    let mut leaving = Kit::new(&[]);
    leaving.replica.publish_departure(departure(OWN));
    for mut kit in [removed, leaving] {
        kit.close(Some(Refusal::NotAMember), false);
        assert!(joins(&mut kit).is_empty(), "it is out");
    }
}

#[test]
fn nothing_is_offered_again_while_no_stream_is_open() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    kit.refuse(1, &node(OWN, 1), RefusedReason::Other);
    kit.close(None, false);
    kit.sent.clear();
    kit.pass(Duration::from_secs(600));
    assert!(kit.sent.is_empty());
}

#[test]
fn a_node_publishes_above_a_record_that_another_machine_made_with_its_key() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    let foreign = Node {
        wireguard_key: WireGuardKey([99; 32]),
        ..node_record(OWN, 7, OWN.into())
    };
    let foreign = Envelope::seal(&Record::Node(foreign), &key(OWN));
    let mut forged = foreign.clone();
    forged.signature = node(OWN, 1).signature;
    kit.changes(vec![forged], 5);
    assert!(!kit.replica.take_changes().own);
    kit.changes(vec![foreign.clone()], 6);
    assert!(!kit.holds(&foreign), "its own record is not replaced");
    let changes = kit.replica.take_changes();
    assert!(changes.own && changes.records.is_empty());
    let own_key = RecordKey::Node(id(OWN));
    assert_eq!(kit.replica.acceptance().last_version(&own_key, 1), 7);
    let problem = &kit.replica.problems(kit.now.monotonic)[0];
    assert!(problem.why.contains("version 7"), "{problem:?}");
    kit.publish(vec![Record::Node(node_record(OWN, 8, OWN.into()))]);
    assert!(!kit.replica.take_changes().own, "it is published above");
    // An older record, and a service below the floor, say nothing.
    kit.changes(vec![node(OWN, 2), node(OWN, 8)], 7);
    assert!(!kit.replica.take_changes().own);
    // A node that was removed answers no longer.
    kit.changes(vec![revocation(OWN), service(OWN, "evil", 9)], 8);
    assert!(kit.replica.is_removed() && kit.replica.is_out());
    assert!(!kit.replica.take_changes().own);
}

#[test]
fn a_record_with_the_version_of_the_own_one_and_another_text_is_one_of_another_machine() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    kit.changes(vec![node(OWN, 1)], 5);
    assert!(!kit.replica.take_changes().own);
    let foreign = Node {
        wireguard_key: WireGuardKey([99; 32]),
        ..node_record(OWN, 1, OWN.into())
    };
    kit.changes(vec![Envelope::seal(&Record::Node(foreign), &key(OWN))], 6);
    assert!(kit.replica.take_changes().own);
}

#[test]
fn a_service_below_the_floor_of_the_node_record_is_not_taken_for_one_of_another_machine() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    let raised = Node {
        services_from: 20,
        ..node_record(OWN, 2, OWN.into())
    };
    kit.publish(vec![Record::Node(raised)]);
    kit.replica.take_changes();
    kit.changes(vec![service(OWN, "web", 19)], 6);
    assert!(!kit.replica.take_changes().own);
    kit.changes(vec![service(OWN, "web", 20)], 6);
    assert!(kit.replica.take_changes().own);
    // A departure, or a record of another node, that is signed with this key is no record to publish above.
    let mut kit = Kit::new(&[]);
    let name_of = |n: u8| {
        let record = Name {
            id: id(n),
            version: 1,
            name: label("other"),
        };
        Envelope::seal(&Record::Name(record), &key(OWN))
    };
    kit.changes(
        vec![
            departure(OWN),
            Envelope::seal(&service_record(11, "web", 1), &key(OWN)),
            name_of(11),
        ],
        6,
    );
    assert!(!kit.replica.take_changes().own && !kit.replica.is_removed());
    kit.changes(vec![name_of(OWN)], 7);
    assert!(kit.replica.take_changes().own);
}

#[test]
fn the_departure_of_an_ephemeral_node_is_deposited_and_that_of_another_is_not() {
    for ephemeral in [true, false] {
        let token = token_of(TOKEN, UnixSeconds(START.0 + DAY), ephemeral);
        let records = [mesh(1, &[]), token, membership(OWN), node(OWN, 1)];
        let mut kit = Kit::with(&records, position(5), Some(60));
        kit.open(STORE, 5);
        let farewell = FromNode::Farewell {
            departure: departure(OWN),
        };
        assert_eq!(kit.sent.contains(&farewell), ephemeral);
    }
}

#[test]
fn a_node_leaves_over_an_open_stream_only() {
    let mut kit = Kit::new(&[]);
    assert_eq!(kit.replica.publish_departure(departure(OWN)), None);
    kit.open(STORE, 5);
    kit.publications();
    let sequence = kit.replica.publish_departure(departure(OWN));
    kit.drain();
    assert_eq!(sequence, Some(2));
    assert_eq!(kit.publications(), [(2, vec![departure(OWN)])]);
}

#[test]
fn a_person_sees_why_the_coordinator_does_not_tell_which_block_is_leased_to_the_node() {
    let mut kit = Kit::new(&[]);
    kit.open(STORE, 5);
    kit.close(Some(Refusal::NotAMember), false);
    let why = "the token is spent";
    assert_eq!(kit.replica.handle_leased(Err(why.into())), None);
    let shown = |kit: &Kit| {
        let problems = kit.replica.problems(kit.now.monotonic);
        problems.iter().any(|problem| problem.why.contains(why))
    };
    assert!(shown(&kit));
    // While a stream is open, it matters only if the coordinator accepts the records of this node.
    kit.open(STORE, 5);
    assert!(!shown(&kit));
    kit.refuse(2, &node(OWN, 1), RefusedReason::Block);
    assert!(shown(&kit));
    let own = block(OWN.into());
    assert_eq!(kit.replica.handle_leased(Ok(own)), None);
    assert!(!shown(&kit));
}

#[test]
fn the_same_failure_of_a_question_for_the_lease_is_logged_once() {
    let mut kit = Kit::new(&[]);
    let lines = captured::lines(|| {
        for why in ["the token is spent", "the token is spent", "it is revoked"] {
            assert_eq!(kit.replica.handle_leased(Err(why.into())), None);
        }
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
}

#[test]
fn a_node_moves_to_another_block_only_if_a_member_claims_its_block() {
    let mut own_is_taken = Kit::new(&[11]);
    assert_eq!(own_is_taken.replica.handle_leased(Ok(block(50))), None);
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    let rival = Envelope::seal(&Record::Node(node_record(12, 1, OWN.into())), &key(12));
    kit.changes(vec![membership(12), rival], 6);
    assert_eq!(
        kit.replica.handle_leased(Ok(block(OWN.into()))),
        None,
        "it has that block"
    );
    assert_eq!(
        kit.replica.handle_leased(Ok(block(11))),
        None,
        "it is not free"
    );
    assert_eq!(kit.replica.handle_leased(Ok(block(50))), Some(block(50)));
    let mut outside = block(50);
    outside.v4 = "10.99.0.0/24".parse().expect("a literal");
    assert_eq!(kit.replica.handle_leased(Ok(outside)), None);
    kit.changes(vec![revocation(12)], 7);
    assert_eq!(kit.replica.handle_leased(Ok(block(50))), None);
}

#[test]
fn a_node_moves_although_the_member_that_claimed_its_block_is_out_if_its_record_is_refused() {
    let mut kit = Kit::new(&[11]);
    kit.open(STORE, 5);
    let rival = Envelope::seal(&Record::Node(node_record(12, 1, OWN.into())), &key(12));
    kit.changes(vec![membership(12), rival], 6);
    kit.changes(vec![revocation(12)], 7);
    kit.refuse(1, &node(OWN, 1), RefusedReason::Block);
    assert_eq!(kit.replica.handle_leased(Ok(block(50))), Some(block(50)));
    assert_eq!(kit.replica.handle_leased(Ok(block(OWN.into()))), None);
    assert_eq!(
        kit.replica.handle_leased(Ok(block(50))),
        None,
        "the coordinator has said that the block is this node's"
    );
}

#[test]
fn the_time_of_the_next_call_follows_each_call() {
    let mut kit = Kit::new(&[]);
    assert_eq!(kit.replica.poll_timeout(), Some(kit.now.monotonic));
    kit.replica.handle_time(kit.now);
    let next = kit.now.monotonic + CHECK_INTERVAL;
    assert_eq!(kit.replica.poll_timeout(), Some(next));
}

#[test]
fn a_node_is_in_step_when_it_holds_what_the_store_had_when_the_stream_opened() {
    let in_step = |kit: &Kit| kit.writes.iter().filter(|w| w.in_step.is_some()).count();
    let mut kit = Kit::with(&records_of(&[]), position(5), Some(DAY));
    kit.open(STORE, 9);
    kit.event(StreamEvent::Alive);
    kit.changes(vec![], 8);
    assert_eq!(in_step(&kit), 0);
    kit.changes(vec![], 9);
    assert_eq!(in_step(&kit), 1);
    kit.wait(Duration::from_secs(30));
    kit.event(StreamEvent::Alive);
    assert_eq!(in_step(&kit), 1, "once a minute is enough");
    kit.wait(Duration::from_secs(31));
    kit.event(StreamEvent::Alive);
    assert_eq!(in_step(&kit), 2);
    kit.wait(Duration::from_secs(61));
    kit.published(1, &[]);
    assert_eq!(in_step(&kit), 3);
    // A store in which this node is no member tells nothing until it admits the node.
    kit.close(None, false);
    kit.open("another", 0);
    kit.wait(Duration::from_secs(61));
    kit.changes(vec![], 20);
    assert_eq!(in_step(&kit), 3);
    kit.event(StreamEvent::Admitted { revision: 20 });
    kit.event(StreamEvent::Alive);
    assert_eq!(in_step(&kit), 4);
}
