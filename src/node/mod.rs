//! meshd: carries values between tunnel, path, dns, discovery and the coordinator.

pub mod api;
pub mod config;
pub mod control;
pub mod host;
pub mod state;
