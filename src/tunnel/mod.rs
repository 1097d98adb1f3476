//! The data plane: an ordinary WireGuard between a TUN device and two UDP sockets.
//!
//! Threads of its own, no async runtime (`worker` says how many there are and who does what):
//!
//! - outbound reads the TUN device, splits what the kernel left for offload, seals each segment straight into
//!   the send buffer of its run, and hands whole runs to the kernel as one message each (UDP GSO);
//! - inbound receives merged datagrams (UDP GRO), opens each into one dense arena, checks that the sender owns
//!   the source address, and writes runs of a flow back to the device as one packet, with no copy;
//! - `timer` ticks the peers that have a session or want one: rekeys, keepalives, retries. It sleeps while none has;
//! - `routes` follows the kernel's notices of addresses and routes, and drops sources that do not hold any more.
//!
//! Peers and routes are an immutable snapshot, read once per batch; a peer's lock is taken once per batch of
//! packets for it. A panic in one of these threads ends the process: a silent half of a tunnel is worse.
//!
//! Sources: WireGuard (Donenfeld, NDSS 2017), virtio 1.2 section 5.1.6 (the offload header).

pub mod allowed_ips;
pub mod coalesce;
pub mod cookie;
pub mod drops;
pub mod limiter;
pub mod local_service;
pub mod noise;
pub mod packet;
pub mod split;
pub mod too_big;
pub mod uapi;

mod control;
mod device;
mod endpoint;
mod inbound;
mod outbound;
mod peer;
mod probe;
mod rotation;
mod routes;
mod sched_slice;
mod timer;
mod tun;
mod udp;
mod worker;

#[cfg(test)]
mod tests;

pub use device::{
    Injector, PeerConfig, PeerStatus, Tunnel, TunnelConfig, TunnelError, Waiting, try_open,
};
pub use drops::{Counters, DropReason};
pub use local_service::{Handled, LocalHandler, LocalService};
pub use probe::RoundTrip;
pub use rotation::OVERLAP;
