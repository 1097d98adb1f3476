//! The hub's tests. Those of what streams may claim, and of stores that lost something, have files of their own.

mod claims;
mod loss;
mod members;

use std::ops::Deref;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use super::absence::MAX_ABSENCE;
use super::refill::{MAX_REFILL, NOBODY_TIMEOUT, Refill};
use super::writer::PAUSE_AFTER_FAILURE;
use super::*;
use crate::coordinator::MarkKey;
use crate::coordinator::store::{Admission, Effect, Write};
use crate::coordinator::store::{Admitted, Contents, Sqlite};
use crate::model::Label;
use crate::model::time::UnixSeconds;
use crate::model::{SigningKey, WireGuardKey};
use crate::os::audit::Audit;
use crate::os::clock;
use crate::protocol::api::ErrorCode;
use crate::protocol::token::SpkiPin;
use crate::records::envelope::Signature;
use crate::records::kinds::{MESH_ID, Mesh, Node, Revocation, Service, Token};
use crate::records::kinds::{Membership, Record, RecordKey, RevokedKind};
use crate::records::ledger::Refused;

const MESH: u8 = 1;
const TOKEN: u8 = 2;
const HOUR: u64 = 3600;

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

/// Returns the time of the first call, also later. Records with equal versions must be equal, so two of them must not have different times.
fn now() -> u64 {
    static NOW: LazyLock<u64> = LazyLock::new(|| UnixSeconds::from_system(SystemTime::now()).0);
    *NOW
}

/// Why records were refused.
fn reasons(published: &Published) -> Vec<PublishRefused> {
    published.reasons().cloned().collect()
}

/// A hub that takes the time from the machine's clocks.
struct Hub(super::Hub);

impl Deref for Hub {
    type Target = super::Hub;

    fn deref(&self) -> &super::Hub {
        &self.0
    }
}

impl Hub {
    fn open(store: Box<dyn Store>, setup: Setup) -> Result<Self, StoreError> {
        super::Hub::open(store, setup, clock::now()).map(Self)
    }

    fn join(&self, request: &JoinRequest) -> Result<JoinResponse, ApiError> {
        self.0.join(request, Who::Daemon, clock::now())
    }

    fn check_join(&self, request: &JoinRequest) -> Result<JoinCheck, ApiError> {
        self.0.check_join(request, clock::now())
    }

    fn publish(&self, who: &PublicKey, records: Vec<Envelope>) -> Result<Published, ApiError> {
        self.0.publish(who, records, clock::now())
    }

    fn submit(&self, submit: Submit) -> Result<u64, ApiError> {
        self.0.submit(submit, Who::Daemon, clock::now())
    }

    fn store_departure(&self, node: &PublicKey, departure: &Envelope) -> Result<(), ApiError> {
        self.0.store_departure(node, departure, clock::now())
    }

    fn dismiss_absent(&self, at: Instant) -> Result<(), ApiError> {
        let now = Now {
            monotonic: at,
            ..clock::now()
        };
        self.0.dismiss_absent(now)
    }

    fn examine_loss(&self, node: &PublicKey, mark: &str) -> Result<(), ApiError> {
        self.0.examine_loss(node, mark, clock::now())
    }

    #[cfg(feature = "etcd")]
    fn handle_news(&self) {
        self.0.handle_news(clock::now());
    }

    fn set_connected(&self, node: PublicKey, open: bool) {
        self.0.set_connected(node, open, clock::now());
    }

    fn tokens(&self) -> crate::protocol::admin::TokenList {
        self.0.tokens(clock::now())
    }
}

fn setup() -> Setup {
    Setup {
        urls: vec![],
        pin: SpkiPin([0; 32]),
        marks: MarkKey::derive(b"the TLS key"),
        domain: Label::parse("mesh").expect("a literal"),
        prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
        node_block_v4: 24,
        prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
        audit: Audit::none(),
    }
}

fn open(path: &std::path::Path) -> Hub {
    let store = Sqlite::open(path).expect("writable");
    Hub::open(Box::new(store), setup()).expect("readable")
}

fn id(n: u8) -> PublicKey {
    key(n).public()
}

/// What becomes of records on the stream of whoever signed the last of them.
fn publish(hub: &Hub, records: Vec<Envelope>) -> Result<Published, ApiError> {
    let who = records.last().map(|record| record.signer);
    hub.publish(&who.unwrap_or(id(10)), records)
}

/// A hub whose mesh has a token with 5 uses.
fn hub_with(store: impl Store, expires_at: u64) -> Hub {
    let hub = Hub::open(Box::new(store), setup()).expect("readable");
    submit(&hub, Some(MESH), mesh(&hub)).expect("the first");
    submit(&hub, None, token(expires_at)).expect("signed by the mesh key");
    hub
}

fn hub() -> Hub {
    hub_with(Sqlite::in_memory().expect("memory"), now() + HOUR)
}

fn submit(hub: &Hub, mesh: Option<u8>, record: Envelope) -> Result<u64, ApiError> {
    hub.submit(Submit {
        mesh_key: mesh.map(|n| key(n).public()),
        records: vec![record],
    })
}

/// All that a stream at `cursor` reads, and the revision it holds then.
fn read_from(hub: &Hub, mut cursor: Cursor) -> (Vec<Envelope>, u64) {
    let (mut records, mut revision) = (Vec::new(), 0);
    while let Some(part) = hub.read_part(&mut cursor) {
        records.extend(part.records);
        revision = part.revision;
    }
    (records, revision)
}

