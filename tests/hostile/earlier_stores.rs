//! The programs of this version open the state directories of an earlier version, and lose nothing that is in them.
//!
//! `tests/fixtures/store-860eb80` has the state directories of a coordinator and of a node, as the version of that commit
//! wrote them. Its file `held.jsonl` has the records that the coordinator sent to a member, one a line. Its README says how
//! the fixture was made.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hickory_proto::rr::RecordType;
use meshd::model::address::unique_local_prefix;
use meshd::model::{PublicKey, SigningKey};
use meshd::node::control::join::{JoinError, join};
use meshd::protocol::JoinToken;
use meshd::protocol::admin::{MeshState, Submit, Submitted, TokenState};
use meshd::protocol::control::Refusal;
use meshd::protocol::join::JoinRequest;
use meshd::protocol::local::{NodeState, Status};
use meshd::records::Envelope;
use meshd::records::kinds::Record;
use serde_json::json;

use crate::kit::coordinator::{copy, get, post, write_mesh_key};
use crate::kit::record::{self, Draft};
use crate::kit::{Coordinator, End, Hello, Identity, Member, Stream};
use crate::mesh::{Mesh, programs};
use crate::node_kit::beside_the_coordinator;
use crate::query::ask;

/// The keys of the fixture: all bytes of a key's seed are this number.
const MESH_KEY: u8 = 1;
/// The key of a token with uses left. It has two tags.
const OPEN: u8 = 2;
/// The key of a token whose only use was spent by the node with meshd.
const SPENT: u8 = 3;
/// The key of a token for three nodes that admitted one and was revoked.
const REVOKED: u8 = 4;
/// The key of a token that expired before any node joined with it.
const EXPIRED: u8 = 5;
const EPHEMERAL: u8 = 6;

/// The members of the fixture. The first has a second name, a service and a record of an unknown kind. The second joined with the
/// revoked token. The others were removed, have departed, and joined as ephemeral.
const NAMED: u8 = 12;
const STAYS: u8 = 13;
const REMOVED: u8 = 14;
const DEPARTED: u8 = 15;
const GUEST: u8 = 16;

/// How far ahead the tokens expire, in seconds: a hundred years.
const LATER: u64 = 100 * 365 * 86_400;
/// The URL of the coordinator in the network of a test.
const URL: &str = "https://198.51.100.10:7443";

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

fn fixture(name: &str) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.join("tests/fixtures/store-860eb80").join(name)
}

fn lines(path: &Path) -> Vec<Envelope> {
    let text = std::fs::read_to_string(path).expect("a file of records");
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).expect("an envelope"))
        .collect()
}

/// A member of the fixture, with its membership and the block in its node record.
fn member(n: u8) -> Member {
    let identity = Identity::of(n);
    let held = lines(&fixture("held.jsonl"));
    let records = held.iter().map(|envelope| {
        let (_, record) = Record::parse(&envelope.payload).expect("a record");
        (envelope, record)
    });
    let (mut membership, mut block) = (None, None);
    for (envelope, record) in records {
        match record {
            Record::Membership(m) if m.id == identity.id() => membership = Some(envelope.clone()),
            Record::Node(node) if node.id == identity.id() => block = Some(node.block),
            _ => {}
        }
    }
    Member {
        name: String::new(),
        token: JoinToken {
            urls: Vec::new(),
            pin: meshd::protocol::token::SpkiPin([0; 32]),
            mesh_key: key(MESH_KEY).public(),
            key: key(OPEN),
        },
        membership: membership.expect("a member"),
        block: block.expect("with a node record"),
        identity,
    }
}

