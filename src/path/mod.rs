//! The paths to peers: whether a peer is reachable, at which endpoint, how far it is, and how large a packet may be. Pure.

pub mod distance;
pub mod mtu;
pub mod tried;
pub mod watch;

pub use distance::Distances;
pub use mtu::PathMtu;
pub use tried::Tried;
pub use watch::{Action, Watch};