fn mesh(hub: &Hub) -> Envelope {
    let state = hub.mesh_state();
    let mesh = Mesh {
        id: MESH_ID.into(),
        version: 1,
        domain: state.configured_domain,
        addresses: state.configured_addresses,
        coordinators: vec![],
    };
    Envelope::seal(&Record::Mesh(mesh), &key(MESH))
}

fn token(expires_at: u64) -> Envelope {
    let token = Token {
        id: key(TOKEN).public(),
        version: 1,
        tags: vec![],
        uses: 5,
        created_at: UnixSeconds(now() - HOUR),
        expires_at: UnixSeconds(expires_at),
        ephemeral: false,
    };
    Envelope::seal(&Record::Token(token), &key(MESH))
}

fn membership(n: u8, name: &str, version: u64, issued_at: u64) -> Envelope {
    let membership = Membership {
        id: key(n).public(),
        version,
        token: key(TOKEN).public(),
        name: Label::parse(name).expect("a literal"),
        wireguard_key: WireGuardKey([n; 32]),
        tags: vec![],
        issued_at: UnixSeconds(issued_at),
        proof: None,
    };
    Envelope::seal(&Record::Membership(membership), &key(TOKEN))
}

fn request(n: u8, membership: Envelope) -> JoinRequest {
    JoinRequest {
        protocol: crate::protocol::control::PROTOCOL,
        oldest: None,
        proof: Signature::make(
            &key(n),
            crate::records::envelope::Purpose::Join,
            membership.payload.as_bytes(),
        ),
        membership,
    }
}

fn node(hub: &Hub, n: u8, version: u64, block: u32) -> Envelope {
    let addresses = hub.mesh_state().mesh.expect("set up").addresses;
    let node = Node {
        id: key(n).public(),
        version,
        wireguard_key: WireGuardKey([n; 32]),
        block: addresses.block(block).expect("in the plan"),
        endpoints: vec![],
        without_ipv6: false,
        key_proof: None,
        services_from: 0,
        program_version: None,
        speaks: vec![],
        relays: vec![],
        observed: vec![],
        mapped: vec![],
        stream: None,
        guest_key: None,
        guests: vec![],
        routes: vec![],
    };
    Envelope::seal(&Record::Node(node), &key(n))
}

fn service(n: u8, name: &str, version: u64) -> Envelope {
    let (id, name) = (key(n).public(), Label::parse(name).expect("a literal"));
    let service = Service {
        id: Service::id_of(&id, None, &name),
        version,
        node: id,
        name,
        project: None,
        service_address: None,
        instances: vec![],
    };
    Envelope::seal(&Record::Service(service), &key(n))
}

fn revocation(of: u8, revoked: RevokedKind) -> Envelope {
    let revocation = Revocation {
        id: key(of).public(),
        version: 1,
        revoked,
        at: UnixSeconds(now()),
        stays: None,
    };
    Envelope::seal(&Record::Revocation(revocation), &key(MESH))
}

fn block_index(hub: &Hub, response: &JoinResponse) -> Option<u32> {
    let addresses = hub.mesh_state().mesh.expect("set up").addresses;
    addresses.index_of(&response.block)
}

fn kinds(records: &[Envelope]) -> Vec<String> {
    let key = |e: &Envelope| Record::parse(&e.payload).expect("verified").0.key;
    let kinds = records.iter().map(|e| key(e).kind().to_owned());
    kinds.collect()
}

/// A coordinator on an etcd.
#[cfg(feature = "etcd")]
fn on_etcd(etcd: &crate::coordinator::store::EtcdFixture) -> Hub {
    let store = crate::coordinator::store::Etcd::open(&etcd.settings(), None).expect("it runs");
    Hub::open(Box::new(store), setup()).expect("readable")
}

/// Two coordinators that share an etcd, with a mesh and a token.
#[cfg(feature = "etcd")]
fn two_on_one_store(etcd: &crate::coordinator::store::EtcdFixture) -> (Hub, Hub) {
    let (one, other) = (on_etcd(etcd), on_etcd(etcd));
    submit(&one, Some(MESH), mesh(&one)).expect("the first");
    submit(&one, None, token(now() + HOUR)).expect("signed by the mesh key");
    (one, other)
}

#[test]
fn all_records_are_there_again_after_a_restart_whatever_order_they_changed_in() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("records.db");
    let hub = hub_with(Sqlite::open(&path).expect("writable"), now() + HOUR);
    hub.join(&request(10, membership(10, "a", 1, now())))
        .expect("a use left");
    let own = vec![node(&hub, 10, 1, 1), service(10, "web", 1)];
    assert_eq!(publish(&hub, own).expect("writable").accepted, 2);
    // What the others rest on now has the highest revision.
    hub.join(&request(10, membership(10, "b", 2, now())))
        .expect("its own");
    let before = hub.snapshot();
    drop(hub);

    let hub = open(&path);
    assert_eq!(hub.snapshot(), before);
    let (records, _) = read_from(&hub, Cursor::at(2));
    assert_eq!(kinds(&records), ["membership", "node", "service"]);
}

#[test]
fn the_same_join_has_the_same_answer_and_changes_nothing() {
    let hub = hub();
    let asked = request(10, membership(10, "a", 1, now() - 5));
    let first = hub.join(&asked).expect("a use left");
    assert_eq!(hub.join(&asked), Ok(first.clone()));
    submit(&hub, None, revocation(TOKEN, RevokedKind::Token)).expect("signed by the mesh key");
    assert_eq!(
        hub.join(&asked),
        Ok(first),
        "its answer may have got lost before the token was revoked"
    );
}

