//! What meshd changes on the machine's network: computed as values, applied through netlink, taken back on stop.

mod netlink;
mod plan;
mod underlay;
pub mod wiring;

pub use netlink::{HostNetwork, HostNetworkError};
pub use plan::{Found, Overlap, Plan, overlap};
pub use underlay::{candidates, interfaces, resolvers, tunnel_mtu};
