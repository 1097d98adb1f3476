//! The resolver: mesh names from a snapshot, everything else from the host's own resolvers.
//!
//! [`zone`] makes an immutable zone of what this node knows; [`answer`] answers a question from it; [`message`] does so
//! for the octets of a query, and decides what is to be forwarded; `plain` does the same for the bulk of queries without
//! taking them apart. `access` decides which sources may ask and which client each belongs to, and `limits` bounds what one
//! client may use. `local_names` answers names for special use, and `received` and [`rebinding`] filter the replies of
//! upstreams. These are pure. [`upstream`] forwards and caches, over `tls` if the server is configured so. [`resolver`] holds
//! what the servers share: [`server`] listens on sockets, `datagrams` has the threads for UDP, and [`inside`] answers queries in
//! the tunnel device, with a TCP stack of its own. `full_path` is the thread for queries that the fast path does not answer, and
//! `conversation` answers the queries of a stream.
//!
//! Messages are hickory-proto's. Its server crate is not used: it spawns a task for every datagram, without a bound,
//! and answers cannot be had from it without a socket, which the tunnel needs.
//!
//! Sources: RFC 1034, 1035, 2181, 2308 (negative answers), 2782 (SRV), 4343 (case), 6761 (special names), 6891 (EDNS), 7766 (TCP), 7858 (TLS), 8020
//! (NXDOMAIN), 8482 (ANY), 8767 (stale answers), 8906 (probes).

mod access;
pub mod answer;
mod cache;
mod choice;
mod conversation;
mod datagrams;
mod exchange;
mod full_path;
pub mod inside;
mod limits;
pub mod local_names;
pub mod message;
mod plain;
pub mod rebinding;
mod received;
pub mod resolver;
pub mod server;
mod tls;
pub mod trial;
pub mod upstream;
pub mod zone;

mod stack;

pub use access::Allowed;
pub use inside::Inside;
pub use resolver::Resolver;
pub use server::{DnsError, DnsServer};
pub use upstream::Upstream;
pub use zone::{Replaced, WhenNoneUsable, Zone, ZoneInput};
