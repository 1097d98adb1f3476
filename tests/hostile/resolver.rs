//! A resolver in the test's process, and clients of every kind. Each client has its own address of the loopback network.
//!
//! The mesh is 127.210.0.0/16. The node has the block 127.210.1.0/24 and answers at the first address of it. All other blocks
//! belong to other nodes. The networks 127.18.0.0/16 and 127.19.0.0/16 are bridges of containers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use meshd::dns::forward::Server;
use meshd::dns::in_tunnel::Device;
use meshd::dns::zone::MAX_ADDRESSES;
use meshd::dns::{
    Allowed, DnsServer, Resolver, TunnelDns, Upstream, WhenNoneUsable, Zone, ZoneInput,
};
use meshd::model::PublicKey;
use meshd::model::address::{Block, MeshAddresses};
use meshd::records::kinds::{Instance, Mesh, Source};
use meshd::records::netmap::Netmap;
use meshd::testbed::records as build;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a test waits for something that has to happen.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A running resolver.
pub(crate) struct Lab {
    pub(crate) resolver: Arc<Resolver>,
    /// The address at which it answers on sockets.
    pub(crate) at: SocketAddr,
    /// Names that the upstream was asked for, in lower case.
    pub(crate) asked: Arc<Mutex<BTreeSet<String>>>,
    _server: DnsServer,
}

/// The address of a container on bridge 1 or 2.
pub(crate) fn container(bridge: u8, n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(127, 17 + bridge, high, low)
}

/// An address of another node's block.
pub(crate) fn of_peer(block: u8, n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 210, block, n)
}

pub(crate) fn mesh_addresses() -> MeshAddresses {
    MeshAddresses {
        prefix_v4: "127.210.0.0/16".parse().expect("a literal"),
        prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
        node_block_v4: 24,
        node_block_v6: 64,
    }
}

pub(crate) fn own_block() -> Block {
    mesh_addresses().block(1).expect("a block")
}

/// Makes the upstream's reply to a query. The second argument is whether the query came over a stream. `None` means no reply.
pub(crate) type Said = fn(&Message, bool) -> Option<Vec<u8>>;

impl Lab {
    /// Starts a resolver whose upstream sends the replies that `said` makes.
    pub(crate) async fn start(said: Said) -> Self {
        let asked = Arc::new(Mutex::new(BTreeSet::new()));
        let upstream = serve(said, Arc::clone(&asked)).await;
        let servers = Upstream::new();
        servers.set(&[Server::from(upstream)], &BTreeSet::new());
        let bridges = ["127.18.0.0/16", "127.19.0.0/16"].map(|net| net.parse().expect("a literal"));
        let allowed = Allowed::new(bridges.to_vec()).with_mesh(mesh_addresses(), own_block());
        let resolver = Arc::new(Resolver::new(
            Arc::new(ArcSwap::from_pointee(zone())),
            Arc::new(ArcSwap::from_pointee(allowed)),
            Arc::new(servers),
        ));
        let mut server = DnsServer::new(Arc::clone(&resolver));
        let node = IpAddr::V4(own_block().node_v4());
        let mut at = None;
        for _ in 0..100 {
            let free = std::net::TcpListener::bind((node, 0)).expect("loopback");
            let address = free.local_addr().expect("bound");
            drop(free);
            if server.listen_on(&[address]).is_empty() {
                at = Some(address);
                break;
            }
        }
        Self {
            resolver,
            at: at.expect("a port that is free for both"),
            asked,
            _server: server,
        }
    }

    /// Starts the resolver's DNS address inside the tunnel device. Returns it with a channel of the datagrams that it sends: to
    /// whom, and the payload.
    pub(crate) fn inside(&self) -> (TunnelDns, mpsc::UnboundedReceiver<(SocketAddr, Vec<u8>)>) {
        let (sender, sent) = mpsc::unbounded_channel();
        let device = Arc::new(Wire(sender));
        let resolver = Arc::clone(&self.resolver);
        let inside = TunnelDns::start(resolver, mesh_addresses(), own_block(), device);
        (inside, sent)
    }

    /// Sends a query over UDP, and again if no reply comes, as clients do.
    pub(crate) async fn ask(&self, from: Ipv4Addr, query: &[u8]) -> Option<Message> {
        let socket = UdpSocket::bind((from, 0)).await.expect("loopback");
        socket.connect(self.at).await.expect("loopback");
        let mut buffer = [0; 4096];
        for _ in 0..12 {
            socket.send(query).await.expect("loopback");
            let received = timeout(LIMIT / 12, socket.recv(&mut buffer)).await;
            if let Ok(length) = received {
                let length = length.expect("loopback");
                return Message::from_vec(&buffer[..length]).ok();
            }
        }
        None
    }

    /// Sends a query over TCP.
    pub(crate) async fn ask_streamed(&self, from: Ipv4Addr, query: &[u8]) -> Option<Message> {
        let mut stream = self.connect(from).await?;
        let asked = async {
            stream.write_all(&framed(query)).await.ok()?;
            let length = stream.read_u16().await.ok()?;
            let mut bytes = vec![0; length.into()];
            stream.read_exact(&mut bytes).await.ok()?;
            Message::from_vec(&bytes).ok()
        };
        timeout(LIMIT, asked).await.ok()?
    }

