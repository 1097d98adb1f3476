//! Nodes without a meshd: a test has their keys and sends their messages.

use meshd::model::address::Block;
use meshd::model::{KeyProof, PublicKey, SigningKey, WireGuardKey};
use meshd::node::control::join::{JoinError, join};
use meshd::protocol::JoinToken;
use meshd::protocol::join::JoinRequest;
use meshd::records::Envelope;
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
    /// Makes an identity with random keys.
    pub(crate) fn new() -> Self {
        Self {
            identity: SigningKey::from_seed(&random()),
            wireguard: StaticSecret::from(random()),
        }
    }

    /// Returns an identity whose seeds are all bytes `n`, so that it is the same in every run.
    pub(crate) fn of(n: u8) -> Self {
        Self {
            identity: SigningKey::from_seed(&[n; 32]),
            wireguard: StaticSecret::from([n; 32]),
        }
    }

    /// Reads the keys that an intruder finds in a node's state directory.
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

/// An identity that has joined a mesh.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) identity: Identity,
    pub(crate) name: String,
    /// The token with which it joined.
    pub(crate) token: JoinToken,
    pub(crate) membership: Envelope,
    /// The block that the coordinator leased to it.
    pub(crate) block: Block,
}

impl Member {
    /// Joins with a token, as every node does.
    pub(crate) async fn join(token: &JoinToken, name: &str) -> Result<Self, JoinError> {
        let identity = Identity::new();
        let membership =
            record::membership(token.key.public(), &identity, name).signed_by(&token.key);
        let request = JoinRequest::make(membership.clone(), identity.key());
        let joined = join(&token.urls, token.pin, &request).await?;
        Ok(Self {
            identity,
            name: name.to_owned(),
            token: token.clone(),
            membership,
            block: joined.block,
        })
    }

    pub(crate) fn key(&self) -> &SigningKey {
        self.identity.key()
    }

    pub(crate) fn id(&self) -> PublicKey {
        self.identity.id()
    }

    /// Opens its control stream, with an instance.
    pub(crate) async fn stream(&self, coordinator: &impl At) -> Stream {
        Stream::open(coordinator, self.key(), &Hello::default())
            .await
            .expect("a member is welcome")
    }

    /// Its node record as an honest node makes it, with the proof that it has the secret of its WireGuard key.
    pub(crate) fn node(&self) -> Draft {
        let secret = self.identity.wireguard.to_bytes();
        let proof = KeyProof::make(&secret, &self.id(), &random());
        self.unproved_node().with("key_proof", proof)
    }

    /// Its node record as nodes of earlier versions make it, without that proof.
    pub(crate) fn unproved_node(&self) -> Draft {
        record::node(self.id(), self.identity.wireguard_key(), &self.block)
    }

    /// A service record of its own, with one instance at its own address.
    pub(crate) fn service(&self, name: &str) -> Draft {
        let instance = record::instance("web-1", self.block.node_v4(), 80);
        record::service(self.id(), name, &[instance])
    }

    /// A record of an unknown kind that it has signed.
    pub(crate) fn unknown(&self, kind: &str, id: impl ToString) -> Envelope {
        record::unknown(kind, id).signed_by(self.key())
    }
}
