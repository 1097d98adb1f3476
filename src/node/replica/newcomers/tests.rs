use super::*;
use crate::model::{SigningKey, WireGuardKey};

const DAY: u64 = 24 * 3600;
const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

fn ago(seconds: u64) -> UnixSeconds {
    UnixSeconds(NOW.0 - seconds)
}

fn membership(node: u8, token: u8, issued_at: UnixSeconds) -> (Membership, Envelope) {
    let token = key(token);
    let membership = Membership {
        id: key(node).public(),
        version: 1,
        token: token.public(),
        name: Label::parse(&format!("n{node}")).expect("a literal"),
        wireguard_key: WireGuardKey([node; 32]),
        tags: vec![],
        issued_at,
        proof: None,
    };
    let envelope = Envelope::seal(&Record::Membership(membership.clone()), &token);
    (membership, envelope)
}

fn token(expires_at: UnixSeconds) -> Token {
    Token {
        id: key(200).public(),
        version: 1,
        tags: vec![],
        uses: 5,
        created_at: ago(90 * DAY),
        expires_at,
        ephemeral: false,
    }
}

fn in_step(at: Option<UnixSeconds>) -> Newcomers {
    Newcomers::new(
        InStep { in_step: at },
        NewcomerLists::default(),
        Instant::now(),
    )
}

fn judged(newcomers: &Newcomers, issued: u64, token: &Token) -> Verdict {
    let circumstances = Circumstances {
        token: Some(token),
        is_revoked: false,
        is_name_taken: false,
    };
    let (membership, _) = membership(1, 200, ago(issued));
    newcomers.judge(&membership, NOW, || circumstances)
}

#[test]
fn a_membership_dated_before_this_node_was_in_step_is_held_back_once_its_token_is_over() {
    let over = token(ago(30 * DAY));
    let newcomers = in_step(Some(ago(DAY)));
    assert_eq!(judged(&newcomers, 0, &over), Verdict::Witnessed);
    assert_eq!(judged(&newcomers, 300, &over), Verdict::Witnessed);
    assert_eq!(judged(&newcomers, 3600, &over), Verdict::OnTrust);
    assert_eq!(judged(&newcomers, DAY + 300, &over), Verdict::OnTrust);
    assert_eq!(judged(&newcomers, DAY + 700, &over), Verdict::HeldBack);
    assert_eq!(judged(&newcomers, 60 * DAY, &over), Verdict::HeldBack);
    // A node that was away for long accepts the nodes that joined meanwhile.
    let absent = in_step(Some(ago(60 * DAY)));
    assert_eq!(judged(&absent, 40 * DAY, &over), Verdict::OnTrust);
    assert_eq!(judged(&absent, 61 * DAY, &over), Verdict::HeldBack);
    // A node that has just joined has nothing to compare with.
    assert_eq!(judged(&in_step(None), 60 * DAY, &over), Verdict::OnTrust);
}

#[test]
fn a_clock_that_is_wrong_holds_no_node_back_that_has_a_token_which_holds() {
    let newcomers = in_step(Some(ago(0)));
    let holds = token(UnixSeconds(NOW.0 + 60));
    assert_eq!(judged(&newcomers, 5 * 3600, &holds), Verdict::OnTrust);
    // At its expiry a token holds no more.
    assert_eq!(judged(&newcomers, 5 * 3600, &token(NOW)), Verdict::HeldBack);
    let (membership, _) = membership(1, 200, ago(5 * 3600));
    for (is_revoked, is_name_taken) in [(true, false), (false, true)] {
        let circumstances = Circumstances {
            token: Some(&holds),
            is_revoked,
            is_name_taken,
        };
        assert_eq!(
            newcomers.judge(&membership, NOW, || circumstances),
            Verdict::HeldBack
        );
    }
    // An expired token does not become valid again because the clock went back.
    let circumstances = Circumstances {
        token: Some(&holds),
        is_revoked: false,
        is_name_taken: false,
    };
    let ahead = in_step(Some(UnixSeconds(NOW.0 + DAY)));
    let (dated_back, _) = self::membership(1, 200, ago(DAY));
    assert_eq!(
        ahead.judge(&dated_back, NOW, || circumstances),
        Verdict::HeldBack
    );
}

