//! meshd: a WireGuard overlay network with built-in service discovery DNS.
//!
//! # The map
//!
//! | module | what it is |
//! |---|---|
//! | [`model`] | what every part speaks: names, keys, addresses, records, the map of the mesh |
//! | [`wire`] | what travels: join token, signed envelope, ledger, control stream, APIs |
//! | [`tunnel`] | the data plane: WireGuard between a TUN device and UDP sockets |
//! | [`path`] | which way to a peer, and whether there is one |
//! | [`dns`] | zone, answers, forwarding, server |
//! | [`discovery`] | where services come from, and their health |
//! | [`coordinator`] | admits nodes, leases addresses, stores and forwards records |
//! | [`node`] | meshd: carries values between tunnel, path, dns, discovery and the coordinator |
//! | [`cli`] | meshctl, one file per command |
//! | [`lab`] | hosts in network namespaces, for the demo, the tests and the benches |
//!
//! Imports run one way: programs to `cli`, `node`, `coordinator` and `lab`; those to `tunnel`, `path`, `dns` and
//! `discovery`; those to `wire`; and `wire` to `model`. `tests/architecture.rs` holds that.
//!
//! Start reading at [`wire::ledger`], the gate that every fact passes, then at [`node`].

pub mod cli;
pub mod coordinator;
pub mod discovery;
pub mod dns;
pub mod lab;
pub mod model;
pub mod node;
pub mod path;
pub mod tunnel;
pub mod wire;
