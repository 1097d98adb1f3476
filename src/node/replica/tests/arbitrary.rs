//! Any sequence of events: the replica never panics, sends no record of its own that is not on disk, and loses none that the
//! coordinator has acknowledged.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// An event of the world around the replica.
#[derive(Debug, Clone)]
enum Event {
    Open {
        another: bool,
        revision: u64,
    },
    Close {
        refusal: Option<Refusal>,
        copied: bool,
    },
    Changes {
        what: u8,
        n: u8,
        version: u64,
        revision: u64,
    },
    /// The coordinator answers the oldest publication without an answer.
    Answer {
        refused: bool,
    },
    Alive,
    FromPeer {
        what: u8,
        n: u8,
        version: u64,
    },
    Vouched {
        n: u8,
    },
    Publish {
        name: u8,
    },
    Reach {
        n: u8,
        reachable: bool,
    },
    Pass {
        milliseconds: u64,
    },
    /// The outstanding write ends.
    Written {
        succeeds: bool,
    },
    /// The program is killed and starts again from the disk.
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    let n = 10u8..16;
    prop_oneof![
        3 => (any::<bool>(), 0u64..20).prop_map(|(another, revision)| Event::Open { another, revision }),
        2 => (0u8..6, any::<bool>()).prop_map(|(kind, copied)| Event::Close {
            refusal: match kind {
                0 => Some(Refusal::Revoked),
                1 => Some(Refusal::Clone),
                2 => Some(Refusal::Busy),
                _ => None,
            },
            copied: copied && kind == 1,
        }),
        4 => (0u8..9, n.clone(), 1u64..6, 0u64..20)
            .prop_map(|(what, n, version, revision)| Event::Changes { what, n, version, revision }),
        6 => any::<bool>().prop_map(|refused| Event::Answer { refused }),
        1 => Just(Event::Alive),
        4 => (0u8..9, n.clone(), 1u64..6).prop_map(|(what, n, version)| Event::FromPeer { what, n, version }),
        1 => n.clone().prop_map(|n| Event::Vouched { n }),
        6 => (0u8..3).prop_map(|name| Event::Publish { name }),
        2 => (n, any::<bool>()).prop_map(|(n, reachable)| Event::Reach { n, reachable }),
        4 => (1u64..20_000).prop_map(|milliseconds| Event::Pass { milliseconds }),
        8 => prop::bool::weighted(0.8).prop_map(|succeeds| Event::Written { succeeds }),
        1 => Just(Event::Crash),
    ]
}

fn record(what: u8, n: u8, version: u64) -> Envelope {
    match what {
        0 => membership(n),
        1 => node(n, version),
        2 | 3 => service(n, "web", version),
        4 => membership_by(n, 3, UnixSeconds(START.0 - 60 * DAY)),
        5 => departure(n),
        6 => mesh(version, &["https://198.51.100.7:7443"]),
        7 => Envelope::seal(&service_record(n, "web", version), &key(n.wrapping_add(1))),
        _ => token_of(3, UnixSeconds(START.0 - 30 * DAY), false),
    }
}

/// The world: a disk, and a coordinator that answers publications in their order.
struct World {
    kit: Kit,
    disk: Ledger,
    /// Whether the disk has refused the records that came last.
    refused: bool,
    position: Position,
    is_open: bool,
    open: VecDeque<(u64, Vec<Envelope>)>,
    /// The newest version of each own record that the coordinator has acknowledged.
    acknowledged: BTreeMap<RecordKey, u64>,
    versions: u64,
}

impl World {
    fn new() -> Self {
        let records = records_of(&[11, 12]);
        let mut kit = Kit::with(&records, position(5), Some(60));
        kit.disk = Disk::Hangs;
        Self {
            kit,
            disk: ledger_of(&records),
            refused: false,
            position: position(5),
            is_open: false,
            open: VecDeque::new(),
            acknowledged: BTreeMap::new(),
            versions: 10,
        }
    }

    /// The coordinator receives what was sent. The own records among it are on disk, unless the disk has refused them.
    fn receive(&mut self) {
        self.kit.drain();
        let publications = self.kit.publications();
        let news = self.kit.dials.iter().flat_map(|(_, opening)| &opening.news);
        let sent = publications.iter().flat_map(|(_, records)| records);
        for record in sent.chain(news).filter(|r| r.signer == id(OWN)) {
            let is_departure = matches!(record.key(), Some(RecordKey::Departure(_)));
            assert!(
                self.refused || is_departure || self.is_on_disk(record),
                "a record was sent that is not on disk: {record:?}"
            );
        }
        if self.is_open {
            self.open.extend(publications);
        }
        self.kit.dialled();
        self.kit.others.clear();
    }

    fn is_on_disk(&self, record: &Envelope) -> bool {
        let key = record.key().expect("a record of this node");
        let header = record.header().expect("a record of this node");
        let held = self.disk.entry(&key);
        held.is_some_and(|held| held.version >= header.version)
    }

