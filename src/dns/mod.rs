//! The resolver: mesh names from a snapshot, everything else from the host's own resolvers.
//!
//! [`zone`] makes an immutable zone of what this node knows; [`answer`] answers a question from it; [`message`] does so
//! for the octets of a query, and decides what is to be forwarded. These are pure. [`upstream`] forwards and caches
//! (hickory-resolver), [`server`] listens.
//!
//! Messages are hickory-proto's. Its server crate is not used: it spawns a task for every datagram, without a bound,
//! and answers cannot be had from it without a socket, which the tunnel needs.
//!
//! Sources: RFC 1034, 1035, 2181, 2308 (negative answers), 2782 (SRV), 4343 (case), 6891 (EDNS), 7766 (TCP), 8020
//! (NXDOMAIN), 8482 (ANY).

pub mod answer;
pub mod message;
pub mod server;
pub mod upstream;
pub mod zone;

pub use server::{Allowed, DnsError, DnsServer};
pub use upstream::Upstream;
pub use zone::{WhenNoneUsable, Zone, ZoneInput};
