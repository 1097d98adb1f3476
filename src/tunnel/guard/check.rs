//! The decision about one packet. Pure.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::denials::Direction;
use super::memo::Memo;
use super::replies::{Answered, Replies, Request};
use super::seen::{Kind, Quoted, QuotedKind, Seen};
use crate::model::Protocol;
use crate::policy::{Asked, Class, Table};
use crate::protocol::{gossip, path_messages};
use crate::tunnel::packet::Ip;

/// The decision about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The packet passes.
    Pass,
    /// The packet passes. The policy that is tried would deny what it asks of its destination.
    WouldDeny(Asked),
    /// The policy denies what the packet asks of its destination.
    Deny(Asked),
}

/// The questions of the check about the members of the mesh.
pub trait Members {
    /// Whether this is the address of this node itself.
    fn is_own(&self, address: IpAddr) -> bool;
    /// Whether this is the address of another node itself.
    fn is_node(&self, address: IpAddr) -> bool;
    /// Whether both are addresses of one other node.
    fn share_node(&self, one: IpAddr, other: IpAddr) -> bool;
}

/// The policy, and the requests whose answers pass.
#[derive(Debug, Clone)]
pub struct Guard {
    policy: Arc<Table>,
    /// The policy that is tried.
    tried: Option<Arc<Table>>,
    replies: Arc<Replies>,
}

impl Guard {
    /// A guard with this policy, of a node that has sent no request.
    #[must_use]
    pub fn new(policy: Arc<Table>) -> Self {
        Self {
            policy,
            tried: None,
            replies: Arc::default(),
        }
    }

    /// The same guard, which also finds the packets that the policy `tried` would deny.
    #[must_use]
    pub fn trying(self, tried: Option<Arc<Table>>) -> Self {
        Self { tried, ..self }
    }

    /// The same requests under another policy. An answer passes only if the policy still allows its request, so none has to be
    /// forgotten.
    #[must_use]
    pub fn with(&self, policy: Arc<Table>) -> Self {
        Self {
            policy,
            tried: None,
            replies: Arc::clone(&self.replies),
        }
    }

    /// The policy.
    #[cfg(test)]
    pub(super) fn policy(&self) -> &Arc<Table> {
        &self.policy
    }

    /// Decides about a packet that this node sends to a peer, or that a peer sent. A peer owns the source of what it sent.
    #[inline]
    pub fn check(
        &self,
        direction: Direction,
        (packet, ip): (&[u8], &Ip),
        members: &impl Members,
        memo: &mut Memo,
        now: Instant,
    ) -> Verdict {
        if memo.has(packet, ip) {
            return Verdict::Pass;
        }
        let seen = Seen::read(packet, ip);
        let passes = |policy: &Table| {
            // While a policy is tried, there is a guard even if the policy itself allows everything.
            policy.allows_everything()
                || match direction {
                    Direction::Outgoing => self.may_leave(policy, &seen, members, now),
                    Direction::Incoming => self.may_arrive(policy, &seen, members, now),
                }
        };
        if !passes(&self.policy) {
            return Verdict::Deny(asked(&seen.kind));
        }
        // Of equal packets in a batch, only the first one is checked against the policy that is tried.
        memo.note(packet, ip);
        match &self.tried {
            Some(tried) if !passes(tried) => Verdict::WouldDeny(asked(&seen.kind)),
            _ => Verdict::Pass,
        }
    }

    fn may_leave(&self, policy: &Table, seen: &Seen, members: &impl Members, now: Instant) -> bool {
        let ends = Ends::of(policy, seen.source, seen.destination);
        let passes = match seen.kind {
            Kind::SourceRouted => false,
            Kind::Error(quoted) => {
                quoted.source == seen.destination && allows_either_way(policy, &quoted)
            }
            _ if ends.allow(asked(&seen.kind)) => {
                if let Some(request) = request(seen) {
                    self.replies.note(request, now);
                }
                true
            }
            _ => back(&seen.kind).is_some_and(|asked| ends.allow_back(asked)),
        };
        passes || is_control(seen, |a| members.is_own(a), |a| members.is_node(a))
    }

    fn may_arrive(
        &self,
        policy: &Table,
        seen: &Seen,
        members: &impl Members,
        now: Instant,
    ) -> bool {
        let ends = Ends::of(policy, seen.source, seen.destination);
        let passes = match seen.kind {
            Kind::SourceRouted => false,
            Kind::Error(quoted) => {
                quoted.source == seen.destination
                    && members.share_node(seen.source, quoted.destination)
                    && allows_either_way(policy, &quoted)
            }
            _ if ends.allow(asked(&seen.kind)) => true,
            _ => {
                back(&seen.kind).is_some_and(|asked| ends.allow_back(asked))
                    // No request is noted for a TCP connection.
                    && answered(seen).is_none_or(|request| self.replies.expects(&request, now))
            }
        };
        passes || is_control(seen, |a| members.is_node(a), |a| members.is_own(a))
    }
}

