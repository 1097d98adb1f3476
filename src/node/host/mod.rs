//! What meshd changes on the machine's network: computed as values, applied through netlink, taken back on stop.

mod netlink;
mod plan;
mod resolv_conf;
mod resolv_text;
mod split_dns;
mod underlay;
pub mod wiring;

pub use netlink::{HostNetwork, HostNetworkError};
pub use plan::{Found, Overlap, Plan, overlap};
pub use resolv_conf::{ResolvConf, ResolvConfError};
pub use split_dns::SplitDns;
pub use underlay::{candidates, interfaces, resolvers, tunnel_mtu};
