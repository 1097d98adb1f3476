//! The reasons for which packets and datagrams are dropped, each with a counter.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::reasons::reasons;

reasons! {
    /// The reason for which a packet or datagram was dropped.
    DropReason {
        /// From the TUN device or a peer: the IP header is incomplete, or its lengths are wrong.
        Malformed = "malformed",
        /// From the TUN device: no peer owns the destination.
        NoOwner = "no_owner",
        /// To a peer: no endpoint is known.
        NoEndpoint = "no_endpoint",
        /// To a peer that answers no handshake: too many packets waited for a session, or this one waited too long.
        NoAnswer = "no_answer",
        /// To a peer: the packet is larger than the MTU of the path. An ICMP error was returned.
        TooBig = "too_big",
        /// The kernel refused to send.
        SendFailed = "send_failed",
        /// To a peer behind a stream: the stream is slower than what was sent to it, or is not open.
        StreamFull = "stream_full",
        /// The datagram is no WireGuard message.
        NotWireGuard = "not_wireguard",
        /// The receiver index of a data message belongs to no session.
        NoSession = "no_session",
        /// The counter is so high that the session must not be used any more (WireGuard section 6.1).
        Exhausted = "exhausted",
        /// The datagram is not authentic, or was received before.
        NotAuthentic = "not_authentic",
        /// A handshake exceeds the limit of its source or of this node.
        HandshakeLimit = "handshake_limit",
        /// Under load, the source of a handshake has not proven its address yet: a cookie was sent to it.
        Challenged = "challenged",
        /// The key of a handshake belongs to no peer.
        UnknownPeer = "unknown_peer",
        /// From a peer: the peer does not own the source address.
        ForeignSource = "foreign_source",
        /// From a peer: the destination is not in a network of this node, or it is an address that each node serves for itself alone.
        ForeignDestination = "foreign_destination",
        /// From a guest: the packet is for a port at which only nodes speak, or may hide such a port.
        Guest = "guest",
        /// From the TUN device or a peer: the policy of the mesh denies the packet.
        Policy = "policy",
        /// From the TUN device: the packet is for the port of a peer at which only the meshd of this node speaks to that of the peer.
        Reserved = "reserved",
        /// From the TUN device: a datagram of this tunnel itself, for an address in a network to which a peer routes.
        Looped = "looped",
        /// From the TUN device: the packet is for the local service, which does not answer packets of this kind.
        Unanswered = "unanswered",
        /// From the TUN device: the packet is for the local service, where too many requests wait.
        AnswersWaiting = "answers_waiting",
        /// The kernel did not accept the packet that was written to the TUN device.
        WriteFailed = "write_failed",
    }
}

/// The number of drops since the start, for each reason.
#[derive(Debug, Default)]
pub struct DropCounters([AtomicU64; DropReason::ALL.len()]);

impl DropCounters {
    /// Counts one drop.
    #[inline]
    pub fn add(&self, reason: DropReason) {
        self.add_many(reason, 1);
    }

    /// Counts so many drops.
    #[inline]
    pub fn add_many(&self, reason: DropReason, count: usize) {
        if count > 0
            && let Some(counter) = self.0.get(reason as usize)
        {
            counter.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    /// The counts so far.
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

/// The number of drops for each reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters(pub Vec<(DropReason, u64)>);

impl Counters {
    /// The number of drops for `reason`.
    #[must_use]
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0
            .iter()
            .find(|(r, _)| *r == reason)
            .map_or(0, |(_, count)| *count)
    }
}
