//! Stores that lost something, and how that is noticed.

use super::*;

fn join(hub: &Hub, n: u8) {
    hub.join(&request(n, membership(n, &format!("n{n}"), 1, now())))
        .expect("a use left");
}

fn mark(hub: &Hub, n: u8) -> String {
    hub.mark_of(&id(n)).expect("a member has a mark")
}

/// Returns a mark as a stream does; whether the store became another by it.
fn return_mark(hub: &Hub, n: u8, mark: &str) -> bool {
    let before = hub.stream_start(None, 0).store;
    if hub.handle_mark(&id(n), mark) {
        hub.examine_loss(&id(n), mark).expect("writable");
    }
    !hub.is_on(&before)
}

/// A store with node 10, to which it goes back after node 11 has joined; with the marks of both.
fn went_back() -> (tempfile::TempDir, Hub, [String; 2], Vec<Envelope>) {
    let (dir, hub) = state_dir();
    join(&hub, 10);
    publish(&hub, vec![node(&hub, 10, 1, 1)]).expect("writable");
    drop(hub);
    let path = dir.path().join("records.db");
    std::fs::copy(&path, dir.path().join("older")).expect("ours");
    let hub = open(&path);
    join(&hub, 11);
    publish(&hub, vec![node(&hub, 11, 1, 2)]).expect("writable");
    let marks = [mark(&hub, 10), mark(&hub, 11)];
    let held = hub.snapshot().0;
    drop(hub);
    std::fs::rename(dir.path().join("older"), &path).expect("ours");
    let hub = open(&path);
    (dir, hub, marks, held)
}

#[test]
fn a_store_that_went_back_in_time_is_noticed_by_a_mark_and_told_by_its_nodes() {
    let (_dir, hub, marks, held) = went_back();
    assert!(!hub.size().refilling);
    assert_eq!(hub.standing(&id(11)), Standing::NotMember);
    assert!(return_mark(&hub, 10, &marks[0]));
    assert!(hub.size().refilling);
    let early = hub
        .join(&request(12, membership(12, "n12", 1, now())))
        .expect_err("a use of the token may be spent");
    assert_eq!(early.code, ErrorCode::Busy);
    // What it forgot comes back with the nodes, and no block is given twice.
    hub.publish(&id(10), held).expect("writable");
    assert_eq!(hub.standing(&id(11)), Standing::Member);
    for n in [10, 11] {
        hub.handle_fully_offered(&id(n));
    }
    let_pass(&hub, NOBODY_TIMEOUT);
    for n in [10, 11] {
        hub.handle_fully_offered(&id(n));
    }
    let third = hub
        .join(&request(12, membership(12, "n12", 1, now())))
        .expect("a use left");
    let block = block_index(&hub, &third).expect("in the plan");
    assert!(block > 2, "{block}");
    let used = hub.tokens().tokens.first().map(|token| token.used);
    assert_eq!(used, Some(3));
}

#[test]
fn a_node_that_the_store_forgot_proves_by_its_mark_that_it_went_back() {
    let (_dir, hub, marks, held) = went_back();
    assert!(return_mark(&hub, 11, &marks[1]));
    let own = vec![membership(11, "n11", 1, now())];
    let early = reasons(&hub.publish(&id(11), own).expect("writable"));
    assert!(
        matches!(early.as_slice(), [PublishRefused::NotYet(_)]),
        "removals are told first: {early:?}"
    );
    let_pass(&hub, NOBODY_TIMEOUT);
    hub.publish(&id(11), held).expect("writable");
    assert_eq!(hub.standing(&id(11)), Standing::Member);
}

#[test]
fn one_loss_is_noticed_once_and_no_member_makes_one_up() {
    let (_dir, hub, marks, _) = went_back();
    let store = hub.stream_start(None, 0).store;
    let invented = [
        format!("{}.{store}.{}", 1u64 << 63, "0".repeat(64)),
        marks[0].replacen(char::is_numeric, "9", 1),
        // Another member's.
        marks[1].clone(),
        MarkKey::derive(b"another key").make(&id(10), &store, 1 << 63),
        String::new(),
    ];
    for mark in &invented {
        assert!(!return_mark(&hub, 10, mark), "{mark}");
    }
    assert!(!return_mark(&hub, 10, &mark(&hub, 10)), "as it is");
    assert!(return_mark(&hub, 10, &marks[0]));
    for mark in marks.iter().take(1).chain(&invented) {
        assert!(!return_mark(&hub, 10, mark), "{mark}");
    }
}

