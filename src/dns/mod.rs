//! The resolver: mesh names from a snapshot, everything else from the host's own resolvers.
//!
//! [`zone`] makes an immutable zone of what this node knows; [`answer`] answers a question from it; [`message`] does so
//! for the octets of a query, and decides what is to be forwarded. These are pure. [`upstream`] forwards and caches
//! (hickory-resolver); [`resolver`] is what all ways in share: [`server`] listens on sockets, [`inside`] answers what comes in
//! the tunnel device, with a TCP of its own.
//!
//! Messages are hickory-proto's. Its server crate is not used: it spawns a task for every datagram, without a bound,
//! and answers cannot be had from it without a socket, which the tunnel needs.
//!
//! Sources: RFC 1034, 1035, 2181, 2308 (negative answers), 2782 (SRV), 4343 (case), 6891 (EDNS), 7766 (TCP), 8020
//! (NXDOMAIN), 8482 (ANY).

pub mod answer;
pub mod inside;
pub mod message;
pub mod resolver;
pub mod server;
pub mod upstream;
pub mod zone;

mod stack;

pub use inside::Inside;
pub use resolver::{Allowed, Resolver};
pub use server::{DnsError, DnsServer};
pub use upstream::Upstream;
pub use zone::{WhenNoneUsable, Zone, ZoneInput};
