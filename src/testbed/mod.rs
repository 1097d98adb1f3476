//! Hosts in network namespaces: the demo, the tests and the benches run real programs in them.
//!
//! A [`World`] is a bridge that nothing outside is connected to; each [`Host`] is a port of it with its own network,
//! mounts and host name. All of it belongs to processes that end when this one does, whatever ends it, so nothing is
//! ever left behind. Needs root, or user namespaces: [`as_root`] makes one.
//!
//! A [`DockerHost`] has processes and a root of its own besides, and a container engine on it; that needs root.

mod docker;
mod host;
mod link;
pub mod records;
mod root;
mod skipped;
mod world;

pub use docker::{DockerHost, Image};
pub use host::{Host, Running};
pub use root::{as_root, is_possible};
pub use skipped::{skip_part_of_test, skip_test};
pub use world::World;

/// Why there is no lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// No rights, and no way to get them.
    #[error(
        "network namespaces need root, or user namespaces for everybody; run with sudo, or allow them (`sysctl kernel.unprivileged_userns_clone=1` on Debian, `sysctl kernel.apparmor_restrict_unprivileged_userns=0` on Ubuntu)"
    )]
    NoRights,
    /// The system refuses.
    #[error("cannot {0}: {1}")]
    Io(&'static str, std::io::Error),
    /// A program failed.
    #[error("{0}: {1}")]
    Program(String, String),
    /// The kernel refuses a change of the network.
    #[error("cannot {0}: {1}")]
    Netlink(&'static str, rtnetlink::Error),
}
