//! Every reason for which a packet or datagram is dropped, each with a counter.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! drops {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// Why a packet or datagram was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum DropReason { $($(#[$doc])* $name,)+ }

        impl DropReason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The reason as a metric's label value.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

drops! {
    /// From the TUN device or a peer: no whole IP header, or lengths that lie.
    Malformed = "malformed",
    /// From the TUN device: nobody owns the destination.
    NoOwner = "no_owner",
    /// To a peer: no endpoint is known.
    NoEndpoint = "no_endpoint",
    /// To a peer that answers no handshake: too many packets waited for a session already, or for too long.
    NoAnswer = "no_answer",
    /// To a peer: larger than what the path to it carries; the sender was told.
    TooBig = "too_big",
    /// The kernel refused to send.
    SendFailed = "send_failed",
    /// A datagram that is no WireGuard message.
    NotWireGuard = "not_wireguard",
    /// Data under a receiver index that no session has.
    NoSession = "no_session",
    /// A counter so high that the session must not be used any more (WireGuard section 6.1).
    Exhausted = "exhausted",
    /// A datagram that does not authenticate, or was seen before.
    NotAuthentic = "not_authentic",
    /// A handshake over the limit of its source or of the node.
    HandshakeLimit = "handshake_limit",
    /// Under load, a handshake of a source that has not proven itself yet: it got a cookie.
    Challenged = "challenged",
    /// A handshake of a key that is no peer's.
    UnknownPeer = "unknown_peer",
    /// From a peer: the source address belongs to somebody else.
    ForeignSource = "foreign_source",
    /// From a peer: the destination is not this node's, or one that every node answers for itself alone.
    ForeignDestination = "foreign_destination",
    /// From the TUN device: to an address answered inside it, but nothing that is answered.
    Unanswered = "unanswered",
    /// From the TUN device: to an address answered inside it, where too many wait for an answer.
    AnswersWaiting = "answers_waiting",
    /// The kernel took the packet for the TUN device not in.
    WriteFailed = "write_failed",
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct DropCounters([AtomicU64; DropReason::ALL.len()]);

impl DropCounters {
    /// One more.
    pub fn add(&self, reason: DropReason) {
        self.add_many(reason, 1);
    }

    /// `count` more.
    pub fn add_many(&self, reason: DropReason, count: usize) {
        if count > 0
            && let Some(counter) = self.0.get(reason as usize)
        {
            counter.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    /// How many so far.
    #[must_use]
    pub fn read(&self) -> Counters {
        Counters(
            DropReason::ALL
                .iter()
                .zip(&self.0)
                .map(|(reason, count)| (*reason, count.load(Ordering::Relaxed)))
                .collect(),
        )
    }
}

/// Drops by reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters(pub Vec<(DropReason, u64)>);

impl Counters {
    /// How many for `reason`.
    #[must_use]
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0
            .iter()
            .find(|(r, _)| *r == reason)
            .map_or(0, |(_, count)| *count)
    }
}
