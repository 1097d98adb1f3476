//! Counts of queries, and the reasons for which queries and connections are dropped.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Queries taken in.
    pub queries: AtomicU64,
    /// Of them, forwarded.
    pub forwarded: AtomicU64,
    /// Of them, with an answer that pointed into the mesh: what did was taken out.
    pub rebound: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl Counts {
    /// Queries not answered, or answered with a failure without being looked at, by reason.
    pub fn dropped(&self) -> impl Iterator<Item = (DropReason, u64)> {
        let counts = self.drops.iter().map(|n| n.load(Ordering::Relaxed));
        DropReason::ALL.into_iter().zip(counts)
    }

    pub(super) fn drop(&self, reason: DropReason) {
        if let Some(count) = self.drops.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Why a query, or a connection, is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// The source may not ask: no reply.
    Foreign,
    /// No query: no reply.
    Malformed,
    /// A reply, which is never answered.
    Reply,
    /// The client asks too fast, whatever it asks: no reply.
    Rate,
    /// The client asks too fast what must be forwarded: it is told so.
    ForwardRate,
    /// Too many forwarded queries are under way, of the client or altogether: it is told so.
    ForwardShare,
    /// The client has spent its share of a core. It gets no reply, or SERVFAIL for a query that must be forwarded.
    Work,
    /// Another node asks for a name outside the mesh. It gets REFUSED.
    Recursion,
    /// Too many queries wait, of this client or of all clients. There is no reply.
    Queue,
    /// Too many connections, of the client or altogether.
    Connections,
    /// The reply is large, and there is no memory for it among the large replies in progress. The client gets SERVFAIL.
    Memory,
}

impl DropReason {
    const ALL: [Self; 11] = [
        Self::Foreign,
        Self::Malformed,
        Self::Reply,
        Self::Rate,
        Self::ForwardRate,
        Self::ForwardShare,
        Self::Work,
        Self::Recursion,
        Self::Queue,
        Self::Connections,
        Self::Memory,
    ];

    /// The reason's name in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Malformed => "malformed",
            Self::Reply => "reply",
            Self::Rate => "rate",
            Self::ForwardRate => "forward_rate",
            Self::ForwardShare => "forward_share",
            Self::Work => "work",
            Self::Recursion => "recursion",
            Self::Queue => "queue",
            Self::Connections => "connections",
            Self::Memory => "memory",
        }
    }
}
