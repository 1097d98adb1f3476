//! Joins: `POST /v1/join` at a coordinator, over TLS with the key that the token pins.

use serde::{Deserialize, Serialize};

use super::control::{OLDEST, PROTOCOL};
use crate::model::SigningKey;
use crate::model::address::Block;
use crate::records::envelope::{Envelope, Purpose, Signature};

/// The path of a join.
pub const PATH: &str = "/v1/join";
/// The path of a request that checks a join and changes nothing. It takes a [`JoinRequest`] and returns a [`JoinCheck`]. A
/// coordinator of an earlier version answers that the path does not exist.
pub const CHECK_PATH: &str = "/v1/join/check";

/// A request to be admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The newest version of the control protocol that the node supports.
    pub protocol: u32,
    /// The oldest version that the node supports. It is absent if this is the newest one, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<u32>,
    /// The membership certificate, signed with the token's key.
    pub membership: Envelope,
    /// The signature of the identity key over the payload of the membership. It proves that the node holds the identity key.
    pub proof: Signature,
}

impl JoinRequest {
    /// The request of a node that has the key `identity` and supports the versions of this program.
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

/// The node is admitted. A second request with the same membership gets the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinResponse {
    /// The address block that is leased to the node.
    pub block: Block,
    /// The mesh record, the token certificate and the membership, with which the node verifies its own admission, and the policy, if
    /// there is one.
    pub records: Vec<Envelope>,
    /// The revision that contains the membership.
    pub revision: u64,
}

/// The coordinator would admit the node at present. It has spent and leased nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinCheck {
    /// The mesh record and the token certificate, with which the node checks that the addresses of the mesh fit its host.
    pub records: Vec<Envelope>,
}
