//! Joining: `POST /v1/join` at a coordinator, over TLS pinned by the token.

use serde::{Deserialize, Serialize};

use super::control::{OLDEST, PROTOCOL};
use crate::model::SigningKey;
use crate::model::address::Block;
use crate::records::envelope::{Envelope, Purpose, Signature};

/// Path of the join call.
pub const PATH: &str = "/v1/join";
/// Path of the call that tries a join and changes nothing. It takes a [`JoinRequest`] and returns a [`JoinCheck`]; a
/// coordinator of an earlier version answers that there is nothing at this path.
pub const CHECK_PATH: &str = "/v1/join/check";

/// Asks to be admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The newest version of the control protocol that the node speaks.
    pub protocol: u32,
    /// The oldest; absent if it speaks one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<u32>,
    /// The membership certificate, signed with the token's key.
    pub membership: Envelope,
    /// The identity key's signature over the membership's payload: proof that the joiner holds it.
    pub proof: Signature,
}

impl JoinRequest {
    /// Of the node that has the key `identity` and speaks what this version does.
    #[must_use]
    pub fn make(membership: Envelope, identity: &SigningKey) -> Self {
        Self {
            protocol: PROTOCOL,
            oldest: Some(OLDEST),
            proof: Signature::make(identity, Purpose::Join, membership.payload.as_bytes()),
            membership,
        }
    }
}

/// The node is in. Asking again with the same membership gives the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinResponse {
    /// The addresses leased to the node.
    pub block: Block,
    /// Mesh record, token certificate and membership: what the node needs to verify its own place.
    pub records: Vec<Envelope>,
    /// The revision that admitted it.
    pub revision: u64,
}

/// The node would be admitted, as things stand. Nothing is spent or leased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinCheck {
    /// The mesh record and the token certificate, with which the node checks that the mesh's addresses fit its host.
    pub records: Vec<Envelope>,
}
