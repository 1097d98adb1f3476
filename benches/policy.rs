//! The cost of a policy for a node of a large mesh: the memory of its table, the time to compile it, and the time to look up a packet in
//! it. Each lookup is for another flow than the one before.
//!
//! ```text
//! cargo bench --bench policy -- [RULES [INSTANCES]]
//! ```
//!
//! Without arguments there are 1,000 rules and 10,000 instances with two addresses each, on 100 nodes. Most rules are about two services;
//! some are about tags, projects and everybody. The goals are at most 50 ms to compile, 8 MiB, and 60 ns for a lookup. Memory is the
//! process's own (`RssAnon`, proc_pid_status(5)).

#[path = "rig/median.rs"]
mod median;
#[path = "rig/numbers.rs"]
mod numbers;
#[path = "rig/own_memory.rs"]
mod own_memory;

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use meshd::model::{Label, Protocol, ServiceName};
use meshd::policy::{Asked, Offered, OfferedPort, Policy, Subject, Table, Verdict, interpret};

use median::median;
use numbers::numbers;
use own_memory::anonymous_kib;

const NODES: usize = 100;
/// The number of instances of each service.
const INSTANCES: usize = 5;
/// The number of services of each project.
const SERVICES: usize = 4;
/// How often each policy is compiled.
const COMPILATIONS: usize = 21;
/// The number of lookups in one run.
const LOOKUPS: usize = 1 << 20;
/// The number of flows of a busy node. The part of the table that they need fits into the processor's caches.
const HOT: usize = 1_024;
/// How often the lookups are measured.
const RUNS: usize = 9;

fn main() {
    let [rules, instances] = numbers([1_000, 10_000]);
    let subjects = mesh(instances);
    println!("{rules} rules, {instances} instances on {NODES} nodes");
    for (name, broad) in [
        ("narrow rules", 0),
        ("some for all", 20),
        ("many for all", 200),
    ] {
        measure(name, rules, broad.min(rules), &subjects);
    }
}

fn measure(name: &str, rules: usize, broad: usize, subjects: &[Subject]) {
    let text = policy(rules, broad, subjects.len() / INSTANCES);
    let policy = Policy::parse(&text).expect("a policy");
    let before = memory_kib();
    let table = Table::compile(Some(&policy), subjects);
    let memory = memory_kib().saturating_sub(before);
    let times: Vec<f64> = (0..COMPILATIONS)
        .map(|_| {
            let start = Instant::now();
            black_box(Table::compile(
                Some(black_box(&policy)),
                black_box(subjects),
            ));
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    let flows = flows(subjects);
    let (hot, _) = lookups(&table, &flows[..HOT]);
    let (cold, allowed) = lookups(&table, &flows);
    check(&table, &policy, subjects);
    println!(
        "{name:>13}: {:>4.1} KiB of text, compiled in {:.1} ms, {:.1} MiB, a lookup {hot:.1} ns among {HOT} flows and {cold:.1} ns \
         among {LOOKUPS}, {allowed:.1} % allowed",
        text.len() as f64 / 1024.0,
        median(&times),
        memory as f64 / 1024.0,
    );
}

/// The nanoseconds of a lookup, and the percentage of lookups that are allowed.
fn lookups(table: &Table, flows: &[(IpAddr, IpAddr, Asked)]) -> (f64, f64) {
    let mut allowed = 0;
    let times: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            allowed = 0;
            for (from, to, asked) in flows.iter().cycle().take(LOOKUPS) {
                let (from, to) = (table.class(*from), table.class(*to));
                allowed += usize::from(table.allows(from, to, *asked));
            }
            start.elapsed().as_secs_f64() * 1e9 / LOOKUPS as f64
        })
        .collect();
    (median(&times), allowed as f64 * 100.0 / LOOKUPS as f64)
}

/// Nodes with three tags, and instances of services in projects.
fn mesh(instances: usize) -> Vec<Subject> {
    let mut all: Vec<Subject> = (0..NODES).map(|n| subject(n, n, None)).collect();
    all.extend((0..instances).map(|n| subject(NODES + n, n % NODES, Some(n / INSTANCES))));
    all
}

