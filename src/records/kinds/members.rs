//! The kinds of records about the mesh, its tokens and its nodes.

use std::net::SocketAddr;

use ipnet::IpNet;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use super::guest::{GuestLease, MAX_GUESTS};
use super::rules::{RecordError, bounded, check_address};
use crate::model::address::{Block, MeshAddresses, is_routable};
use crate::model::key::{IdentityProof, KeyProof, PublicKey, SigningKey, WireGuardKey};
use crate::model::name::Label;
use crate::model::text;
use crate::model::time::UnixSeconds;

/// The maximum number of coordinators of a mesh.
pub const MAX_COORDINATORS: usize = 16;
/// The maximum number of tags of a node.
pub const MAX_TAGS: usize = 32;
/// The maximum length of the version of a node's program, in bytes.
const MAX_PROGRAM_VERSION: usize = 64;
/// The maximum number of endpoints in a node record.
pub const MAX_ENDPOINTS: usize = 16;
/// The maximum number of relays in a node record.
pub const MAX_RELAYS: usize = 3;
/// The maximum number of observed addresses in a node record.
pub const MAX_OBSERVED: usize = 4;
/// The maximum number of mapped endpoints in a node record.
const MAX_MAPPED: usize = 4;
/// The maximum number of networks in a node record.
pub const MAX_ROUTES: usize = 32;
/// The maximum length in bytes of the URL of a stream.
pub const MAX_STREAM_URL: usize = 256;
/// The maximum number of words in `speaks` that are read.
const MAX_WORDS: usize = 16;
/// The maximum length in bytes of a word in `speaks`.
const MAX_WORD: usize = 32;
/// The word of nodes that understand version 1 of the messages about paths (`protocol::path_messages`).
pub const PATHS_1: &str = "paths-1";
/// The word of nodes that follow version 1 of calls (`protocol::call`).
pub const CALLS_1: &str = "calls-1";
/// The word of nodes that pass calls on, and follow calls that a peer passes on (`protocol::path_messages`).
pub const PEER_CALLS_1: &str = "peer-calls-1";
/// The word of nodes that understand version 1 of policies and keep to the one in force.
pub const POLICY_1: &str = "policy-1";
/// The word of nodes that understand policies with routes, and route to the networks in them.
pub const ROUTES_1: &str = "routes-1";
/// The words that this version writes into `speaks`.
pub const SPOKEN: &[&str] = &[PATHS_1, CALLS_1, PEER_CALLS_1, POLICY_1, ROUTES_1];

/// The mesh: its domain and address plan. There is one such record; its id is [`super::MESH_ID`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Always [`super::MESH_ID`].
    pub id: String,
    /// The version, which grows with each change.
    pub version: u64,
    /// The top label of all names, such as `mesh`.
    pub domain: Label,
    /// The address plan.
    #[serde(flatten)]
    pub addresses: MeshAddresses,
    /// The URLs of the coordinators, as `https://host:port`. If there are none, a node uses those of its join token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coordinators: Vec<String>,
}

impl Mesh {
    pub(super) fn check(&self) -> Result<(), RecordError> {
        bounded("coordinators", self.coordinators.len(), MAX_COORDINATORS)?;
        let plan = self.addresses.check();
        plan.map_err(|e| RecordError::Malformed(e.to_string()))
    }
}

/// A token certificate: limits which nodes the holder of a join token may admit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The public half of the token's key.
    pub id: PublicKey,
    /// The version, which grows with each change.
    pub version: u64,
    /// The tags that a membership may have.
    pub tags: Vec<Label>,
    /// The number of nodes that the token may admit.
    pub uses: u32,
    /// When the token was made.
    pub created_at: UnixSeconds,
    /// From this time on the token admits no node.
    pub expires_at: UnixSeconds,
    /// Whether the nodes that the token admits are removed when they stay away.
    #[serde(default)]
    pub ephemeral: bool,
}

impl Token {
    pub(super) fn check(&self) -> Result<(), RecordError> {
        bounded("tags", self.tags.len(), MAX_TAGS)
    }
}

/// What a [`Revocation`] revokes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevokedKind {
    /// A token. It admits no node from then on; nodes that it admitted before may stay.
    Token,
    /// A node. It is removed for good.
    Node,
}

/// The administrator's revocation of a token or node. Its id is the revoked key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The key of the token or node.
    pub id: PublicKey,
    /// The version, which grows with each change.
    pub version: u64,
    /// Whether a token or a node is revoked.
    pub revoked: RevokedKind,
    /// When it was revoked.
    pub at: UnixSeconds,
    /// For a token: the nodes admitted by it that stay members. All other nodes that it admitted are removed, whatever date
    /// their certificates have, since the holder of the token chose that date. Revocations of earlier versions do not have
    /// this field: the nodes admitted before `at` stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stays: Option<Vec<PublicKey>>,
}