#[test]
fn an_older_certificate_never_replaces_a_newer_one() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("records.db");
    let hub = hub_with(Sqlite::open(&path).expect("writable"), now() + HOUR);
    hub.join(&request(10, membership(10, "new", 2, now())))
        .expect("a use left");
    let error = hub
        .join(&request(10, membership(10, "old", 1, now())))
        .expect_err("older");
    assert_eq!(error.code, ErrorCode::Conflict);
    drop(hub);
    let names: Vec<String> = open(&path)
        .nodes(clock::now())
        .nodes
        .iter()
        .map(|n| n.name.to_string())
        .collect();
    assert_eq!(names, ["new"]);
}

#[test]
fn a_certificate_dated_back_does_not_outlive_its_token() {
    let revoked = hub();
    submit(&revoked, None, revocation(TOKEN, RevokedKind::Token)).expect("signed by the mesh key");
    let expired = hub_with(Sqlite::in_memory().expect("memory"), now() - 10);
    for hub in [revoked, expired] {
        let dated_back = membership(10, "a", 1, now() - 100);
        let published = hub
            .publish(&id(10), vec![dated_back.clone()])
            .expect("writable");
        assert_eq!(reasons(&published), [PublishRefused::NeverJoined]);
        let error = hub.join(&request(10, dated_back)).expect_err("too late");
        assert_eq!(error.code, ErrorCode::Forbidden);
        assert_eq!(hub.standing(&key(10).public()), Standing::NotMember);
    }
}

#[test]
fn blocks_that_nodes_say_they_have_are_leased_to_nobody_else() {
    let full = hub();
    let empty = emptied(&full);
    let_pass(&empty, MAX_REFILL);
    let records = vec![
        token(now() + HOUR),
        membership(10, "web", 1, now()),
        membership(11, "web", 1, now()),
        node(&empty, 11, 1, 2),
        node(&empty, 10, 1, 1),
    ];
    assert_eq!(publish(&empty, records).expect("writable").accepted, 4);
    submit(&empty, None, other_token(3)).expect("signed by the mesh key");
    let third = empty
        .join(&request(12, membership_by(3, 12, "db")))
        .expect("a use left");
    let block = block_index(&empty, &third).expect("in the plan");
    assert!(block > 2, "{block}");
}

/// A new store under the mesh key of another one, to which a node has told that there was one before.
fn emptied(full: &Hub) -> Hub {
    let store = Sqlite::in_memory().expect("memory");
    let empty = Hub::open(Box::new(store), setup()).expect("readable");
    let mesh_record = full.snapshot().0.first().expect("the mesh").clone();
    submit(&empty, Some(MESH), mesh_record).expect("`init` with the same key");
    publish(&empty, vec![token(now() + HOUR)]).expect("writable");
    assert!(empty.size().refilling);
    empty
}

/// Another token, for 5 nodes.
fn other_token(n: u8) -> Envelope {
    let token = Token {
        id: id(n),
        version: 1,
        tags: vec![],
        uses: 5,
        created_at: UnixSeconds(now()),
        expires_at: UnixSeconds(now() + HOUR),
        ephemeral: false,
    };
    Envelope::seal(&Record::Token(token), &key(MESH))
}

fn membership_by(token: u8, n: u8, name: &str) -> Envelope {
    let membership = Membership {
        id: id(n),
        version: 1,
        token: id(token),
        name: Label::parse(name).expect("a literal"),
        wireguard_key: WireGuardKey([n; 32]),
        tags: vec![],
        issued_at: UnixSeconds(now()),
        proof: None,
    };
    Envelope::seal(&Record::Membership(membership), &key(token))
}

#[test]
fn a_taken_name_comes_with_one_that_is_free() {
    let hub = hub();
    for (n, name) in [(10, "web"), (11, "web-2")] {
        hub.join(&request(n, membership(n, name, 1, now())))
            .expect("a use left");
    }
    let error = hub
        .join(&request(12, membership(12, "web", 1, now())))
        .expect_err("taken");
    assert_eq!(error.code, ErrorCode::Conflict);
    assert_eq!(error.suggestion.as_deref(), Some("web-3"));
    assert_eq!(
        error.message,
        "another node is called web; join with `--name web-3`, or remove that one with `meshctl node remove web`"
    );
}

#[test]
fn a_removed_node_frees_its_name_and_leaves_no_changes_to_send() {
    let hub = hub();
    hub.join(&request(10, membership(10, "web", 1, now())))
        .expect("a use left");
    let own = vec![node(&hub, 10, 1, 1), service(10, "web", 1)];
    publish(&hub, own).expect("writable");
    submit(&hub, None, revocation(10, RevokedKind::Node)).expect("signed by the mesh key");
    let (records, revision) = read_from(&hub, Cursor::at(2));
    assert_eq!(kinds(&records), ["membership", "revocation"]);
    assert_eq!(hub.read_part(&mut Cursor::at(revision)), None);
    let second = hub
        .join(&request(11, membership(11, "web", 1, now())))
        .expect("the name is free");
    assert_eq!(block_index(&hub, &second), Some(2), "the first one's rests");
}

