//! The promises of the data plane for every packet: no allocation, no delivery of a replay, the right owner of each address.
//!
//! The whole program counts allocations, by thread.

mod allocations;
mod count;
mod lookups;
mod policy;
mod relayed;
mod replays;
mod session;

#[global_allocator]
static COUNTING: count::Counting = count::Counting;
