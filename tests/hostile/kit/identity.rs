//! Nodes that are nothing but keys.

use meshd::model::address::Block;
use meshd::model::{KeyProof, PublicKey, SigningKey, WireGuardKey};
use meshd::wire::{Envelope, JoinToken};
use serde_json::Value;
use x25519_dalek::StaticSecret;

use super::record::{self, Draft};
use super::{At, Hello, Stream};

/// The secret keys of a node.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) identity: SigningKey,
    pub(crate) wireguard: StaticSecret,
}

pub(crate) fn random() -> [u8; 32] {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).expect("the system has randomness");
    seed
}

impl Identity {
    /// With random keys.
    pub(crate) fn new() -> Self {
        Self {
            identity: SigningKey::from_seed(&random()),
            wireguard: StaticSecret::from(random()),
        }
    }

    /// The `n`-th of those that are the same in every run.
    pub(crate) fn of(n: u8) -> Self {
        Self {
            identity: SigningKey::from_seed(&[n; 32]),
            wireguard: StaticSecret::from([n; 32]),
        }
    }

    /// What an intruder finds in a node's state directory.
    pub(crate) fn stolen_from(state_directory: &std::path::Path) -> Self {
        let path = state_directory.join("identity.json");
        let text = std::fs::read_to_string(path).expect("the node has joined");
        let stored: Value = serde_json::from_str(&text).expect("JSON");
        let seed = |field: &str| {
            let text = stored["keys"][field].as_str().unwrap_or_default();
            text.parse::<PublicKey>().expect("a seed in hexadecimal").0
        };
        Self {
            identity: SigningKey::from_seed(&seed("identity_seed")),
            wireguard: StaticSecret::from(seed("wireguard_secret")),
        }
    }

    pub(crate) fn key(&self) -> &SigningKey {
        &self.identity
    }

    pub(crate) fn id(&self) -> PublicKey {
        self.identity.public()
    }

    pub(crate) fn wireguard_key(&self) -> WireGuardKey {
        WireGuardKey(x25519_dalek::PublicKey::from(&self.wireguard).to_bytes())
    }
}

/// An identity that was admitted.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) identity: Identity,
    pub(crate) name: String,
    /// The token it came with.
    pub(crate) token: JoinToken,
    pub(crate) membership: Envelope,
    /// The addresses leased to it.
    pub(crate) block: Block,
}

impl Member {
    pub(crate) fn key(&self) -> &SigningKey {
        self.identity.key()
    }

    pub(crate) fn id(&self) -> PublicKey {
        self.identity.id()
    }

    /// Its control stream, open as a member's, with an instance.
    pub(crate) async fn stream(&self, coordinator: &impl At) -> Stream {
        Stream::open(coordinator, self.key(), &Hello::default())
            .await
            .expect("a member is welcome")
    }

    /// Its node record, as an honest node makes it: with the proof that the WireGuard key is its own.
    pub(crate) fn node(&self) -> Draft {
        let secret = self.identity.wireguard.to_bytes();
        let proof = KeyProof::make(&secret, &self.id(), &random());
        self.unproved_node().with("key_proof", proof)
    }

    /// The same, as nodes of earlier versions make it.
    pub(crate) fn unproved_node(&self) -> Draft {
        record::node(self.id(), self.identity.wireguard_key(), &self.block)
    }

    /// A service of its own on its own address.
    pub(crate) fn service(&self, name: &str) -> Draft {
        let instance = record::instance("web-1", self.block.node_v4(), 80);
        record::service(self.id(), name, &[instance])
    }

    /// A record of an unknown kind by it.
    pub(crate) fn unknown(&self, kind: &str, id: impl ToString) -> Envelope {
        record::unknown(kind, id).signed_by(self.key())
    }
}