#[test]
fn a_reader_that_lags_gets_each_record_once_in_its_newest_form() {
    let hub = hub();
    hub.join(&request(10, membership(10, "a", 1, now())))
        .expect("a use left");
    let from = hub.size().revision;
    for version in 1..=50 {
        publish(&hub, vec![service(10, "web", version)]).expect("writable");
    }
    assert_eq!(
        read_from(&hub, Cursor::at(from)),
        (vec![service(10, "web", 50)], from + 50)
    );
}

#[test]
fn a_reader_of_another_store_or_of_the_future_gets_everything() {
    let hub = hub();
    let StreamStart {
        store, revision, ..
    } = hub.stream_start(None, 0);
    let snapshot = |store: Option<&str>, revision| hub.stream_start(store, revision).snapshot;
    assert!(snapshot(None, revision) && snapshot(Some("another"), revision));
    assert!(snapshot(Some(&store), revision + 1));
    assert!(!snapshot(Some(&store), revision) && !snapshot(Some(&store), 0));
}

#[test]
fn a_coordinator_serves_one_mesh() {
    let hub = hub();
    let error = submit(&hub, Some(99), mesh(&hub)).expect_err("another key");
    assert_eq!(error.code, ErrorCode::Conflict);
    let forged = Envelope::seal_payload(token(now()).payload, &key(99));
    let error = submit(&hub, None, forged).expect_err("not the mesh key");
    assert_eq!(error.code, ErrorCode::Conflict);
}

#[test]
fn a_mesh_key_that_did_not_sign_what_comes_with_it_is_not_kept() {
    let store = Sqlite::in_memory().expect("memory");
    let hub = Hub::open(Box::new(store), setup()).expect("readable");
    let error = submit(&hub, Some(99), mesh(&hub)).expect_err("signed by another");
    assert_eq!(error.code, ErrorCode::Conflict);
    assert_eq!(hub.mesh_state().mesh_key, None);
    submit(&hub, Some(MESH), mesh(&hub)).expect("the right one");
}

