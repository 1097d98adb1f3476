//! Containers of Docker and Podman, found while they run: meshd needs no change to how they are started.
//!
//! [`engine`] is the shell: it follows the engine's events, requests the description of each container that an event is
//! about, and lists all containers from time to time. [`state`] computes from its reports what to publish, map and
//! probe. [`labels`] parses the labels of a container, [`leases`] assigns its address, and [`inspect`] has the engine's
//! descriptions as values. [`network`] is the network whose containers have mesh addresses of their own.
//! [`running_containers`] lists all containers for `meshctl doctor`.

pub mod api;
mod client;
pub mod container;
pub mod engine;
pub mod inspect;
pub mod labels;
pub mod leases;
mod ndjson;
pub mod network;
mod refusal;
pub mod running_containers;
pub mod state;

pub use container::AppliedMappings;
pub use engine::{EngineTask, Report};
pub use inspect::ContainerId;
pub use labels::{Expose, OpenPorts, Rules};
pub use state::{Containers, Mapping, NodeContext, Offer, reserve, take_newly_refused, why_unused};
