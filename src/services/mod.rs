//! The services of this node that do not come from containers, and the health checks of all services.

pub mod checks;
pub mod outside;
pub mod registry;

pub use checks::Checker;
pub use registry::Registry;
