//! Holds the shape of the crate: which way imports go, where clocks, sockets, files and randomness may be touched,
//! and how lints may be set aside. A scan of the source text, tried on planted faults below.

mod syntax;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Each part of the crate and the parts it may import; every part may import itself.
const IMPORTS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("policy", &["model"]),
    ("records", &["policy", "model"]),
    ("protocol", &["records", "policy", "model"]),
    ("os", &["protocol", "records", "policy", "model"]),
    ("tunnel", LOWER),
    ("path", LOWER),
    ("dns", LOWER),
    ("containers", LOWER),
    ("services", LOWER),
    ("discovery", LOWER),
    ("firewall", LOWER),
    ("page", LOWER),
    ("spawn", LOWER),
    ("node", MIDDLE),
    ("coordinator", MIDDLE),
    ("testbed", MIDDLE),
    ("cli", UPPER),
    ("bin", &["cli", "node", "coordinator", "testbed"]),
];

/// The parts below those in the middle.
const LOWER: &[&str] = &["os", "protocol", "records", "policy", "model"];

/// The parts in the middle, which do not import each other, and those below.
const MIDDLE: &[&str] = &[
    "tunnel",
    "path",
    "dns",
    "containers",
    "services",
    "discovery",
    "firewall",
    "page",
    "spawn",
    "os",
    "protocol",
    "records",
    "policy",
    "model",
];

/// The parts that the command line imports.
const UPPER: &[&str] = &[
    "testbed",
    "tunnel",
    "path",
    "dns",
    "containers",
    "services",
    "discovery",
    "firewall",
    "spawn",
    "os",
    "protocol",
    "records",
    "policy",
    "model",
];

/// Parts that are pure, but for the [`SHELLS`].
const PURE: &[&str] = &[
    "model",
    "policy",
    "records",
    "protocol",
    "tunnel",
    "path",
    "dns",
    "containers",
    "services",
    "discovery",
    "firewall",
    "page",
    "cli/rollout/each/course.rs",
    "cli/rollout/each/events.rs",
    "cli/rollout/each/machine",
    "cli/rollout/each/machine.rs",
    "cli/rollout/each/order.rs",
    "cli/rollout/each/view.rs",
    "spawn",
    "coordinator/hub/members.rs",
    "node/change_times.rs",
    "node/contact.rs",
    "node/control/attempts.rs",
    "node/control/session.rs",
    "node/docker_face/documents.rs",
    "node/docker_face/query.rs",
    "node/docker_face/routes.rs",
    "node/gossip/exchange.rs",
    "node/gossip/inbound_limit.rs",
    "node/guests",
    "node/guests.rs",
    "node/host/plan.rs",
    "node/host/survey.rs",
    "node/host/ways.rs",
    "node/names.rs",
    "node/own_records.rs",
    "node/paths.rs",
    "node/policy.rs",
    "node/policy",
    "node/remedies.rs",
    "node/replica",
    "node/routing",
    "node/routing.rs",
    "node/rows.rs",
    "node/settle.rs",
    "node/timers.rs",
    "node/transitions",
    "node/transitions.rs",
    "os/audit/digest.rs",
    "os/audit/event.rs",
    "os/audit/line.rs",
    "os/audit/pace.rs",
    "os/audit/recorder.rs",
    "os/audit/verify.rs",
    "os/log/fields.rs",
    "os/metrics/durations.rs",
    "os/metrics/page.rs",
    "os/repeats.rs",
    "os/watchdog.rs",
    "os/web/limits.rs",
    "os/web/refused.rs",
    "testbed/paired.rs",
];

