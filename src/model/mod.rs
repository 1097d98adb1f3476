//! Values that all parts use: names, keys, addresses, times and rates.
//!
//! This part is pure: it reads no clock, socket, file or random source. A text that was parsed into one of these types is not checked
//! again.

pub mod address;
pub mod authority;
pub mod container;
pub mod domain;
pub mod interface;
pub mod key;
pub mod name;
pub(crate) mod pace;
pub mod path;
pub mod percent;
pub mod prefix;
pub mod protocol;
pub mod public_host;
pub(crate) mod rate;
pub(crate) mod reasons;
pub mod sealed;
pub mod server_address;
pub mod text;
pub mod time;

pub use address::MeshAddresses;
pub use container::ContainerId;
pub use key::{IdentityProof, KeyProof, PublicKey, SigningKey, WireGuardKey};
pub use name::{Label, ServiceName};
pub use path::{NodeAddress, Path};
pub use protocol::Protocol;
pub use public_host::PublicHost;
pub use sealed::Sealed;
pub use server_address::{HostName, ServerAddress};
