//! The changes that meshd makes to the machine's network: computed as values, applied through netlink, and undone when
//! meshd stops.

mod netlink;
mod notifications;
mod plan;
mod resolv_conf;
pub mod resolv_request;
mod resolv_text;
mod route_lookup;
mod split_dns;
mod survey;
mod underlay;
mod upkeep;

pub use netlink::{Applied, HostNetwork, HostNetworkError};
pub use plan::{Ipv6, NetworkEntry, NetworkPlan, Overlap, overlap};
pub use resolv_conf::{ResolvConf, ResolvConfError};
pub use split_dns::SplitDns;
pub use survey::{DefaultGateway, Survey};
pub use underlay::{Interface, interfaces, resolvers, tunnel_mtu};
pub use upkeep::{Upkeep, Wanted};
