//! The cost of the names of a large mesh for a node: memory, and the time from a received record to answers that contain it.
//!
//! ```text
//! cargo bench --bench names -- [SERVICES]...
//! ```
//!
//! Without arguments 1,000 and 10,000 services, each of three instances on three of 100 nodes. The steps are those of a
//! node: verify the record and keep it in the ledger, bring the map of the mesh in step, make the next zone, answer from
//! it. Memory is the process's own (`RssAnon`, proc_pid_status(5)).

#[path = "rig/own_memory.rs"]
mod own_memory;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use meshd::dns::names::{Outcome, answer};
use meshd::dns::transport::Transport;
use meshd::dns::{Replaced, WhenNoneUsable, Zone, ZoneInput};
use meshd::model::SigningKey;
use meshd::records::kinds::{Health, Instance, Record, Service, Source, Token};
use meshd::records::netmap::Netmap;
use meshd::records::service_address::ServiceAddresses;
use meshd::records::{Envelope, Ledger};
use meshd::testbed::records as build;

use own_memory::anonymous_kib;

const NODES: u16 = 100;
const INSTANCES: u16 = 3;
/// Changes measured.
const CHANGES: usize = 1_000;

fn main() {
    let asked: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let asked = if asked.is_empty() {
        vec![1_000, 10_000]
    } else {
        asked
    };
    println!(
        "{:>9} {:>8} {:>12} {:>9} {:>10} {:>9} {:>15} {:>15}",
        "services",
        "names",
        "records, MiB",
        "map, MiB",
        "zone, MiB",
        "anew, ms",
        "change p50, us",
        "change p99, us"
    );
    for services in asked {
        measure(services);
    }
}

fn measure(services: usize) {
    let empty = anonymous_kib();
    let mut ledger = ledger(services);
    let with_ledger = anonymous_kib();
    let mut netmap = ledger.netmap();
    let with_map = anonymous_kib();
    let start = Instant::now();
    let mut zone = build(&netmap);
    let anew = start.elapsed();
    let with_zone = anonymous_kib();
    let names = zone.len();
    let ids: Vec<String> = netmap.services.keys().cloned().collect();
    let mut times = Vec::with_capacity(CHANGES);
    for n in 0..CHANGES {
        let id = &ids[n * 7919 % ids.len()];
        let mut service = netmap.services[id].clone();
        service.version += 1;
        for instance in &mut service.instances {
            instance.health = match instance.health {
                Health::Healthy => Health::Draining,
                _ => Health::Healthy,
            };
        }
        let answers = u16::from(service.instances[0].health == Health::Healthy);
        let query = query(&netmap, &service);
        let owner = owner_of(&netmap, &service);
        let envelope = Envelope::seal(&Record::Service(service), &key(owner));
        let start = Instant::now();
        ledger.apply(envelope).expect("a newer record");
        let before = ledger.renew(&mut netmap, id);
        let replaced = Replaced {
            before: before.as_ref(),
            now: netmap.services.get(id),
        };
        zone = with_input(&netmap, |input| zone.replace(input, &[replaced]).0);
        let Outcome::Reply(reply) = answer(&zone, &query, Transport::Udp, 1) else {
            panic!("a name of the mesh");
        };
        times.push(start.elapsed());
        assert_eq!(reply[6..8], answers.to_be_bytes(), "the change shows");
    }
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    let mib = |more: u64, less: u64| more.saturating_sub(less) as f64 / 1024.0;
    println!(
        "{services:>9} {names:>8} {:>12.1} {:>9.1} {:>10.1} {:>9.1} {:>15.1} {:>15.1}",
        mib(with_ledger, empty),
        mib(with_map, with_ledger),
        mib(with_zone, with_map),
        anew.as_secs_f64() * 1e3,
        at(0.5),
        at(0.99),
    );
}

fn build(netmap: &Netmap) -> Zone {
    with_input(netmap, Zone::build)
}

fn with_input<T>(netmap: &Netmap, run: impl FnOnce(&ZoneInput<'_>) -> T) -> T {
    run(&ZoneInput {
        netmap,
        own: key(1).public(),
        unreachable: &BTreeSet::new(),
        groups: &BTreeMap::from([(key(2).public(), 3)]),
        when_none_usable: WhenNoneUsable::All,
        lingering: &BTreeSet::new(),
        balanced: &BTreeSet::new(),
        held: &ServiceAddresses::default(),
        serial: 1,
        most_addresses: 8,
    })
}

fn key(n: u16) -> SigningKey {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    SigningKey::from_seed(&seed)
}

/// The node whose service it is: their names tell.
fn owner_of(netmap: &Netmap, service: &Service) -> u16 {
    let name = netmap.members[&service.node].name.as_str();
    name[1..].parse().expect("n and a number")
}

fn ledger(services: usize) -> Ledger {
    let (mesh_key, token_key) = (key(1_000), key(1_001));
    let mut ledger = Ledger::new(mesh_key.public());
    let mut say = |record: Record, key: &SigningKey| {
        ledger
            .apply(Envelope::seal(&record, key))
            .expect("one that is due");
    };
    say(Record::Mesh(build::mesh()), &mesh_key);
    let token = Token {
        uses: NODES.into(),
        ..build::token(&token_key.public())
    };
    say(Record::Token(token), &mesh_key);
    let keys: Vec<SigningKey> = (0..=NODES).map(key).collect();
    for n in 1..=NODES {
        let own = &keys[usize::from(n)];
        let membership = build::membership(&own.public(), &token_key.public(), &format!("n{n}"));
        say(Record::Membership(membership), &token_key);
        let node = build::node(&own.public(), build::block(n.into()));
        say(Record::Node(node), own);
    }
    for s in 0..services {
        for i in 0..INSTANCES {
            let place = s * usize::from(INSTANCES) + usize::from(i);
            let node = 1 + (place % usize::from(NODES)) as u16;
            let host = 2 + (place / usize::from(NODES) % 250) as u8;
            let own = &keys[usize::from(node)];
            let name = format!("service-{s}");
            let instance = Instance {
                source: Source::Docker,
                ..build::instance(
                    &format!("n{node}-80"),
                    vec![IpAddr::from([10, 210, node as u8, host])],
                )
            };
            let service = build::service(&own.public(), &name, vec![instance]);
            say(Record::Service(service), own);
        }
    }
    ledger
}

/// Asks for the addresses of the part of a service that is on its node.
fn query(netmap: &Netmap, service: &Service) -> Vec<u8> {
    let node = netmap.members[&service.node].name.as_str();
    let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [service.name.as_str(), "svc", node, "node", "mesh"] {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}
