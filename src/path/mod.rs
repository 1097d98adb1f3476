//! The paths to peers: whether a peer is reachable, by which path, how far it is, and how large a packet may be. Pure.

pub mod budget;
pub mod call_log;
pub mod calls;
pub mod candidates;
pub mod common_peers;
pub mod counts;
pub mod distance;
pub mod link;
pub mod links;
pub mod mapping;
pub mod mtu;
pub mod peer;
pub mod peers;
pub mod punch;
pub mod relays;
pub mod streams;
pub mod stun;
pub mod tried;
pub mod watch;

pub use counts::PathChanges;
pub use distance::Distances;
pub use mtu::PathMtu;
pub use peers::Peers;
pub use relays::OwnRelays;
pub use streams::Streams;
pub use tried::Tried;
pub use watch::{Action, Watch};
