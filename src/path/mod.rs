//! Which way to a peer, and whether there is one.

pub mod mtu;
pub mod watch;

pub use mtu::PathMtu;
pub use watch::{Action, Watch};