#[tokio::test]
async fn a_coordinator_opens_the_store_of_the_version_before_and_holds_all_of_it() {
    let mut coordinator = Coordinator::start_on(&fixture("coordinator"), key(MESH_KEY));
    for start in 0..2 {
        let named = member(NAMED);
        let mut stream = named.stream(&coordinator).await;
        let held = lines(&fixture("held.jsonl"));
        assert!(held.len() > 15, "{}", held.len());
        for record in &held {
            stream.await_record(record).await.unwrap_or_else(|end| {
                panic!("start {start}: {} does not come: {end:?}", record.payload)
            });
        }
        // The coordinator accepts new records as well.
        let change = named.service(&format!("new{start}"));
        let change = change.signed_by(named.key());
        assert_eq!(stream.publish(vec![change]).await.accepted(), 1);

        for (n, reason) in [(REMOVED, Refusal::Revoked), (DEPARTED, Refusal::Revoked)] {
            let refused = Stream::open(&coordinator, &key(n), &Hello::default()).await;
            let Err(End(Some((refusal, _)))) = refused else {
                panic!("the node of seed {n} is welcome");
            };
            assert_eq!(refusal, reason);
        }
        let tokens = coordinator.tokens().tokens;
        let state = |n| {
            let id = key(n).public();
            tokens
                .iter()
                .find(|t| t.id == id)
                .map(|t| (t.state, t.used))
        };
        // The uses of the token are the member, the removed node, the departed node, and those that joined in this test.
        assert_eq!(state(OPEN), Some((TokenState::Valid, 3 + start)));
        assert_eq!(state(SPENT), Some((TokenState::Spent, 1)));
        assert_eq!(state(REVOKED), Some((TokenState::Revoked, 1)));
        assert_eq!(state(EXPIRED), Some((TokenState::Expired, 0)));
        let new = Identity::new();
        for n in [SPENT, REVOKED, EXPIRED] {
            let refused = coordinator
                .join_as(&new, &coordinator.word(key(n)), "new")
                .await;
            assert!(matches!(refused, Err(JoinError::Refused(_))), "{n}");
        }
        let name = format!("new{start}");
        let joined = coordinator
            .join_as(&new, &coordinator.word(key(OPEN)), &name)
            .await
            .expect("a token with uses left");
        let blocks = held.iter().filter_map(|envelope| {
            match Record::parse(&envelope.payload).expect("a record").1 {
                Record::Node(node) => Some(node.block),
                _ => None,
            }
        });
        assert!(!blocks.into_iter().any(|block| block == joined.block));
        coordinator.restart();
    }
}

#[test]
fn a_node_opens_its_state_directory_of_the_version_before_and_holds_all_of_it() {
    let Some(mut mesh) = Mesh::hosts(programs(), 1) else {
        return;
    };
    let state = mesh.nodes[0].host.path("/run/state");
    copy(&fixture("node"), &state);
    mesh.start_node(0);
    mesh.wait_until("it is up", || {
        mesh.status(0).dns.is_some() && mesh.status(0).state == NodeState::Up
    });
    let held_by = |status: &Status| -> BTreeSet<PublicKey> {
        status.peers.iter().map(|peer| peer.id).collect()
    };
    let members = [NAMED, STAYS, GUEST].map(|n| key(n).public());
    assert_eq!(held_by(&mesh.status(0)), BTreeSet::from(members));
    let host = &mesh.nodes[0].host;
    let resolver = "10.210.0.53".parse().expect("a literal");
    for name in ["db-host.node.mesh.", "n13.node.mesh.", "db.svc.mesh."] {
        mesh.wait_until("the node's resolver answers", || {
            let answer = ask(host, resolver, name, RecordType::A, false);
            answer.is_some_and(|answer| answer.data.len() == 1)
        });
    }
    let gone = ask(host, resolver, "n14.node.mesh.", RecordType::A, false);
    assert!(gone.is_none_or(|answer| answer.data.is_empty()));

    // The coordinator is started on its state directory, with the program of this version as well.
    copy(
        &fixture("coordinator"),
        &mesh.coordinator_host.path("/run/coordinator"),
    );
    write_mesh_key(&mesh.coordinator_host.path("/run/mesh.key"), &key(MESH_KEY));
    mesh.start_coordinator();
    mesh.wait_until("the node is connected", || {
        mesh.status(0).coordinator.is_some_and(|c| c.connected)
    });
    assert_eq!(
        mesh.on(0, &["service", "add", "new", "--port", "81"]).code,
        0
    );
    let token = mesh.token(&[]);
    assert!(token.starts_with("mesh1_"));
    mesh.nodes[0].daemon.take().expect("it runs").stop();
    let kept: Vec<Envelope> = lines(&state.join("records.jsonl"));
    for record in lines(&fixture("node/records.jsonl")) {
        // The node has replaced its own records by newer ones.
        let is_kept = kept.contains(&record) || kept.iter().any(|newer| replaces(newer, &record));
        assert!(is_kept, "{} is lost", record.payload);
    }
}