/// A store whose disk can be made full.
struct Fillable {
    inner: Sqlite,
    full: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Fillable {
    fn check(&self) -> Result<(), StoreError> {
        if self.full.load(Ordering::Relaxed) {
            Err(StoreError::Full)
        } else {
            Ok(())
        }
    }
}

impl Store for Fillable {
    fn load(&mut self) -> Result<Contents, StoreError> {
        self.inner.load()
    }
    fn set_mesh_key(&mut self, key: &PublicKey) -> Result<(), StoreError> {
        self.check()?;
        self.inner.set_mesh_key(key)
    }
    fn put(&mut self, writes: &[Write]) -> Result<u64, StoreError> {
        self.check()?;
        self.inner.put(writes)
    }
    fn admit(&mut self, admission: &Admission) -> Result<Admitted, StoreError> {
        self.check()?;
        self.inner.admit(admission)
    }
    fn may_have_admitted(
        &mut self,
        token: &PublicKey,
        node: &PublicKey,
    ) -> Result<bool, StoreError> {
        self.inner.may_have_admitted(token, node)
    }
    fn is_issued_here(&mut self, token: &PublicKey) -> Result<bool, StoreError> {
        self.inner.is_issued_here(token)
    }
    fn store_departure(
        &mut self,
        node: &PublicKey,
        departure: &Envelope,
    ) -> Result<(), StoreError> {
        self.check()?;
        self.inner.store_departure(node, departure)
    }
    fn departure(&mut self, node: &PublicKey) -> Result<Option<Envelope>, StoreError> {
        self.inner.departure(node)
    }
    fn set_refilled(&mut self) -> Result<(), StoreError> {
        self.check()?;
        self.inner.set_refilled()
    }
    fn set_restored(&mut self) -> Result<(), StoreError> {
        self.check()?;
        self.inner.set_restored()
    }
    fn may_lease(&mut self, node: &PublicKey, block: u32) -> Result<bool, StoreError> {
        self.inner.may_lease(node, block)
    }
    fn may_have_leased(&mut self, block: u32) -> Result<bool, StoreError> {
        self.inner.may_have_leased(block)
    }
    fn forget(&mut self, records: &[RecordKey]) -> Result<(), StoreError> {
        self.check()?;
        self.inner.forget(records)
    }
}

#[test]
fn on_a_full_disk_nothing_is_half_taken_in_reads_go_on_and_room_is_noticed() {
    let full = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let store = Fillable {
        inner: Sqlite::in_memory().expect("memory"),
        full: std::sync::Arc::clone(&full),
    };
    let hub = hub_with(store, now() + HOUR);
    hub.join(&request(10, membership(10, "a", 1, now())))
        .expect("a use left");
    let before = hub.snapshot();

    full.store(true, Ordering::Relaxed);
    let error = hub
        .publish(&id(10), vec![service(10, "web", 1)])
        .expect_err("no room");
    assert!(error.message.contains("disk") && error.message.contains("full"));
    assert_eq!(hub.snapshot(), before, "what is not on disk is not told");
    let asked = request(11, membership(11, "b", 1, now()));
    assert!(hub.join(&asked).is_err());
    assert_eq!(read_from(&hub, Cursor::at(0)), before);

    full.store(false, Ordering::Relaxed);
    std::thread::sleep(PAUSE_AFTER_FAILURE + Duration::from_millis(50));
    let published = publish(&hub, vec![service(10, "web", 1)]).expect("room");
    assert_eq!(published.accepted, 1);
    hub.join(&asked).expect("room");
}

#[test]
fn one_use_is_spent_once_by_many_at_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for round in 0..5 {
        let path = dir.path().join(format!("{round}.db"));
        let hub = hub_with(Sqlite::open(&path).expect("writable"), now() + HOUR);
        let joined = std::thread::scope(|scope| {
            let threads: Vec<_> = (10..60u8)
                .map(|n| {
                    let hub = &hub;
                    let asked = request(n, membership(n, &format!("n{n}"), 1, now()));
                    scope.spawn(move || hub.join(&asked).is_ok())
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .filter(|joined| *joined)
                .count()
        });
        assert_eq!(joined, 5, "the token has 5 uses");
        assert_eq!(hub.nodes(clock::now()).nodes.len(), 5);
    }
}

/// A state directory with a mesh whose token has 5 uses.
fn state_dir() -> (tempfile::TempDir, Hub) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for file in ["tls.crt", "tls.key"] {
        std::fs::write(dir.path().join(file), file).expect("ours");
    }
    let store = Sqlite::open(&dir.path().join("records.db")).expect("writable");
    let hub = hub_with(store, now() + HOUR);
    (dir, hub)
}

fn restored(backup: &std::path::Path, dir: &std::path::Path) -> Hub {
    crate::coordinator::store::restore(backup, dir, |_| Ok(())).expect("a backup");
    open(&dir.join("records.db"))
}

/// Sets back the time at which the hub began to wait for the nodes.
fn let_pass(hub: &Hub, time: Duration) {
    let mut state = hub.write();
    let refill = state.refill.as_mut().expect("it was restored");
    *refill = Refill::new(Instant::now() - time);
}

#[test]
fn after_an_old_backup_is_restored_nothing_is_given_twice() {
    // A week ago: a mesh, a node.
    let (dir, hub) = state_dir();
    let join = |hub: &Hub, n: u8, name: &str| hub.join(&request(n, membership(n, name, 1, now())));
    join(&hub, 10, "n10").expect("a use left");
    publish(&hub, vec![node(&hub, 10, 1, 1)]).expect("writable");
    let backup = dir.path().join("backup");
    crate::coordinator::store::back_up(dir.path(), &["tls.crt", "tls.key"], &backup)
        .expect("a running store");
    let store_before = hub.stream_start(None, 0).store;

    // Since: four nodes spent the rest of the token, one of them was removed, a service changed.
    for n in 11..=14 {
        join(&hub, n, &format!("n{n}")).expect("a use left");
        publish(&hub, vec![node(&hub, n, 1, u32::from(n) - 9)]).expect("writable");
    }
    submit(&hub, None, revocation(12, RevokedKind::Node)).expect("signed by the mesh key");
    publish(&hub, vec![service(10, "web", 1)]).expect("writable");
    let held_by_nodes = hub.snapshot().0;
    drop(hub);

    // Restored: it presents itself as another store, so that nodes offer all they hold.
    let hub = restored(&backup, dir.path());
    assert_ne!(hub.stream_start(None, 0).store, store_before);
    assert!(hub.stream_start(Some(&store_before), 3).snapshot);

    // At first nobody is admitted, but who asks for what it was granted before has it.
    let early = join(&hub, 15, "n15").expect_err("too early");
    assert_eq!(early.code, ErrorCode::Busy);
    assert!(early.message.contains("try again in 30 s"), "{early}");

    // Then the token that is older than the restoration admits nobody, and a new one does, from far away.
    let_pass(&hub, NOBODY_TIMEOUT);
    let unsure = join(&hub, 15, "n15").expect_err("maybe spent");
    assert_eq!(unsure.code, ErrorCode::Busy);
    assert!(unsure.message.contains("meshctl token create"), "{unsure}");
    submit(&hub, None, other_token(3)).expect("signed");
    let new = membership_by(3, 16, "n16");
    let joined = hub.join(&request(16, new)).expect("its uses are known");
    let block = block_index(&hub, &joined).expect("in the plan");
    assert!(block >= 128, "block {block}");

    // A member comes back, and vouches for those that joined since.
    let published = hub.publish(&id(10), held_by_nodes).expect("writable");
    assert_eq!(published.refused, []);
    for n in [10, 11, 13] {
        assert_eq!(hub.standing(&key(n).public()), Standing::Member, "{n}");
        hub.handle_fully_offered(&key(n).public());
    }
    assert_eq!(hub.standing(&key(12).public()), Standing::Revoked);
    assert!(hub.snapshot().0.contains(&service(10, "web", 1)));

    // All that are there have told, and the token turns out to be spent.
    let_pass(&hub, MAX_REFILL);
    hub.handle_fully_offered(&key(11).public());
    let spent = join(&hub, 15, "n15").expect_err("spent");
    assert_eq!(spent.code, ErrorCode::Forbidden);
    assert!(spent.message.contains("spent"), "{spent}");
    assert!(!hub.size().refilling);
    drop(hub);
    assert!(!open(&dir.path().join("records.db")).size().refilling);
}

#[test]
fn a_backup_is_private_whole_and_never_written_over() {
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, hub) = state_dir();
    hub.join(&request(10, membership(10, "a", 1, now())))
        .expect("a use left");
    let backup = dir.path().join("backup");
    let back_up = || crate::coordinator::store::back_up(dir.path(), &["tls.key"], &backup);
    back_up().expect("a running store");
    let mode = std::fs::metadata(&backup)
        .expect("made")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(
        back_up()
            .expect_err("exists")
            .to_string()
            .contains("exists already")
    );

