//! What the programs need of the operating system: arguments, progress on the terminal, files, configuration files, logs, the
//! audit log, metrics, signals, clocks, random numbers, supervised tasks, the HTTP client, Unix sockets, netlink, the watchdog,
//! waiting for descriptors, UDP datagrams in batches, TCP connections, TLS, connections to a coordinator or through a proxy, and the
//! rights of the process.

pub mod arguments;
pub mod audit;
pub mod batch;
pub mod clock;
pub mod config_file;
pub mod dial;
pub mod file;
pub mod http;
pub mod log;
pub mod metrics;
pub mod netlink;
pub mod progress;
pub mod proxy;
pub mod random;
pub mod readable;
pub mod repeats;
pub mod rights;
pub mod signals;
pub mod tasks;
pub mod tcp;
pub mod tls;
pub mod token_file;
pub mod unix_server;
pub mod usage;
pub mod watchdog;
pub mod web;