#[test]
fn a_membership_is_released_by_a_peer_and_not_by_its_own_node_or_with_another_text() {
    let now = Instant::now();
    let mut newcomers = in_step(Some(ago(0)));
    let (held, envelope) = membership(1, 200, ago(60 * DAY));
    assert!(newcomers.hold_back(&envelope, &held, now));
    assert!(!newcomers.hold_back(&envelope, &held, now));
    assert_eq!(newcomers.asks(now), [held.id]);
    assert!(!newcomers.may_release(&envelope, &held.id));
    assert!(!newcomers.may_release(&membership(1, 200, ago(50 * DAY)).1, &key(2).public()));
    assert!(!newcomers.may_release(&membership(3, 200, ago(60 * DAY)).1, &key(2).public()));
    assert!(newcomers.may_release(&envelope, &key(2).public()));

    // Both lists survive a restart.
    let (_, lists) = newcomers.unwritten().expect("it changed");
    let stored = InStep {
        in_step: Some(ago(0)),
    };
    let mut newcomers = Newcomers::new(stored, lists, now);
    assert_eq!(newcomers.unwritten(), None);
    assert!(newcomers.may_release(&envelope, &key(2).public()));
    assert!(newcomers.problem(now).is_none());
    let problem = newcomers.problem(now + PROBLEM_AFTER).expect("a problem");
    assert!(problem.what.contains("1 node(s)") && problem.what.contains("n1"));

    newcomers.handle_accepted(&held.id, false);
    assert!(newcomers.problem(now + PROBLEM_AFTER).is_none());
    assert!(!newcomers.vouches_for(&held.id), "it saw nothing itself");
    newcomers.handle_accepted(&held.id, true);
    assert!(newcomers.vouches_for(&held.id));
    let (revision, _) = newcomers.unwritten().expect("it changed");
    newcomers.handle_written(revision);
    assert!(newcomers.unwritten().is_none());
}

#[test]
fn a_further_membership_of_a_node_does_not_postpone_the_problem() {
    let now = Instant::now();
    let mut newcomers = in_step(Some(ago(0)));
    let (first, envelope) = membership(1, 200, ago(60 * DAY));
    assert!(newcomers.hold_back(&envelope, &first, now));
    let (further, envelope) = membership(1, 200, ago(50 * DAY));
    assert!(!newcomers.hold_back(&envelope, &further, now + PROBLEM_AFTER));
    assert!(newcomers.problem(now + PROBLEM_AFTER).is_some());
}

#[test]
fn one_token_fills_its_own_share_of_what_is_held_back() {
    let now = Instant::now();
    let mut newcomers = in_step(Some(ago(0)));
    for node in 1..100 {
        let (held, envelope) = membership(node, 200, ago(60 * DAY));
        newcomers.hold_back(&envelope, &held, now);
    }
    assert_eq!(newcomers.held.len(), MAX_HELD_OF_TOKEN);
    let (held, envelope) = membership(150, 201, ago(60 * DAY));
    assert!(newcomers.hold_back(&envelope, &held, now + PROBLEM_AFTER));
    let asks = newcomers.asks(now + PROBLEM_AFTER);
    assert_eq!((asks[0], asks.len()), (held.id, MAX_HELD_OF_TOKEN));
    let problem = newcomers
        .problem(now + 2 * PROBLEM_AFTER)
        .expect("a problem");
    assert!(problem.what.ends_with("more"), "{}", problem.what);
    // Memberships that were left out are requested again when there is room, and not before.
    assert!(!newcomers.take_overflowed());
    newcomers.retain(|_, _| false);
    assert!(newcomers.take_overflowed());
    assert!(!newcomers.take_overflowed());
    assert!(newcomers.asks(now).is_empty());
    // A membership that is larger than any that a node makes is not held back at all.
    let long = |bytes: usize| Envelope {
        payload: format!("{:bytes$}", envelope.payload),
        ..envelope.clone()
    };
    assert!(!newcomers.hold_back(&long(MAX_MEMBERSHIP_BYTES + 1), &held, now));
    assert!(newcomers.hold_back(&long(MAX_MEMBERSHIP_BYTES), &held, now));
}