    drop(hub);
    let other = tempfile::tempdir().expect("a temporary directory");
    let mut files = Vec::new();
    crate::coordinator::store::restore(&backup, other.path(), |found| {
        files = found.to_vec();
        Ok(())
    })
    .expect("a backup");
    assert_eq!(files, [("tls.key".to_owned(), b"tls.key".to_vec())]);
    assert_eq!(
        open(&other.path().join("records.db"))
            .nodes(clock::now())
            .nodes
            .len(),
        1
    );

    // What is no backup leaves the store as it is.
    let before = std::fs::read(dir.path().join("records.db")).expect("ours");
    for garbage in [b"".to_vec(), vec![7; 9000], before.clone()] {
        let file = dir.path().join("garbage");
        std::fs::write(&file, garbage).expect("ours");
        let error = crate::coordinator::store::restore(&file, dir.path(), |_| Ok(()))
            .expect_err("no backup");
        assert!(error.to_string().contains("no whole backup"), "{error}");
    }
    assert_eq!(
        std::fs::read(dir.path().join("records.db")).expect("ours"),
        before
    );
}

fn departure(n: u8) -> Envelope {
    let departure = crate::records::kinds::Departure::of(key(n).public());
    Envelope::seal(&Record::Departure(departure), &key(n))
}

#[test]
fn a_member_that_departs_frees_its_name_and_block_and_not_its_use_of_the_token() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("records.db");
    let store = Sqlite::open(&path).expect("writable");
    // Three blocks that can be leased.
    let setup = Setup {
        prefix_v4: "10.210.0.0/22".parse().expect("a literal"),
        ..setup()
    };
    let hub = Hub::open(Box::new(store), setup).expect("readable");
    submit(&hub, Some(MESH), mesh(&hub)).expect("the first");
    submit(&hub, None, token(now() + HOUR)).expect("signed by the mesh key");
    for (n, name) in [(10, "a"), (11, "b"), (12, "c")] {
        hub.join(&request(n, membership(n, name, 1, now())))
            .expect("a use left");
    }
    let own = vec![node(&hub, 10, 1, 1), service(10, "web", 1)];
    publish(&hub, own).expect("writable");
    let again = request(13, membership(13, "a", 1, now()));
    let refused = hub.join(&again).expect_err("the name is taken");
    assert_eq!(refused.suggestion.as_deref(), Some("a-2"));
    let forged = Record::Departure(crate::records::kinds::Departure::of(key(10).public()));
    let forged = Envelope::seal(&forged, &key(11));
    assert_eq!(publish(&hub, vec![forged]).expect("writable").accepted, 0);

    let published = publish(&hub, vec![departure(10)]).expect("writable");
    assert_eq!((published.accepted, published.refused), (1, vec![]));
    let names = || -> Vec<String> {
        let nodes = hub.nodes(clock::now()).nodes;
        nodes.iter().map(|n| n.name.to_string()).collect()
    };
    assert_eq!(names(), ["b", "c"]);
    assert!(
        !kinds(&hub.snapshot().0).contains(&"service".to_owned()),
        "its services are gone"
    );
    let joined = hub.join(&again).expect("name and block are free");
    assert_eq!(block_index(&hub, &joined), Some(1));
    // Who sends the old departure again removes nobody.
    let replayed = publish(&hub, vec![departure(10)]).expect("writable");
    assert_eq!((replayed.accepted, replayed.refused), (0, vec![]));
    assert_eq!(names(), ["a", "b", "c"]);
    let used = hub.tokens().tokens.first().map(|t| t.used);
    assert_eq!(used, Some(4), "two nodes never share one use");
    let before = hub.snapshot();
    drop(hub);
    assert_eq!(open(&path).snapshot(), before);
}

#[test]
fn a_join_that_is_only_tried_changes_nothing_and_says_what_a_join_would() {
    let hub = hub();
    let asked = request(10, membership(10, "a", 1, now()));
    let before = (hub.snapshot(), hub.tokens());
    let check = hub.check_join(&asked).expect("it would be granted");
    assert_eq!(kinds(&check.records), ["mesh", "token"]);
    assert_eq!((hub.snapshot(), hub.tokens()), before);
    hub.join(&asked).expect("a use left");
    let taken = request(11, membership(11, "a", 1, now()));
    assert_eq!(
        hub.check_join(&taken).expect_err("taken"),
        hub.join(&taken).expect_err("taken")
    );
    submit(&hub, None, revocation(TOKEN, RevokedKind::Token)).expect("signed by the mesh key");
    let late = request(11, membership(11, "b", 1, now()));
    let refused = hub.check_join(&late).expect_err("revoked");
    assert_eq!(refused, hub.join(&late).expect_err("revoked"));
}

#[cfg(feature = "etcd")]
#[test]
fn a_departure_at_one_coordinator_frees_the_name_at_the_other() {
    let Some(etcd) = crate::coordinator::store::EtcdFixture::start() else {
        return;
    };
    let (one, other) = two_on_one_store(&etcd);
    one.join(&request(10, membership(10, "a", 1, now())))
        .expect("a use left");
    publish(&one, vec![node(&one, 10, 1, 1), service(10, "web", 1)]).expect("writable");
    let published = publish(&other, vec![departure(10)]).expect("writable");
    assert_eq!((published.accepted, published.refused), (1, vec![]));
    one.join(&request(11, membership(11, "a", 1, now())))
        .expect("the name is free");
    one.handle_news();
    assert_eq!(one.standing(&key(10).public()), Standing::Revoked);
    assert_eq!(one.snapshot(), on_etcd(&etcd).snapshot());
}

