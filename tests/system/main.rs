//! Whole meshes of real programs, in network namespaces.
//!
//! Each test makes its own world, so they run side by side. Without root `tests/run` lists them as skipped.

mod mesh;
mod query;
mod stand_in;
mod tool;
mod tunnels;

mod adversary;
mod apart;
mod api;
mod bad_input;
mod clients;
mod copied;
mod departures;
mod device;
mod dns_address;
mod engine;
mod flood;
mod forwarding;
mod four_hosts;
mod guests;
mod host_dns;
mod host_network;
mod ipv6_only;
mod leaving;
mod machine;
#[cfg(feature = "etcd")]
mod many_coordinators;
mod monitoring;
mod names;
mod narrow_path;
mod outside;
mod own_word;
mod page;
mod paths;
mod policy;
mod relayed;
mod restart;
mod restore;
mod rotation;
mod routes;
mod truth;
mod unattended;
mod uncarried;
