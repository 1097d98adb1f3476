//! A coordinator that holds all that the real one holds, its TLS key and every record, and means harm. It has not got
//! the mesh key, nor any node's or token's.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::{SinkExt as _, StreamExt as _};
use hickory_proto::rr::RecordType;
use meshd::model::time::UnixSeconds;
use meshd::model::{Label, PublicKey, SigningKey, WireGuardKey};
use meshd::protocol::JoinToken;
use meshd::protocol::control::{FromCoordinator, FromNode};
use meshd::records::kinds::{
    MESH_ID, Membership, Node, Record, Revocation, RevokedKind, Service, Token,
};
use meshd::records::{Envelope, Ledger};
use tokio_tungstenite::tungstenite::Message;

use crate::mesh::Mesh;
use crate::query::ask;
use crate::stand_in::{Socket, acknowledge, frame, greet, stand_in};

/// How often an adversary looks for what to pass on.
const TICK: Duration = Duration::from_millis(10);

/// The records that go to every node, in this order, and what nodes published.
#[derive(Default)]
struct Deck {
    records: Vec<Envelope>,
    streams: usize,
}

/// Serves the control protocol on the coordinator's port with the coordinator's TLS key.
fn impersonate(mesh: &Mesh, deck: &Arc<Mutex<Deck>>) {
    let deck = Arc::clone(deck);
    stand_in(mesh, move |socket| stream(socket, Arc::clone(&deck)));
}

/// One node's stream, from its hello to its end.
async fn stream(mut socket: Socket, deck: Arc<Mutex<Deck>>) -> Option<()> {
    greet(&mut socket).await?;
    deck.lock().expect("no panic").streams += 1;
    let mut sent = 0;
    loop {
        let records = deck.lock().expect("no panic").records[sent..].to_vec();
        if !records.is_empty() {
            sent += records.len();
            let revision = sent as u64;
            let changes = FromCoordinator::Changes { revision, records };
            socket.send(frame(&changes)).await.ok()?;
        }
        let Ok(message) = tokio::time::timeout(TICK, socket.next()).await else {
            continue;
        };
        let Message::Text(text) = message?.ok()? else {
            continue;
        };
        if let Ok(FromNode::Publish { sequence, records }) = serde_json::from_str(&text) {
            let accepted = records.len();
            deck.lock().expect("no panic").records.extend(records);
            acknowledge(&mut socket, sequence, accepted).await?;
        }
    }
}

/// All records in the coordinator's store.
fn stored(mesh: &Mesh) -> Vec<Envelope> {
    // Copied, since SQLite follows the link that leads into the host's file system.
    let copy = tempfile::tempdir().expect("a temporary directory");
    for name in ["records.db", "records.db-wal"] {
        let path = mesh.coordinator_host.path("/run/coordinator").join(name);
        if path.exists() {
            std::fs::copy(path, copy.path().join(name)).expect("the coordinator's own file");
        }
    }
    let database = rusqlite::Connection::open(copy.path().join("records.db")).expect("the copy");
    let mut statement = database
        .prepare("SELECT envelope FROM records")
        .expect("its table");
    let rows = statement
        .query_map([], |row| row.get::<_, String>(0))
        .expect("its table");
    rows.map(|row| serde_json::from_str(&row.expect("a row")).expect("an envelope"))
        .collect()
}

/// Everything that a node acts on.
#[derive(Debug, PartialEq, Eq)]
struct View {
    members: BTreeSet<String>,
    services: String,
    names: Vec<Vec<String>>,
}

