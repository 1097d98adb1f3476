//! Those who mean harm: strangers, members, containers, neighbours and stolen coordinators, played by hand-made messages.
//!
//! Each file holds what must not work, named after the promise it tests. The attacker's tools are in [`kit`].

mod kit;

/// Whole meshes of real programs, as the system tests have them.
#[path = "../system/mesh.rs"]
#[allow(dead_code, reason = "the system tests use what these do not")]
mod mesh;

/// Questions to a resolver from inside a host.
#[path = "../system/query.rs"]
#[allow(dead_code, reason = "the system tests use what these do not")]
mod query;

/// What stands for a container engine.
#[path = "../system/engine.rs"]
#[allow(dead_code, reason = "the system tests use what these do not")]
mod engine;

mod forged_memberships;
mod n01_tokens_after_restore;
mod n03_store;
mod n05_names;
mod n06_leases;
mod n07_back_in_time;
mod n12_service_names;
mod n19_resolv_conf;
mod n24_watchdog;
mod n09_lan_bridges;
