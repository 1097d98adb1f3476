//! DNS queries through the whole path, and what upstreams say: at most one reply each, that fits the query and its sender.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use meshd::dns::query_fuzz::QueryFuzz;

static QUERY_FUZZ: LazyLock<QueryFuzz> = LazyLock::new(QueryFuzz::new);

fuzz_target!(|input: &[u8]| {
    if let Err(what) = QUERY_FUZZ.run(input) {
        panic!("{what}");
    }
});
