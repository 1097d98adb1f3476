//! Counts of queries, and the reasons for which queries and connections are dropped.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::reasons::reasons;

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Queries that were answered, by the zone or by an upstream.
    pub queries: AtomicU64,
    /// Queries that were forwarded.
    pub forwarded: AtomicU64,
    /// Forwarded queries whose answer had records that pointed into the mesh, which were removed.
    pub rebound: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl Counts {
    /// Returns the number of dropped queries and connections for each reason. Some of the queries got an error as a reply.
    pub fn dropped(&self) -> impl Iterator<Item = (DropReason, u64)> {
        let counts = self.drops.iter().map(|n| n.load(Ordering::Relaxed));
        DropReason::ALL.iter().copied().zip(counts)
    }

    pub(super) fn drop(&self, reason: DropReason) {
        if let Some(count) = self.drops.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

reasons! {
    /// The reason for which a query or a connection is dropped.
    DropReason {
        /// The source may not ask. It gets no reply.
        Foreign = "foreign",
        /// The message is no query. It gets no reply.
        Malformed = "malformed",
        /// The message is a reply, and replies are never answered.
        Reply = "reply",
        /// The client exceeds its rate of queries. It gets no reply.
        Rate = "rate",
        /// The client exceeds its rate of forwarded queries. It gets SERVFAIL.
        ForwardRate = "forward_rate",
        /// Too many forwarded queries of this client or of all clients are in progress. The client gets SERVFAIL.
        ForwardShare = "forward_share",
        /// The client has spent its share of a core. It gets no reply, or SERVFAIL for a query that must be forwarded.
        Work = "work",
        /// Another node asks for a name outside the mesh. It gets REFUSED.
        Recursion = "recursion",
        /// Too many queries wait, of this client or of all clients. There is no reply.
        Queue = "queue",
        /// This client or all clients together have too many connections.
        Connections = "connections",
        /// The reply is large, and there is no memory for it among the large replies in progress. The client gets SERVFAIL.
        Memory = "memory",
    }
}
