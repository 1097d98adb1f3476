//! The services of this node that do not come from containers, the health checks of all services, and their reservations for rollouts.

pub mod checks;
pub mod named;
pub mod outside;
mod registered;
pub mod registry;
pub mod reservations;

pub use checks::Checker;
pub use registry::Registry;
pub use reservations::Reservations;
