//! Attacks on a mesh by strangers, members, containers, neighbours on a LAN and stolen coordinators. The tests send the messages of
//! these attackers themselves.
//!
//! Each file tests one promise of the threat model and is named after it. The attacker's tools are in [`kit`].

mod kit;

/// Whole meshes of real programs in network namespaces, which the system tests use as well.
#[path = "../system/mesh.rs"]
#[allow(dead_code, reason = "the system tests use what these do not")]
mod mesh;

/// Queries to a resolver from inside a host.
#[path = "../system/query.rs"]
#[allow(dead_code, reason = "the system tests use what these do not")]
mod query;

/// A server that takes a coordinator's place with its TLS key.
#[path = "../system/stand_in.rs"]
#[allow(dead_code, reason = "the system tests use what these do not")]
mod stand_in;

/// A socket that answers as a container engine does.
#[path = "../system/engine.rs"]
#[allow(dead_code, reason = "the system tests use what these do not")]
mod engine;

/// A socket that answers `meshctl` in the place of meshd.
#[path = "../cli/daemon.rs"]
#[allow(dead_code, reason = "the command line's tests use what these do not")]
mod daemon;

/// Runs of `meshctl`.
#[path = "../cli/program.rs"]
#[allow(dead_code, reason = "the command line's tests use what these do not")]
mod program;

/// The metrics of a node, which the benches read as well.
#[path = "../../benches/rig/scrape.rs"]
mod scrape;

/// A resolver in the test's process, and clients of every kind.
mod resolver;
mod small_mesh;
mod zones;

mod earlier_stores;
mod forged_memberships;
mod n01_node_clock;
mod n01_tokens_after_restore;
mod n02_share_of_the_ledger;
mod n03_rates;
mod n03_store;
mod n04_connections;
mod n05_names;
mod n06_join_waits;
mod n06_leases;
mod n07_back_in_time;
mod n08_own_word;
mod n09_lan_bridges;
mod n10_dns_cost;
mod n11_dns_places;
mod n12_service_names;
mod n13_round_trips;
mod n14_forms_of_addresses;
mod n15_service_bindings;
mod n16_peers_port;
mod n17_unknown_kinds;
mod n18_groups_of_the_socket;
mod n19_resolv_conf;
mod n20_links_of_containers;
mod n21_texts_of_coordinators;
mod n22_tokens_in_the_process_list;
mod n23_token_files;
mod n24_watchdog;
mod n25_overflow_checks;
mod n26_strangers;
mod n27_memberships_of_others;
mod n28_calls;
mod n29_stun;
mod n30_serve_rights;
mod n31_nodes_without_policies;
mod n32_calls_by_peers;
mod n33_routes;
mod node_kit;
mod threat_model;
mod upgrade;
