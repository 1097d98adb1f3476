//! The decision about one packet. Pure.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

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

/// What the check asks about the members of the mesh.
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
    replies: Arc<Replies>,
    /// The policy that is tried, with the requests that it would have let out.
    tried: Option<Arc<Guard>>,
}

/// The two ends of a packet.
#[derive(Debug, Clone, Copy)]
struct Ends {
    from: Class,
    to: Class,
}

impl Guard {
    /// A guard with this policy, of a node that has sent no request.
    #[must_use]
    pub fn new(policy: Arc<Table>) -> Self {
        Self {
            policy,
            replies: Arc::default(),
            tried: None,
        }
    }

    /// `former` under another policy, or a new guard if there was none.
    #[must_use]
    pub fn or_new(former: Option<&Self>, policy: Arc<Table>) -> Self {
        match former {
            Some(former) => former.with(policy),
            None => Self::new(policy),
        }
    }

    /// The same guard, which also says what the policy of `tried` would deny.
    #[must_use]
    pub fn trying(self, tried: Option<Self>) -> Self {
        Self {
            tried: tried.map(Arc::new),
            ..self
        }
    }

    /// The policy that is tried.
    #[must_use]
    pub fn tried(&self) -> Option<&Self> {
        self.tried.as_deref()
    }

    /// The same requests under another policy. An answer passes only if the policy still allows its request, so none has to be
    /// forgotten.
    #[must_use]
    pub fn with(&self, policy: Arc<Table>) -> Self {
        Self {
            policy,
            replies: Arc::clone(&self.replies),
            tried: None,
        }
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &Arc<Table> {
        &self.policy
    }

    /// Decides about a packet that this node sends to a peer.
    #[inline]
    pub fn outgoing(
        &self,
        packet: (&[u8], &Ip),
        members: &impl Members,
        memo: &mut Memo,
        now: Instant,
    ) -> Verdict {
        let check = |guard: &Self, seen: &Seen| guard.check_outgoing(seen, members, now);
        self.decide(packet, memo, check)
    }

    /// Decides about a packet that a peer sent, which owns its source.
    #[inline]
    pub fn incoming(
        &self,
        packet: (&[u8], &Ip),
        members: &impl Members,
        memo: &mut Memo,
        now: Instant,
    ) -> Verdict {
        let check = |guard: &Self, seen: &Seen| guard.check_incoming(seen, members, now);
        self.decide(packet, memo, check)
    }

    #[inline]
    fn decide(
        &self,
        (packet, ip): (&[u8], &Ip),
        memo: &mut Memo,
        check: impl Fn(&Self, &Seen) -> Verdict,
    ) -> Verdict {
        if memo.has(packet, ip) {
            return Verdict::Pass;
        }
        let seen = Seen::read(packet, ip);
        let verdict = check(self, &seen);
        if verdict != Verdict::Pass {
            return verdict;
        }
        memo.note(packet, ip);
        match self.tried().map(|tried| check(tried, &seen)) {
            Some(Verdict::Deny(asked)) => Verdict::WouldDeny(asked),
            _ => Verdict::Pass,
        }
    }

    fn check_outgoing(&self, seen: &Seen, members: &impl Members, now: Instant) -> Verdict {
        let ends = self.ends(seen.source, seen.destination);
        let asked = asked(&seen.kind);
        let passes = match seen.kind {
            Kind::SourceRouted => false,
            Kind::Error(quoted) => {
                quoted.source == seen.destination && self.allows_either_way(&quoted)
            }
            Kind::Udp { .. } | Kind::Echo { .. } if self.allows(ends, asked) => {
                if let Some(request) = request(seen) {
                    self.replies.note(request, now);
                }
                true
            }
            _ => {
                self.allows(ends, asked)
                    || back(&seen.kind).is_some_and(|asked| self.allows_back(ends, asked))
            }
        };
        if passes || is_control(seen, |a| members.is_own(a), |a| members.is_node(a)) {
            Verdict::Pass
        } else {
            Verdict::Deny(asked)
        }
    }

    fn check_incoming(&self, seen: &Seen, members: &impl Members, now: Instant) -> Verdict {
        let ends = self.ends(seen.source, seen.destination);
        let asked = asked(&seen.kind);
        let passes = match seen.kind {
            Kind::SourceRouted => false,
            Kind::Error(quoted) => {
                quoted.source == seen.destination
                    && members.share_node(seen.source, quoted.destination)
                    && self.allows_either_way(&quoted)
            }
            _ if self.allows(ends, asked) => true,
            _ => {
                let is_expected = || match answered(seen) {
                    Some(request) => self.replies.expects(&request, now),
                    // TCP needs no state.
                    None => true,
                };
                let back = back(&seen.kind);
                back.is_some_and(|asked| self.allows_back(ends, asked)) && is_expected()
            }
        };
        if passes || is_control(seen, |a| members.is_node(a), |a| members.is_own(a)) {
            Verdict::Pass
        } else {
            Verdict::Deny(asked)
        }
    }

    fn ends(&self, from: IpAddr, to: IpAddr) -> Ends {
        Ends {
            from: self.policy.class(from),
            to: self.policy.class(to),
        }
    }

    fn allows(&self, ends: Ends, asked: Asked) -> bool {
        self.policy.allows(ends.from, ends.to, asked)
    }

    fn allows_back(&self, ends: Ends, asked: Asked) -> bool {
        self.policy.allows(ends.to, ends.from, asked)
    }

    /// Whether the packet inside an error may pass, as a request or as an answer.
    fn allows_either_way(&self, quoted: &Quoted) -> bool {
        let ends = self.ends(quoted.source, quoted.destination);
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
        self.allows(ends, asked) || self.allows_back(ends, back)
    }
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
