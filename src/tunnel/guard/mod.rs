//! The policy in the packet path: which packets between two members pass.
//!
//! WireGuard proves which node a packet came from. The check here decides whether the policy lets its source reach its
//! destination. It looks at each packet in both directions, so a change of the policy ends established connections too.
//!
//! - The first packet of a TCP connection passes if the policy allows (source, destination, destination port). Every other
//!   segment also passes if the policy allows the opposite direction: (destination, source, source port). No state is needed.
//! - A UDP datagram and an ICMP echo request pass if the policy allows them. An answer from another member passes if this node sent
//!   a request that it belongs to at most a minute ago (`replies`), and if the policy still allows that request. This node's own
//!   answers need no such proof: the receiver looks for it, and its check is the one that counts. So no member can fill the
//!   table of another one.
//! - An ICMP error passes if the packet inside may have been sent by the receiver of the error to the node that the error comes
//!   from.
//! - Everything else matches only rules without ports: other protocols, fragments, and IPv6 extension headers, behind which a
//!   port could be hidden. The ports of such packets are never read.
//! - Packets with a source route never pass, since the address that was checked is not the one that they reach.
//! - Messages between the meshds of two members pass always (`check`): without them no node would learn of a change.
//!
//! The sender checks as well, and answers its own programs at once. An identical packet of the same batch is not checked again
//! (`memo`). Denied packets are listed (`denials`). This module is pure: the data plane passes packets and the time.

mod check;
mod denials;
mod memo;
mod replies;
mod seen;
#[cfg(test)]
mod tests;

pub use check::{Guard, Members, Verdict};
pub use denials::{Denial, Direction};
pub(super) use denials::{Denials, Sender};
pub use memo::Memo;
pub(super) use seen::{Kind, Seen};