/// Files inside the pure parts that do the input and output for them. A file that needs this no more is to be taken
/// off the list.
const SHELLS: &[&str] = &[
    "tunnel/filter.rs",
    "tunnel/handshakes.rs",
    "tunnel/inbound.rs",
    "tunnel/injector.rs",
    "tunnel/live.rs",
    "tunnel/news.rs",
    "tunnel/outbound.rs",
    "tunnel/peers.rs",
    "tunnel/ping.rs",
    "tunnel/probing.rs",
    "tunnel/route_lookup.rs",
    "tunnel/routes.rs",
    "tunnel/sched_slice.rs",
    "tunnel/sockets.rs",
    "tunnel/steering.rs",
    "tunnel/stream_end.rs",
    "tunnel/streams.rs",
    "tunnel/stun.rs",
    "tunnel/timer.rs",
    "tunnel/tun.rs",
    "tunnel/running.rs",
    "tunnel/udp.rs",
    "tunnel/wakes.rs",
    "tunnel/uapi/server.rs",
    "dns/tcp.rs",
    "dns/datagrams.rs",
    "dns/datagrams/batch.rs",
    "tunnel/worker.rs",
    "dns/full_path.rs",
    "dns/in_tunnel/mod.rs",
    "dns/resolver.rs",
    "dns/server.rs",
    "dns/forward/pool.rs",
    "dns/forward/mod.rs",
    "dns/forward/flight.rs",
    "dns/forward/sockets.rs",
    "services/checks.rs",
    "containers/client.rs",
    "containers/control.rs",
    "containers/engine.rs",
    "firewall/reconciler.rs",
    "firewall/reconciler/tables.rs",
    "firewall/kernel.rs",
    "firewall/native.rs",
    "firewall/ports.rs",
    "page/changes.rs",
    "page/making.rs",
    "page/server.rs",
];

/// The words that only a shell may use: clocks, files, processes, sockets, randomness, runtimes.
const EFFECTS: &[&str] = &[
    "Instant::now",
    "clock::",
    ".elapsed()",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::os",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "tokio::",
    "hyper::",
    "axum::",
    "random::",
    "nix::",
    "socket2",
    "rusqlite",
    "rtnetlink",
    "tun_rs",
];

#[test]
fn imports_go_one_way() {
    report(&scan_tree(imports));
}

#[test]
fn the_pure_parts_touch_no_clock_socket_file_or_randomness() {
    report(&scan_tree(|path, code| {
        if is_pure(path) {
            effects(path, code)
        } else {
            Vec::new()
        }
    }));
}

#[test]
fn every_shell_on_the_list_is_one() {
    let idle: Vec<String> = SHELLS
        .iter()
        .filter(|shell| {
            let path = source().join(shell);
            let text = std::fs::read_to_string(&path);
            text.map_or(true, |text| effects(shell, &code_of(&text)).is_empty())
        })
        .map(|shell| format!("src/{shell} touches nothing: take it off the list of shells"))
        .collect();
    report(&idle);
}

#[test]
fn lints_are_set_aside_one_by_one_and_with_a_reason() {
    report(&scan_tree(allowances));
}

#[test]
fn every_part_of_the_crate_has_its_place() {
    let known: BTreeSet<&str> = IMPORTS.iter().map(|(part, _)| *part).collect();
    let strangers: Vec<String> = files()
        .iter()
        .map(|path| part_of(path))
        .filter(|part| *part != "lib.rs" && !known.contains(part))
        .map(|part| format!("src/{part} is in no rule of tests/architecture"))
        .collect();
    report(&strangers);
}

/// Imports of `code` that go against the direction.
fn imports(path: &str, code: &[&str]) -> Vec<String> {
    let part = part_of(path);
    if path.ends_with("/fixture.rs") {
        // It lists skipped tests, as the tests that use it do.
        return Vec::new();
    }
    let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == part) else {
        return Vec::new();
    };
    let root = if part == "bin" { "meshd::" } else { "crate::" };
    let mut found = Vec::new();
    for (number, line) in numbered(code) {
        for name in imported(line, root, depth_of(path)) {
            let is_part = IMPORTS.iter().any(|(other, _)| *other == name);
            // Tests of all parts use the builders of records that are there.
            let is_builder = name == "testbed" && is_test(path);
            if is_part && name != part && !allowed.contains(&name) && !is_builder {
                found.push(format!("src/{path}:{number}: {part} imports {name}"));
            }
        }
    }
    found
}

