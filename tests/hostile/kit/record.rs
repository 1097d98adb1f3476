//! Records of every kind, as JSON. A key signs the JSON as it is, valid or not.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use ipnet::Ipv6Net;
use meshd::model::address::{Block, MeshAddresses};
use meshd::model::time::{UnixSeconds, next_version};
use meshd::model::{PublicKey, SigningKey, WireGuardKey};
use meshd::records::Envelope;
use meshd::records::kinds::{MESH_ID, Record, RecordKey};
use serde::Serialize;
use serde_json::{Value, json};

use super::Identity;

/// A payload that is not signed yet: its fields in the order in which they are written. Kind, id and version are first, as the
/// programs write them.
#[derive(Debug, Clone)]
pub(crate) struct Draft(Vec<(String, Value)>);

impl Draft {
    /// Makes a draft of any kind. Its version is above that of every draft before it.
    pub(crate) fn new(kind: &str, id: impl ToString) -> Self {
        Self(Vec::new())
            .with("kind", kind)
            .with("id", id.to_string())
            .with("version", new_version())
    }

    /// Sets a field, which may exist already.
    pub(crate) fn with(mut self, field: &str, value: impl Serialize) -> Self {
        let value = serde_json::to_value(value).expect("plain data");
        match self.0.iter_mut().find(|(name, _)| name == field) {
            Some((_, held)) => *held = value,
            None => self.0.push((field.to_owned(), value)),
        }
        self
    }

    pub(crate) fn version(self, version: u64) -> Self {
        self.with("version", version)
    }

    pub(crate) fn payload(&self) -> String {
        let fields = self
            .0
            .iter()
            .map(|(name, value)| format!("{name:?}:{value}"));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }

    fn text(&self, field: &str) -> &str {
        let found = self.0.iter().find(|(name, _)| name == field);
        let text = found.and_then(|(_, value)| value.as_str());
        text.expect("a text")
    }

    /// Adds the proof of the node that the membership in this draft is about. All other fields must be set before.
    pub(crate) fn proven_by(self, identity: &SigningKey) -> Self {
        let Ok((_, Record::Membership(membership))) = Record::parse(&self.payload()) else {
            unreachable!("a membership")
        };
        let proof = membership.proven_by(identity).proof;
        self.with("proof", proof)
    }

    /// Adds a field `padding` of `bytes` bytes.
    pub(crate) fn padded(self, bytes: usize) -> Self {
        self.with("padding", "x".repeat(bytes))
    }

    pub(crate) fn key(&self) -> RecordKey {
        RecordKey::parse(self.text("kind"), self.text("id"))
    }

    /// Signs the draft with `key`, whether or not a receiver accepts such a record from that key.
    pub(crate) fn signed_by(&self, key: &SigningKey) -> Envelope {
        Envelope::seal_payload(self.payload(), key)
    }

    /// Signs the draft with `key` and names `signer` as its signer.
    pub(crate) fn forged(&self, key: &SigningKey, signer: PublicKey) -> Envelope {
        Envelope {
            signer,
            ..self.signed_by(key)
        }
    }
}

/// Returns a version above all that it returned before, as [`next_version`] makes them.
pub(crate) fn new_version() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let next = |last| Some(next_version(last, SystemTime::now()));
    let last = LAST.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
    next_version(last.unwrap_or_else(|last| last), SystemTime::now())
}

/// The time now, as records have it.
pub(crate) fn now() -> u64 {
    UnixSeconds::from_system(SystemTime::now()).0
}

/// The address plan of the meshes in these tests, which is the default one with the IPv6 prefix `prefix_v6`.
pub(crate) fn plan(prefix_v6: Ipv6Net) -> MeshAddresses {
    MeshAddresses {
        prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
        prefix_v6,
        node_block_v4: 24,
        node_block_v6: 64,
    }
}

pub(crate) fn mesh(addresses: &MeshAddresses) -> Draft {
    let mut draft = Draft::new("mesh", MESH_ID).with("domain", "mesh");
    let Ok(Value::Object(plan)) = serde_json::to_value(addresses) else {
        unreachable!("an object")
    };
    draft.0.extend(plan);
    draft
}

/// A token for one node, valid for an hour.
pub(crate) fn token(id: PublicKey) -> Draft {
    Draft::new("token", id)
        .with("tags", [""; 0])
        .with("uses", 1)
        .with("created_at", now())
        .with("expires_at", now() + 3600)
}

/// The membership with which `member` joins, with its own WireGuard key and the time now.
pub(crate) fn membership(token: PublicKey, member: &Identity, name: &str) -> Draft {
    Draft::new("membership", member.id())
        .with("token", token)
        .with("name", name)
        .with("wireguard_key", member.wireguard_key())
        .with("tags", [""; 0])
        .with("issued_at", now())
}

pub(crate) fn revocation_of_token(token: PublicKey) -> Draft {
    Draft::new("revocation", token)
        .with("revoked", "token")
        .with("at", now())
}

pub(crate) fn revocation_of_node(node: PublicKey) -> Draft {
    Draft::new("revocation", node)
        .with("revoked", "node")
        .with("at", now())
}

/// The departure of a node. A node always makes the same one, so its version is 1.
pub(crate) fn departure(node: PublicKey) -> Draft {
    Draft::new("departure", node).version(1)
}

pub(crate) fn node(node: PublicKey, key: WireGuardKey, block: &Block) -> Draft {
    Draft::new("node", node)
        .with("wireguard_key", key)
        .with("v4", block.v4)
        .with("v6", block.v6)
        .with("endpoints", [""; 0])
}

pub(crate) fn name(node: PublicKey, name: &str) -> Draft {
    Draft::new("name", node).with("name", name)
}

/// A service of `node` with these instances (see [`instance`]). Without instances the service is withdrawn.
pub(crate) fn service(node: PublicKey, name: &str, instances: &[Value]) -> Draft {
    Draft::new("service", format!("{node}/{name}"))
        .with("node", node)
        .with("name", name)
        .with("instances", instances)
}

/// A healthy instance with one TCP port.
pub(crate) fn instance(id: &str, address: impl Into<IpAddr>, port: u16) -> Value {
    json!({
        "id": id, "addresses": [address.into()], "ports": [{"number": port, "protocol": "tcp"}],
        "health": "healthy", "weight": 10, "priority": 0, "source": "cli",
    })
}

/// A record of a kind that no program knows.
pub(crate) fn unknown(kind: &str, id: impl ToString) -> Draft {
    Draft::new(kind, id)
}

/// Makes `count` small records of an unknown kind, all signed by `key`.
pub(crate) fn many_unknown(kind: &str, count: usize, key: &SigningKey) -> Vec<Envelope> {
    let records = (0..count).map(|n| unknown(kind, n).signed_by(key));
    records.collect()
}

/// An endpoint at which no node can be reached.
pub(crate) fn endpoint() -> SocketAddr {
    "198.51.100.66:51820".parse().expect("a literal")
}
