//! Random policies and meshes, small enough that rules, names and ports meet.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::*;

const SERVICES: [&str; 7] = ["a", "b", "a.p", "b.p", "c.p", "a.q", "b.q"];
const SELECTORS: [&str; 26] = [
    "*",
    "a",
    "b",
    "p/a",
    "p/b",
    "q/*",
    "*/a",
    "*/*",
    "project:p",
    "project:q",
    "project:*",
    "tag:t",
    "tag:u",
    "tag:*",
    "node:n1",
    "node:n2",
    "node:*",
    "guest:x",
    "guest:*",
    "route:n1",
    "route:*",
    "g0",
    "g1",
    "g2",
    "nothing",
    "p/*",
];
const PORTS: [&str; 13] = [
    "",
    "",
    "",
    ":80",
    ":81/udp",
    ":80-82",
    ":1-65535",
    ":icmp",
    ":m",
    ":w",
    ":80-81/udp",
    ":65535",
    ":9",
];

/// How long a failure is made smaller, in milliseconds.
const SHRINK_TIME: u32 = 30_000;

/// The number in an environment variable, or `otherwise`.
pub(crate) fn asked_for(variable: &str, otherwise: u64) -> u64 {
    let asked = std::env::var(variable).ok();
    asked
        .and_then(|asked| asked.parse().ok())
        .unwrap_or(otherwise)
}

/// Runs `test` on random inputs until it has seen as many packets as `wanted`. `test` returns how many it saw, which is often about
/// `in_one_run`.
pub(crate) fn run_until<S: Strategy>(
    wanted: u64,
    in_one_run: u64,
    strategy: &S,
    test: impl Fn(S::Value) -> Result<u64, TestCaseError>,
) {
    let seen = std::cell::Cell::new(0);
    while seen.get() < wanted {
        let rest = (wanted - seen.get()).div_ceil(in_one_run);
        let config = Config {
            cases: u32::try_from(rest).unwrap_or(u32::MAX),
            failure_persistence: None,
            max_shrink_time: SHRINK_TIME,
            ..Config::default()
        };
        let counted = |input| {
            seen.set(seen.get() + test(input)?);
            Ok(())
        };
        if let Err(error) = TestRunner::new(config).run(strategy, counted) {
            panic!("{error}");
        }
    }
}

/// The text of a policy.
pub(crate) fn policy() -> impl Strategy<Value = String> {
    // A group has itself and later groups not as its members, so there are no circles.
    let group = |number: usize| {
        let words = SELECTORS
            .into_iter()
            .filter(move |word| !is_group(word) || *word < format!("g{number}").as_str());
        vec(select(words.collect::<Vec<_>>()), 1..4)
            .prop_map(move |members| format!("g{number} = [{}]\n", quoted(&members)))
    };
    let from = vec(select(&SELECTORS[..]), 1..3).prop_map(|all| quoted(&all));
    let target = prop_oneof![8 => select(&SELECTORS[..]), 1 => Just("same-project")];
    let target = (target, select(&PORTS[..])).prop_map(|(who, ports)| format!("{who}{ports}"));
    let to = vec(target, 1..4).prop_map(|all| quoted(&all));
    let rule =
        (from, to).prop_map(|(from, to)| format!("[[allow]]\nfrom = [{from}]\nto = [{to}]\n"));
    let default = prop_oneof![19 => Just("deny"), 1 => Just("allow")];
    (default, group(0), group(1), group(2), vec(rule, 0..9)).prop_map(
        |(default, a, b, c, rules)| {
            format!(
                "language = 1\ndefault = \"{default}\"\n[groups]\n{a}{b}{c}{}",
                rules.concat()
            )
        },
    )
}

fn is_group(word: &str) -> bool {
    ["g0", "g1", "g2"].contains(&word)
}

fn quoted(words: &[impl std::fmt::Display]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    words.join(", ")
}

/// The subjects of a mesh: each has addresses of its own.
pub(crate) fn mesh() -> impl Strategy<Value = Vec<Subject>> {
    vec(subject(), 1..14).prop_map(|mut all| {
        for (number, subject) in (1..).zip(&mut all) {
            subject.addresses = addresses(number);
        }
        all
    })
}

fn subject() -> impl Strategy<Value = Subject> {
    let node = select(&["n1", "n2", "n3"][..]);
    let tags = prop::sample::subsequence(vec!["t", "u", "v"], 0..=3);
    let instance = (
        node.clone(),
        tags.clone(),
        vec(service(), 0..4),
        any::<bool>(),
    );
    let instance = instance.prop_map(|(node, tags, services, is_node)| Subject {
        services,
        is_node,
        ..super::node(0, node, &tags)
    });
    let guest = (select(&["x", "y"][..]), tags);
    let guest = guest.prop_map(|(name, tags)| super::guest(0, name, &tags));
    let gateways = prop::sample::subsequence(vec!["n1", "n2"], 1..=2);
    let network = (node, gateways).prop_map(|(node, gateways)| Subject {
        is_node: false,
        network: Some(Network {
            prefix: "192.168.1.0/24".parse().expect("a literal"),
            gateways: gateways.into_iter().map(label).collect(),
        }),
        ..super::node(0, node, &[])
    });
    prop_oneof![8 => instance, 2 => guest, 1 => network]
}

fn service() -> impl Strategy<Value = Offered> {
    let ports = prop::sample::subsequence(
        vec!["80", "81/udp", "m=80", "m=9", "w=65535", "82", "w=81"],
        0..=3,
    );
    let selectors = SELECTORS.into_iter().filter(|word| !is_group(word));
    let allow = vec(
        select(selectors.chain(["same-project"]).collect::<Vec<_>>()),
        1..3,
    );
    let allow = prop_oneof![5 => Just(Vec::new()), 1 => allow];
    (select(&SERVICES[..]), ports, allow)
        .prop_map(|(service, ports, allow)| offered(service, &ports, &allow))
}

/// What packets ask for: edges of what rules name, and what no rule names.
pub(crate) fn everything_asked() -> Vec<Asked> {
    let ports = [0, 1, 9, 79, 80, 81, 82, 83, 65_535];
    let both = ports.into_iter().flat_map(|port| [tcp(port), udp(port)]);
    both.chain([Asked::Icmp, Asked::Other]).collect()
}
