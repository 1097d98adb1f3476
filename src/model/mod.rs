//! What every part speaks: names, keys, addresses, records and the map made of them.
//!
//! Everything here is a value. Nothing reads a clock, a socket, a file or a random source; what is
//! parsed here once is not checked again below.

pub mod address;
pub mod key;
pub mod name;
pub(crate) mod pace;
pub(crate) mod rate;
pub mod text;
pub mod time;

pub use address::MeshAddresses;
pub use key::{KeyProof, PublicKey, SigningKey, WireGuardKey};
pub use name::{Label, ServiceName};