fn replaces(newer: &Envelope, older: &Envelope) -> bool {
    let parse = |envelope: &Envelope| {
        let (header, _) = Record::parse(&envelope.payload).expect("a record");
        (header.key, header.version)
    };
    let ((newer_key, newer_version), (older_key, older_version)) = (parse(newer), parse(older));
    newer.signer == older.signer && newer_key == older_key && newer_version > older_version
}

/// Joins from the network namespace of the coordinator.
fn join_there(mesh: &Mesh, token: u8, n: u8, state: &MeshState, tags: &[&str]) -> Member {
    let (identity, token) = (Identity::of(n), key(token));
    let membership = record::membership(token.public(), &identity, &format!("n{n}"));
    let membership = membership.with("tags", tags).signed_by(&token);
    let request = JoinRequest::make(membership.clone(), identity.key());
    let urls = [URL.parse().expect("a literal")];
    let joined = beside_the_coordinator(mesh, async || join(&urls, state.pin, &request).await);
    Member {
        name: format!("n{n}"),
        token: JoinToken {
            urls: urls.to_vec(),
            pin: state.pin,
            mesh_key: key(MESH_KEY).public(),
            key: token,
        },
        membership,
        block: joined.expect("a token with uses left").block,
        identity,
    }
}

/// Publishes `records` as a member, and sends the message `last` after them. Returns all the records that were received.
fn publish_there(
    mesh: &Mesh,
    state: &MeshState,
    member: &Member,
    records: Vec<Envelope>,
    last: Option<serde_json::Value>,
) -> Vec<Envelope> {
    let target = ("198.51.100.10:7443".parse().expect("a literal"), state.pin);
    beside_the_coordinator(mesh, async || {
        let mut stream = member.stream(&target).await;
        let count = u32::try_from(records.len()).expect("few");
        let answer = stream.publish(records).await;
        assert_eq!(answer.accepted(), count, "{answer:?}");
        if let Some(last) = last {
            stream.say(&last).await.expect("a stream");
            if last["type"] == "publish" {
                stream.end().await;
                return stream.received;
            }
        }
        // The coordinator sends all records that it held before it sends this one.
        let done = member.service("done").signed_by(member.key());
        stream.publish(vec![done.clone()]).await;
        stream.await_record(&done).await.expect("a stream");
        let gone = record::service(member.id(), "done", &[]).signed_by(member.key());
        stream.publish(vec![gone.clone()]).await;
        stream.await_record(&gone).await.expect("a stream");
        stream.received
    })
}

