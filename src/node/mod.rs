//! meshd: carries values between tunnel, path, dns, discovery and the coordinator.

pub mod api;
pub mod control;
pub mod state;