    pub(crate) async fn connect(&self, from: Ipv4Addr) -> Option<TcpStream> {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((from, 0).into()).expect("loopback");
        socket.connect(self.at).await.ok()
    }

    /// How many different names that begin with `start` the upstream was asked for.
    pub(crate) fn asked_for(&self, start: &str) -> usize {
        let asked = self.asked.lock().expect("nobody panics with it");
        asked.iter().filter(|name| name.starts_with(start)).count()
    }
}

struct Wire(mpsc::UnboundedSender<(SocketAddr, Vec<u8>)>);

impl Device for Wire {
    fn datagram(&self, _: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        // The test may have dropped the receiver.
        let _ = self.0.send((destination, payload.to_vec()));
    }

    fn packet(&self, _: &[u8]) {}
}

pub(crate) fn framed(query: &[u8]) -> Vec<u8> {
    let length = u16::try_from(query.len()).expect("short");
    [&length.to_be_bytes()[..], query].concat()
}

pub(crate) fn query(id: u16, name: &str, record_type: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).expect("a literal");
    message.add_query(Query::query(name, record_type));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message.to_vec().expect("a small message")
}

/// An empty reply to `query`.
pub(crate) fn reply(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&query.queries);
    reply
}

/// The name that a query asks for, in lower case.
pub(crate) fn name_of(query: &Message) -> String {
    let name = query.queries.first().map(|q| q.name().to_lowercase());
    name.map(|name| name.to_string()).unwrap_or_default()
}

/// Replies with one address for every name. There is no reply for names that begin with `hang`.
pub(crate) fn an_address(query: &Message, _: bool) -> Option<Vec<u8>> {
    if name_of(query).starts_with("hang") {
        return None;
    }
    let mut reply = reply(query);
    let data = RData::A(Ipv4Addr::new(192, 0, 2, 7).into());
    let name = query.queries.first()?.name().clone();
    reply.add_answer(Record::from_rdata(name, 60, data));
    reply.to_vec().ok()
}

async fn serve(said: Said, asked: Arc<Mutex<BTreeSet<String>>>) -> SocketAddr {
    let (socket, listener) = loop {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
        let address = socket.local_addr().expect("bound");
        if let Ok(listener) = TcpListener::bind(address).await {
            break (socket, listener);
        }
    };
    let address = socket.local_addr().expect("bound");
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let Ok(query) = Message::from_vec(&buffer[..length]) else {
                continue;
            };
            noted.lock().expect("no panic").insert(name_of(&query));
            if let Some(bytes) = said(&query, false) {
                let _ = socket.send_to(&bytes, client).await;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut bytes = vec![0; length.into()];
                    stream.read_exact(&mut bytes).await.ok()?;
                    let query = Message::from_vec(&bytes).ok()?;
                    asked.lock().expect("no panic").insert(name_of(&query));
                    stream.write_all(&framed(&said(&query, true)?)).await.ok()?;
                }
                Some(())
            });
        }
    });
    address
}

/// How many instances the services `many` and `large` have, and how many ports each instance of `many` has.
pub(crate) const MANY: u8 = 105;
pub(crate) const LARGE: u8 = 200;
const PORTS: u16 = 16;

/// A zone with three services: `web` has one instance, `many` has [`MANY`] with [`PORTS`] ports each, and `large` has [`LARGE`]
/// with one port each.
fn zone() -> Zone {
    let id = PublicKey([1; 32]);
    let mesh = Mesh {
        addresses: mesh_addresses(),
        ..build::mesh()
    };
    let member = build::member(&id, "n1", own_block());
    let mut netmap = Netmap {
        mesh: Some(mesh),
        ..Netmap::default()
    };
    netmap.members.insert(id, member);
    for (name, instances, ports) in [("web", 1, 1), ("many", MANY, PORTS), ("large", LARGE, 1)] {
        let instance = |n: u8| Instance {
            ports: (0..ports).map(|n| build::port(8_000 + n, None)).collect(),
            weight: 1,
            source: Source::Docker,
            ..build::instance(&format!("{name}-{n}"), vec![[127, 210, 1, 2 + n].into()])
        };
        let service = build::service(&id, name, (0..instances).map(instance).collect());
        netmap.services.insert(service.id.clone(), service);
    }
    Zone::build(&ZoneInput {
        netmap: &netmap,
        held: &meshd::records::service_address::ServiceAddresses::default(),
        own: id,
        unreachable: &BTreeSet::new(),
        groups: &BTreeMap::new(),
        when_none_usable: WhenNoneUsable::All,
        lingering: &BTreeSet::new(),
        balanced: &BTreeSet::new(),
        serial: 1,
        most_addresses: MAX_ADDRESSES,
    })
}

/// The resident memory of the test's process in KiB.
pub(crate) fn resident_kib() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages = text.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok());
    pages.expect("a number") * 4
}

/// Returns the next message id. Ids count up.
pub(crate) fn next_id() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) as u16
}
