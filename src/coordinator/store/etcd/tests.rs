//! Tests of what only a shared store does. `store/tests.rs` tests what every store does.

use std::collections::HashSet;

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::*;
use crate::coordinator::store::{
    Admission, Admitted, Effect, EtcdFixture, News, Store as _, Stored, Write,
};
use crate::model::{Label, PublicKey, SigningKey};
use crate::records::{Envelope, RecordKey};

/// Only a test that hangs takes longer.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

fn write(id: &str, effect: Effect) -> Write {
    Write {
        key: RecordKey::parse("node", id),
        envelope: Envelope::seal_payload("{}".into(), &SigningKey::from_seed(&[1; 32])),
        gone: Vec::new(),
        effect,
    }
}

fn admission(n: u8) -> Admission {
    let node = PublicKey([n; 32]);
    Admission {
        node,
        name: Label::parse(&format!("n{n}")).expect("a literal"),
        token: PublicKey([0xaa; 32]),
        uses: 1,
        blocks: 256,
        key: RecordKey::parse("membership", &node.to_string()),
        envelope: Envelope::seal_payload("{}".into(), &SigningKey::from_seed(&[n; 32])),
    }
}

fn open(fixture: &EtcdFixture) -> Etcd {
    let mut store = Etcd::open(&fixture.settings(), None).expect("it runs");
    store.load().expect("readable");
    store
}

