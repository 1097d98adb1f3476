//! Messages of each protocol version, as files. Every later version reads them, and this version writes exactly the same.
//!
//! `tests/fixtures/protocol-N` holds one message a line. A change that is meant to stay within a version adds lines; to write
//! those of this version anew after one, set `UPDATE_FIXTURES=1`. Those of former versions are never written again.

use std::path::PathBuf;

use meshd::model::address::{MeshAddresses, unique_local_prefix};
use meshd::model::time::UnixSeconds;
use meshd::model::{Label, SigningKey, WireGuardKey};
use meshd::protocol::control::{
    FromCoordinator, FromNode, OLDEST, PROTOCOL, Refusal, RefusedReason, RefusedRecord,
    copy_message, proof_message,
};
use meshd::protocol::gossip;
use meshd::protocol::gossip::PeerMessage;
use meshd::protocol::join::{JoinRequest, JoinResponse};
use meshd::protocol::token::SpkiPin;
use meshd::records::digest::Digests;
use meshd::records::envelope::{Purpose, Signature};
use meshd::records::kinds::{
    Departure, Health, Instance, MESH_ID, Membership, Mesh, MeshPolicy, Name, Node, Port, Protocol,
    Record, RecordKey, Revocation, RevokedKind, Service, Source, Token,
};
use meshd::records::ledger::Applied;
use meshd::records::{Envelope, Ledger};
use serde::Serialize;
use serde::de::DeserializeOwned;

const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

