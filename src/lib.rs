//! meshd: a WireGuard overlay network with built-in service discovery DNS.
//!
//! # The map
//!
//! | module | what it is |
//! |---|---|
//! | [`model`] | values that every part uses: names, keys, addresses, time, rates |
//! | [`policy`] | who may reach which port: the language of the rules, and the table that packets are checked against |
//! | [`records`] | signed records, the ledger that verifies them, and the map of the mesh computed from it |
//! | [`protocol`] | messages: join token, join, control stream, gossip between nodes, administration, local API |
//! | [`os`] | files, logs, signals, Unix sockets, configuration files |
//! | [`tunnel`] | the data plane: WireGuard between a TUN device and UDP sockets |
//! | [`path`] | which path leads to a peer, and whether there is one |
//! | [`dns`] | zone, answers, forwarding, server |
//! | [`containers`] | containers of the engine: which exist, and which address and name each one has |
//! | [`services`] | services from the configuration and the command line, and health checks |
//! | [`discovery`] | the services of the mesh as targets for Prometheus, and as sites of an ingress |
//! | [`firewall`] | packet filter rules and address mapping in the kernel |
//! | [`page`] | the page for a browser: views of the mesh as HTML |
//! | [`spawn`] | containers that programs start from templates: what is permitted, whose they are, until when |
//! | [`coordinator`] | admits nodes, leases addresses, stores and forwards records |
//! | [`node`] | meshd: carries values between the parts above and the coordinator |
//! | [`cli`] | meshctl, one file per command |
//! | [`testbed`] | hosts in network namespaces, for the demo, the tests and the benches |
//!
//! Imports run one way: programs import `cli`, `node`, `coordinator` and `testbed`; those import `tunnel`, `path`, `dns`,
//! `containers`, `services`, `discovery`, `firewall`, `page` and `spawn`; those import `protocol`, then `records`, then `policy`, then
//! `model`. `os` serves all parts that do input and output. `tests/architecture` holds that.
//!
//! Start reading at [`records::ledger`], which verifies every record, then at [`node`].

// Which methods, and why: `clippy.toml`.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod cli;
pub mod containers;
pub mod coordinator;
pub mod discovery;
pub mod dns;
pub mod firewall;
pub mod model;
pub mod node;
pub mod os;
pub mod page;
pub mod path;
pub mod policy;
pub mod protocol;
pub mod records;
pub mod services;
pub mod spawn;
pub mod testbed;
pub mod tunnel;
