//! The node's side of the coordinator: TLS pinned by the token, the join call, the control stream.

mod attempts;
pub mod join;
pub mod session;
pub mod stream;