/// The parts that a line names: after `root`, in a group after it, or by climbing up to the root with `super`.
fn imported<'a>(line: &'a str, root: &str, depth: usize) -> Vec<&'a str> {
    let word = |text: &'a str| {
        let end = text
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(text.len());
        text.get(..end).unwrap_or_default()
    };
    let mut names = Vec::new();
    for (at, _) in line.match_indices(root) {
        let rest = line.get(at + root.len()..).unwrap_or_default();
        match rest.strip_prefix('{') {
            // A group at the root: every word is looked at, since it may nest.
            Some(group) => {
                names.extend(group.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
            }
            None => names.push(word(rest)),
        }
    }
    let climb = "super::".repeat(depth);
    for (at, _) in line.match_indices(&climb) {
        let rest = line.get(at + climb.len()..).unwrap_or_default();
        names.push(word(rest.trim_start_matches("super::")));
    }
    names
}

/// Effects that `code` names.
fn effects(path: &str, code: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in numbered(code) {
        for effect in EFFECTS.iter().filter(|effect| line.contains(**effect)) {
            found.push(format!("src/{path}:{number}: {effect} in a pure part"));
        }
        // Its constants are values; its functions are system calls.
        let calls = line.match_indices("libc::").any(|(at, _)| {
            let rest = line.get(at + "libc::".len()..).unwrap_or_default();
            rest.starts_with(|c: char| c.is_ascii_lowercase())
        });
        if calls {
            found.push(format!("src/{path}:{number}: libc in a pure part"));
        }
    }
    found
}

/// `allow` attributes, and `expect` attributes without a reason.
fn allowances(path: &str, code: &[&str]) -> Vec<String> {
    let text = code.join("\n");
    let mut found = Vec::new();
    for (at, _) in text.match_indices("#[").chain(text.match_indices("#![")) {
        let attribute = text
            .get(at..)
            .unwrap_or_default()
            .trim_start_matches(['#', '!', '[']);
        let number = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        let whole = attribute.split(']').next().unwrap_or_default();
        if whole.starts_with("allow(") {
            found.push(format!(
                "src/{path}:{number}: use #[expect(.., reason = \"..\")]"
            ));
        } else if whole.starts_with("expect(") && !whole.contains("reason") {
            found.push(format!(
                "src/{path}:{number}: an exception gives its reason"
            ));
        }
    }
    found
}

fn is_pure(path: &str) -> bool {
    let within = |rule: &str| path == rule || path.starts_with(&format!("{rule}/"));
    PURE.iter().any(|rule| within(rule)) && !SHELLS.contains(&path) && !is_test(path)
}

/// Whether a file is compiled for tests alone.
fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/") || path.ends_with("/fixture.rs")
}

/// The first folder of a path, or its name if it is in none.
fn part_of(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

/// How many `super` lead from a file's module to the crate's root.
fn depth_of(path: &str) -> usize {
    path.trim_end_matches("/mod.rs").split('/').count()
}

/// The lines of `text` without comments, and without the tests at its bottom.
fn code_of(text: &str) -> Vec<&str> {
    let tests = ["mod ", "pub(in crate::tunnel) mod "]
        .into_iter()
        .find_map(|start| text.find(&format!("\n#[cfg(test)]\n{start}tests {{")));
    let code = match tests {
        Some(end) => text.get(..end).unwrap_or_default(),
        None => text,
    };
    code.lines()
        .map(|line| {
            // A URL in a text is no comment.
            let comment = line
                .match_indices("//")
                .find(|(at, _)| !line.get(..*at).unwrap_or_default().ends_with(':'));
            comment.map_or(line, |(at, _)| line.get(..at).unwrap_or_default())
        })
        .collect()
}

fn numbered<'a>(code: &'a [&'a str]) -> impl Iterator<Item = (usize, &'a str)> {
    code.iter().enumerate().map(|(i, line)| (i + 1, *line))
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All source files, below `src`.
fn files() -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![source()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("src is readable") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let below = path.strip_prefix(source()).expect("found below src");
                files.push(below.to_str().expect("plain names").to_owned());
            }
        }
    }
    files.sort();
    files
}