fn view(mesh: &Mesh, n: usize) -> View {
    let status = mesh.status(n);
    let own = status.node.expect("it has joined");
    let host = &mesh.nodes[n].host;
    View {
        members: status
            .peers
            .iter()
            .map(|p| {
                format!(
                    "{} {} {:?} {} {} {:?}",
                    p.id, p.name, p.tags, p.address_v4, p.address_v6, p.state
                )
            })
            .chain([format!("{own:?}")])
            .collect(),
        services: mesh.on(n, &["service", "list"]).stdout,
        names: [
            ("db.svc.mesh.", RecordType::SRV),
            ("db.svc.mesh.", RecordType::A),
            ("n1.node.mesh.", RecordType::A),
            ("n2.node.mesh.", RecordType::AAAA),
            ("evil.node.mesh.", RecordType::A),
        ]
        .into_iter()
        .map(|(name, kind)| {
            ask(host, own.address_v4.into(), name, kind, false).map_or_else(Vec::new, |a| a.data)
        })
        .collect(),
    }
}

fn label(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

/// What a record says, changed, in all the ways of passing it off that are open to whoever holds no key for it: under
/// the old signature, and signed with keys of the adversary's own.
fn forge(held: &Envelope, change: impl Fn(&mut Record), own: &[&SigningKey]) -> Vec<Envelope> {
    let (_, mut record) = Record::parse(&held.payload).expect("it was held");
    change(&mut record);
    let mut as_before = held.clone();
    as_before.payload = record.payload();
    let mut forged = vec![as_before];
    for key in own {
        let mut signed = Envelope::seal(&record, key);
        forged.push(signed.clone());
        signed.signer = held.signer;
        forged.push(signed);
    }
    forged
}

struct Stolen {
    /// The records of the real coordinator, verified.
    ledger: Ledger,
    /// A service record that has been replaced since.
    outdated: Envelope,
    /// The word that node 1 joined with, found in somebody's chat.
    spent: JoinToken,
}

/// Each lie by its name.
fn lies(stolen: &Stolen) -> Vec<(&'static str, Vec<Envelope>)> {
    let ledger = &stolen.ledger;
    let evil = SigningKey::from_seed(&[66; 32]);
    let evil_token = SigningKey::from_seed(&[67; 32]);
    let own = [&evil, &evil_token];
    let now = UnixSeconds::from_system(SystemTime::now());
    let held = |kind: &str, id: String| {
        let key = meshd::records::kinds::RecordKey::parse(kind, &id);
        ledger.entry(&key).expect("held").envelope.clone()
    };
    let nodes: Vec<Node> = ledger.nodes().cloned().collect();
    let (first, second) = (&nodes[0], &nodes[1]);
    let real_token = ledger.membership(&first.id).expect("a member").token;
    let peer = |token: PublicKey, tags: Vec<Label>| {
        Record::Membership(Membership {
            id: evil.public(),
            version: 1,
            token,
            name: label("evil"),
            wireguard_key: WireGuardKey([9; 32]),
            tags,
            issued_at: now,
            proof: None,
        })
    };
    let block = ledger
        .mesh()
        .and_then(|mesh| mesh.addresses.block(200))
        .expect("in the plan");
    let its_node = Record::Node(Node {
        id: evil.public(),
        version: 1,
        wireguard_key: WireGuardKey([9; 32]),
        block,
        endpoints: vec!["198.51.100.66:51820".parse().expect("a literal")],
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
    });
    let its_token = Record::Token(Token {
        id: evil_token.public(),
        version: 1,
        tags: vec![label("admin")],
        uses: 1000,
        created_at: now,
        expires_at: UnixSeconds(now.0 + 86_400),
        ephemeral: false,
    });

    let add_a_peer = [
        Envelope::seal(&its_token, &evil),
        Envelope::seal(&its_token, &evil_token),
        Envelope::seal(&peer(evil_token.public(), vec![]), &evil_token),
        Envelope::seal(&peer(real_token, vec![]), &evil),
        Envelope::seal(&peer(real_token, vec![]), &evil_token),
        // The token was good once, for one node that is not this one.
        Envelope::seal(&peer(stolen.spent.key.public(), vec![]), &stolen.spent.key),
        Envelope::seal(&its_node, &evil),
    ];
    let swap = [(first, second), (second, first)].map(|(a, b)| {
        let envelope = held("node", a.id.to_string());
        let with_block = |record: &mut Record| {
            if let Record::Node(node) = record {
                node.block = b.block;
                node.version += 1;
            }
        };
        let with_keys = |record: &mut Record| {
            if let Record::Node(node) = record {
                node.wireguard_key = b.wireguard_key;
                node.endpoints.clone_from(&b.endpoints);
                node.version += 1;
            }
        };
        [
            forge(&envelope, with_block, &own),
            forge(&envelope, with_keys, &own),
        ]
        .concat()
    });
    let services: Vec<Service> = ledger.services().cloned().collect();
    let change_a_service = services.iter().flat_map(|service| {
        let envelope = held("service", service.id.clone());
        let elsewhere = |record: &mut Record| {
            if let Record::Service(service) = record {
                service.version += 1;
                for instance in &mut service.instances {
                    instance.addresses = vec!["198.51.100.66".parse().expect("a literal")];
                }
            }
        };
        let by_the_adversary = |record: &mut Record| {
            if let Record::Service(service) = record {
                service.version += 1;
                service.node = evil.public();
            }
        };
        [
            forge(&envelope, elsewhere, &own),
            forge(&envelope, by_the_adversary, &own),
        ]
        .concat()
    });
    let tokens: Vec<Token> = ledger.tokens().cloned().collect();
    let raise_uses = tokens.iter().flat_map(|token| {
        forge(
            &held("token", token.id.to_string()),
            |record| {
                if let Record::Token(token) = record {
                    token.version += 1;
                    token.uses = 1000;
                    token.expires_at.0 += 1_000_000;
                }
            },
            &own,
        )
    });
    let widen_tokens = tokens.iter().flat_map(|token| {
        forge(
            &held("token", token.id.to_string()),
            |record| {
                if let Record::Token(token) = record {
                    token.version += 1;
                    token.tags = vec![label("admin")];
                }
            },
            &own,
        )
    });
    let widen_members = nodes.iter().flat_map(|node| {
        forge(
            &held("membership", node.id.to_string()),
            |record| {
                if let Record::Membership(membership) = record {
                    membership.version += 1;
                    membership.tags = vec![label("admin")];
                }
            },
            &own,
        )
    });
    let move_the_mesh = forge(
        &held("mesh", MESH_ID.into()),
        |record| {
            if let Record::Mesh(mesh) = record {
                mesh.version += 1;
                mesh.domain = label("evil");
            }
        },
        &own,
    );
    let remove = Record::Revocation(Revocation {
        id: second.id,
        version: 1,
        revoked: RevokedKind::Node,
        at: now,
        stays: None,
    });
    let remove = own.map(|key| Envelope::seal(&remove, key)).to_vec();
    vec![
        ("raises a token's uses", raise_uses.collect()),
        ("widens a token's tags", widen_tokens.collect()),
        ("widens a node's tags", widen_members.collect()),
        ("adds a peer", add_a_peer.to_vec()),
        ("swaps two nodes' addresses", swap.concat()),
        ("changes a service", change_a_service.collect()),
        ("replays an older record", vec![stolen.outdated.clone()]),
        ("changes the mesh", move_the_mesh),
        ("removes a node", remove),
    ]
}

/// The payloads a node keeps.
fn kept(path: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path).expect("the node's own file");
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str::<Envelope>(line).expect("an envelope"))
        .filter(Envelope::is_authentic)
        .map(|envelope| envelope.payload)
        .collect()
}