#[test]
fn a_record_of_the_administrator_that_the_store_lacks_proves_that_it_went_back() {
    for by in [10, 66] {
        let hub = hub();
        join(&hub, 10);
        let before = hub.stream_start(None, 0).store;
        // Held, forged, and of a member: no proof.
        let forged = Envelope::seal_payload(other_token(4).payload, &key(66));
        let mut passed_off = forged.clone();
        passed_off.signer = id(MESH);
        let weather = r#"{"kind":"weather","id":"here","version":1}"#;
        let own = Envelope::seal_payload(weather.to_owned(), &key(10));
        let no_proof = vec![token(now() + HOUR), forged, passed_off, own];
        hub.publish(&id(by), no_proof).expect("writable");
        assert!(hub.is_on(&before));
        hub.publish(&id(by), vec![other_token(4)])
            .expect("writable");
        assert!(!hub.is_on(&before) && hub.size().refilling);
        // The store knows it now, so it proves nothing more.
        let after = hub.stream_start(None, 0).store;
        hub.publish(&id(by), vec![other_token(4)])
            .expect("writable");
        assert!(hub.is_on(&after));
    }
}

/// What the nodes of a mesh hold: two members and one that was removed, by a token that is revoked or not.
fn lost_mesh() -> (Hub, Vec<Envelope>) {
    let full = hub();
    for n in [10, 11, 12] {
        join(&full, n);
        let own = vec![node(&full, n, 1, u32::from(n) - 9), service(n, "web", 1)];
        publish(&full, own).expect("writable");
    }
    submit(&full, None, revocation(12, RevokedKind::Node)).expect("signed by the mesh key");
    let held = full.snapshot().0;
    (full, held)
}

#[test]
fn an_emptied_coordinator_is_refilled_by_nodes_that_have_marks() {
    let (full, held) = lost_mesh();
    let empty = emptied(&full);
    let taken = |n: u8| hub_publish(&empty, n, &held);
    assert!(empty.handle_mark(&id(10), &mark(&full, 10)) || empty.size().refilling);
    // At first only what the administrator signed.
    assert!(later(&taken(10)));
    assert_eq!(empty.standing(&id(12)), Standing::Revoked);
    assert_eq!(empty.standing(&id(10)), Standing::NotMember);
    let_pass(&empty, NOBODY_TIMEOUT);
    assert!(later(&taken(66)), "no mark");
    assert_eq!(taken(10), []);
    assert_eq!(empty.snapshot().0, full.snapshot().0);
    let used = |hub: &Hub| hub.tokens().tokens.first().map(|token| token.used);
    assert_eq!((used(&empty), used(&full)), (Some(3), Some(3)));
    // Once members are back, a stranger is never believed as it comes.
    for n in [10, 11] {
        empty.handle_fully_offered(&id(n));
    }
    let_pass(&empty, MAX_REFILL);
    empty.handle_fully_offered(&id(10));
    submit(&empty, None, revocation(TOKEN, RevokedKind::Token)).expect("signed");
    let leaked = membership(66, "thief", 1, now() - 100);
    assert_eq!(
        hub_publish(&empty, 66, &[leaked]),
        [PublishRefused::NeverJoined]
    );
}

#[test]
fn nodes_without_marks_fill_an_emptied_coordinator_if_nobody_else_comes_back() {
    let (full, held) = lost_mesh();
    let empty = emptied(&full);
    for passed in [
        Duration::ZERO,
        NOBODY_TIMEOUT,
        MAX_REFILL - Duration::from_secs(60),
    ] {
        let_pass(&empty, passed);
        assert!(later(&hub_publish(&empty, 11, &held)), "{passed:?}");
    }
    let_pass(&empty, MAX_REFILL);
    assert_eq!(hub_publish(&empty, 11, &held), []);
    assert_eq!(empty.snapshot().0, full.snapshot().0);
    assert_eq!(empty.standing(&id(12)), Standing::Revoked);
}

#[test]
fn a_mesh_of_one_node_recovers_from_an_emptied_coordinator() {
    let full = hub();
    join(&full, 10);
    publish(&full, vec![node(&full, 10, 1, 1)]).expect("writable");
    let held = full.snapshot().0;
    let empty = emptied(&full);
    empty.handle_mark(&id(10), &mark(&full, 10));
    let_pass(&empty, NOBODY_TIMEOUT);
    assert_eq!(hub_publish(&empty, 10, &held), []);
    empty.handle_fully_offered(&id(10));
    empty
        .join(&request(11, membership(11, "n11", 1, now())))
        .expect("all members have told");
    assert!(!empty.size().refilling);
}

fn hub_publish(hub: &Hub, n: u8, records: &[Envelope]) -> Vec<PublishRefused> {
    // As a node does: first what makes it a member.
    let mut records = records.to_vec();
    let own = id(n);
    records.sort_by_key(
        |r| !match Record::parse(&r.payload).expect("a record").0.key {
            RecordKey::Mesh | RecordKey::Token(_) => true,
            RecordKey::Membership(node) => node == own,
            _ => false,
        },
    );
    reasons(&hub.publish(&id(n), records).expect("writable"))
}

/// Whether memberships are to be brought again later.
fn later(refused: &[PublishRefused]) -> bool {
    refused
        .iter()
        .any(|refused| matches!(refused, PublishRefused::NotYet(_)))
}