#[test]
fn the_lists_are_written_when_one_of_them_changes_and_only_then() {
    type Change<'a> = &'a dyn Fn(&mut Newcomers);
    let now = Instant::now();
    let (held, envelope) = membership(1, 200, ago(60 * DAY));
    let (further, other) = membership(1, 200, ago(50 * DAY));
    let (trusted, unknown) = (key(2).public(), key(3).public());
    let hold_back = |newcomers: &mut Newcomers, envelope: &Envelope, held: &Membership| {
        assert!(
            !newcomers.hold_back(envelope, held, now),
            "it is not the first one"
        );
    };
    let changes: [(bool, Change<'_>); 11] = [
        (false, &|n: &mut Newcomers| hold_back(n, &envelope, &held)),
        (true, &|n: &mut Newcomers| hold_back(n, &other, &further)),
        (true, &|n: &mut Newcomers| n.handle_accepted(&held.id, true)),
        (true, &|n: &mut Newcomers| n.handle_accepted(&trusted, true)),
        (false, &|n: &mut Newcomers| {
            n.handle_accepted(&trusted, false)
        }),
        (true, &|n: &mut Newcomers| {
            n.handle_accepted(&unknown, false)
        }),
        (false, &|n: &mut Newcomers| {
            n.handle_accepted(&unknown, true)
        }),
        (false, &|n: &mut Newcomers| n.retain(|_, _| true)),
        (true, &|n: &mut Newcomers| n.retain(|_, _| false)),
        (false, &|n: &mut Newcomers| n.retain_members(|_| true)),
        (true, &|n: &mut Newcomers| n.retain_members(|_| false)),
    ];
    for (n, (is_change, change)) in changes.into_iter().enumerate() {
        let lists = NewcomerLists {
            held_back: vec![envelope.clone()],
            on_trust: BTreeSet::from([trusted]),
        };
        let mut newcomers = Newcomers::new(InStep::default(), lists, now);
        change(&mut newcomers);
        assert_eq!(newcomers.is_written(), !is_change, "{n}");
    }
}

#[test]
fn a_further_membership_of_a_node_replaces_the_first_one_within_the_room_of_its_token() {
    let now = Instant::now();
    let mut newcomers = in_step(Some(ago(0)));
    let mut hold_back = |node: u8, token: u8, days: u64| {
        let (held, envelope) = membership(node, token, ago(days * DAY));
        newcomers.hold_back(&envelope, &held, now);
        newcomers.may_release(&envelope, &key(250).public())
    };
    for node in 1..=MAX_HELD_OF_TOKEN as u8 {
        assert!(hold_back(node, 200, 60), "{node}");
    }
    assert!(hold_back(100, 201, 60));
    assert!(hold_back(1, 200, 50), "it takes no further room");
    assert!(!hold_back(100, 200, 50), "there is no room left");
}

#[test]
fn the_tokens_that_are_remembered_for_lack_of_room_are_bounded() {
    let now = Instant::now();
    let mut newcomers = in_step(Some(ago(0)));
    let tokens = (0..MAX_HELD as u64).map(|n| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        PublicKey(bytes)
    });
    newcomers.overflowed = tokens.collect();
    for node in 0..=MAX_HELD_OF_TOKEN as u8 {
        let (held, envelope) = membership(node, 200, ago(60 * DAY));
        newcomers.hold_back(&envelope, &held, now);
    }
    assert_eq!(newcomers.held.len(), MAX_HELD_OF_TOKEN);
    assert_eq!(newcomers.overflowed.len(), MAX_HELD);
}