#[test]
fn an_ephemeral_node_that_stays_away_is_out_by_its_own_word_and_no_other_is() {
    let hub = hub();
    let ephemeral = Token {
        id: key(3).public(),
        version: 1,
        tags: vec![],
        uses: 5,
        created_at: UnixSeconds(now() - HOUR),
        expires_at: UnixSeconds(now() + HOUR),
        ephemeral: true,
    };
    submit(
        &hub,
        None,
        Envelope::seal(&Record::Token(ephemeral), &key(MESH)),
    )
    .expect("signed");
    let member = |n: u8, token: u8| {
        let membership = Membership {
            id: key(n).public(),
            version: 1,
            token: key(token).public(),
            name: Label::parse(&format!("n{n}")).expect("a literal"),
            wireguard_key: WireGuardKey([n; 32]),
            tags: vec![],
            issued_at: UnixSeconds(now()),
            proof: None,
        };
        let membership = Envelope::seal(&Record::Membership(membership), &key(token));
        hub.join(&request(n, membership)).expect("a use left");
        hub.set_connected(key(n).public(), true);
    };
    member(10, TOKEN);
    for n in [11, 12, 13] {
        member(n, 3);
    }
    for n in [11, 12] {
        hub.store_departure(&key(n).public(), &departure(n))
            .expect("its own");
    }
    // Not of a node that came to stay, nor by another's hand.
    let refused = |by: u8, of: u8| {
        hub.store_departure(&key(by).public(), &departure(of))
            .expect_err("not its own")
            .code
    };
    assert_eq!(refused(10, 10), ErrorCode::Forbidden);
    assert_eq!(refused(13, 11), ErrorCode::Forbidden);

    for n in [10, 11, 13] {
        hub.set_connected(key(n).public(), false);
    }
    let absence = MAX_ABSENCE;
    hub.dismiss_absent(Instant::now() + absence - Duration::from_secs(1))
        .expect("writable");
    assert_eq!(hub.standing(&key(11).public()), Standing::Member);
    hub.dismiss_absent(Instant::now() + absence)
        .expect("writable");
    assert_eq!(hub.standing(&key(11).public()), Standing::Revoked);
    for n in [10, 12, 13] {
        assert_eq!(hub.standing(&key(n).public()), Standing::Member, "{n}");
    }
    let spent = hub
        .tokens()
        .tokens
        .iter()
        .find(|t| t.ephemeral)
        .map(|t| t.used);
    assert_eq!(spent, Some(3), "a use is spent for good");
}

#[test]
fn a_snapshot_in_parts_is_the_whole_in_order() {
    let hub = hub();
    hub.join(&request(10, membership(10, "a", 1, now())))
        .expect("a use left");
    publish(&hub, vec![node(&hub, 10, 1, 1)]).expect("writable");
    let unknown = |n: usize| {
        let text = format!(
            r#"{{"kind":"weather","id":"{n}","version":1,"sky":"{}"}}"#,
            "x".repeat(900)
        );
        // The mesh key has no bound.
        Envelope::seal_payload(text, &key(MESH))
    };
    let services: Vec<_> = (0..1000)
        .map(|n| service(10, &format!("s{n}"), 1))
        .collect();
    publish(&hub, services).expect("writable");
    publish(&hub, (0..100).map(unknown).collect()).expect("writable");
    let (mut all, mut cursor, mut parts) = (Vec::new(), Cursor::start(), 0);
    let revision = hub.revision();
    while let Some(part) = hub.read_part(&mut cursor) {
        assert!(part.records.len() <= crate::protocol::control::MAX_RECORDS);
        all.extend(part.records);
        parts += 1;
        let held = if all.len() == hub.snapshot().0.len() {
            revision
        } else {
            0
        };
        assert_eq!(part.revision, held, "a stream that is cut off begins again");
    }
    assert_eq!(all, hub.snapshot().0);
    assert!(parts >= 4, "{parts}");
    let too_far_behind = read_from(&hub, Cursor::at(1));
    assert_eq!(too_far_behind, hub.snapshot());
}

#[test]
fn a_reader_of_changes_holds_one_part_and_gets_what_changes_meanwhile_afterwards() {
    let hub = hub();
    hub.join(&request(10, membership(10, "a", 1, now())))
        .expect("a use left");
    let from = hub.revision();
    publish(&hub, vec![node(&hub, 10, 1, 1)]).expect("writable");
    let services: Vec<_> = (0..900).map(|n| service(10, &format!("s{n}"), 1)).collect();
    publish(&hub, services).expect("writable");
    let reached = hub.revision();
    let mut cursor = Cursor::at(from);
    let mut records = Vec::new();
    for part in 0.. {
        let read = hub.read_part(&mut cursor).expect("there is more");
        let bytes: usize = read.records.iter().map(|r| r.payload.len()).sum();
        assert!(bytes <= 64 * 1024, "{bytes}");
        records.extend(read.records);
        if part == 0 {
            // One that was sent, and one that was not.
            let again = ["s0", "s99"].map(|name| service(10, name, 2));
            publish(&hub, again.to_vec()).expect("writable");
        }
        if read.revision == reached {
            break;
        }
        assert_eq!(read.revision, from);
    }
    assert_eq!(records.len(), 901);
    assert_eq!(kinds(&records[..2]), ["node", "service"]);
    let last = hub.read_part(&mut cursor).expect("what changed meanwhile");
    assert_eq!(last.revision, reached + 2);
    assert_eq!(last.records, ["s0", "s99"].map(|name| service(10, name, 2)));
    assert_eq!(hub.read_part(&mut cursor), None);
}

