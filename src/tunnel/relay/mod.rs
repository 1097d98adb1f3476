//! Relays: a node forwards WireGuard messages between two members that have no direct path.
//!
//! A frame is a WireGuard message behind a header of 12 bytes, in a UDP datagram to or from the relay's tunnel port (`frame`). The
//! relay replaces the header and forwards the message. It cannot read, forge or replay what is inside, since both ends of the
//! session are elsewhere.
//!
//! A relay keeps no state for a pair of members. [`Relay`] knows only the endpoints of the node's own peers, and decides about
//! each frame by itself:
//!
//! - A frame with a tag comes from a member, and names the destination. It is forwarded once, without a tag.
//! - A frame without a tag comes from a relay, and names the source. It is for this node and is never forwarded. So no frame
//!   can go through two relays, and none can go in a circle.
//! - A relay sends as many bytes as it received, to one destination. So nobody gets more traffic sent than they send.
//! - A tag proves that the source receives packets at its endpoint (`tag`). So nobody can make a relay send in the name
//!   of an endpoint of another host.
//! - Each member has a limit (`forwarding`), in which all that the relay sends for it is counted.
//!
//! A member whose network drops UDP has a stream to the relay ([`Source::Stream`]). It proved its identity when it opened the stream,
//! so its frames have no tag. The rest is the same: one hop, and one limit for each member.
//!
//! This module is pure: the data plane owns the sockets and tells the time.

mod forwarding;
mod frame;
mod reasons;
mod tag;
#[cfg(test)]
mod tests;

pub use forwarding::{Destination, Forward, Relay, RelayLimit, Source};
pub use frame::{Frame, HEADER, Header, is_frame};
pub use reasons::RelayDrop;
pub use tag::{TAG_LIFETIME, Tag, Tags};
