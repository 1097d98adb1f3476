//! Whole meshes in one thread on a virtual clock: coordinators, their store, and 2 to 200 nodes, built from the state machines
//! that the programs run. Each seed is another mesh with other faults, and the same seed always does the same.
//!
//! # How to run it
//!
//! ```text
//! cargo nextest run --features etcd --test simulation
//! MESHD_SEEDS=0..10000 cargo nextest run --features etcd --test simulation -E 'test(invariants)'
//! MESHD_SEED=4711 cargo nextest run --features etcd --test simulation -E 'test(one_seed)' --no-capture
//! ```
//!
//! A seed that breaks an invariant prints its event log. `one_seed` runs a single seed again and always prints the log.
//!
//! # What is simulated
//!
//! - The hub of each coordinator and the replica of each node are the product's, with its ledger, netmap, zone and answers, and
//!   its conversations between nodes ([`nodes`], [`coordinator`]).
//! - The network delays messages, breaks streams and cuts paths ([`network`]). A stream keeps the order of its messages.
//! - Machines crash, and lose what is not on disk and what a disk acknowledged before it was stored; disks are full; clocks jump;
//!   stores and files of nodes are replaced by older copies ([`faults`]).
//! - People make and revoke tokens, remove and rename nodes, rotate keys, change services and leave ([`administrator`], [`faults`]).
//! - People follow the message of a refused join: they join with another name, set a clock, or make a new token if no program can
//!   know whether the old one has uses left ([`nodes`]).
//! - People follow the messages of a mesh that does not converge by itself: the administrator revokes a token that admitted more
//!   nodes than it may, and a node leaves if its coordinator lost its join and refuses it now ([`administrator`], [`nodes`]).
//! - Attackers have members of the mesh, a token, and coordinators that they stole ([`attackers`]).
//!
//! # What is not simulated
//!
//! Sockets, TLS and HTTP, rate limits and connection limits, the coordinator's table of sessions (two machines with the keys of one
//! node), packets and their paths (a peer is reached or not; [`paths`] simulates these by themselves), containers, the firewall,
//! and the JSON of messages. The shells of the programs are replaced by those of the simulation, and the store in memory replaces
//! SQLite and etcd.
//!
//! # What has to hold
//!
//! [`invariants`] has the list. Some are checked after each event, some at settled points, and convergence at the end: within
//! [`world::CONVERGENCE`] after the last fault, or [`world::CONVERGENCE_AFTER_LOSS`] if a store lost records or attackers were
//! there, all honest nodes have the netmap of their coordinators.

mod administrator;
mod attackers;
mod coordinator;
mod faults;
mod invariants;
mod machine;
mod network;
mod nodes;
mod paths;
mod plan;
mod queue;
mod random;
mod store;
mod truth;
mod uplink;
mod world;

use std::ops::Range;

use self::store::Sabotage;
use self::world::{Outcome, World};

/// The seeds of a run without `MESHD_SEEDS`.
const SEEDS: Range<u64> = 0..300;
/// A sabotage is found within so many seeds.
const SABOTAGED: u64 = 1000;

fn run(seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    World::new(seed, sabotage).run()
}

/// The value of an environment variable, if it is set.
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn seeds() -> Range<u64> {
    let Some(text) = setting("MESHD_SEEDS") else {
        return SEEDS;
    };
    let parse = |text: &str| text.parse().expect("MESHD_SEEDS is FROM..TO");
    let (from, to) = text.split_once("..").expect("MESHD_SEEDS is FROM..TO");
    parse(from)..parse(to)
}

#[test]
fn the_invariants_hold_for_each_seed() {
    let (mut events, mut slowest) = (0, std::time::Duration::ZERO);
    let mut failed = Vec::new();
    for seed in seeds() {
        let outcome = run(seed, None);
        events += outcome.events;
        slowest = slowest.max(outcome.converged.unwrap_or_default());
        if let Some(why) = outcome.violation {
            if failed.is_empty() {
                println!("{}", outcome.log);
            }
            println!("seed {seed}: {why}");
            failed.push(seed);
        }
    }
    println!(
        "{events} events; the slowest mesh converged after {} s",
        slowest.as_secs()
    );
    assert!(
        failed.is_empty(),
        "these seeds break an invariant: {failed:?}"
    );
}

#[test]
fn one_seed() {
    let Some(seed) = setting("MESHD_SEED") else {
        return;
    };
    // `RUST_LOG=meshd=debug` shows the messages of the programs between the events.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .without_time()
        .with_ansi(false)
        .with_writer(std::io::stdout)
        .init();
    let mut world = World::new(seed.parse().expect("MESHD_SEED is a number"), None);
    world.is_loud = true;
    let outcome = world.run();
    assert_eq!(outcome.violation, None);
}

#[test]
fn the_same_seed_gives_the_same_log() {
    for seed in [1, 5, 8, 13, 21, 34] {
        let (one, other) = (run(seed, None), run(seed, None));
        assert_eq!(one.log, other.log, "seed {seed}");
        assert_eq!(one.events, other.events, "seed {seed}");
    }
}

/// The first seed that notices the sabotage, and why.
fn found(sabotage: Sabotage) -> (u64, String) {
    for seed in 0..SABOTAGED {
        if let Some(why) = run(seed, Some(sabotage)).violation {
            println!("{sabotage:?}: seed {seed}: {why}");
            return (seed, why);
        }
    }
    panic!("no seed below {SABOTAGED} notices {sabotage:?}");
}

#[test]
fn a_block_that_is_leased_twice_is_found() {
    let (_, why) = found(Sabotage::LeaseTwice);
    assert!(why.contains("was leased to"), "{why}");
}

#[test]
fn a_record_with_a_wrong_signer_is_found() {
    let (_, why) = found(Sabotage::WrongSigner);
    assert!(
        why.contains("signed by") || why.contains("never made"),
        "{why}"
    );
}

#[test]
fn a_name_that_a_zone_lost_is_found() {
    let (_, why) = found(Sabotage::LoseName);
    assert!(why.contains("NXDOMAIN"), "{why}");
}
