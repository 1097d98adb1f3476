//! Containers of Docker and Podman, adopted as they run.
//!
//! [`engine`] is the shell: it follows the engine's events, looks at what they are about, and lists everything now and
//! then. What it reports goes through [`containers`], which says what to publish, map and probe. [`labels`] says what a
//! container asks for, [`leases`] which address it has, [`inspect`] has what the engine describes, as values. [`network`] is the one
//! whose containers have mesh addresses of their own. [`residents`] says who is there besides, for a doctor.

pub mod api;
mod client;
pub mod container;
pub mod engine;
pub mod inspect;
pub mod labels;
pub mod leases;
mod lines;
pub mod network;
mod refusal;
pub mod residents;
pub mod state;

pub use container::Wired;
pub use engine::{EngineTask, Report};
pub use inspect::ContainerId;
pub use labels::{Expose, Rules};
pub use state::{Containers, Mapping, Offer, Surroundings};
