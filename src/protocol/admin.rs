//! The coordinator's admin API: HTTP over a unix socket, checked by peer credentials.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET /v1/mesh` | | [`MeshState`] |
//! | `POST /v1/mesh` | [`Submit`] with a mesh record | [`Submitted`] |
//! | `POST /v1/records` | [`Submit`] with token certificates or revocations | [`Submitted`] |
//! | `GET /v1/tokens` | | [`TokenList`] |
//! | `GET /v1/tokens/{id}/memberships` | | [`TokenMemberships`] |
//! | `GET /v1/nodes` | | [`NodeList`] |
//!
//! The mesh key never comes here: the caller signs, the coordinator verifies as everybody does.

use serde::{Deserialize, Serialize};

use super::token::SpkiPin;
use super::url::CoordinatorUrl;
use crate::model::time::UnixSeconds;
use crate::model::{Label, MeshAddresses, PublicKey};
use crate::records::envelope::Envelope;
use crate::records::kinds::Mesh;

/// What an administrator's command needs to know of the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshState {
    /// The mesh's public key; absent before `meshctl init`.
    pub mesh_key: Option<PublicKey>,
    /// The mesh record; absent before `meshctl init`.
    pub mesh: Option<Mesh>,
    /// Where nodes reach this coordinator.
    pub urls: Vec<CoordinatorUrl>,
    /// The key they find there.
    pub pin: SpkiPin,
    /// Domain for a new mesh, from the coordinator's configuration.
    pub configured_domain: Label,
    /// Address plan for a new mesh, from the configuration. The IPv6 prefix is random, made anew each time
    /// until a mesh record holds one.
    pub configured_addresses: MeshAddresses,
}

/// Signed records to take in, all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    /// Only with a mesh record, the first time: the key to verify everything up to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_key: Option<PublicKey>,
    /// The records.
    pub records: Vec<Envelope>,
}

/// The records are on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// The revision that holds them.
    pub revision: u64,
}

/// All token certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenList {
    /// 1.
    pub schema: u32,
    /// Newest first.
    pub tokens: Vec<TokenRow>,
}

/// The members that a token admitted, as their membership certificates. The caller verifies these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMemberships {
    /// 1.
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
    /// What it grants.
    pub tags: Vec<Label>,
    /// How many nodes it may admit.
    pub uses: u32,
    /// How many it has admitted.
    pub used: u32,
    /// When it was made.
    pub created_at: UnixSeconds,
    /// From when on it admits nobody.
    pub expires_at: UnixSeconds,
    /// Whether its nodes go when they stay away.
    pub ephemeral: bool,
    /// Whether it can admit, and if not why.
    pub state: TokenState,
}

/// Whether a token can admit a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// It can.
    Valid,
    /// It has admitted all it may.
    Spent,
    /// Its time is over.
    Expired,
    /// It was taken back.
    Revoked,
}

/// All members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeList {
    /// 1.
    pub schema: u32,
    /// By name.
    pub nodes: Vec<NodeRow>,
}

/// A node as `meshctl node list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Identity key.
    pub id: PublicKey,
    /// Its name.
    pub name: Label,
    /// What its token granted.
    pub tags: Vec<Label>,
    /// Its mesh address.
    pub address_v4: Option<std::net::Ipv4Addr>,
    /// The same in IPv6.
    pub address_v6: Option<std::net::Ipv6Addr>,
    /// Where its tunnel may be reached.
    pub endpoints: Vec<std::net::SocketAddr>,
    /// Whether its control stream is open now.
    pub connected: bool,
    /// When it joined, by its own clock.
    pub joined_at: UnixSeconds,
}