fn scan_tree(rule: impl Fn(&str, &[&str]) -> Vec<String>) -> Vec<String> {
    let files = files();
    assert!(files.len() > 40, "the scan has lost the source: {files:?}");
    files
        .iter()
        .flat_map(|path| {
            let text = std::fs::read_to_string(source().join(path)).expect("src is readable");
            rule(path, &code_of(&text))
        })
        .collect()
}

fn report(faults: &[String]) {
    let list = faults.iter().fold(String::new(), |mut list, fault| {
        let _ = writeln!(list, "  {fault}");
        list
    });
    assert!(faults.is_empty(), "\n{list}");
}

#[test]
fn a_planted_import_is_found() {
    let faults = |path: &str, text: &str| imports(path, &code_of(text));
    assert_eq!(
        faults("records/x.rs", "//! x\nuse crate::node::config;\n"),
        ["src/records/x.rs:2: records imports node"]
    );
    assert_eq!(
        faults("dns/x.rs", "fn f() { crate::path::watch(); }"),
        ["src/dns/x.rs:1: dns imports path"]
    );
    assert_eq!(
        faults("cli/x/y.rs", "use crate::{model::Label, node};"),
        ["src/cli/x/y.rs:1: cli imports node"]
    );
    assert_eq!(
        faults("dns/x.rs", "use super::super::tunnel::Tunnel;"),
        ["src/dns/x.rs:1: dns imports tunnel"]
    );
    assert_eq!(
        faults("bin/x.rs", "fn main() { meshd::tunnel::run() }"),
        ["src/bin/x.rs:1: bin imports tunnel"]
    );
    assert_eq!(
        faults("records/tests.rs", "use crate::testbed::records;"),
        Vec::<String>::new()
    );
    assert_eq!(
        faults(
            "node/x.rs",
            "use crate::dns::Zone;\n// crate::cli\nuse super::state;\nuse crate::node::api;"
        ),
        Vec::<String>::new()
    );
}

#[test]
fn a_planted_effect_is_found_and_tests_may_have_it() {
    let faults = |text: &str| effects("dns/zone.rs", &code_of(text));
    assert_eq!(
        faults("fn f() {\n    let now = Instant::now();\n}"),
        ["src/dns/zone.rs:2: Instant::now in a pure part"]
    );
    assert_eq!(
        faults("use std::net::{IpAddr, UdpSocket};"),
        ["src/dns/zone.rs:1: UdpSocket in a pure part"]
    );
    assert_eq!(
        faults("let n = unsafe { libc::read(0) };"),
        ["src/dns/zone.rs:1: libc in a pure part"]
    );
    assert_eq!(
        faults(
            "use std::time::Instant;\nconst E: i32 = libc::EINVAL; // tokio::\n\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}"
        ),
        Vec::<String>::new()
    );
    assert!(is_pure("dns/zone.rs") && is_pure("model/new.rs"));
    assert!(
        !is_pure("dns/server.rs") && !is_pure("node/agent.rs") && !is_pure("dns/answer/tests.rs")
    );
}

#[test]
fn a_planted_allowance_is_found() {
    let faults = |text: &str| allowances("x.rs", &code_of(text));
    assert_eq!(
        faults("\n#![allow(dead_code)]\n#[allow(unused)]\nfn f() {}").len(),
        2
    );
    assert_eq!(
        faults("#[expect(unused)]\nfn f() {}"),
        ["src/x.rs:1: an exception gives its reason"]
    );
    assert_eq!(
        faults("#[expect(\n    unused,\n    reason = \"it is\"\n)]\nfn f() {}"),
        Vec::<String>::new()
    );
}
