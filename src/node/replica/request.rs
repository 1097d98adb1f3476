//! The requests of conversations with peers, and the answers to them.

use std::sync::Arc;

use super::refusals::Applied;
use crate::model::PublicKey;
use crate::records::Envelope;
use crate::records::digest::Digests;

/// A request of a conversation with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerRequest {
    /// Return the digests of what the ledger holds.
    Digests,
    /// Apply these records, which the peer sent. With this node in the place of the peer, they are of the administrator, who gave them to
    /// this node, and all peers are dialled for them.
    Apply {
        peer: PublicKey,
        /// The records. They are not verified yet.
        records: Vec<Envelope>,
    },
    /// The peer vouches for these memberships.
    Vouched {
        peer: PublicKey,
        /// The memberships. They are not verified yet.
        memberships: Vec<Envelope>,
    },
    /// Return those memberships of these nodes for which this node vouches.
    Memberships(Vec<PublicKey>),
    /// Return the records that these nodes and tokens signed.
    Records(Vec<PublicKey>),
}

/// The answer to a [`LedgerRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerReply {
    /// The answer to [`LedgerRequest::Digests`].
    Digests(Arc<Digests>),
    /// The answer to [`LedgerRequest::Apply`] and [`LedgerRequest::Vouched`].
    Applied(Applied),
    /// The answer to [`LedgerRequest::Memberships`].
    Memberships(Vec<Envelope>),
    /// The answer to [`LedgerRequest::Records`].
    Records(Vec<Envelope>),
}

/// The messages that the node that dials sends before the comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opening {
    /// Records that the other node may not have yet.
    pub news: Vec<Envelope>,
    /// Nodes whose memberships the dialling node holds back.
    pub asks: Vec<PublicKey>,
}