fn label(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

/// One record of each kind, in an order in which a ledger takes them.
fn records() -> Vec<Envelope> {
    let (mesh, token, node, gone) = (key(1), key(2), key(3), key(4));
    let addresses = MeshAddresses {
        prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
        prefix_v6: unique_local_prefix(&mesh.public()),
        node_block_v4: 24,
        node_block_v6: 64,
    };
    let membership = |member: &SigningKey, name: &str, tags| {
        Record::Membership(Membership {
            id: member.public(),
            version: 3,
            token: token.public(),
            name: label(name),
            wireguard_key: WireGuardKey([3; 32]),
            tags,
            issued_at: NOW,
            proof: None,
        })
    };
    let instance = Instance {
        id: label("web-1"),
        addresses: vec![
            "10.210.1.2".parse().expect("a literal"),
            "192.0.2.9".parse().expect("a literal"),
        ],
        ports: vec![
            Port {
                number: 80.try_into().expect("not zero"),
                protocol: Protocol::Tcp,
                name: None,
            },
            Port {
                number: 53.try_into().expect("not zero"),
                protocol: Protocol::Udp,
                name: Some(label("dns")),
            },
        ],
        health: Health::Draining,
        weight: 7,
        priority: 2,
        source: Source::Docker,
        allow: vec![],
        public: vec![],
    };
    let name = label("web");
    let project = label("shop");
    let unknown = r#"{"kind":"weather","id":"here","version":1,"sky":"blue"}"#;
    vec![
        Envelope::seal(
            &Record::Mesh(Mesh {
                id: MESH_ID.into(),
                version: 1,
                domain: label("mesh"),
                addresses,
                coordinators: vec![],
            }),
            &mesh,
        ),
        Envelope::seal(
            &Record::Token(Token {
                id: token.public(),
                version: 2,
                tags: vec![label("web"), label("db")],
                uses: 2,
                created_at: NOW,
                expires_at: UnixSeconds(NOW.0 + 3600),
                ephemeral: true,
            }),
            &mesh,
        ),
        Envelope::seal(&membership(&node, "n1", vec![label("web")]), &token),
        Envelope::seal(&membership(&gone, "n2", vec![]), &token),
        Envelope::seal(
            &Record::Departure(Departure {
                id: gone.public(),
                version: 4,
            }),
            &gone,
        ),
        Envelope::seal(
            &Record::Revocation(Revocation {
                id: token.public(),
                version: 4,
                revoked: RevokedKind::Token,
                at: UnixSeconds(NOW.0 + 60),
                stays: None,
            }),
            &mesh,
        ),
        Envelope::seal(
            &Record::Node(Node {
                id: node.public(),
                version: 5,
                wireguard_key: WireGuardKey([3; 32]),
                block: addresses.block(1).expect("in the plan"),
                endpoints: vec![
                    "192.0.2.7:51820".parse().expect("a literal"),
                    "[2001:db8::7]:51820".parse().expect("a literal"),
                ],
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
            }),
            &node,
        ),
        Envelope::seal(
            &Record::Service(Service {
                id: Service::id_of(&node.public(), Some(&project), &name),
                version: 6,
                node: node.public(),
                name,
                project: Some(project),
                service_address: Some("10.210.0.64".parse().expect("a literal")),
                instances: vec![instance],
            }),
            &node,
        ),
        Envelope::seal(
            &Record::Name(Name {
                id: node.public(),
                version: 7,
                name: label("n9"),
            }),
            &node,
        ),
        Envelope::seal(
            &Record::Policy(MeshPolicy::new(
                8,
                "language = 1\ndefault = \"allow\"  # `all`\n",
            )),
            &mesh,
        ),
        Envelope::seal_payload(unknown.to_owned(), &node),
    ]
}

fn from_node() -> Vec<FromNode> {
    let node = key(3);
    let pin = SpkiPin([9; 32]);
    let sign = |purpose, message: &[u8]| Signature::make(&node, purpose, message);
    vec![
        FromNode::Hello {
            protocol: PROTOCOL,
            oldest: Some(OLDEST),
            version: "0.1.0".into(),
            node: node.public(),
            store: Some("a store".into()),
            revision: 17,
            instance: Some("00ff".into()),
        },
        FromNode::Hello {
            protocol: PROTOCOL,
            oldest: None,
            version: "0.1.0".into(),
            node: node.public(),
            store: None,
            revision: 0,
            instance: None,
        },
        FromNode::Proof {
            signature: sign(Purpose::Control, &proof_message("abc", &pin)),
        },
        FromNode::Publish {
            sequence: 1,
            records: records(),
        },
        FromNode::Farewell {
            departure: records()[4].clone(),
        },
        FromNode::Told,
        FromNode::Vouch {
            instance: "other".into(),
            signature: sign(Purpose::DuplicateProof, &copy_message("other")),
        },
        FromNode::Mark {
            mark: "17.a store.00ff".into(),
        },
    ]
}

fn from_coordinator() -> Vec<FromCoordinator> {
    let proof = Signature::make(&key(3), Purpose::DuplicateProof, &copy_message("00ff"));
    let refuse = |reason, proof| FromCoordinator::Refuse {
        reason,
        message: "why".into(),
        proof,
    };
    vec![
        FromCoordinator::Challenge {
            nonce: "abc".into(),
        },
        FromCoordinator::Welcome {
            protocol: PROTOCOL,
            store: "a store".into(),
            revision: 17,
            snapshot: true,
        },
        FromCoordinator::Changes {
            revision: 18,
            records: records(),
        },
        FromCoordinator::Published {
            sequence: 1,
            accepted: 2,
            refused: vec!["why".into()],
            refused_records: vec![],
            failed: false,
        },
        FromCoordinator::Copy {
            instance: "other".into(),
        },
        refuse(Refusal::Clone, Some(proof)),
        refuse(Refusal::Version, None),
        refuse(Refusal::NotAMember, None),
        refuse(Refusal::Revoked, None),
        refuse(Refusal::Proof, None),
        refuse(Refusal::Protocol, None),
        refuse(Refusal::Busy, None),
        FromCoordinator::Mark {
            mark: "17.a store.00ff".into(),
        },
        FromCoordinator::Published {
            sequence: 1,
            accepted: 0,
            refused: vec!["why".into(), "why not".into()],
            refused_records: [RefusedReason::Stale, RefusedReason::Other]
                .into_iter()
                .filter_map(|reason| {
                    let key = RecordKey::parse("node", &key(3).public().to_string());
                    RefusedRecord::new(key, "why".into(), reason)
                })
                .collect(),
            failed: false,
        },
    ]
}

fn join_requests() -> Vec<JoinRequest> {
    let membership = records()[2].clone();
    let proof = Signature::make(&key(3), Purpose::Join, membership.payload.as_bytes());
    vec![JoinRequest {
        protocol: PROTOCOL,
        oldest: Some(OLDEST),
        membership,
        proof,
    }]
}

fn join_responses() -> Vec<JoinResponse> {
    let Ok((_, Record::Node(node))) = Record::parse(&records()[6].payload) else {
        panic!("the node's record")
    };
    vec![JoinResponse {
        block: node.block,
        records: records()[..3].to_vec(),
        revision: 3,
    }]
}

fn from_peer() -> Vec<PeerMessage> {
    let (node, other) = (key(3), key(5).public());
    let holdings = Digests::of(&ledger(&records()));
    let message = gossip::proof_message("abc", &node.public(), &other);
    vec![
        PeerMessage::Hello {
            protocol: gossip::PROTOCOL,
            node: node.public(),
            nonce: "abc".into(),
        },
        PeerMessage::Proof {
            signature: Signature::make(&node, Purpose::Peer, &message),
        },
        PeerMessage::Records { records: records() },
        PeerMessage::Summary {
            digest: holdings.summary(),
        },
        PeerMessage::Same,
        PeerMessage::Signers {
            signers: holdings.0,
            last: true,
        },
        PeerMessage::Want {
            signers: vec![node.public()],
            last: true,
        },
        PeerMessage::Done,
        PeerMessage::Received,
        PeerMessage::Ask {
            nodes: vec![node.public()],
        },
        PeerMessage::Vouch {
            memberships: records()[2..3].to_vec(),
        },
    ]
}

/// A ledger that takes all of these in.
fn ledger(records: &[Envelope]) -> Ledger {
    let mut ledger = Ledger::new(key(1).public());
    for record in records {
        let applied = ledger.apply(record.clone());
        assert!(matches!(applied, Ok(Applied::Changed(_))), "{applied:?}");
    }
    ledger
}

/// Holds the file `name` of this version to `messages`: as they are written, and as they are read.
fn hold<M>(name: &str, messages: &[M])
where
    M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let path = directory.join(format!("protocol-{PROTOCOL}/{name}.jsonl"));
    let written: Vec<String> = messages
        .iter()
        .map(|m| serde_json::to_string(m).expect("plain data"))
        .collect();
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        std::fs::create_dir_all(path.parent().expect("in a directory")).expect("writable");
        std::fs::write(&path, written.join("\n") + "\n").expect("writable");
    }
    let text = std::fs::read_to_string(&path).expect("a fixture");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines, written, "{}", path.display());
    for (line, message) in lines.iter().zip(messages) {
        assert_eq!(&read::<M>(line), message);
    }
    // This version understands the messages of each version.
    for other in directories() {
        let path = other.join(format!("{name}.jsonl"));
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines().for_each(|line| drop(read::<M>(line)));
    }
}

