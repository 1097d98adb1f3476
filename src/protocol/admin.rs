//! The coordinator's administration API: HTTP over a Unix socket. The coordinator checks the credentials of the caller's process.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET /v1/mesh` | | [`MeshState`] |
//! | `POST /v1/mesh` | [`Submit`] with a mesh record | [`Submitted`] |
//! | `GET /v1/records` | | [`RecordList`] |
//! | `POST /v1/records` | [`Submit`] with token certificates, revocations or a policy | [`Submitted`] |
//! | `GET /v1/tokens` | | [`TokenList`] |
//! | `GET /v1/tokens/{id}/memberships` | | [`TokenMemberships`] |
//! | `GET /v1/nodes` | | [`NodeList`] |
//! | `POST /v1/api-tokens` | [`ApiCertificate`], which the audit log names | [`ApiTokenNoted`] |
//! | `GET /v1/api-tokens/revoked` | | [`RevokedApiTokens`] |
//!
//! An API token is made and revoked like a record, and its text is sent to nobody: `meshctl` sends the certificate without the signature.
//!
//! The mesh key is never sent to the coordinator. The caller signs, and the coordinator verifies the signature as every node does.

use serde::{Deserialize, Serialize};

use super::api_token::ApiCertificate;
use super::token::SpkiPin;
use super::url::CoordinatorUrl;
use crate::model::time::UnixSeconds;
use crate::model::{Label, MeshAddresses, PublicKey};
use crate::records::envelope::Envelope;
use crate::records::kinds::Mesh;

/// The state of the coordinator that an administrator's command needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshState {
    /// The mesh's public key. It is absent before `meshctl init`.
    pub mesh_key: Option<PublicKey>,
    /// The mesh record. It is absent before `meshctl init`.
    pub mesh: Option<Mesh>,
    /// The URLs at which nodes reach this coordinator.
    pub urls: Vec<CoordinatorUrl>,
    /// The hash of this coordinator's TLS key, which nodes pin.
    pub pin: SpkiPin,
    /// The domain for a new mesh, from the coordinator's configuration.
    pub configured_domain: Label,
    /// The address plan for a new mesh, from the configuration. Its IPv6 prefix is random and differs in each answer until a
    /// mesh record has fixed it.
    pub configured_addresses: MeshAddresses,
    /// The URLs that did not lead back to this coordinator when it last checked them. A coordinator of an earlier version does not
    /// check them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub url_problems: Vec<UrlProblem>,
}

/// A URL that does not lead back to the coordinator that has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UrlProblem {
    pub url: CoordinatorUrl,
    /// What the coordinator found at the URL.
    pub why: String,
    /// What to do.
    pub fix: String,
}

/// Signed records to store. The coordinator stores all of them or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    /// The key up to which every record is verified. It is present only with the first mesh record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_key: Option<PublicKey>,
    pub records: Vec<Envelope>,
}

/// The answer when the records are on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// The revision that contains the records.
    pub revision: u64,
}

/// All records of the mesh, in an order in which a ledger accepts them. The caller verifies them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordList {
    /// The version of this document: 1.
    pub schema: u32,
    pub records: Vec<Envelope>,
}

/// All token certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenList {
    /// The version of this document: 1.
    pub schema: u32,
    /// The tokens, the newest first.
    pub tokens: Vec<TokenRow>,
}

/// The members that a token admitted, as their membership certificates. The caller verifies the certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMemberships {
    /// The version of this document: 1.
    pub schema: u32,
    /// The memberships of nodes that were not removed.
    pub memberships: Vec<Envelope>,
}

/// The path that returns [`TokenMemberships`] for the token `id`.
#[must_use]
pub fn memberships_path(id: &PublicKey) -> String {
    format!("/v1/tokens/{id}/memberships")
}

/// A token as `meshctl token list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// The token's public key.
    pub id: PublicKey,
    /// The tags that the token grants.
    pub tags: Vec<Label>,
    /// The number of nodes that it may admit.
    pub uses: u32,
    /// The number of nodes that it has admitted.
    pub used: u32,
    /// The time when it was made.
    pub created_at: UnixSeconds,
    /// The time from which it admits nobody.
    pub expires_at: UnixSeconds,
    /// Whether the coordinator removes the token's nodes when they stay away.
    pub ephemeral: bool,
    /// Whether the token can admit a node, and why not.
    pub state: TokenState,
}

/// The answer when the event of a new API token is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiTokenNoted {
    /// The token.
    pub id: PublicKey,
}

impl From<&ApiCertificate> for ApiTokenNoted {
    fn from(certificate: &ApiCertificate) -> Self {
        Self { id: certificate.id }
    }
}

/// The API tokens that the administrator revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedApiTokens {
    /// The version of this document: 1.
    pub schema: u32,
    pub ids: Vec<PublicKey>,
}

/// Whether a token can admit a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// The token can admit a node.
    Valid,
    /// The token has admitted as many nodes as it may.
    Spent,
    /// The token has expired.
    Expired,
    /// The administrator revoked the token.
    Revoked,
}

/// All members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeList {
    /// The version of this document: 1.
    pub schema: u32,
    /// The nodes in the order of their names.
    pub nodes: Vec<NodeRow>,
}

/// A node as `meshctl node list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// The node's identity key.
    pub id: PublicKey,
    pub name: Label,
    /// The tags that its token granted.
    pub tags: Vec<Label>,
    /// Its IPv4 address in the mesh.
    pub address_v4: Option<std::net::Ipv4Addr>,
    /// Its IPv6 address in the mesh.
    pub address_v6: Option<std::net::Ipv6Addr>,
    /// The addresses at which its tunnel may be reached.
    pub endpoints: Vec<std::net::SocketAddr>,
    /// Whether its control stream is open.
    pub connected: bool,
    /// The time when it joined, by its own clock.
    pub joined_at: UnixSeconds,
    /// The time when the coordinator last had a control stream of it: now, if it is connected. It is null if there was none since
    /// the coordinator was started.
    #[serde(default)]
    pub last_seen_at: Option<UnixSeconds>,
    /// Its version of meshd. It is null if it is not known.
    #[serde(default)]
    pub version: Option<String>,
}