impl Revocation {
    /// Whether `membership`, which was signed with the revoked token, stays in force.
    #[must_use]
    pub fn spares(&self, membership: &Membership) -> bool {
        match &self.stays {
            Some(stays) => stays.contains(&membership.id),
            None => membership.issued_at < self.at,
        }
    }
}

/// A node's own record that it has left for good: its name and addresses are free. A node signs one when it leaves, or when its
/// join fails after it was admitted. An ephemeral node deposits one with its coordinator in advance, which the coordinator publishes
/// when the node stays away. A machine that joins again has another identity key, so a departure that is sent again removes no
/// other node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// The node's identity key.
    pub id: PublicKey,
    /// The version, which is always 1.
    pub version: u64,
}

impl Departure {
    /// The departure of `id`. All departures of a node are one text, so that ledgers agree whichever they received first.
    #[must_use]
    pub fn of(id: PublicKey) -> Self {
        Self { id, version: 1 }
    }
}

/// A membership certificate. The node that joins signs it with the key of its join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The node's identity key.
    pub id: PublicKey,
    /// The version, which grows with each change.
    pub version: u64,
    /// The token that admits the node.
    pub token: PublicKey,
    /// The node's name: `<name>.node.<domain>`.
    pub name: Label,
    /// The node's WireGuard key when it joined.
    pub wireguard_key: WireGuardKey,
    /// The tags that the node asks for, each one of the token's. If there are none, the node has all tags of the token.
    pub tags: Vec<Label>,
    /// When the certificate was made, by the node's clock.
    pub issued_at: UnixSeconds,
    /// The node's proof that it wants this membership. Without it the holder of any token could replace the membership of another
    /// node. Memberships of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<IdentityProof>,
}

impl Membership {
    /// Returns the membership with the proof of its node, whose identity key is `identity`. All other fields must be set before.
    #[must_use]
    pub fn proven_by(self, identity: &SigningKey) -> Self {
        let proof = IdentityProof::make(identity, &self.content());
        Self {
            proof: Some(proof),
            ..self
        }
    }

    /// Whether the membership contains a valid proof of its node. This verifies a signature.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proof
            .is_some_and(|proof| proof.holds(&self.id, &self.content()))
    }

    /// The bytes that the proof covers. Names and tags contain no zero byte, so two different memberships have different bytes.
    fn content(&self) -> Vec<u8> {
        let mut content = [&self.id.0[..], &self.token.0, &self.wireguard_key.0].concat();
        content.extend(self.version.to_be_bytes());
        content.extend(self.issued_at.0.to_be_bytes());
        for label in std::iter::once(&self.name).chain(&self.tags) {
            content.extend(label.as_str().as_bytes());
            content.push(0);
        }
        content
    }

    pub(super) fn check(&self) -> Result<(), RecordError> {
        bounded("tags", self.tags.len(), MAX_TAGS)
    }
}

/// The record in which a node describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The node's identity key.
    pub id: PublicKey,
    /// The version, which grows with each change.
    pub version: u64,
    /// The WireGuard key of the node's tunnel.
    pub wireguard_key: WireGuardKey,
    /// The proof that the node holds the private key of `wireguard_key`. Records of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_proof: Option<KeyProof>,
    /// The node's address block.
    #[serde(flatten)]
    pub block: Block,
    /// The addresses at which the node's tunnel may be reached, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Whether IPv6 is switched off on the node's machine, so that its IPv6 address cannot be reached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_ipv6: bool,
    /// Service records of this node with a lower version are void. A node raises this version to remove the records of
    /// services that it has withdrawn.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub services_from: u64,
    /// The version of the node's program, for people. Records of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_version: Option<String>,
    /// The words for what the node understands besides the first version, such as [`PATHS_1`]. A reader ignores words that it
    /// does not know. Records of earlier versions have none.
    #[serde(
        default,
        deserialize_with = "known_words",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub speaks: Vec<String>,
    /// The identity keys of the relays that the node is best reached through, best first. Records of earlier versions have none.
    #[serde(
        default,
        deserialize_with = "first::<_, _, MAX_RELAYS>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub relays: Vec<PublicKey>,
    /// The addresses from which others saw the node's datagrams come, if an address translator is on the way. Nothing is sent there
    /// before the node expects that. Records of earlier versions have none.
    #[serde(
        default,
        deserialize_with = "first::<_, _, MAX_OBSERVED>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub observed: Vec<SocketAddr>,
    /// Those of the endpoints that the node's router maps to it on request. Records of earlier versions have none.
    #[serde(
        default,
        deserialize_with = "first::<_, _, MAX_MAPPED>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub mapped: Vec<SocketAddr>,
    /// Where the node relays over TLS, for nodes whose network drops UDP. Records of earlier versions do not have it.
    #[serde(
        default,
        deserialize_with = "known_stream",
        skip_serializing_if = "Option::is_none"
    )]
    pub stream: Option<StreamOffer>,
    /// The WireGuard key of the node's tunnel towards guests. Records of earlier versions, which let no guests in, do not have it.
    #[serde(
        default,
        deserialize_with = "known_key",
        skip_serializing_if = "Option::is_none"
    )]
    pub guest_key: Option<WireGuardKey>,
    /// The addresses that the node leased to its guests. Records of earlier versions have none.
    #[serde(
        default,
        deserialize_with = "first::<_, _, MAX_GUESTS>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub guests: Vec<GuestLease>,
    /// The networks outside the mesh to which the node offers to route. Those that the policy permits are routed. Records of earlier
    /// versions have none, and nodes of earlier versions route to none.
    #[serde(
        default,
        deserialize_with = "first::<_, _, MAX_ROUTES>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub routes: Vec<IpNet>,
}

