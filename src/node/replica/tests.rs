use std::collections::VecDeque;
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::model::address::{MeshAddresses, unique_local_prefix};
use crate::model::time::UnixSeconds;
use crate::model::{Label, SigningKey, WireGuardKey};
use crate::node::unwritten::Part;
use crate::protocol::control::{FromNode, Refusal, RefusedReason, RefusedRecord};
use crate::records::kinds::{
    Departure, MESH_ID, Membership, Mesh, Node, Revocation, RevokedKind, Service, Token,
};

mod arbitrary;
mod conflicts;
mod coordinator;
mod disk;
mod newcomers;
mod peers;

const MESH: u8 = 1;
const TOKEN: u8 = 2;
/// The node whose replica is tested.
const OWN: u8 = 10;
const STORE: &str = "store";
const DAY: u64 = 24 * 3600;
/// The wall clock at the start of each test.
const START: UnixSeconds = UnixSeconds(1_800_000_000);

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

fn id(n: u8) -> PublicKey {
    key(n).public()
}

fn label(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

fn url() -> CoordinatorUrl {
    "https://192.0.2.1:7443".parse().expect("a literal")
}

fn addresses() -> MeshAddresses {
    MeshAddresses {
        prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
        prefix_v6: unique_local_prefix(&id(MESH)),
        node_block_v4: 24,
        node_block_v6: 64,
    }
}

fn block(index: u32) -> Block {
    addresses().block(index).expect("in the plan")
}

fn mesh(version: u64, coordinators: &[&str]) -> Envelope {
    let mesh = Mesh {
        id: MESH_ID.into(),
        version,
        domain: label("mesh"),
        addresses: addresses(),
        coordinators: coordinators.iter().map(ToString::to_string).collect(),
    };
    Envelope::seal(&Record::Mesh(mesh), &key(MESH))
}

fn token_of(n: u8, expires_at: UnixSeconds, ephemeral: bool) -> Envelope {
    let token = Token {
        id: id(n),
        version: 1,
        tags: vec![],
        uses: 200,
        created_at: UnixSeconds(START.0 - 200 * DAY),
        expires_at,
        ephemeral,
    };
    Envelope::seal(&Record::Token(token), &key(MESH))
}

fn token() -> Envelope {
    token_of(TOKEN, UnixSeconds(START.0 + DAY), false)
}

fn membership_by(n: u8, token: u8, issued_at: UnixSeconds) -> Envelope {
    let membership = Membership {
        id: id(n),
        version: 1,
        token: id(token),
        name: label(&format!("n{n}")),
        wireguard_key: WireGuardKey([n; 32]),
        tags: vec![],
        issued_at,
        proof: None,
    };
    Envelope::seal(&Record::Membership(membership), &key(token))
}

fn membership(n: u8) -> Envelope {
    membership_by(n, TOKEN, UnixSeconds(START.0 - 60))
}

fn node_record(n: u8, version: u64, index: u32) -> Node {
    Node {
        id: id(n),
        version,
        wireguard_key: WireGuardKey([n; 32]),
        key_proof: None,
        block: block(index),
        endpoints: vec![],
        without_ipv6: false,
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
    }
}

fn node(n: u8, version: u64) -> Envelope {
    Envelope::seal(&Record::Node(node_record(n, version, n.into())), &key(n))
}

fn service_record(n: u8, name: &str, version: u64) -> Record {
    let name = label(name);
    Record::Service(Service {
        id: Service::id_of(&id(n), None, &name),
        version,
        node: id(n),
        name,
        project: None,
        service_address: None,
        instances: vec![],
    })
}

fn service(n: u8, name: &str, version: u64) -> Envelope {
    Envelope::seal(&service_record(n, name, version), &key(n))
}

fn departure(n: u8) -> Envelope {
    Envelope::seal(&Record::Departure(Departure::of(id(n))), &key(n))
}

fn revocation(n: u8) -> Envelope {
    let revocation = Revocation {
        id: id(n),
        version: 1,
        revoked: RevokedKind::Node,
        at: START,
        stays: None,
    };
    Envelope::seal(&Record::Revocation(revocation), &key(MESH))
}

/// The records of a mesh with this node and the given other members.
fn records_of(others: &[u8]) -> Vec<Envelope> {
    let mut records = vec![mesh(1, &[]), token()];
    for n in [OWN].iter().chain(others) {
        records.extend([membership(*n), node(*n, 1)]);
    }
    records
}

fn ledger_of(records: &[Envelope]) -> Ledger {
    let mut ledger = Ledger::new(id(MESH));
    for record in records {
        ledger.apply(record.clone()).expect("a valid record");
    }
    ledger
}

fn position(revision: u64) -> Position {
    Position {
        store: Some(STORE.into()),
        revision,
        mark: None,
    }
}

/// A replica with a shell that records what it is to do.
struct Kit {
    replica: Replica,
    now: Now,
    /// Whether writes are answered at once, and with success.
    disk: Disk,
    writes: VecDeque<WriteRequest>,
    sent: Vec<FromNode>,
    dials: Vec<(PublicKey, Opening)>,
    /// All other effects.
    others: Vec<Effect>,
    lines: usize,
    /// The number of writes that were not answered.
    unanswered: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    /// Writes succeed at once.
    Writes,
    /// Writes fail at once.
    Full,
    /// Writes are not answered.
    Hangs,
}

impl Kit {
    /// A node that is a member together with `others` and was in step a minute ago.
    fn new(others: &[u8]) -> Self {
        Self::with(&records_of(others), position(5), Some(60))
    }

    /// `in_step` is how many seconds ago the node was in step.
    fn with(records: &[Envelope], position: Position, in_step: Option<u64>) -> Self {
        let now = Now {
            monotonic: Instant::now(),
            wall: UNIX_EPOCH + Duration::from_secs(START.0),
        };
        let in_step = InStep {
            in_step: in_step.map(|ago| UnixSeconds(START.0 - ago)),
        };
        let start = Start {
            own: Own {
                key: key(OWN),
                block: block(OWN.into()),
                urls: vec![url()],
            },
            ledger: ledger_of(records),
            position,
            newcomers: Newcomers::new(in_step, NewcomerLists::default(), now.monotonic),
            record_lines: records.len(),
            records_whole: true,
        };
        let mut kit = Self {
            replica: Replica::new(start, now),
            now,
            disk: Disk::Writes,
            writes: VecDeque::new(),
            sent: Vec::new(),
            dials: Vec::new(),
            others: Vec::new(),
            lines: 100,
            unanswered: 0,
        };
        kit.drain();
        kit
    }

    fn drain(&mut self) {
        while let Some(effect) = self.replica.poll_effect() {
            match effect {
                Effect::Send(message) => self.sent.push(message),
                Effect::Dial { peer, opening } => self.dials.push((peer, opening)),
                Effect::Write(request) => {
                    self.unanswered += 1;
                    assert_eq!(self.unanswered, 1, "one write is outstanding at a time");
                    self.writes.push_back(request);
                    match self.disk {
                        Disk::Writes => self.answer(true),
                        Disk::Full => self.answer(false),
                        Disk::Hangs => {}
                    }
                }
                other => self.others.push(other),
            }
        }
    }

    /// Answers the oldest write that has no answer, which stays on the list.
    fn answer(&mut self, succeeds: bool) {
        let request = self.writes.back().expect("a write");
        let outcome = outcome_of(request, succeeds, self.lines);
        self.unanswered -= 1;
        self.replica.handle_written(&outcome, self.now);
        self.drain();
    }

    fn event(&mut self, event: StreamEvent) {
        self.replica.handle_stream(event, self.now);
        self.drain();
    }

    fn open(&mut self, store: &str, revision: u64) {
        self.event(StreamEvent::Opened {
            url: url(),
            store: store.into(),
            revision,
        });
    }

    fn close(&mut self, refusal: Option<Refusal>, copied: bool) {
        self.event(StreamEvent::Closed {
            url: url(),
            why: "no route".into(),
            refusal,
            copied,
        });
    }

    fn changes(&mut self, records: Vec<Envelope>, revision: u64) {
        self.event(StreamEvent::Changes {
            records,
            position: position(revision),
        });
    }

    fn published(&mut self, sequence: u64, refused: &[&str]) {
        self.event(StreamEvent::Published {
            sequence,
            refused: refused.iter().map(ToString::to_string).collect(),
            refused_records: vec![],
            failed: false,
        });
    }

    /// The coordinator cannot store what was published with this number.
    fn fail(&mut self, sequence: u64) {
        self.event(StreamEvent::Published {
            sequence,
            refused: vec!["the disk is full".into()],
            refused_records: vec![],
            failed: true,
        });
    }

    fn refuse(&mut self, sequence: u64, record: &Envelope, reason: RefusedReason) {
        let key = record.key().expect("a header");
        let refused = RefusedRecord::new(key, "no".into(), reason).expect("a short key");
        self.event(StreamEvent::Published {
            sequence,
            refused: vec!["no".into()],
            refused_records: vec![refused],
            failed: false,
        });
    }

    fn publish(&mut self, records: Vec<Record>) -> Publication {
        let publication = self.replica.publish(records, self.now);
        self.drain();
        publication
    }

    fn request(&mut self, request: LedgerRequest) -> Option<LedgerReply> {
        let reply = self.replica.handle_request(request, self.now);
        self.drain();
        reply
    }

    fn apply(&mut self, peer: u8, records: Vec<Envelope>) -> Applied {
        let peer = id(peer);
        match self.request(LedgerRequest::Apply { peer, records }) {
            Some(LedgerReply::Applied(applied)) => applied,
            other => panic!("{other:?}"),
        }
    }

    /// Lets time pass in steps as long as those of the shell.
    fn pass(&mut self, time: Duration) {
        let end = self.now.monotonic + time;
        while self.now.monotonic < end {
            let at = self.replica.poll_timeout().map_or(end, |at| at.min(end));
            self.wait(at.saturating_duration_since(self.now.monotonic));
            self.replica.handle_time(self.now);
            self.drain();
        }
    }

    /// Lets time pass in which nothing happens.
    fn wait(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.wall += time;
    }

    fn holds(&self, record: &Envelope) -> bool {
        self.replica.ledger().holds(record)
    }

    /// The publications since the last call, with their records.
    fn publications(&mut self) -> Vec<(u64, Vec<Envelope>)> {
        let sent = std::mem::take(&mut self.sent).into_iter();
        sent.filter_map(|message| match message {
            FromNode::Publish { sequence, records } => Some((sequence, records)),
            _ => None,
        })
        .collect()
    }

    /// The peers that were dialled since the last call. Each conversation succeeds.
    fn dialled(&mut self) -> Vec<PublicKey> {
        let dials = std::mem::take(&mut self.dials);
        for (peer, _) in &dials {
            self.replica.handle_conversation_ended(peer, true, self.now);
        }
        dials.into_iter().map(|(peer, _)| peer).collect()
    }

    /// How often all records were requested since the last call.
    fn requests_for_all(&mut self) -> usize {
        let others = std::mem::take(&mut self.others);
        let reopened = others
            .iter()
            .filter(|effect| matches!(effect, Effect::Reopen));
        reopened.count()
    }
}

fn outcome_of(request: &WriteRequest, succeeds: bool, lines: usize) -> WriteOutcome {
    let parts = [
        (Part::Records, request.records.is_some()),
        (Part::InStep, request.in_step.is_some()),
        (Part::Newcomers, request.newcomers.is_some()),
        (Part::Position, request.position.is_some()),
    ];
    let tried = parts.into_iter().filter(|(_, is_some)| *is_some);
    let results = tried.map(|(part, _)| {
        let full = || Err("No space left on device".to_owned());
        (part, if succeeds { Ok(()) } else { full() })
    });
    WriteOutcome {
        // Nothing follows a part that could not be written.
        results: results.take(if succeeds { 4 } else { 1 }).collect(),
        record_lines: lines,
    }
}
