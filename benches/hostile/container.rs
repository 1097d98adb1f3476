//! The attacks of one container of the node, which can reach the node's resolver.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

use crate::engine;
use crate::kit::record;
use crate::setting::{Ground, Setting};
use crate::usage::give_way;

const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 210, 0, 53)), 53);
/// How long a client waits for an answer.
const WAIT_TIMEOUT: Duration = Duration::from_secs(2);
/// The time between two queries of the node's host.
const PACE: Duration = Duration::from_millis(10);
/// How many instances, each with how many ports, the attacker's service has: a node may publish no larger one.
const INSTANCES: usize = 100;
const PORTS: u16 = 16;

fn query(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).expect("a name");
    query.add_query(Query::query(name, kind));
    query.to_vec().expect("a small message")
}

/// Makes the second host a container of the node, on a bridge of the node's container engine.
pub(crate) fn attach(setting: &Setting) {
    let (node, container) = (setting.node(), setting.others());
    engine::attach(node, container);
    engine::start(node, "docker0", "172.17.0.0/16", None);
    let asks = || asks(&query(1, "n1.node.mesh.", RecordType::A)).is_some();
    setting.mesh.wait_until("the container is answered", || {
        container.inside(asks).expect("a namespace")
    });
}

fn asks(bytes: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.set_read_timeout(Some(WAIT_TIMEOUT)).ok()?;
    socket.send_to(bytes, RESOLVER).ok()?;
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// Asks for the node's name every [`PACE`] until `stop`.
pub(crate) fn probe(stop: &AtomicBool) -> Vec<(Instant, Option<Duration>)> {
    let mut probes = Vec::new();
    let bytes = query(2, "n1.node.mesh.", RecordType::A);
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answer = asks(&bytes);
        probes.push((began, answer.map(|_| began.elapsed())));
        std::thread::sleep(PACE.saturating_sub(began.elapsed()));
    }
    probes
}

/// Sends the queries that `make` makes as fast as it can. Returns a text with the numbers of queries and replies.
pub(crate) fn flood(
    ground: &Ground,
    resolver: SocketAddr,
    make: impl Fn(u64) -> Vec<u8> + Send + Sync,
) -> String {
    let run = || {
        give_way();
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect(resolver).expect("a way");
        socket.set_nonblocking(true).expect("a socket");
        let (mut sent, mut replies, mut buffer) = (0u64, 0u64, vec![0; 65_535]);
        while !ground.is_over() {
            for _ in 0..32 {
                sent += u64::from(socket.send(&make(sent)).is_ok());
            }
            while socket.recv(&mut buffer).is_ok() {
                replies += 1;
            }
        }
        format!("{sent} queries, {replies} replies")
    };
    ground.setting.others().inside(run).expect("a namespace")
}

pub(crate) fn mesh_names(ground: &Ground) -> String {
    let bytes = query(3, "n1.node.mesh.", RecordType::A);
    flood(ground, RESOLVER, move |_| bytes.clone())
}

/// A member publishes a service of the greatest size, and the container asks for it.
pub(crate) fn services(ground: &Ground) -> String {
    let published = ground.run(async || {
        let member = ground.member("large").await;
        let instances: Vec<serde_json::Value> = (0..INSTANCES)
            .map(|n| {
                let address = member.block.node_v4();
                let mut instance = record::instance(&format!("i{n}"), address, 1000);
                let ports = (1000..1000 + PORTS)
                    .map(|number| serde_json::json!({"number": number, "protocol": "tcp"}));
                instance["ports"] = ports.collect();
                instance
            })
            .collect();
        let mut stream = member.stream(&ground.setting.target).await;
        let node = member.node().signed_by(member.key());
        let service = record::service(member.id(), "db", &instances).signed_by(member.key());
        let answer = stream.publish(vec![node, service]).await;
        (answer.accepted(), answer.refused().to_vec())
    });
    let bytes = query(4, "db.svc.mesh.", RecordType::SRV);
    let flooded = flood(ground, RESOLVER, move |_| bytes.clone());
    match published {
        (2, _) => flooded,
        (accepted, refused) => format!("{flooded}; {accepted} accepted, {refused:?}"),
    }
}

pub(crate) fn names_outside(ground: &Ground) -> String {
    flood(ground, RESOLVER, name_outside)
}

/// The query for the `n`-th of the names that no server answers for.
pub(crate) fn name_outside(n: u64) -> Vec<u8> {
    query(n as u16, &format!("n{n}.example.org."), RecordType::A)
}

pub(crate) fn connections(ground: &Ground) -> String {
    let run = || {
        give_way();
        let (mut held, mut opened, mut refused) = (Vec::new(), 0u64, 0u64);
        while !ground.is_over() {
            match TcpStream::connect_timeout(&RESOLVER, Duration::from_millis(200)) {
                Ok(stream) if held.len() < 4096 => {
                    opened += 1;
                    held.push(stream);
                }
                Ok(_) => opened += 1,
                Err(_) => refused += 1,
            }
        }
        format!("{opened} opened, {refused} refused")
    };
    ground.setting.others().inside(run).expect("a namespace")
}
