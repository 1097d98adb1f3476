//! Answers of a container engine. The first byte selects the request that the rest answers. Whatever an engine
//! describes, a container is exposed only with addresses of the node, and each address belongs to one container.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use meshd::containers::state::{Containers, NodeContext};
use meshd::containers::{Expose, Rules, api, mappings_v6};
use meshd::model::Label;
use meshd::model::address::Block;

fn block() -> Block {
    Block {
        v4: "10.210.1.0/24".parse().expect("a literal"),
        v6: "fd00:1:2:1::/64".parse().expect("a literal"),
    }
}

fn containers(now: Instant) -> Containers {
    let context = NodeContext {
        node: Label::parse("n1").expect("a literal"),
        addresses: vec!["10.210.1.1".parse().expect("a literal")],
        block: block(),
        rules: Rules {
            expose: Expose::All,
            ..Rules::default()
        },
        network: None,
    };
    Containers::new(context, BTreeMap::new(), now)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((request, body)) = bytes.split_first() else {
        return;
    };
    let now = Instant::now();
    match request % 6 {
        0 => {
            // Several descriptions follow each other, one on each line.
            let mut containers = containers(now);
            for line in body.split(|byte| *byte == b'\n') {
                if let Ok(inspected) = api::container(line) {
                    containers.handle_inspected(&inspected, now);
                }
            }
            let leases = containers.leases.stored();
            let distinct: BTreeSet<_> = leases.values().collect();
            assert_eq!(distinct.len(), leases.len());
            assert!(
                leases
                    .values()
                    .all(|address| address.octets()[..3] == [10, 210, 1])
            );
            let v6 = mappings_v6(&containers);
            assert!(v6.keys().all(|address| block().v6.contains(address)));
            let distinct: BTreeSet<_> = v6.values().map(|mapping| mapping.container).collect();
            assert_eq!(distinct.len(), v6.len());
            containers.problems(now);
            containers.rows(&BTreeSet::new());
        }
        1 => drop(api::list(body)),
        2 => drop(api::event(body)),
        3 => drop(api::networks(body)),
        4 => drop(api::image_labels(body)),
        _ => {
            let (version, facts) = match body.iter().position(|byte| *byte == b'\n') {
                Some(at) => (&body[..at], Some(&body[at + 1..])),
                None => (body, None),
            };
            drop(api::engine(version, facts));
        }
    }
});
