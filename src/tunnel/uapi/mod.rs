//! The WireGuard cross-platform userspace protocol: how the ordinary `wg` tool configures a device over
//! `/var/run/wireguard/INTERFACE.sock`.
//!
//! A request is lines of `key=value` up to an empty line; the first is `get=1` or `set=1`. The answer to `get` is the
//! configuration in the same form, and `errno=0` ends every answer. Source: the protocol's description on the
//! WireGuard project's site, "Cross-platform Userspace Implementation".

mod request;
mod server;

pub use request::{MAX_REQUEST, PeerChange, Request, RequestError, SetRequest, print};
pub use server::{StandaloneError, run};
