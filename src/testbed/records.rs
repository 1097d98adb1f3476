//! Builds records for unit tests, integration tests, benches and the simulation.
//!
//! Each function fills in values that a valid record has, and takes only those that a test usually chooses. A test changes other fields
//! with the syntax `Token { uses: 5, ..token(&id(2)) }`. Nothing here is random: a key is made of one byte.
//! `tests/hostile/kit/record.rs` writes payloads as JSON instead, because it makes records that these types cannot express.

use std::net::IpAddr;

use crate::model::address::{Block, MeshAddresses};
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey, SigningKey, WireGuardKey};
use crate::records::Envelope;
use crate::records::kinds::{
    Health, Instance, MESH_ID, Membership, Mesh, MeshPolicy, Node, Port, Protocol, Record,
    Revocation, RevokedKind, Service, Source, Token,
};
use crate::records::netmap::{AtRouter, Member};

/// The date of the records.
pub const NOW: UnixSeconds = UnixSeconds(1_800_000_000);
/// The expiry of the tokens, one hour later.
pub const LATER: UnixSeconds = UnixSeconds(1_800_003_600);

/// Returns the key whose seed consists of the byte `n`.
#[must_use]
pub fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

/// Returns the public half of [`key`].
#[must_use]
pub fn id(n: u8) -> PublicKey {
    key(n).public()
}

/// Returns a label.
///
/// # Panics
/// The text is not a label.
#[must_use]
pub fn label(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

/// Returns an address plan with 255 blocks for nodes: 10.210.0.0/16 and fd00:1:2::/48.
#[must_use]
pub fn plan() -> MeshAddresses {
    MeshAddresses {
        prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
        prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
        node_block_v4: 24,
        node_block_v6: 64,
    }
}

/// Returns block `index` of [`plan`].
///
/// # Panics
/// The plan has no such block.
#[must_use]
pub fn block(index: u32) -> Block {
    plan().block(index).expect("in the plan")
}

/// Returns the mesh record with the domain `mesh` and the address plan [`plan`].
#[must_use]
pub fn mesh() -> Mesh {
    Mesh {
        id: MESH_ID.into(),
        version: 1,
        domain: label("mesh"),
        addresses: plan(),
        coordinators: vec![],
    }
}

/// Returns the certificate of a token for one node, without tags.
#[must_use]
pub fn token(id: &PublicKey) -> Token {
    Token {
        id: *id,
        version: 1,
        tags: vec![],
        uses: 1,
        created_at: NOW,
        expires_at: LATER,
        ephemeral: false,
    }
}

/// Returns the membership of a node. The WireGuard key has the bytes of the node's key.
#[must_use]
pub fn membership(node: &PublicKey, token: &PublicKey, name: &str) -> Membership {
    Membership {
        id: *node,
        version: 1,
        token: *token,
        name: label(name),
        wireguard_key: WireGuardKey(node.0),
        tags: vec![],
        issued_at: NOW,
        proof: None,
    }
}

/// Returns a node record without endpoints. The WireGuard key has the bytes of the node's key.
#[must_use]
pub fn node(id: &PublicKey, block: Block) -> Node {
    Node {
        id: *id,
        version: 1,
        wireguard_key: WireGuardKey(id.0),
        key_proof: None,
        block,
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

/// Returns the record of a service that belongs to no project.
#[must_use]
pub fn service(node: &PublicKey, name: &str, instances: Vec<Instance>) -> Service {
    Service {
        id: Service::id_of(node, None, &label(name)),
        version: 1,
        node: *node,
        name: label(name),
        project: None,
        service_address: None,
        instances,
    }
}

/// Returns a healthy instance with TCP port 80.
#[must_use]
pub fn instance(id: &str, addresses: Vec<IpAddr>) -> Instance {
    Instance {
        id: label(id),
        addresses,
        ports: vec![port(80, None)],
        health: Health::Healthy,
        weight: 10,
        priority: 0,
        source: Source::Cli,
        allow: vec![],
        public: vec![],
    }
}

/// Returns a TCP port, which may have a name.
///
/// # Panics
/// The number is 0.
#[must_use]
pub fn port(number: u16, name: Option<&str>) -> Port {
    Port {
        number: number.try_into().expect("not zero"),
        protocol: Protocol::Tcp,
        name: name.map(label),
    }
}

/// Returns the revocation of a token or node, which lists no nodes that stay.
#[must_use]
pub fn revocation(id: &PublicKey, revoked: RevokedKind) -> Revocation {
    Revocation {
        id: *id,
        version: 1,
        revoked,
        at: NOW,
        stays: None,
    }
}

/// Returns the policy with this text, in its first version.
#[must_use]
pub fn policy(text: &str) -> MeshPolicy {
    MeshPolicy::new(1, text)
}

/// Returns a member of a netmap without tags and endpoints. The WireGuard key has the bytes of the node's key.
#[must_use]
pub fn member(id: &PublicKey, name: &str, block: Block) -> Member {
    Member {
        id: *id,
        name: label(name),
        issued_at: NOW,
        tags: vec![],
        wireguard_key: WireGuardKey(id.0),
        block,
        endpoints: vec![],
        without_ipv6: false,
        speaks_paths: false,
        relays: vec![],
        at_router: AtRouter::default(),
        stream: None,
    }
}

/// Signs a record with the key `n`.
#[must_use]
pub fn sealed(record: &Record, n: u8) -> Envelope {
    Envelope::seal(record, &key(n))
}
