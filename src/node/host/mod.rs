//! What meshd changes on the machine's network: computed as values, applied through netlink, taken back on stop.

mod netlink;
mod notices;
mod plan;
mod resolv_conf;
pub mod resolv_request;
mod resolv_text;
mod split_dns;
mod survey;
mod underlay;
mod upkeep;
mod ways;

pub use netlink::{Applied, HostNetwork, HostNetworkError};
pub use plan::{Found, Ipv6, Overlap, Plan, overlap};
pub use resolv_conf::{ResolvConf, ResolvConfError};
pub use split_dns::SplitDns;
pub use survey::Survey;
pub use underlay::{Interface, Inward, candidates, interfaces, resolvers, tunnel_mtu};
pub use upkeep::{Upkeep, Wanted};
