//! The ends of a control stream.

use crate::protocol::control::Refusal;
use crate::records::envelope::Signature;

/// Why a stream ends.
pub(super) enum End {
    /// The node receives a refusal.
    Refuse(Refusal, String),
    /// Another machine with the node's keys has the session. The node receives that machine's signature, if there is one.
    DuplicateIdentity(Option<Signature>),
    /// The connection is lost.
    Gone,
}

/// The end of the stream of a node that was removed.
pub(super) fn removed() -> End {
    End::Refuse(
        Refusal::Revoked,
        "this node was removed from the mesh; run `meshctl leave` on it".to_owned(),
    )
}
