//! Which way to a peer, and whether there is one.

pub mod watch;

pub use watch::{Action, Watch};
