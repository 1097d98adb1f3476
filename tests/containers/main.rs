//! Containers of real engines on hosts that a mesh of real daemons joins.
//!
//! Without root or a container engine `tests/run` lists the tests as skipped.

/// Programs that are installed or unpacked, which the system tests look for as well.
#[path = "../system/tool.rs"]
mod tool;

mod hosts;

mod clients;
mod compose;
mod docker_api;
mod fallback;
mod flows;
mod guards;
mod ingress;
mod names;
mod network;
mod paths;
mod policy;
mod ports;
mod positions;
mod presence;
mod projects;
mod promptness;
mod rolling;
mod rollouts;
mod routers;
mod spawn;
