//! Attackers of a mesh of real nodes: members without a meshd, and the secrets that an intruder finds on a node.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use meshd::model::address::Block;
use meshd::model::{PublicKey, SigningKey};
use meshd::node::control::join::join;
use meshd::node::state::{Identity as Stored, StateDir};
use meshd::protocol::JoinToken;
use meshd::protocol::join::JoinRequest;
use meshd::protocol::token::SpkiPin;
use meshd::testbed::{Host, Running};

use crate::kit::{Identity, Stream, record};
use crate::mesh::Mesh;

/// Runs `work` in the network namespace of a host.
pub(crate) fn run_on<T: Send>(host: &Host, work: impl AsyncFnOnce() -> T + Send) -> T {
    host.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(work())
    })
    .expect("a namespace")
}

/// Runs `work` in the network namespace of the coordinator.
pub(crate) fn beside_the_coordinator<T: Send>(
    mesh: &Mesh,
    work: impl AsyncFnOnce() -> T + Send,
) -> T {
    run_on(&mesh.coordinator_host, work)
}

/// A token that admits one node.
pub(crate) fn token(mesh: &Mesh) -> JoinToken {
    JoinToken::parse(&mesh.token(&[])).expect("just made")
}

/// The address of a mesh's coordinator, and the pin of its TLS key.
pub(crate) fn at(mesh: &Mesh, token: &JoinToken) -> (SocketAddr, SpkiPin) {
    let address = SocketAddr::new(mesh.coordinator_host.v4().into(), 7443);
    (address, token.pin)
}

/// A member without a meshd: its keys, its block, and the address and pin of the coordinator.
pub(crate) struct Intruder {
    pub(crate) identity: Identity,
    pub(crate) block: Block,
    pub(crate) at: (SocketAddr, SpkiPin),
}

impl Intruder {
    /// Joins as every node does.
    pub(crate) fn join(mesh: &Mesh, name: &str) -> Self {
        let token = token(mesh);
        let identity = Identity::new();
        let membership =
            record::membership(token.key.public(), &identity, name).signed_by(&token.key);
        let request = JoinRequest::make(membership, identity.key());
        let response =
            beside_the_coordinator(mesh, async || join(&token.urls, token.pin, &request).await);
        Self {
            identity,
            block: response.expect("an unspent token").block,
            at: at(mesh, &token),
        }
    }

    /// Publishes records on a new stream. Returns how many of them were accepted.
    pub(crate) fn publish(&self, mesh: &Mesh, records: Vec<meshd::records::Envelope>) -> u32 {
        beside_the_coordinator(mesh, async || {
            let mut stream = Stream::open(&self.at, self.identity.key(), &Default::default())
                .await
                .expect("a member is welcome");
            stream.publish(records).await.accepted()
        })
    }
}

/// Reads the keys of a node, as an intruder does, from its state directory.
pub(crate) fn stolen_keys(mesh: &Mesh, n: usize) -> Stored {
    StateDir::open(&mesh.nodes[n].host.path("/run/state"))
        .and_then(|dir| dir.identity())
        .expect("its own directory")
        .expect("it has joined")
}

/// Puts a plain WireGuard device with the keys of node `n` in the place of its meshd. Its peers are the nodes `peers`.
pub(crate) fn put_plain_device(mesh: &mut Mesh, n: usize, peers: &[usize]) -> Running {
    let (v4, v6) = mesh.addresses(n);
    let keys = Identity::stolen_from(&mesh.nodes[n].host.path("/run/state"));
    let hex = |bytes: [u8; 32]| PublicKey(bytes).to_string();
    let secret = hex(keys.wireguard.to_bytes());
    let mut set = format!("set=1\nprivate_key={secret}\nlisten_port=51820\n");
    for peer in peers {
        let node = mesh.status(*peer).node.expect("it has joined");
        let endpoint = mesh.nodes[*peer].host.v4();
        writeln!(set, "public_key={}", hex(node.public_key.0)).expect("memory");
        writeln!(set, "endpoint={endpoint}:51820").expect("memory");
        writeln!(set, "allowed_ip={}", node.block_v4).expect("memory");
        writeln!(set, "allowed_ip={}", node.block_v6).expect("memory");
    }
    set.push('\n');
    mesh.kill_node(n);
    let host = &mesh.nodes[n].host;
    let mut command = host
        .command(env!("CARGO_BIN_EXE_meshd"))
        .expect("a namespace");
    let log = mesh.logs.path().join("plain-device");
    // The device has the name of meshd's: the firewall rules that the killed meshd left accept the mesh's addresses on
    // no other one.
    let running = host
        .start(command.args(["wireguard", "mesh0"]), &log)
        .expect("a program");
    let path = host.path("/run/wireguard/mesh0.sock");
    let mut socket = None;
    mesh.wait_until("the plain device is there", || {
        socket = UnixStream::connect(&path).ok();
        socket.is_some()
    });
    let mut socket = socket.expect("just connected");
    socket.write_all(set.as_bytes()).expect("it listens");
    let mut answer = [0; 9];
    socket.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"errno=0\n\n");
    mesh.ip(n, &format!("address add {v4}/16 dev mesh0"));
    mesh.ip(n, &format!("address add {v6}/48 dev mesh0 nodad"));
    mesh.ip(n, "link set mesh0 mtu 1420 up");
    running
}

/// Reads the mesh key from the administrator's file.
pub(crate) fn mesh_key(mesh: &Mesh) -> SigningKey {
    let text = std::fs::read_to_string(mesh.coordinator_host.path("/run/mesh.key"));
    let seed = text.expect("the administrator's file");
    let seed: PublicKey = seed.trim().parse().expect("a seed in hexadecimal");
    SigningKey::from_seed(&seed.0)
}

/// The texts of the problems that a node shows in its status.
pub(crate) fn problems(mesh: &Mesh, n: usize) -> Vec<String> {
    let problems = mesh.status(n).problems;
    problems
        .into_iter()
        .map(|p| format!("{}: {} ({})", p.what, p.why, p.fix))
        .collect()
}
