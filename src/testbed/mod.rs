//! Hosts in network namespaces: the demo, the tests and the benches run real programs in them.
//!
//! A [`World`] is a bridge without a connection to the outside. Each [`Host`] is a port of it with its own network,
//! mounts and host name. All of it belongs to processes that end when this one does, whatever ends it, so nothing is
//! ever left behind. This needs root or user namespaces: [`as_root`] creates one.
//!
//! In a world that [`World::routed`] creates, the bridge is also a router: the hosts on it have public addresses, and a
//! [`Router`] connects hosts that have private ones.
//!
//! A [`DockerHost`] also has a process namespace, a root directory and a container engine of its own, and needs root.

mod docker;
mod host;
mod link;
pub mod paired;
pub mod records;
mod root;
mod router;
mod skipped;
mod world;

pub use docker::{DockerHost, Image};
pub use host::{Host, Running};
pub use root::{as_root, is_possible};
pub use router::{Delay, Fault, Nat, Router, Way};
pub use skipped::{skip_part_of_test, skip_test};
pub use world::World;

/// Why the testbed cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TestbedError {
    /// The rights are missing, and there is no way to get them.
    #[error(
        "network namespaces need root, or user namespaces for everybody; run with sudo, or allow them (`sysctl kernel.unprivileged_userns_clone=1` on Debian, `sysctl kernel.apparmor_restrict_unprivileged_userns=0` on Ubuntu)"
    )]
    NoRights,
    /// The system returned an error.
    #[error("cannot {0}: {1}")]
    Io(&'static str, std::io::Error),
    /// A program failed.
    #[error("{0}: {1}")]
    Program(String, String),
    /// The kernel returned an error for a change of the network.
    #[error("cannot {0}: {1}")]
    Netlink(&'static str, rtnetlink::Error),
}