#[test]
fn nodes_accept_nothing_from_a_coordinator_that_lies() {
    let Some(mut mesh) = Mesh::start(3) else {
        return;
    };
    let tokens: Vec<String> = (0..3).map(|_| mesh.token(&["--tag", "web"])).collect();
    for (n, token) in tokens.iter().enumerate() {
        assert_eq!(mesh.on(n, &["join", token]).code, 0);
    }
    mesh.wait_until("all nodes reach each other", || {
        (0..3).all(|n| mesh.reaches(n) == 2)
    });
    let add = |n: usize, name: &str, port: &str| {
        let ended = mesh.on(n, &["service", "add", name, "--port", port]);
        assert_eq!(ended.code, 0, "{ended:?}");
    };
    add(1, "db", "5432");
    let service_of = |envelopes: &[Envelope]| {
        envelopes
            .iter()
            .find(|e| matches!(Record::parse(&e.payload), Ok((_, Record::Service(_)))))
            .expect("one was added")
            .clone()
    };
    let outdated = service_of(&stored(&mesh));
    add(1, "db", "6432");
    mesh.wait_until("all know of the service's change", || {
        (0..3).all(|n| mesh.on(n, &["service", "list"]).stdout.contains(":6432/"))
    });
    let truth = stored(&mesh);
    mesh.coordinator.take().expect("it runs").kill();

    let mesh_key = JoinToken::parse(&tokens[0]).expect("a token").mesh_key;
    let mut ledger = Ledger::new(mesh_key);
    // The records come in any order. Records that depend on others are accepted once those are held.
    for _ in 0..4 {
        for envelope in &truth {
            let _ = ledger.apply(envelope.clone());
        }
    }
    assert_eq!(ledger.len(), truth.len());
    let stolen = Stolen {
        ledger,
        outdated,
        spent: JoinToken::parse(&tokens[0]).expect("a token"),
    };
    let lies = lies(&stolen);
    assert_eq!(mesh.status(0).peers[0].tags, [label("web")]);
    let before: Vec<View> = (0..3).map(|n| view(&mesh, n)).collect();

    // First whole, then each lie, once alone and once more after all the others, whose order might matter.
    let deck = Arc::new(Mutex::new(Deck::default()));
    {
        let mut deck = deck.lock().expect("no panic");
        deck.records.extend(stolen.ledger.envelopes().cloned());
        for _ in 0..2 {
            deck.records
                .extend(lies.iter().flat_map(|(_, records)| records.clone()));
        }
    }
    impersonate(&mesh, &deck);
    mesh.wait_until("all nodes follow the adversary", || {
        deck.lock().expect("no panic").streams >= 3
            && (0..3).all(|n| mesh.status(n).coordinator.is_some_and(|c| c.connected))
    });

    // A true record still arrives after all forged ones, which shows that the node has read the forged ones.
    let ended = mesh.on(2, &["service", "add", "cache", "--port", "11211"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    mesh.wait_until("the truth comes through", || {
        (0..3).all(|n| mesh.on(n, &["service", "list"]).stdout.contains("cache"))
    });
    assert_eq!(mesh.on(2, &["service", "remove", "cache"]).code, 0);
    mesh.wait_until("it is gone again", || {
        (0..3).all(|n| !mesh.on(n, &["service", "list"]).stdout.contains("cache"))
    });

    for (n, before) in before.iter().enumerate() {
        assert_eq!(&view(&mesh, n), before, "node {}", n + 1);
        let kept = kept(&mesh.nodes[n].host.path("/run/state/records.jsonl"));
        for (lie, records) in &lies {
            for record in records {
                let is_held = kept.contains(&record.payload);
                // The older record was true once; what must not come back is its effect, which the view shows.
                let was_true = record == &stolen.outdated;
                assert!(!is_held || was_true, "node {}: the adversary {lie}", n + 1);
            }
        }
    }
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
        assert!(mesh.pings(from, &mesh.addresses(to).0.to_string()));
    }

    // Nor after a restart, with what is on disk alone.
    mesh.kill_node(0);
    mesh.start_node(0);
    mesh.wait_until("the node is back", || mesh.reaches(0) == 2);
    assert_eq!(view(&mesh, 0), before[0]);
}
