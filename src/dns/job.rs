//! A query for the thread of the full path, and its reply.

use std::net::SocketAddr;

use super::limits::Share;
use super::transport::Transport;

/// Sends a reply.
pub(super) type Deliver = Box<dyn FnOnce(Reply) + Send>;

/// A query that waits for the thread.
pub(super) struct Job {
    pub(super) query: Box<[u8]>,
    pub(super) source: SocketAddr,
    pub(super) transport: Transport,
    /// The place of the query in the limits.
    pub(super) place: Share,
    /// Called with the reply, if there is one.
    pub(super) deliver: Deliver,
}

/// The reply to a query of the full path. The query keeps its place until the reply is dropped.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) message: Vec<u8>,
    pub(super) _place: Share,
    /// The memory that is reserved for a large reply.
    pub(super) _memory: Option<Share>,
}