/// Waits for news. Returns whether they are all records, and the ids of the records.
fn await_news(store: &mut Etcd) -> (bool, Vec<String>) {
    let end = Instant::now() + WAIT_TIMEOUT;
    loop {
        let ids = |records: Vec<Stored>| {
            let ids = records.iter().map(|s| s.key.id().into_owned());
            ids.collect()
        };
        match store.news().expect("readable") {
            Some(News::Changes { records, .. }) => return (false, ids(records)),
            Some(News::Everything(contents)) => return (true, ids(contents.records)),
            None => {
                assert!(Instant::now() < end, "no news");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

#[test]
fn changes_by_one_coordinator_are_news_to_another_before_it_can_write() {
    let Some(fixture) = EtcdFixture::start() else {
        return;
    };
    let (mut one, mut other) = (open(&fixture), open(&fixture));
    assert_eq!(one.put(&[write("a", Effect::None)]).expect("alone"), 1);
    assert!(matches!(
        other.put(&[write("b", Effect::None)]),
        Err(StoreError::Behind)
    ));
    assert_eq!(await_news(&mut other), (false, vec!["a".to_owned()]));
    assert_eq!(other.put(&[write("b", Effect::None)]).expect("it knows"), 2);
    assert_eq!(await_news(&mut one), (false, vec!["b".to_owned()]));
    assert!(one.news().expect("readable").is_none());
    assert_eq!(
        one.load().expect("readable").id,
        other.load().expect("readable").id
    );
}

#[test]
fn one_use_of_a_token_admits_one_node_at_whichever_coordinator() {
    let Some(fixture) = EtcdFixture::start() else {
        return;
    };
    let mut stores: Vec<Etcd> = (0..3).map(|_| open(&fixture)).collect();
    let ends: Vec<Result<Admitted, StoreError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = stores
            .iter_mut()
            .zip(1u8..)
            .map(|(store, n)| {
                scope.spawn(move || {
                    loop {
                        match store.admit(&admission(n)) {
                            Err(StoreError::Behind) => drop(store.news()),
                            end => return end,
                        }
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    assert_eq!(ends.iter().filter(|end| end.is_ok()).count(), 1, "{ends:?}");
    assert!(
        ends.iter()
            .all(|end| matches!(end, Ok(_) | Err(StoreError::TokenSpent(1)))),
        "{ends:?}"
    );
}

#[test]
fn a_transaction_whose_answer_was_lost_is_not_applied_twice() {
    let Some(fixture) = EtcdFixture::start() else {
        return;
    };
    let store = open(&fixture);
    let basis = store.shared.view().basis();
    let change = || Change {
        key: Key::Issued(PublicKey([1; 32])),
        value: Some(Vec::new()),
    };
    for _ in 0..2 {
        let basis = basis.clone();
        store.shared.view().own = Some("nonce".into());
        store
            .run(|shared| async move {
                shared
                    .commit(0, "nonce", &[], vec![change()], Vec::new(), basis)
                    .await
            })
            .expect("the same");
    }
    let other = store.run(|shared| async move {
        shared
            .commit(0, "other", &[], vec![change()], Vec::new(), basis)
            .await
    });
    assert!(matches!(other, Err(StoreError::Behind)));
}

#[test]
fn a_transaction_from_before_a_restoration_fails_although_etcd_counts_the_same_revision() {
    let Some(fixture) = EtcdFixture::start() else {
        return;
    };
    let store = open(&fixture);
    let present = store.shared.view().basis();
    // The write that the snapshot lacks, and the store that it was in.
    let (mut other_write, mut other_store) = (present.clone(), present.clone());
    other_write.head.nonce = "of the write that the snapshot lacks".into();
    other_store.id = "of the store before it was marked as restored".into();
    for (basis, applies) in [(other_write, false), (other_store, false), (present, true)] {
        let change = Change {
            key: Key::Issued(PublicKey([1; 32])),
            value: Some(Vec::new()),
        };
        let result = store.run(|shared| async move {
            shared
                .commit(1, "nonce", &[], vec![change], Vec::new(), basis)
                .await
        });
        assert_eq!(result.is_ok(), applies, "{result:?}");
    }
}

#[test]
fn a_watch_from_a_revision_that_is_compacted_away_is_replaced_by_a_listing() {
    let Some(fixture) = EtcdFixture::start() else {
        return;
    };
    let (mut one, mut other) = (open(&fixture), open(&fixture));
    for id in ["a", "b"] {
        one.put(&[write(id, Effect::None)]).expect("alone");
    }
    let _ = await_news(&mut other);
    let end = Instant::now() + WAIT_TIMEOUT;
    while other.shared.view().head != one.shared.view().head {
        assert!(Instant::now() < end, "the watch delivers nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = other.news();
    let at = one.shared.view().at;
    one.run(|shared| async move {
        let compact =
            |mut client: etcd_client::Client| async move { client.compact(at, None).await };
        shared.link.call(compact).await.map(drop)
    })
    .expect("it runs");
    // This is like a watch that stopped long ago.
    other.shared.view().at = 1;
    other.shared.missed_events.notify_one();
    assert_eq!(
        await_news(&mut other),
        (true, vec!["a".to_owned(), "b".to_owned()])
    );
}

#[test]
fn a_lost_event_is_found_by_the_comparison() {
    let Some(fixture) = EtcdFixture::start() else {
        return;
    };
    let (mut one, mut other) = (open(&fixture), open(&fixture));
    // The other coordinator knows the revision, but not its changes.
    let next = one.shared.view().at + 1;
    other.shared.view().at = next;
    one.put(&[write("a", Effect::None)]).expect("alone");
    assert_eq!(one.shared.view().at, next);
    other
        .run(|shared| async move {
            follow::compare(&shared).await;
            Ok(())
        })
        .expect("it runs");
    assert_eq!(await_news(&mut other), (true, vec!["a".to_owned()]));
}

#[test]
fn an_unreachable_cluster_is_reported_and_used_again_later() {
    let Some(fixture) = EtcdFixture::start() else {
        return;
    };
    let mut store = open(&fixture);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(fixture.pid()).expect("a process"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("ours");
    // Until then some of its threads may still answer.
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("a child");
    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
    let error = store.put(&[write("a", Effect::None)]).expect_err("away");
    assert!(error.to_string().contains("no member"), "{error}");
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).expect("ours");
    let end = Instant::now() + WAIT_TIMEOUT;
    // The hub does the same after a failure.
    while store.put(&[]).is_err() || store.load().is_err() {
        assert!(Instant::now() < end, "it does not come back");
    }
    loop {
        match store.put(&[write("b", Effect::None)]) {
            Err(StoreError::Behind) => drop(store.news()),
            stored => {
                stored.expect("it is back");
                break;
            }
        }
        assert!(Instant::now() < end);
    }
}

#[test]
fn a_node_with_more_services_than_fit_into_a_transaction_is_removed_with_all_of_them() {
    let Some(fixture) = EtcdFixture::start() else {
        return;
    };
    let mut store = open(&fixture);
    let node = PublicKey([1; 32]);
    let mut gone = Vec::new();
    for n in 0..300 {
        let mut service = write(&format!("{node}/s{n}"), Effect::None);
        service.key = RecordKey::parse("service", &service.key.id());
        gone.push(service.key.clone());
        store.put(&[service]).expect("alone");
    }
    let mut revocation = write(&node.to_string(), Effect::Released(vec![node]));
    revocation.key = RecordKey::Revocation(node);
    revocation.gone = gone;
    store.put(&[revocation]).expect("alone");
    let left = store.load().expect("readable").records;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].key.kind(), "revocation");
}

#[test]
fn who_is_connected_to_one_coordinator_is_known_to_the_others() {
    let Some(fixture) = EtcdFixture::start() else {
        return;
    };
    let (mut one, mut other) = (open(&fixture), open(&fixture));
    let nodes: Vec<PublicKey> = (0..200).map(|n| PublicKey([n; 32])).collect();
    one.set_present(&nodes).expect("writable");
    assert_eq!(
        other.present().expect("readable"),
        nodes.into_iter().collect()
    );
}

#[test]
fn the_first_coordinator_decides_which_tls_key_there_is() {
    let Some(fixture) = EtcdFixture::start() else {
        return;
    };
    assert_eq!(open(&fixture).note_pin("one").expect("writable"), "one");
    assert_eq!(open(&fixture).note_pin("other").expect("writable"), "one");
}

#[test]
fn a_cluster_with_tls_and_passwords_accepts_only_its_user() {
    let Some(fixture) = EtcdFixture::start_secured() else {
        return;
    };
    let (mut one, mut other) = (open(&fixture), open(&fixture));
    assert_eq!(one.put(&[write("a", Effect::None)]).expect("it may"), 1);
    assert_eq!(await_news(&mut other), (false, vec!["a".to_owned()]));
    // The pause is longer than an authentication is valid.
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(other.put(&[write("b", Effect::None)]).expect("it may"), 2);
    assert_eq!(await_news(&mut one), (false, vec!["b".to_owned()]));

    let refused = |settings: EtcdSettings| match Etcd::open(&settings, None) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{settings:?} is accepted"),
    };
    let right = fixture.settings();
    let wrong = right
        .password_file
        .clone()
        .expect("a file")
        .with_extension("wrong");
    crate::os::file::write_atomic(&wrong, b"guess", 0o600).expect("writable");
    let stranger = EtcdFixture::start_secured().expect("it is installed");
    let mut guesses = right.clone();
    guesses.password_file = Some(wrong);
    let mut nobody = right.clone();
    nobody.user = None;
    let mut elsewhere = right.clone();
    elsewhere.prefix = "/elsewhere/".into();
    let mut bare = right.clone();
    bare.certificate_file = None;
    let mut misled = right;
    misled.ca_file = stranger.settings().ca_file;
    for (settings, wanted) in [
        (guesses, "check user, password_file"),
        (nobody, "check user, password_file"),
        (elsewhere, "may do under /elsewhere/"),
        (bare, "certificate_file"),
        (misled, "ca_file"),
    ] {
        let why = refused(settings);
        assert!(why.contains(wanted), "{why}");
    }
}

#[test]
fn a_cluster_restored_from_a_snapshot_is_another_store_until_the_nodes_have_offered_their_records()
{
    let Some(mut fixture) = EtcdFixture::start() else {
        return;
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let seen = directory.path().join("seen");
    let open = |fixture: &EtcdFixture| {
        let mut store = Etcd::open(&fixture.settings(), Some(seen.clone())).expect("it runs");
        let contents = store.load().expect("readable");
        (store, contents)
    };
    let admit = |store: &mut Etcd, n: u8| loop {
        let several = Admission {
            uses: 9,
            ..admission(n)
        };
        match store.admit(&several) {
            Err(StoreError::Behind) => drop(store.news()),
            end => break end.expect("uses and blocks are left").block,
        }
    };
    let token = PublicKey([0xaa; 32]);
    let (mut store, first) = open(&fixture);
    assert!(!first.restored);
    store
        .put(&[write("token", Effect::Issued(token))])
        .expect("writable");
    assert_eq!(admit(&mut store, 1), 1);
    drop(store);
    fixture.save();
    let (mut store, _) = open(&fixture);
    assert_eq!(admit(&mut store, 2), 2);
    store.shared.seen.save();
    drop(store);

    // The restoration happens while no coordinator runs.
    fixture.restore();
    let (mut store, contents) = open(&fixture);
    assert!(contents.restored);
    assert_ne!(contents.id, first.id);
    assert!(!store.is_issued_here(&token).expect("readable"));
    let block = admit(&mut store, 3);
    assert!(block > 2, "{block} may be another's");
    drop(store);
    let (mut store, contents) = open(&fixture);
    assert!(
        contents.restored,
        "until the nodes have offered their records"
    );
    store.set_refilled().expect("writable");
    assert!(!store.load().expect("readable").restored);
    drop(store);
    assert!(!open(&fixture).1.restored);

    // The restoration happens while one coordinator runs, and another one notices it.
    let ((mut one, before), (mut other, _)) = (open(&fixture), open(&fixture));
    fixture.save();
    admit(&mut one, 4);
    await_news(&mut other);
    let mut names = HashSet::from([before.id]);
    // The second time, the cluster has passed the snapshot's revision, under another name.
    for n in 5..7 {
        fixture.restore();
        let ids = [&mut one, &mut other].map(|store| {
            let end = Instant::now() + WAIT_TIMEOUT;
            loop {
                if let Some(News::Everything(contents)) = store.news().expect("readable")
                    && contents.restored
                    && !names.contains(&contents.id)
                {
                    break contents.id;
                }
                assert!(Instant::now() < end, "it is not noticed");
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert_eq!(ids[0], ids[1]);
        names.extend(ids);
        admit(&mut other, n);
        await_news(&mut one);
    }
}