    fn write(&mut self, succeeds: bool) {
        if !self.kit.replica.is_writing() {
            return;
        }
        let request = self.kit.writes.pop_back().expect("a write");
        self.kit.writes.clear();
        self.kit.unanswered = 0;
        if succeeds {
            match &request.records {
                Some(RecordsWrite::Append(records)) => {
                    for record in records {
                        let _ = self.disk.apply(record.clone());
                    }
                }
                Some(RecordsWrite::All(records)) => {
                    let mut disk = Ledger::new(id(MESH));
                    for record in records {
                        let _ = disk.apply(record.clone());
                    }
                    self.disk = disk;
                }
                None => {}
            }
            if let Some(position) = &request.position {
                self.position = position.clone();
            }
            self.refused &= request.records.is_none();
        } else {
            self.refused = true;
        }
        let outcome = outcome_of(&request, succeeds, self.disk.len());
        self.kit.replica.handle_written(&outcome, self.kit.now);
    }

    fn crash(&mut self) {
        let records: Vec<Envelope> = self.disk.envelopes().cloned().collect();
        let mut kit = Kit::with(&records, self.position.clone(), Some(60));
        kit.disk = Disk::Hangs;
        kit.now = self.kit.now;
        self.kit = kit;
        self.is_open = false;
        self.open.clear();
        if self.refused {
            // The records that the disk refused may be lost.
            let disk = &self.disk;
            self.acknowledged
                .retain(|key, version| disk.entry(key).is_some_and(|e| e.version >= *version));
        }
        self.refused = false;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Open { another, revision } => {
                if !self.is_open {
                    self.is_open = true;
                    let store = if another { "another" } else { STORE };
                    self.kit.replica.handle_stream(
                        StreamEvent::Opened {
                            url: url(),
                            store: store.into(),
                            revision,
                        },
                        self.kit.now,
                    );
                }
            }
            Event::Close { refusal, copied } => {
                self.is_open = false;
                self.open.clear();
                self.kit.close(refusal, copied);
            }
            Event::Changes {
                what,
                n,
                version,
                revision,
            } if self.is_open => self.kit.changes(vec![record(what, n, version)], revision),
            Event::Answer { refused } => {
                if let Some((sequence, records)) = self.open.pop_front() {
                    self.kit
                        .published(sequence, if refused { &["no"] } else { &[] });
                    for record in records.iter().filter(|r| !refused && r.signer == id(OWN)) {
                        if let Some(header) = record.header() {
                            let newest = self.acknowledged.entry(header.key).or_default();
                            *newest = header.version.max(*newest);
                        }
                    }
                }
            }
            Event::Changes { .. } => {}
            Event::Alive if self.is_open => self.kit.event(StreamEvent::Alive),
            Event::Alive => {}
            Event::FromPeer { what, n, version } => {
                let records = vec![record(what, n, version)];
                let peer = id(11);
                self.kit.request(LedgerRequest::Apply { peer, records });
            }
            Event::Vouched { n } => {
                let memberships = vec![record(4, n, 1)];
                let peer = id(11);
                self.kit
                    .request(LedgerRequest::Vouched { peer, memberships });
            }
            Event::Publish { name } => {
                self.versions += 1;
                let name = ["web", "db", "mail"][usize::from(name)];
                let record = service_record(OWN, name, self.versions);
                self.kit.publish(vec![record]);
            }
            Event::Reach { n, reachable } => {
                self.kit
                    .replica
                    .handle_reach(&id(n), reachable, self.kit.now);
            }
            Event::Pass { milliseconds } => self.kit.pass(Duration::from_millis(milliseconds)),
            Event::Written { succeeds } => self.write(succeeds),
            Event::Crash => self.crash(),
        }
        self.receive();
        self.kit.replica.take_changes();
    }

    /// Whether the replica holds all own records that were acknowledged. A node that departs or is removed holds none.
    fn check(&self) {
        let ledger = self.kit.replica.ledger();
        if ledger.is_revoked(&id(OWN)) {
            return;
        }
        for (key, version) in &self.acknowledged {
            let is_departure = matches!(key, RecordKey::Departure(_));
            let held = ledger.entry(key);
            assert!(
                is_departure || held.is_some_and(|held| held.version >= *version),
                "{key} {version} was acknowledged and is lost"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(300), max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_events_panics_or_loses_an_acknowledged_record(events in prop::collection::vec(event(), 1..120)) {
        let mut world = World::new();
        for event in events {
            world.handle(event);
            world.check();
        }
        // Once the disk and the coordinator answer, all own records are acknowledged.
        world.handle(Event::Close { refusal: None, copied: false });
        world.handle(Event::Written { succeeds: true });
        world.handle(Event::Pass { milliseconds: 6000 });
        for _ in 0..3 {
            world.handle(Event::Written { succeeds: true });
        }
        world.handle(Event::Open { another: true, revision: 1 });
        for _ in 0..20 {
            world.handle(Event::Written { succeeds: true });
            world.handle(Event::Answer { refused: false });
        }
        let ledger = world.kit.replica.ledger();
        for envelope in ledger.envelopes().filter(|e| e.signer == id(OWN)) {
            let header = envelope.header().expect("a record of this node");
            prop_assert_eq!(world.acknowledged.get(&header.key), Some(&header.version));
        }
    }
}
