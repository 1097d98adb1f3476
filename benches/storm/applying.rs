//! The cost of records for a node: it verifies a snapshot and a change, and computes its map and its zone from them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use meshd::dns::zone::{MAX_ADDRESSES, Replaced, WhenNoneUsable, Zone, ZoneInput};
use meshd::model::time::{UnixSeconds, next_version};
use meshd::model::{MeshAddresses, PublicKey, SigningKey, WireGuardKey};
use meshd::policy::{Policy, Table};
use meshd::records::kinds::{MESH_ID, Membership, Mesh, MeshPolicy, Record, Service, Token};
use meshd::records::netmap::{Netmap, Rules};
use meshd::records::service_address::ServiceAddresses;
use meshd::records::subjects::subjects;
use meshd::records::{Envelope, Ledger};

use crate::node::{label, own_records, service};

/// Changes applied, one after the other.
const CHANGES: usize = 200;
/// Policies applied, one after the other.
const POLICIES: usize = 50;
/// The rules of a policy.
const RULES: usize = 800;

/// The parts of a node in memory, without its tunnel.
struct Held {
    ledger: Ledger,
    netmap: Netmap,
    zone: Zone,
}

/// Prints memory and times for a mesh of `nodes` with so many services each.
pub(crate) fn measure(nodes: usize, services: usize) {
    let (mesh_key, snapshot, first) = records(nodes, services);
    let count = snapshot.len();
    let before = resident();
    let begun = Instant::now();
    let mut ledger = Ledger::new(mesh_key.public());
    for record in snapshot {
        ledger.apply(record).expect("a record that holds");
    }
    let verified = begun.elapsed();
    let (netmap, zone) = derived(&ledger, first.public());
    let mut held = Held {
        ledger,
        netmap,
        zone,
    };
    println!(
        "a node applies a snapshot of {nodes} nodes ({count} records) in {:.1} ms ({:.1} ms of it to verify), and holds {} KiB more",
        begun.elapsed().as_secs_f64() * 1e3,
        verified.as_secs_f64() * 1e3,
        resident().saturating_sub(before)
    );
    let address = held.netmap.members[&first.public()].block.node_v4().into();
    let mut times: Vec<Duration> = Vec::with_capacity(CHANGES);
    let id = Service::id_of(&first.public(), None, &label("service-0-0"));
    for version in 2..2 + CHANGES as u64 {
        let change = service(&first, "service-0-0", address, version);
        let begun = Instant::now();
        held.ledger.apply(change).expect("a newer version");
        let before = held.ledger.renew(&mut held.netmap, &id);
        let replaced = Replaced {
            before: before.as_ref(),
            now: held.netmap.services.get(&id),
        };
        held.zone = with_input(&held.netmap, first.public(), |input| {
            held.zone.replace(input, &[replaced]).0
        });
        times.push(begun.elapsed());
    }
    println!(
        "a node applies one change to it: {}",
        crate::summary(&mut times)
    );
    drop(held.zone);
    let mut times: Vec<Duration> = Vec::with_capacity(POLICIES);
    for version in 1..=POLICIES as u64 {
        let text = policy(version);
        let record = Record::Policy(MeshPolicy::new(version, &text));
        let record = Envelope::seal(&record, &mesh_key);
        let begun = Instant::now();
        held.ledger.apply(record).expect("a newer version");
        let policy = Policy::parse(&text).expect("a policy");
        let netmap = (held.ledger).netmap_under(Rules::Policy(Arc::new(policy)));
        let subjects = subjects(&netmap);
        let table = Table::compile(Some(netmap.rules.policy().expect("it is there")), &subjects);
        times.push(begun.elapsed());
        assert!(!table.allows_everything());
    }
    println!(
        "a node applies a policy of {RULES} rules, from its record to its table: {}",
        crate::summary(&mut times)
    );
}

/// A policy in which each of many services is reached from one other service. It is another one in each version.
pub(crate) fn policy(version: u64) -> String {
    let rules = (0..RULES).map(|n| {
        let (node, service) = (n / 10, n % 10);
        format!("[[allow]]\nfrom = [\"node:n{node}\"]\nto = [\"service-{node}-{service}:8080\"]\n")
    });
    let rules: String = rules.collect();
    format!("# version {version}\nlanguage = 1\ndefault = \"deny\"\n{rules}")
}

/// The values that a node computes from a new ledger.
fn derived(ledger: &Ledger, own: PublicKey) -> (Netmap, Zone) {
    let netmap = ledger.netmap();
    let zone = with_input(&netmap, own, Zone::build);
    (netmap, zone)
}

fn with_input<T>(netmap: &Netmap, own: PublicKey, run: impl FnOnce(&ZoneInput<'_>) -> T) -> T {
    run(&ZoneInput {
        netmap,
        own,
        unreachable: &BTreeSet::new(),
        groups: &BTreeMap::new(),
        when_none_usable: WhenNoneUsable::All,
        lingering: &BTreeSet::new(),
        balanced: &BTreeSet::new(),
        held: &ServiceAddresses::default(),
        serial: 1,
        most_addresses: MAX_ADDRESSES,
    })
}

/// All records of a mesh, its key, and the key of its first node.
fn records(nodes: usize, services: usize) -> (SigningKey, Vec<Envelope>, SigningKey) {
    let key = || {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("the system has randomness");
        SigningKey::from_seed(&seed)
    };
    let (mesh_key, token_key) = (key(), key());
    let now = SystemTime::now();
    let addresses = MeshAddresses {
        prefix_v4: "10.0.0.0/8".parse().expect("a literal"),
        prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
        node_block_v4: 24,
        node_block_v6: 64,
    };
    let mesh = Record::Mesh(Mesh {
        id: MESH_ID.to_owned(),
        version: 1,
        domain: label("mesh"),
        addresses,
        coordinators: Vec::new(),
    });
    let created_at = UnixSeconds::from_system(now);
    let token = Record::Token(Token {
        id: token_key.public(),
        version: 1,
        tags: Vec::new(),
        uses: u32::try_from(nodes).expect("not that many"),
        created_at,
        expires_at: created_at.plus(Duration::from_secs(3600)),
        ephemeral: false,
    });
    let mut records = vec![
        Envelope::seal(&mesh, &mesh_key),
        Envelope::seal(&token, &mesh_key),
    ];
    let keys: Vec<SigningKey> = (0..nodes).map(|_| key()).collect();
    for (n, identity) in keys.iter().enumerate() {
        let wireguard_key = WireGuardKey(identity.public().0);
        let membership = Record::Membership(Membership {
            id: identity.public(),
            version: next_version(0, now),
            token: token_key.public(),
            name: label(&format!("n{n}")),
            wireguard_key,
            tags: Vec::new(),
            issued_at: created_at,
            proof: None,
        });
        records.push(Envelope::seal(&membership, &token_key));
        let index = u32::try_from(n + 1).expect("not that many");
        let block = addresses.block(index).expect("in the plan");
        records.extend(own_records(identity, wireguard_key, block, n, services));
    }
    let first = keys.into_iter().next().expect("one node at least");
    (mesh_key, records, first)
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("it runs");
    text.lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .expect("the kernel says it of every process")
}
