//! Why a ledger refuses a record.

use super::usage;
use crate::records::RecordKey;
use crate::records::envelope::MAX_PAYLOAD;
use crate::records::kinds::RecordError;

/// Why a ledger refused a record. The ledger did not change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The signature is not that of the signer over the payload.
    #[error("the signature does not hold")]
    Signature,
    /// The payload is longer than [`MAX_PAYLOAD`].
    #[error("the record has {0} bytes; {MAX_PAYLOAD} are the most")]
    TooLong(usize),
    /// The payload breaks the rules of its kind.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Only another key may sign this record.
    #[error("the record {0} is not signed by who may say it")]
    Signer(RecordKey),
    /// The ledger holds a newer version.
    #[error("the record {key} has version {offered}; version {held} is known")]
    Stale {
        /// The key of the record.
        key: RecordKey,
        /// The version that was refused.
        offered: u64,
        /// The version that the ledger holds.
        held: u64,
    },
    /// The ledger holds another payload with the same version, and keeps it.
    #[error("the record {0} exists in two forms with one version")]
    Forked(RecordKey),
    /// The membership is dated before its token was made.
    #[error("the membership is dated before its token was made")]
    BeforeToken,
    /// The ledger holds another membership of the node, which only the node may replace. The offered one has no proof of the node.
    #[error("the node does not prove that it wants to replace its membership")]
    Unproven,
    /// Another node has the name.
    #[error("the name {0} belongs to another node")]
    NameTaken(String),
    /// The proof of the WireGuard key does not verify.
    #[error("the node does not prove that it holds its WireGuard key")]
    KeyProof,
    /// Another node has the WireGuard key.
    #[error("the WireGuard key belongs to another node")]
    KeyTaken,
    /// The ledger does not hold the token of the membership.
    #[error("the membership's token is not known")]
    UnknownToken,
    /// The token was revoked, and the revocation does not spare the membership.
    #[error("the token is revoked")]
    TokenRevoked,
    /// The token has admitted the maximum number of nodes.
    #[error("the token has admitted {0} node(s), all it may")]
    TokenSpent(u32),
    /// The membership is dated after the expiry of its token.
    #[error("the token is expired")]
    TokenExpired,
    /// The membership has a tag that its token does not grant.
    #[error("the token does not grant the tag {0}")]
    Tag(String),
    /// The node was revoked, or it departed.
    #[error("the node is removed from the mesh")]
    NodeRevoked,
    /// The signer is not a member.
    #[error("the node is not a member")]
    NotAMember,
    /// The ledger does not hold the mesh record, so the address plan is not known.
    #[error("the mesh record is not known")]
    NoMesh,
    /// The address block is not a block of the address plan.
    #[error("the address block {0} is none of this mesh")]
    ForeignBlock(String),
    /// Another node has the address block.
    #[error("the address block {0} belongs to another node")]
    BlockTaken(String),
    /// An endpoint is an address of the mesh.
    #[error("the address {0} belongs to another node")]
    ForeignAddress(std::net::IpAddr),
    /// The record would exceed a bound on the records of its node.
    #[error("the node's records are over their bound: {0}")]
    Full(usage::Bound),
}