fn subject(number: usize, node: usize, service: Option<usize>) -> Subject {
    let address = u32::try_from(number).expect("few subjects");
    let offered = |service: usize, project: Option<Label>| Offered {
        service: ServiceName {
            name: label(&format!("s{service}")),
            project,
        },
        ports: vec![
            port("http", 8000 + (service % 50) as u16),
            port("metrics", 9100),
        ],
        allow: Vec::new(),
    };
    let services = service.map_or_else(Vec::new, |service| {
        let project = label(&format!("p{}", service / SERVICES));
        vec![offered(service, None), offered(service, Some(project))]
    });
    Subject {
        addresses: vec![
            IpAddr::from(Ipv4Addr::from(0x0ad2_0000 + address)),
            IpAddr::from(Ipv6Addr::from(0xfd24_u128 << 112 | u128::from(address))),
        ],
        node: label(&format!("n{node}")),
        tags: vec![
            label(&format!("t{}", node % 7)),
            label(&format!("u{}", node % 3)),
        ],
        services,
        is_node: service.is_none(),
        guest: None,
        network: None,
    }
}

fn label(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

fn port(name: &str, port: u16) -> OfferedPort {
    OfferedPort {
        name: Some(label(name)),
        protocol: Protocol::Tcp,
        port,
    }
}

/// A policy of which `broad` rules are for all of a kind, and the others are about two services each.
fn policy(rules: usize, broad: usize, services: usize) -> String {
    let mut text = "language = 1\nallow = [\n".to_owned();
    for n in 0..rules {
        let (from, to) = if n < broad {
            match n % 5 {
                0 => (format!("tag:t{}", n % 7), "*:metrics".to_owned()),
                1 => ("*".to_owned(), format!("s{}", n * 7 % services)),
                2 => ("project:*".to_owned(), "same-project".to_owned()),
                3 => ("*".to_owned(), format!("tag:u{}:{}", n % 3, 100 + n)),
                _ => (format!("node:n{}", n % NODES), "*:icmp".to_owned()),
            }
        } else {
            (
                format!("s{}", n * 7 % services),
                format!("s{}:{}", n * 13 % services, 8000 + n % 50),
            )
        };
        let _ = writeln!(text, "{{from=[\"{from}\"],to=[\"{to}\"]}},");
    }
    text.push_str("]\n");
    text
}

/// Packets between random subjects.
fn flows(subjects: &[Subject]) -> Vec<(IpAddr, IpAddr, Asked)> {
    let mut state = 1_u64;
    let mut random = move |most: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % most
    };
    (0..LOOKUPS)
        .map(|_| {
            let family = random(2);
            let from = subjects[random(subjects.len())].addresses[family];
            let to = subjects[random(subjects.len())].addresses[family];
            let asked = Asked::Port(Protocol::Tcp, [9100, 8000, 8007, 22][random(4)]);
            (from, to, asked)
        })
        .collect()
}

/// Checks that the table that was measured has the verdicts of the policy.
fn check(table: &Table, policy: &Policy, subjects: &[Subject]) {
    for n in 0..20_000 {
        let (from, to) = (
            &subjects[n * 31 % subjects.len()],
            &subjects[n * 17 % subjects.len()],
        );
        let asked = Asked::Port(Protocol::Tcp, [9100, 8000, 8007, 101][n % 4]);
        let classes = [from, to].map(|subject| table.class(subject.addresses[n % 2]));
        let plain = interpret(Some(policy), from, to, asked) == Verdict::Allow;
        assert_eq!(
            table.allows(classes[0], classes[1], asked),
            plain,
            "{asked} from {from} to {to}"
        );
    }
}

/// The memory in use, after the allocator has returned to the system what was freed.
fn memory_kib() -> u64 {
    // SAFETY: the function has no arguments that could be invalid, and may be called at any time.
    unsafe { libc::malloc_trim(0) };
    anonymous_kib()
}
