//! The API over the network: HTTP with API tokens, at the mesh addresses of a node and at a coordinator.
//!
//! | file | what it is |
//! |---|---|
//! | [`calls`] | the calls of nodes and of coordinators, each with the scope that it needs |
//! | [`host`] | which values of `Host` a server answers to |
//! | [`openapi`] | the description of the calls for programs, in OpenAPI 3.1 |
//! | [`problem`] | the body of an answer that reports a failure (RFC 9457) |
//!
//! The answers are those of the local API and of the admin API.

pub mod calls;
pub mod host;
pub mod openapi;
pub mod problem;

/// The TCP port of the API at the mesh addresses of a node.
pub const PORT: u16 = 7447;
/// The beginning of the paths of all calls of a coordinator. Nodes join and stream at other paths of the same port.
pub const COORDINATOR_PREFIX: &str = "/v1/api/";
/// The maximum size of the body of a request, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
