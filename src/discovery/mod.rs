//! Where services come from, and how they are.

pub mod check;
pub mod docker;
pub mod registry;

pub use check::Checker;
pub use registry::Registry;
