//! The cross-platform userspace protocol of WireGuard, by which the ordinary `wg` tool configures a device over
//! `/var/run/wireguard/INTERFACE.sock`.
//!
//! A request consists of lines of `key=value` and ends with an empty line. The first line is `get=1` or `set=1`. The answer to
//! `get` is the configuration in the same form. Every answer ends with `errno=` and the result. Source: "Cross-platform
//! Userspace Implementation" on the site of the WireGuard project.

mod changes;
mod request;
mod server;

pub use request::{MAX_REQUEST, PeerChange, Request, RequestError, SetRequest, print};
pub use server::{StandaloneError, run};
