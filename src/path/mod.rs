//! Which way to a peer, and whether there is one.

pub mod distance;
pub mod mtu;
pub mod watch;

pub use distance::Distances;
pub use mtu::PathMtu;
pub use watch::{Action, Watch};
