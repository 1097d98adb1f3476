//! The answer of an upstream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Record;

use super::super::limits::Share;

/// The origin of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Source {
    /// No upstream answered.
    #[default]
    Nobody,
    /// This upstream answered just now.
    Upstream(SocketAddr),
    /// The answer is in the cache and is fresh.
    Cache {
        /// The upstream that gave the answer.
        from: SocketAddr,
        /// The time since then.
        age: Duration,
    },
    /// The answer is in the cache and has expired, and no upstream answers now (RFC 8767).
    Stale {
        /// The upstream that gave the answer.
        from: SocketAddr,
        /// The time since then.
        age: Duration,
    },
}

/// The answer of an upstream, without its header and its question.
#[derive(Debug, Clone, Default)]
pub struct Forwarded {
    /// NOERROR, NXDOMAIN or SERVFAIL.
    pub code: ResponseCode,
    /// The AD flag: an upstream has verified the records.
    pub authentic: bool,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The SOA of a negative answer, and DNSSEC proofs if the client asked for them.
    pub authority: Vec<Record>,
    /// The origin of the answer.
    pub source: Source,
    /// The memory that is reserved for the answer in the limits, if the answer is large.
    pub(in crate::dns) held: Option<Arc<Share>>,
}

impl Forwarded {
    /// Returns SERVFAIL without records.
    #[must_use]
    pub fn failure() -> Self {
        Self {
            code: ResponseCode::ServFail,
            ..Self::default()
        }
    }

    /// Sets the source, and replaces each TTL with the TTL that `left` returns for it.
    pub(in crate::dns) fn aged(mut self, left: impl Fn(u32) -> u32, source: Source) -> Self {
        for record in self.answers.iter_mut().chain(&mut self.authority) {
            record.ttl = left(record.ttl);
        }
        self.source = source;
        self
    }
}