/// Where a node relays over TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOffer {
    /// The URL that other nodes dial.
    pub url: String,
    /// The hash of the TLS key in hexadecimal, if the node ends TLS itself. Without it a proxy does, whose certificate the other nodes
    /// verify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
}

impl Node {
    /// Returns the endpoints to which every node can send.
    #[must_use]
    pub fn routable_endpoints(&self) -> Vec<SocketAddr> {
        let endpoints = self.endpoints.iter().copied();
        endpoints.filter(|e| is_routable(e.ip())).collect()
    }

    /// Returns the observed addresses to which every node can send.
    #[must_use]
    pub fn routable_observed(&self) -> Vec<SocketAddr> {
        let observed = self.observed.iter().copied();
        observed.filter(|e| is_routable(e.ip())).collect()
    }

    /// Whether the node understands what `word` stands for.
    #[must_use]
    pub fn speaks(&self, word: &str) -> bool {
        self.speaks.iter().any(|spoken| spoken == word)
    }

    /// The version of the node's program in a form that can be printed.
    #[must_use]
    pub fn shown_version(&self) -> Option<String> {
        let version = self.program_version.as_ref();
        version.map(|version| text::printable(version, MAX_PROGRAM_VERSION))
    }

    pub(super) fn check(&self) -> Result<(), RecordError> {
        bounded("endpoints", self.endpoints.len(), MAX_ENDPOINTS)?;
        let version = self.program_version.as_ref();
        bounded(
            "program_version",
            version.map_or(0, String::len),
            MAX_PROGRAM_VERSION,
        )?;
        let mut endpoints = self.endpoints.iter();
        endpoints.try_for_each(|endpoint| check_address(endpoint.ip()))
    }
}

fn known_words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let words = lenient_list(deserializer)?;
    let words = words.filter(|word: &String| word.len() <= MAX_WORD);
    Ok(words.take(MAX_WORDS).collect())
}

fn known_stream<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<StreamOffer>, D::Error> {
    let offer = match Lenient::<StreamOffer>::deserialize(deserializer)? {
        Lenient::Known(offer) => Some(offer),
        Lenient::Other(_) => None,
    };
    Ok(offer.filter(|offer| offer.url.len() <= MAX_STREAM_URL))
}

fn known_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<WireGuardKey>, D::Error> {
    Ok(match Lenient::<WireGuardKey>::deserialize(deserializer)? {
        Lenient::Known(key) => Some(key),
        Lenient::Other(_) => None,
    })
}

/// Reads the first `MOST` entries of a list, as [`lenient_list`] does.
pub(super) fn first<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(lenient_list(deserializer)?.take(MOST).collect())
}

/// Reads the entries of a list that are a `T`, and nothing from a value that is no list. Versions before the field hold the record
/// whatever the field contains, so this version must hold it too.
fn lenient_list<'de, D, T>(deserializer: D) -> Result<impl Iterator<Item = T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let list = match Lenient::<Vec<Lenient<T>>>::deserialize(deserializer)? {
        Lenient::Known(list) => list,
        Lenient::Other(_) => vec![],
    };
    Ok(list.into_iter().filter_map(|entry| match entry {
        Lenient::Known(entry) => Some(entry),
        Lenient::Other(_) => None,
    }))
}

/// A value, or one that this version does not understand.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Lenient<T> {
    Known(T),
    Other(IgnoredAny),
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The name that a node wants instead of the name it joined with. It gets the name if no other node has it; no other node gets the
/// name in its membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// The node's identity key.
    pub id: PublicKey,
    /// The version, which grows with each change.
    pub version: u64,
    /// The wanted name: `<name>.node.<domain>`.
    pub name: Label,
}
