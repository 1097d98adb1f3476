//! Measures what one stranger, one container, one member and one stolen coordinator can cost: memory, processor time and disk of a
//! coordinator and a node, and the time of others.
//!
//! ```text
//! cargo bench --bench hostile --features etcd [-- WORDS OF THE NAMES OF ATTACKS]
//! ```
//!
//! The benchmark needs root and prints tables in Markdown. Each attack has its own mesh in network namespaces: a coordinator, a node,
//! and a host with honest members, which are clients in this process. They publish changes and join, first undisturbed and then under
//! attack. The attacker has a host of its own. Its threads have the lowest priority (nice 19), since a real attacker has a
//! processor of its own.
//!
//! The processor time is the time above that for the same work without the attack. The memory is the greatest resident size during
//! the attack above the resident size before it. A change that is not received before the end of the measurement counts with
//! the time until that end. An attacker whose connection is closed opens another one at once.

#[path = "../../tests/system/engine.rs"]
#[allow(dead_code, reason = "the system tests use what this bench does not")]
mod engine;
#[path = "../../tests/hostile/kit/mod.rs"]
mod kit;
#[path = "../../tests/system/mesh.rs"]
#[allow(dead_code, reason = "the system tests use what this bench does not")]
mod mesh;
#[path = "../../tests/system/stand_in.rs"]
#[allow(dead_code, reason = "the system tests use what this bench does not")]
mod stand_in;

mod container;
mod member;
mod neighbour;
mod others;
mod report;
mod setting;
mod stolen;
mod stranger;
mod usage;

use std::process::ExitCode;
use std::time::Duration;

use meshd::testbed::as_root;

use report::{Row, print_changes, print_queries};

/// How long others are measured before each attack.
const QUIET: Duration = Duration::from_secs(3);
/// How long an attack lasts.
const ATTACK: Duration = Duration::from_secs(7);
/// How long the measurement waits, after an attack, for answers to what was sent before its end.
const GRACE: Duration = Duration::from_secs(2);

/// One attack of many.
struct Attack {
    name: &'static str,
    run: fn(&'static str) -> Row,
}

const ATTACKS: &[Attack] = &[
    Attack {
        name: "nobody attacks",
        run: |name| setting::measure(name, |_| String::new()),
    },
    Attack {
        name: "a stranger opens connections and streams, pings, and proves nothing",
        run: |name| setting::measure(name, stranger::connections),
    },
    Attack {
        name: "a stranger sends large messages and does not finish them",
        run: |name| setting::measure(name, stranger::unfinished),
    },
    Attack {
        name: "a stranger proves keys of no member and publishes",
        run: |name| setting::measure(name, stranger::unknown_keys),
    },
    Attack {
        name: "a stranger joins with tokens that nobody made",
        run: |name| setting::measure(name, stranger::joins),
    },
    Attack {
        name: "a member publishes small records",
        run: |name| setting::measure(name, member::small),
    },
    Attack {
        name: "a member publishes large records",
        run: |name| setting::measure(name, member::large),
    },
    Attack {
        name: "a member publishes records of unknown kinds",
        run: |name| setting::measure(name, member::unknown),
    },
    Attack {
        name: "a member publishes records that are refused",
        run: |name| setting::measure(name, member::refused),
    },
    Attack {
        name: "a member publishes records with forged signatures",
        run: |name| setting::measure(name, member::forged),
    },
    Attack {
        name: "a member opens streams, publishes large records on them and does not read",
        run: |name| setting::measure(name, member::unread),
    },
    Attack {
        name: "a stolen coordinator sends forged records",
        run: |name| setting::measure_stolen(name, stolen::forged),
    },
    Attack {
        name: "a stolen coordinator sends the records it holds again and again",
        run: |name| setting::measure_stolen(name, stolen::repeated),
    },
    Attack {
        name: "a stolen coordinator sends large messages of an unknown type",
        run: |name| setting::measure_stolen(name, stolen::unknown),
    },
    Attack {
        name: "a member sends records to a node's port 7444",
        run: |name| setting::measure_neighbour(name, neighbour::records),
    },
    Attack {
        name: "a member opens connections to a node's port 7444 and is silent",
        run: |name| setting::measure_neighbour(name, neighbour::connections),
    },
    Attack {
        name: "a member asks a node's resolver for names outside",
        run: |name| setting::measure_neighbour(name, neighbour::names_outside),
    },
    Attack {
        name: "a container asks for a name of the mesh",
        run: |name| setting::measure_queries(name, container::mesh_names),
    },
    Attack {
        name: "a container asks for SRV records of a large service",
        run: |name| setting::measure_queries(name, container::services),
    },
    Attack {
        name: "a container asks for names outside that nobody answers",
        run: |name| setting::measure_queries(name, container::names_outside),
    },
    Attack {
        name: "a container opens connections and asks nothing",
        run: |name| setting::measure_queries(name, container::connections),
    },
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let wanted = |name: &str| words.iter().all(|word| name.contains(word.as_str()));
    match as_root(|| {
        usage::raise_open_files();
        let mut rows = Vec::new();
        for attack in ATTACKS.iter().filter(|attack| wanted(attack.name)) {
            eprintln!("{}", attack.name);
            // The figures of the other attacks are printed even if one attack fails.
            let row = std::panic::catch_unwind(|| (attack.run)(attack.name));
            rows.push(row.unwrap_or_else(|_| Row::failed(attack.name)));
        }
        print_changes(&rows);
        print_queries(&rows);
        0
    }) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