#[test]
fn memberships_that_were_left_out_are_requested_when_less_than_half_of_the_room_is_taken() {
    let now = Instant::now();
    let mut newcomers = in_step(Some(ago(0)));
    for node in 0..=255 {
        let (held, envelope) = membership(node, 200 + node / 32, ago(60 * DAY));
        newcomers.hold_back(&envelope, &held, now);
    }
    assert_eq!(newcomers.held.len(), MAX_HELD / 2);
    newcomers.overflowed.insert(key(250).public());
    assert!(!newcomers.take_overflowed());
    newcomers.held.pop_first();
    assert!(newcomers.take_overflowed());
}

#[test]
fn peers_are_asked_about_a_membership_in_each_round_and_after_some_minutes_once_a_minute() {
    let now = Instant::now();
    let mut newcomers = in_step(Some(ago(0)));
    let (held, envelope) = membership(1, 200, ago(60 * DAY));
    newcomers.hold_back(&envelope, &held, now);
    for (seconds, is_asked) in [
        (59, true),
        (299, true),
        (300, true),
        (305, true),
        (306, false),
        (359, false),
        (360, true),
        (365, true),
        (366, false),
    ] {
        let asks = newcomers.asks(now + Duration::from_secs(seconds));
        assert_eq!(asks.len(), usize::from(is_asked), "{seconds}");
    }
}

#[test]
fn a_node_is_in_step_once_it_holds_all_that_the_coordinator_had_when_the_stream_opened() {
    let mut newcomers = in_step(Some(ago(DAY)));
    let over = token(ago(30 * DAY));
    assert_eq!(
        newcomers.handle_heard(900, NOW, || NOW),
        None,
        "no stream is open"
    );
    newcomers.handle_opened(0);
    assert_eq!(
        newcomers.handle_heard(900, NOW, || NOW),
        None,
        "no member there"
    );
    newcomers.handle_opened(1000);
    assert_eq!(newcomers.handle_heard(0, NOW, || NOW), None);
    assert_eq!(newcomers.handle_heard(999, NOW, || NOW), None);
    assert_eq!(judged(&newcomers, 3600, &over), Verdict::OnTrust);
    assert_eq!(
        newcomers.handle_heard(1000, NOW, || NOW),
        Some(InStep { in_step: Some(NOW) })
    );
    assert_eq!(judged(&newcomers, 3600, &over), Verdict::HeldBack);
    // The time is written to disk once a minute.
    let writes = (1..=600).filter(|n| {
        newcomers
            .handle_heard(1001, UnixSeconds(NOW.0 + n), || NOW)
            .is_some()
    });
    assert_eq!(writes.count(), 10);
    newcomers.handle_closed();
    assert_eq!(
        newcomers.handle_heard(2000, UnixSeconds(NOW.0 + DAY), || NOW),
        None
    );
    // A clock that was far ahead may be corrected.
    newcomers.handle_opened(1);
    let back = UnixSeconds(NOW.0 - DAY);
    assert!(newcomers.handle_heard(1, back, || NOW).is_some());
    assert_eq!(newcomers.in_step, Some(back));
    // A clock that starts in 1970 is wrong.
    assert_eq!(newcomers.handle_heard(1, UnixSeconds(9), || NOW), None);
    assert_eq!(newcomers.in_step, Some(back));
    let (old, _) = membership(1, 200, ago(2 * DAY));
    let verdict = in_step(Some(ago(DAY))).judge(&old, UnixSeconds(9), || Circumstances {
        token: Some(&over),
        is_revoked: false,
        is_name_taken: false,
    });
    assert_eq!(verdict, Verdict::HeldBack);
    let (new, _) = membership(1, 200, ago(0));
    let verdict =
        in_step(Some(ago(DAY))).judge(&new, UnixSeconds(9), || panic!("the date decides"));
    assert_eq!(verdict, Verdict::Witnessed);
}