#[test]
#[ignore = "writes the fixtures, with the programs in the directory MESHD_EARLIER"]
fn writes_the_stores_of_the_version_before() {
    let earlier = std::env::var_os("MESHD_EARLIER").expect("the programs of the version before");
    assert!(
        !fixture("").exists(),
        "the fixture of a version must not be written again"
    );
    let mesh_key = key(MESH_KEY);
    let mut mesh = Mesh::hosts(earlier.into(), 1).expect("root");
    mesh.start_coordinator();
    mesh.start_node(0);
    let socket = mesh.coordinator_host.path("/run/admin.sock");
    let submit = |path: &str, mesh_key: Option<PublicKey>, drafts: &[Draft]| {
        let records = drafts.iter().map(|d| d.signed_by(&key(MESH_KEY))).collect();
        let submit = Submit { mesh_key, records };
        let submitted: Result<Submitted, _> = post(&socket, path, &submit);
        submitted.expect("signed by the mesh key");
    };
    let addresses = record::plan(unique_local_prefix(&mesh_key.public()));
    let record_of_mesh = record::mesh(&addresses).with("coordinators", [URL]);
    submit("/v1/mesh", Some(mesh_key.public()), &[record_of_mesh]);
    let token = |n: u8| record::token(key(n).public()).with("expires_at", record::now() + LATER);
    submit(
        "/v1/records",
        None,
        &[
            token(OPEN).with("uses", 8).with("tags", ["db", "web"]),
            token(SPENT),
            token(REVOKED).with("uses", 3),
            token(EXPIRED)
                .with("created_at", record::now() - 7200)
                .with("expires_at", record::now() - 3600),
            token(EPHEMERAL).with("uses", 2).with("ephemeral", true),
            record::unknown("climate", "mesh").with("sky", "blue"),
        ],
    );
    let state: MeshState = get(&socket, "/v1/mesh").expect("a state");
    let word = JoinToken {
        urls: vec![URL.parse().expect("a literal")],
        pin: state.pin,
        mesh_key: mesh_key.public(),
        key: key(SPENT),
    };
    let ended = mesh.on(0, &["join", &word.to_string()]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(
        mesh.on(0, &["service", "add", "web", "--port", "80"]).code,
        0
    );

    let named = join_there(&mesh, OPEN, NAMED, &state, &["db"]);
    let stays = join_there(&mesh, REVOKED, STAYS, &state, &[]);
    let removed = join_there(&mesh, OPEN, REMOVED, &state, &[]);
    let departed = join_there(&mesh, OPEN, DEPARTED, &state, &[]);
    let guest = join_there(&mesh, EPHEMERAL, GUEST, &state, &[]);
    let own = |member: &Member| member.unproved_node().signed_by(member.key());
    for member in [&stays, &removed] {
        publish_there(&mesh, &state, member, vec![own(member)], None);
    }
    let departure = record::departure(guest.id()).signed_by(guest.key());
    let farewell = json!({"type": "farewell", "departure": departure});
    publish_there(&mesh, &state, &guest, vec![own(&guest)], Some(farewell));
    publish_there(
        &mesh,
        &state,
        &departed,
        vec![own(&departed)],
        Some(json!({"type": "publish", "sequence": 99,
            "records": [record::departure(departed.id()).signed_by(departed.key())]})),
    );
    submit(
        "/v1/records",
        None,
        &[
            record::revocation_of_token(key(REVOKED).public()),
            record::revocation_of_node(removed.id()),
        ],
    );
    let records = vec![
        own(&named),
        named.service("db").signed_by(named.key()),
        record::name(named.id(), "db-host").signed_by(named.key()),
        record::unknown("weather", named.id())
            .with("rain", 3)
            .signed_by(named.key()),
    ];
    let mut held: Vec<Envelope> = publish_there(&mesh, &state, &named, records, None);
    // Only the newest of several versions of a record is kept.
    let all = held.clone();
    held.retain(|record| !all.iter().any(|newer| replaces(newer, record)));
    held.dedup();
    let kept = mesh.nodes[0].host.path("/run/state/records.jsonl");
    mesh.wait_until("the node holds all records", || {
        let kept = lines(&kept);
        held.iter().all(|record| kept.contains(record))
    });
    mesh.nodes[0].daemon.take().expect("it runs").stop();
    mesh.coordinator.take().expect("it runs").stop();
    let clean = |from: PathBuf, name: &str| {
        let to = fixture(name);
        let _ = std::fs::remove_dir_all(&to);
        copy(&from, &to);
        let _ = std::fs::remove_file(to.join("lock"));
    };
    clean(
        mesh.coordinator_host.path("/run/coordinator"),
        "coordinator",
    );
    clean(mesh.nodes[0].host.path("/run/state"), "node");
    let text: String = held
        .iter()
        .map(|record| serde_json::to_string(record).expect("plain data") + "\n")
        .collect();
    std::fs::write(fixture("held.jsonl"), text).expect("writable");
}
