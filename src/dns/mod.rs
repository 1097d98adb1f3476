//! The resolver: it answers names of the mesh from a snapshot of the zone, and forwards all other names to the resolvers of the
//! host.
//!
//! | module | subject |
//! |---|---|
//! | [`zone`], `choice` | the immutable zone of what this node knows, and the choice among the instances of a name |
//! | [`answer`], [`explain`] | the answer to a question, and the reasons for it |
//! | `fast_path` | answers the bulk of queries from their bytes, without parsing the message in full |
//! | [`names`], `full_path` | answers all other queries, in a thread of their own |
//! | [`forward`] | the upstreams: cache, retries, and the filter for answers that point into the mesh |
//! | `access`, `limits`, `drop_reason` | which sources may ask, how much one client may use, and why a query is dropped |
//! | [`resolver`] | the values that all servers share |
//! | [`server`], `datagrams`, `tcp`, [`in_tunnel`] | the ways in: sockets for UDP and TCP, and the tunnel device |
//!
//! Everything but the servers, `full_path`, `resolver` and the sockets of [`forward`] is pure.
//!
//! Sources: RFC 1034, 1035, 2181, 2308 (negative answers), 2782 (SRV), 4343 (case), 6761 (special names), 6891 (EDNS), 7766 (TCP), 7858 (TLS), 8020
//! (NXDOMAIN), 8482 (ANY), 8767 (stale answers), 8906 (probes).

mod access;
pub mod answer;
mod batch_context;
mod choice;
mod datagrams;
mod drop_reason;
pub mod explain;
mod fast_path;
pub mod forward;
mod full_path;
pub mod in_tunnel;
mod job;
mod limits;
pub mod names;
pub mod query;
#[cfg(any(test, fuzzing))]
pub mod query_fuzz;
mod reply;
pub mod resolver;
pub mod server;
mod tcp;
pub mod transport;
pub mod zone;

pub use access::Allowed;
pub use drop_reason::{Counts, DropReason};
pub use forward::Upstream;
pub use in_tunnel::TunnelDns;
pub use resolver::Resolver;
pub use server::{DnsError, DnsServer};
pub use zone::{Replaced, WhenNoneUsable, Zone, ZoneInput};