/// Of all versions whose messages are kept.
fn directories() -> Vec<PathBuf> {
    let all = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let entries = std::fs::read_dir(all).expect("fixtures");
    entries
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("protocol-"))
        })
        .collect()
}

fn read<M: DeserializeOwned>(line: &str) -> M {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn messages_of_this_version_are_written_and_read_as_in_its_files() {
    hold("records", &records());
    hold("from_node", &from_node());
    hold("from_coordinator", &from_coordinator());
    hold("join_request", &join_requests());
    hold("join_response", &join_responses());
    hold("from_peer", &from_peer());
}

#[test]
fn records_of_every_version_verify_as_they_did_when_they_were_written() {
    assert!(!directories().is_empty());
    for version in directories() {
        let text = std::fs::read_to_string(version.join("records.jsonl")).expect("a fixture");
        let records: Vec<Envelope> = text.lines().map(read).collect();
        let ledger = ledger(&records);
        let netmap = ledger.netmap();
        assert_eq!(netmap.members.len(), 1);
        assert_eq!(netmap.services.len(), 1);
        assert!(ledger.is_revoked(&key(4).public()));
        assert!(ledger.is_token_revoked(&key(2).public()));
        // The kind nobody knew is kept, and passed on as it came.
        let unknown = records.last().expect("the last line");
        assert!(ledger.envelopes().any(|held| held == unknown));
        assert!(ledger.envelopes_for_peers().any(|held| held == unknown));
    }
}