/// The two ends of a packet under a policy.
#[derive(Debug, Clone, Copy)]
struct Ends<'a> {
    policy: &'a Table,
    from: Class,
    to: Class,
}

impl<'a> Ends<'a> {
    fn of(policy: &'a Table, from: IpAddr, to: IpAddr) -> Self {
        Self {
            policy,
            from: policy.class(from),
            to: policy.class(to),
        }
    }

    /// Whether the source may ask this of the destination.
    fn allow(&self, asked: Asked) -> bool {
        self.policy.allows(self.from, self.to, asked)
    }

    /// Whether the destination may ask this of the source.
    fn allow_back(&self, asked: Asked) -> bool {
        self.policy.allows(self.to, self.from, asked)
    }
}

/// Whether the packet inside an error may pass, as a request or as an answer.
fn allows_either_way(policy: &Table, quoted: &Quoted) -> bool {
    let ends = Ends::of(policy, quoted.source, quoted.destination);
    let (asked, back) = match quoted.kind {
        QuotedKind::Tcp(source, destination) => (
            Asked::Port(Protocol::Tcp, destination),
            Asked::Port(Protocol::Tcp, source),
        ),
        QuotedKind::Udp(source, destination) => (
            Asked::Port(Protocol::Udp, destination),
            Asked::Port(Protocol::Udp, source),
        ),
        QuotedKind::Echo => (Asked::Icmp, Asked::Icmp),
        QuotedKind::Other => (Asked::Other, Asked::Other),
    };
    ends.allow(asked) || ends.allow_back(back)
}

/// What a packet asks of its destination.
fn asked(kind: &Kind) -> Asked {
    match kind {
        Kind::Tcp { destination, .. } => Asked::Port(Protocol::Tcp, *destination),
        Kind::Udp { destination, .. } => Asked::Port(Protocol::Udp, *destination),
        Kind::Echo { .. } | Kind::Error(_) => Asked::Icmp,
        Kind::Other | Kind::SourceRouted => Asked::Other,
    }
}

/// What the request asked that a packet may be an answer to.
fn back(kind: &Kind) -> Option<Asked> {
    match kind {
        Kind::Tcp {
            source,
            opens: false,
            ..
        } => Some(Asked::Port(Protocol::Tcp, *source)),
        Kind::Udp { source, .. } => Some(Asked::Port(Protocol::Udp, *source)),
        Kind::Echo {
            is_request: false, ..
        } => Some(Asked::Icmp),
        _ => None,
    }
}

/// The request in a packet, if its answers have to be expected.
fn request(seen: &Seen) -> Option<Request> {
    let protocol = match seen.kind {
        Kind::Udp {
            source,
            destination,
        } => Answered::Udp {
            client: source,
            server: destination,
        },
        Kind::Echo {
            is_request: true,
            identifier,
        } => Answered::Echo { identifier },
        _ => return None,
    };
    Some(Request {
        client: seen.source,
        server: seen.destination,
        protocol,
    })
}

/// The request that has to be expected for a packet to be an answer.
fn answered(seen: &Seen) -> Option<Request> {
    let protocol = match seen.kind {
        Kind::Udp {
            source,
            destination,
        } => Answered::Udp {
            client: destination,
            server: source,
        },
        Kind::Echo { identifier, .. } => Answered::Echo { identifier },
        _ => return None,
    };
    Some(Request {
        client: seen.destination,
        server: seen.source,
        protocol,
    })
}

/// Whether a packet is one that the meshds of two members exchange. `is_source` and `is_destination` say whether an address is the
/// node's own one at the end that sends, and at the end that receives.
fn is_control(
    seen: &Seen,
    is_source: impl Fn(IpAddr) -> bool,
    is_destination: impl Fn(IpAddr) -> bool,
) -> bool {
    let has_port = match seen.kind {
        Kind::Tcp {
            source,
            destination,
            opens,
        } => destination == gossip::PORT || (source == gossip::PORT && !opens),
        Kind::Udp {
            source,
            destination,
        } => source == path_messages::PORT && destination == path_messages::PORT,
        _ => false,
    };
    has_port && is_source(seen.source) && is_destination(seen.destination)
}
