//! The data plane: an ordinary WireGuard between a TUN device and two UDP sockets.
//!
//! It has threads of its own and no async runtime:
//!
//! | file | what its threads do |
//! |---|---|
//! | `worker` | the data threads: how many there are, and how they share the work |
//! | `outbound` | reads the TUN device, splits packets that the kernel left for offload, seals each segment into the send buffer of its run, and hands whole runs to the kernel as one message (UDP GSO) |
//! | `inbound` | receives merged datagrams (UDP GRO), opens each into one buffer, decides about it (`decision`), and writes runs of a flow to the device as one packet, without a copy |
//! | `streams` | the queues of the streams over TCP, by which datagrams pass where UDP does not; others own the connections |
//! | `timer` | runs the timers of the peers that have a session or want one: rekeys, keepalives, retries |
//! | `routes` | follows the kernel's notifications of addresses and routes, and gives up sources that are no longer valid |
//!
//! With a policy, the data threads check each packet between the device and the peers (`guard`, `checking`).
//!
//! Peers and routes are one immutable value (`table`), which is loaded once for a batch. A change makes another one (`peers`,
//! `rotation`). The lock of a peer is taken for each packet to it, and once for the datagrams of it that the kernel merged. Of the data
//! threads, only the two of one pair contend for it, since each peer belongs to one pair. A thread that holds it may take the locks of the
//! policy, of the denied packets, of the probes and of the news, and a thread that holds one of these never takes the lock of a peer. A panic
//! in a data thread ends the process: half a tunnel that is silently gone would be worse.
//!
//! Sources: WireGuard (Donenfeld, NDSS 2017), virtio 1.2 section 5.1.6 (the offload header).

pub mod allowed_ips;
pub mod coalesce;
pub mod cookie;
pub mod drops;
pub mod guard;
pub mod icmp_errors;
pub mod limiter;
pub mod local_service;
pub mod noise;
pub mod packet;
pub mod relay;
pub mod split;
pub mod testbed;
pub mod too_big;
pub mod uapi;

mod checking;
mod config;
mod decision;
mod delivery;
mod endpoint;
mod filter;
mod forward;
mod guests;
mod handshakes;
mod inbound;
mod incoming;
mod injector;
mod keys;
mod live;
mod messages;
mod news;
mod outbound;
mod path_entries;
mod path_entry;
mod path_wait;
mod paths;
mod peer;
mod peers;
mod ping;
mod probe;
mod probing;
mod queues;
mod relaying;
mod replies;
mod reset;
mod rotation;
mod round;
mod route_lookup;
mod routes;
mod running;
mod sched_slice;
mod shared;
mod sockets;
mod status;
mod steering;
mod stream_end;
mod streams;
mod stun;
mod stun_requests;
mod table;
mod timer;
mod tun;
mod udp;
mod used_relays;
mod wakes;
mod worker;

#[cfg(test)]
mod tests;

pub use config::{PeerConfig, TunUnusable, TunnelConfig, TunnelError};
pub use drops::{Counters, DropReason};
pub use filter::{Denied, Filter};
pub use guard::{Denial, Direction};
pub use injector::Injector;
pub use local_service::{Handled, LocalHandler, LocalService};
pub use ping::Waiting;
pub use probe::{RoundTrip, Said};
pub use probing::Probing;
pub use relaying::OwnRelay;
pub use rotation::{Keys, OVERLAP};
pub use running::{Tunnel, try_open};
pub use status::PeerStatus;
pub use steering::{PathReport, PathSeen, Steering};
pub use stream_end::{StreamEnd, StreamOpener};
pub use streams::OtherEnd;
pub use stun::StunClient;
pub use stun_requests::StunAnswer;
pub use used_relays::UsableRelay;
