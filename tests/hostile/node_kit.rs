//! Attackers of a mesh of real nodes: members without a meshd, and the secrets that an intruder finds on a node.

use std::net::SocketAddr;

use meshd::model::SigningKey;
use meshd::model::address::Block;
use meshd::node::control::join::join;
use meshd::node::state::{Identity as Stored, StateDir};
use meshd::protocol::JoinToken;
use meshd::protocol::join::JoinRequest;
use meshd::protocol::token::SpkiPin;
use meshd::testbed::Host;

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

/// Reads the mesh key from the administrator's file.
pub(crate) fn mesh_key(mesh: &Mesh) -> SigningKey {
    let text = std::fs::read_to_string(mesh.coordinator_host.path("/run/mesh.key"));
    let seed = text.expect("the administrator's file");
    let seed: meshd::model::PublicKey = seed.trim().parse().expect("a seed in hexadecimal");
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
