//! Simulated nodes: real keys, real records, a real control stream, and nothing behind it.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use meshd::model::address::Block;
use meshd::model::time::{UnixSeconds, next_version};
use meshd::model::{Label, SigningKey, WireGuardKey};
use meshd::node::control::join::join;
use meshd::node::control::stream::{Event, Position, Stream, StreamConfig};
use meshd::protocol::JoinToken;
use meshd::protocol::join::JoinRequest;
use meshd::records::Envelope;
use meshd::records::kinds::{
    Health, Instance, Membership, Node, Port, Protocol, Record, Service, Source,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Longer than anything that is waited for takes.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(120);
/// The service that changes while it is measured.
pub(crate) const MARK: &str = "mark";

/// A node that was admitted.
pub(crate) struct Member {
    number: usize,
    identity: SigningKey,
    wireguard_key: WireGuardKey,
    block: Block,
}

/// The messages that simulated nodes receive.
pub(crate) enum Heard {
    /// A stream is open.
    Opened(Instant),
    /// The service that is measured has changed, to this version of its record.
    Change(Instant, u64),
    /// There is another policy.
    Policy(Instant),
    /// The published record is on disk.
    Stored,
}

/// A connected node.
pub(crate) struct Sim {
    member_key: SigningKey,
    address: IpAddr,
    stream: Arc<Stream>,
    position: Arc<Mutex<Position>>,
    refused: Arc<AtomicBool>,
    sequence: AtomicU64,
    listener: JoinHandle<()>,
}

impl Member {
    /// Joins as number `n`.
    pub(crate) async fn join(token: JoinToken, n: usize) -> Self {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("the system has randomness");
        let identity = SigningKey::from_seed(&seed);
        let wireguard_key = WireGuardKey(seed);
        let now = SystemTime::now();
        let membership = Membership {
            id: identity.public(),
            version: next_version(0, now),
            token: token.key.public(),
            name: label(&format!("n{n}")),
            wireguard_key,
            tags: Vec::new(),
            issued_at: UnixSeconds::from_system(now),
            proof: None,
        };
        let membership = Envelope::seal(&Record::Membership(membership), &token.key);
        let request = JoinRequest::make(membership, &identity);
        let response = join(&token.urls, token.pin, &request)
            .await
            .expect("a use left");
        Self {
            number: n,
            identity,
            wireguard_key,
            block: response.block,
        }
    }

    /// Its own record, and those of so many services.
    pub(crate) fn records(&self, services: usize) -> Vec<Envelope> {
        own_records(
            &self.identity,
            self.wireguard_key,
            self.block,
            self.number,
            services,
        )
    }
}

/// The record of node number `number`, and those of its services.
pub(crate) fn own_records(
    identity: &SigningKey,
    wireguard_key: WireGuardKey,
    block: Block,
    number: usize,
    services: usize,
) -> Vec<Envelope> {
    let endpoint = |host: u8| SocketAddr::from(([192, 0, 2, host], 51820));
    let node = Record::Node(Node {
        id: identity.public(),
        version: 1,
        wireguard_key,
        block,
        endpoints: vec![endpoint(1), endpoint(2)],
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
    let own = Envelope::seal(&node, identity);
    let services = (0..services).map(|n| {
        let name = format!("service-{number}-{n}");
        service(identity, &name, block.node_v4().into(), 1)
    });
    std::iter::once(own).chain(services).collect()
}

pub(crate) fn label(text: &str) -> Label {
    Label::parse(text).expect("a name")
}

pub(crate) fn service(key: &SigningKey, name: &str, address: IpAddr, version: u64) -> Envelope {
    let (node, name) = (key.public(), label(name));
    let instance = |n: usize| Instance {
        id: label(&format!("web-{n}")),
        addresses: vec![address],
        ports: vec![Port {
            number: 8080.try_into().expect("not zero"),
            protocol: Protocol::Tcp,
            name: None,
        }],
        health: Health::Healthy,
        weight: 10,
        priority: 0,
        source: Source::Docker,
        allow: vec![],
        public: vec![],
    };
    let service = Service {
        service_address: None,
        id: Service::id_of(&node, None, &name),
        version,
        node,
        name,
        project: None,
        instances: vec![instance(1)],
    };
    Envelope::seal(&Record::Service(service), key)
}

impl Sim {
    /// Opens a stream from `position`, and keeps it open.
    pub(crate) fn connect(
        token: &JoinToken,
        member: &Member,
        position: Option<Position>,
        heard: mpsc::UnboundedSender<Heard>,
    ) -> Self {
        let (sender, events) = mpsc::channel(64);
        let position = position.unwrap_or_default();
        let config = StreamConfig {
            urls: token.urls.clone(),
            pin: token.pin,
            identity: member.identity.clone(),
        };
        let stream = Arc::new(Stream::start(config, position.clone(), sender));
        let position = Arc::new(Mutex::new(position));
        let refused = Arc::<AtomicBool>::default();
        let listener = tokio::spawn(listen(
            events,
            Arc::clone(&stream),
            Arc::clone(&position),
            Arc::clone(&refused),
            heard,
        ));
        Self {
            member_key: member.identity.clone(),
            address: member.block.node_v4().into(),
            stream,
            position,
            refused,
            sequence: AtomicU64::new(0),
            listener,
        }
    }

    /// Where it stands.
    pub(crate) fn position(&self) -> Position {
        self.position.lock().expect("no panic").clone()
    }

    /// Whether the coordinator ever refused it, but for being about to stop.
    pub(crate) fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Hands records over.
    pub(crate) fn publish(&self, records: Vec<Envelope>) -> bool {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        self.stream.publish(sequence, records)
    }

    /// A new version of the service that is measured.
    pub(crate) fn change(&self) -> Envelope {
        let version = next_version(0, SystemTime::now());
        service(&self.member_key, MARK, self.address, version)
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// Waits for `count` messages for which `pick` returns a value. Returns these values.
pub(crate) async fn await_all<T>(
    hearing: &mut mpsc::UnboundedReceiver<Heard>,
    count: usize,
    pick: impl Fn(&Heard) -> Option<T>,
) -> Vec<T> {
    let mut picked = Vec::with_capacity(count);
    while picked.len() < count {
        let heard = tokio::time::timeout(WAIT_TIMEOUT, hearing.recv())
            .await
            .unwrap_or_else(|_| panic!("{} of {count} in {WAIT_TIMEOUT:?}", picked.len()))
            .expect("a sender is held");
        picked.extend(pick(&heard));
    }
    picked
}

async fn listen(
    mut events: mpsc::Receiver<Event>,
    stream: Arc<Stream>,
    position: Arc<Mutex<Position>>,
    refused: Arc<AtomicBool>,
    heard: mpsc::UnboundedSender<Heard>,
) {
    let mark = format!("\"name\":\"{MARK}\"");
    while let Some(event) = events.recv().await {
        let now = Instant::now();
        let word = match event {
            Event::Opened { .. } => Some(Heard::Opened(now)),
            Event::Changes {
                records,
                position: reached,
            } => {
                stream.set_position(reached.clone());
                *position.lock().expect("no panic") = reached;
                let with = |text: &str| records.iter().find(|r| r.payload.contains(text));
                let marked = with(&mark).and_then(Envelope::header);
                match (marked, with("\"kind\":\"policy\"")) {
                    (Some(header), _) => Some(Heard::Change(now, header.version)),
                    (_, Some(_)) => Some(Heard::Policy(now)),
                    _ => None,
                }
            }
            Event::Published { refused, .. } => {
                assert!(refused.is_empty(), "{refused:?}");
                Some(Heard::Stored)
            }
            Event::Closed { refusal, .. } => {
                if refusal.is_some() {
                    refused.store(true, Ordering::Relaxed);
                }
                None
            }
            Event::Alive
            | Event::Admitted { .. }
            | Event::Seen(_)
            | Event::Called { .. }
            | Event::Summary(_) => None,
        };
        if word.is_some_and(|word| heard.send(word).is_err()) {
            return;
        }
    }
}
