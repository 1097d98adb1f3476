//! The paths between 2 to 6 nodes behind address translators, on a virtual clock.
//!
//! # How to run it
//!
//! ```text
//! cargo nextest run --features etcd --test simulation -E 'test(paths::)'
//! MESHD_SEEDS=0..10000 cargo nextest run --features etcd --test simulation -E 'test(paths::each_seed)'
//! MESHD_SEED=4711 cargo nextest run --features etcd --test simulation -E 'test(paths::one_world)' --no-capture
//! ```
//!
//! A seed that breaks an invariant prints its event log. `one_world` runs a single seed again and prints each datagram.
//!
//! # What is simulated
//!
//! - The choice of paths, the probes and their budget, the punches, the observed addresses and the relays are the product's
//!   (`src/path`, `src/node/paths`), and so are the data plane's table of paths, its probes, its messages and its relay
//!   (`src/tunnel/testbed.rs`). [`node`] carries out what they return.
//! - Sessions are modelled ([`wireguard`]), because their implementation reads the system's clock.
//! - Routers translate as their kinds do ([`nat`]), with a provider's translator behind some of them. The number of routers on the way
//!   counts, and datagrams are delayed, overtake each other and are lost ([`network`]).
//! - Connections between sites are cut, in one direction or both, routers forget their translations, and nodes end ([`plan`]).
//! - A member lists addresses of somebody else as its own.
//!
//! IPv6, streams, policies and the exchange of records are not simulated: each record arrives after at most 200 ms.
//!
//! # What has to hold
//!
//! - Two nodes between which there is a path receive each other's packets within 10 s, from the moment when the path came to be.
//! - Nothing but datagrams that end on the way is sent to an address that was observed, before the peer has agreed to wait for it or
//!   was heard from there.
//! - No node sends more probes in a second than its budget allows, in all and to one address, whatever a member claims.
//! - While nothing goes wrong, no path to a peer is chosen again and again.
//! - In the end both nodes of a pair send directly if that is possible, and through a relay otherwise ([`truth`]).

mod invariants;
mod nat;
mod network;
mod node;
mod plan;
mod truth;
mod wireguard;
mod world;

use std::time::Duration;

use self::nat::Kind;
use self::plan::{Fault, Plan, Traffic};
use self::world::{Outcome, World};
use super::random::Random;
use super::{seeds, setting};

fn run(seed: u64) -> Outcome {
    World::new(seed).run()
}

#[test]
fn each_seed_finds_its_paths_within_the_bounds() {
    let mut failed = Vec::new();
    let (mut events, mut changes, mut probes) = (0, 0, 0);
    let (mut direct, mut relayed, mut slowest) = (0, 0, Duration::ZERO);
    for seed in seeds() {
        let Outcome {
            log,
            violation,
            counts,
        } = run(seed);
        events += counts.events;
        changes += counts.changes;
        probes += counts.probes;
        direct += counts.direct;
        relayed += counts.relayed;
        slowest = slowest.max(counts.slowest);
        if let Some(why) = violation {
            if failed.is_empty() {
                println!("{log}");
            }
            println!("seed {seed}: {why}");
            failed.push(seed);
        }
    }
    println!(
        "{events} events, {changes} changes of paths, {probes} probes; {direct} ends are direct and {relayed} relayed; the longest \
         silence between two nodes with a path was {slowest:?}"
    );
    assert!(
        failed.is_empty(),
        "these seeds break an invariant: {failed:?}"
    );
}

/// The bytes that a relay forwards at most until two nodes have a direct path: handshake messages, which are repeated here because all nodes
/// start at once, the messages about paths, and up to twelve probes of the relay with their echoes if it is far away. A search for the MTU
/// by each node would be 2,912 bytes more.
const MAX_BYTES_OF_PUNCH: usize = 5000;

#[test]
fn a_direct_path_is_found_for_few_bytes_over_the_relay() {
    let kinds = [Kind::PortRestricted, Kind::Plain, Kind::Cone];
    for seed in 0..20 {
        for kind in kinds {
            let mut random = Random::new(seed);
            let plan = Plan::of_pair([kind; 2], &mut random);
            let mut world = World::with_plan(plan, random);
            // The relay is known after some seconds.
            world.run_until(Duration::from_secs(25));
            assert!(world.are_direct(1, 2), "{kind:?}, seed {seed}");
            let bytes = world.forwarded(0);
            println!("{kind:?}, seed {seed}: {bytes} bytes");
            assert!(
                bytes > 0 && bytes <= MAX_BYTES_OF_PUNCH,
                "{kind:?}, seed {seed}: {bytes}"
            );
        }
    }
}

#[test]
fn loss_in_one_direction_moves_both_ends_to_the_relay_within_moments_and_they_stay_there() {
    let (cut, moments) = (Duration::from_secs(30), Duration::from_millis(1500));
    for seed in 0..10 {
        let mut random = Random::new(seed);
        let mut plan = Plan::of_pair([Kind::Cone; 2], &mut random);
        for site in &mut plan.sites {
            site.delay = Duration::from_millis(5);
        }
        plan.traffic = vec![(1, 2, Traffic::Every(Duration::from_millis(20)))];
        plan.faults = vec![(cut, Fault::CutOneWay(1, 2))];
        plan.end = Duration::from_secs(150);
        let mut world = World::with_plan(plan, random);
        world.run_until(cut - Duration::from_millis(1));
        assert!(world.are_direct(1, 2), "seed {seed}");
        // The end that hears nothing moves first. From then on the other one hears probes by the direct path, and nothing else.
        let mut at = cut + moments;
        while at < cut + Duration::from_secs(60) {
            world.run_until(at);
            assert!(world.are_relayed(1, 2), "seed {seed}, {at:?}");
            at += Duration::from_millis(500);
        }
    }
}

#[test]
fn one_world() {
    let Some(seed) = setting("MESHD_SEED") else {
        return;
    };
    let mut world = World::new(seed.parse().expect("MESHD_SEED is a number"));
    world.is_loud = true;
    assert_eq!(world.run().violation, None);
}

#[test]
fn the_same_seed_gives_the_same_log_of_paths() {
    for seed in [1, 5, 8, 13, 21, 34] {
        let (one, other) = (run(seed), run(seed));
        assert_eq!(one.log, other.log, "seed {seed}");
        assert_eq!(one.counts, other.counts, "seed {seed}");
    }
}