#[test]
fn what_is_held_or_older_than_that_is_sorted_out_without_a_verification() {
    let hub = hub();
    hub.join(&request(10, membership(10, "a", 1, now())))
        .expect("a use left");
    let (held, older) = (service(10, "web", 2), service(10, "web", 1));
    publish(&hub, vec![held.clone()]).expect("writable");
    assert_eq!(hub.screen(&held), Screened::Held);
    assert!(matches!(
        hub.screen(&older),
        Screened::Refused(Refused::Stale { held: 2, .. })
    ));
    // Whoever signs it may be wrong about it, but decides for nobody else.
    let foreign = Envelope::seal_payload(older.payload, &key(11));
    assert_eq!(hub.screen(&foreign), Screened::Unverified);
    let forged = Envelope {
        signature: foreign.signature,
        ..held
    };
    assert_eq!(hub.screen(&forged), Screened::Unverified);
    assert_eq!(hub.screen(&service(10, "web", 3)), Screened::Unverified);
    submit(&hub, None, revocation(10, RevokedKind::Node)).expect("signed by the mesh key");
    assert_eq!(
        hub.screen(&service(10, "web", 3)),
        Screened::Refused(Refused::NodeRevoked)
    );
}

#[test]
fn of_a_strangers_records_its_own_membership_and_those_of_the_mesh_key_prove_something() {
    let hub = hub();
    let node = key(10).public();
    let own = membership(10, "a", 1, now());
    assert_eq!(hub.proof(&node, &own), Proof::Membership);
    assert_eq!(hub.proof(&key(11).public(), &own), Proof::None);
    assert_eq!(hub.proof(&node, &token(now() + HOUR)), Proof::MeshKey);
    assert_eq!(hub.proof(&node, &service(10, "web", 1)), Proof::None);
}

#[cfg(feature = "etcd")]
#[test]
fn two_coordinators_on_one_store_hold_the_same_under_the_same_revisions() {
    let Some(etcd) = crate::coordinator::store::EtcdFixture::start() else {
        return;
    };
    let (one, other) = two_on_one_store(&etcd);
    // Whom one coordinator gave a token, the other lets in at once.
    let hubs = [&one, &other];
    for (n, hub) in (10..14).zip([&other, &one, &other, &one]) {
        let joined = hub.join(&request(n, membership(n, &format!("n{n}"), 1, now())));
        assert_eq!(
            block_index(hub, &joined.expect("a use left")),
            Some(u32::from(n) - 9)
        );
    }
    // Both write at once, and each is often behind.
    std::thread::scope(|scope| {
        for (hub, n) in hubs.into_iter().zip(10u8..) {
            scope.spawn(move || {
                for version in 1..=30 {
                    let records = vec![
                        node(hub, n, version, u32::from(n) - 9),
                        service(n, "web", version),
                    ];
                    let published = publish(hub, records).expect("writable");
                    assert_eq!((published.accepted, published.refused), (2, vec![]));
                }
            });
        }
    });
    submit(&one, None, revocation(13, RevokedKind::Node)).expect("signed by the mesh key");
    let end = Instant::now() + Duration::from_secs(30);
    while other.revision() != one.revision() {
        assert!(Instant::now() < end, "no news");
        other.handle_news();
        one.handle_news();
    }
    assert_eq!(one.snapshot(), other.snapshot());
    assert_eq!(one.revision(), 2 + 4 + 2 * 60 + 1);
    assert_eq!(one.snapshot(), on_etcd(&etcd).snapshot());
}

#[cfg(feature = "etcd")]
#[test]
fn a_snapshot_put_back_under_a_running_coordinator_is_noticed_and_lets_nobody_in_twice() {
    use crate::coordinator::store::{Etcd, EtcdFixture};
    let Some(mut etcd) = EtcdFixture::start() else {
        return;
    };
    let store = Etcd::open(&etcd.settings(), None).expect("it runs");
    let hub = Hub::open(Box::new(store), setup()).expect("readable");
    submit(&hub, Some(MESH), mesh(&hub)).expect("the first");
    submit(&hub, None, token(now() + HOUR)).expect("signed by the mesh key");
    let name = hub.stream_start(None, 0).store;
    etcd.save();
    let request_of = |n: u8| request(n, membership(n, &format!("n{n}"), 1, now()));
    let end = Instant::now() + Duration::from_secs(60);
    // etcd was away for a moment.
    while hub.join(&request_of(10)).is_err() {
        assert!(Instant::now() < end, "it does not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(hub.is_on(&name));
    etcd.restore();
    // The same use again, for another node, before anybody has noticed.
    let refused = hub.join(&request_of(11));
    assert!(refused.is_err(), "{refused:?}");
    while hub.is_on(&name) {
        assert!(Instant::now() < end, "it is not noticed");
        hub.handle_news();
        std::thread::sleep(Duration::from_millis(50));
    }
    let refused = hub.join(&request_of(11)).expect_err("nobody has told yet");
    assert_eq!(refused.code, ErrorCode::Busy, "{refused:?}");
}