#[cfg(feature = "etcd")]
#[test]
fn a_coordinator_that_lags_behind_another_does_not_take_that_for_a_loss() {
    let Some(etcd) = crate::coordinator::store::EtcdFixture::start() else {
        return;
    };
    let (one, other) = two_on_one_store(&etcd);
    join(&one, 10);
    other.handle_news();
    let store = other.stream_start(None, 0).store;
    for n in 11..14 {
        join(&one, n);
        let fresh = other_token(n);
        submit(&one, None, fresh.clone()).expect("signed by the mesh key");
        assert!(!return_mark(&other, n, &mark(&one, n)));
        other.publish(&id(n), vec![fresh]).expect("writable");
        assert!(other.is_on(&store));
    }
    // One of the future is of a cluster that went back, and both are another store then.
    let ahead = setup().marks.make(&id(10), &store, 1 << 40);
    assert!(return_mark(&other, 10, &ahead));
    let end = Instant::now() + Duration::from_secs(60);
    while one.is_on(&store) {
        assert!(Instant::now() < end, "it is not told");
        one.handle_news();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(one.size().refilling && other.size().refilling);
}

#[test]
fn a_store_of_an_earlier_version_is_cleaned_at_the_start() {
    let (dir, hub) = state_dir();
    for n in [10, 11] {
        join(&hub, n);
        let own = vec![node(&hub, n, 1, u32::from(n) - 9), service(n, "web", 1)];
        publish(&hub, own).expect("writable");
    }
    submit(&hub, None, revocation(11, RevokedKind::Node)).expect("signed by the mesh key");
    drop(hub);
    let path = dir.path().join("records.db");
    // As such a version left it: records of a node that is out, thousands of one kind, under keys without their signer.
    let mut store = Sqlite::open(&path).expect("writable");
    let weather = |n: u8, of: usize| {
        let id = format!("place {of}");
        let text = format!(r#"{{"kind":"weather","id":"{id}","version":1,"sky":"blue"}}"#);
        Write {
            key: RecordKey::parse("weather", &id),
            envelope: Envelope::seal_payload(text, &key(n)),
            gone: vec![],
            effect: Effect::None,
        }
    };
    let mut left: Vec<Write> = (0..500).map(|of| weather(10, of)).collect();
    left.extend((1000..1500).map(|of| weather(11, of)));
    let mut of_the_mesh = weather(MESH, 5000);
    of_the_mesh.envelope = Envelope::seal_payload(of_the_mesh.envelope.payload, &key(MESH));
    left.push(of_the_mesh);
    left.push(Write {
        key: RecordKey::parse("service", &format!("{}/db", id(11))),
        envelope: service(11, "db", 1),
        gone: vec![],
        effect: Effect::None,
    });
    store.put(&left).expect("writable");
    drop(store);

    let hub = open(&path);
    let (held, _) = hub.snapshot();
    let count = |kind: &str| kinds(&held).iter().filter(|k| *k == kind).count();
    assert_eq!(
        count("weather"),
        crate::records::ledger::usage::MAX_UNKNOWN_RECORDS + 1
    );
    assert_eq!(count("service"), 1);
    let stored = |path| {
        let mut store = Sqlite::open(path).expect("writable");
        store.load().expect("readable").records
    };
    drop(hub);
    let records = stored(&path);
    assert_eq!(records.len(), held.len());
    assert!(records.iter().all(|s| s.envelope.signer != id(11)));
    // And streams that follow changes receive what was moved.
    let hub = open(&path);
    assert_eq!(hub.snapshot().0, held);
    let (changes, _) = read_from(&hub, Cursor::at(0));
    assert_eq!(changes.len(), held.len());
    drop(hub);
    assert_eq!(stored(&path), records, "nothing is left to clean");
}

#[test]
fn a_removal_deletes_all_that_the_node_signed_and_nothing_of_others() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("records.db");
    let hub = hub_with(Sqlite::open(&path).expect("writable"), now() + HOUR);
    let weather = |n: u8| {
        let text = r#"{"kind":"weather","id":"here","version":1,"sky":"blue"}"#;
        Envelope::seal_payload(text.to_owned(), &key(n))
    };
    for n in [10, 11, 12] {
        join(&hub, n);
        let own = vec![
            node(&hub, n, 1, u32::from(n) - 9),
            service(n, "web", 1),
            weather(n),
        ];
        assert_eq!(publish(&hub, own).expect("writable").accepted, 3);
    }
    submit(&hub, None, revocation(11, RevokedKind::Node)).expect("signed by the mesh key");
    hub.publish(&id(12), vec![departure(12)]).expect("writable");
    drop(hub);
    let stored = Sqlite::open(&path)
        .expect("writable")
        .load()
        .expect("readable")
        .records;
    let signed_by = |n: u8| -> Vec<String> {
        let own = stored.iter().filter(|s| s.envelope.signer == id(n));
        own.map(|s| s.key.kind().to_owned()).collect()
    };
    let unknown = format!("weather of {}", id(10));
    assert_eq!(signed_by(10), ["node", "service", unknown.as_str()]);
    assert!(signed_by(11).is_empty());
    assert_eq!(signed_by(12), ["departure"]);
}
