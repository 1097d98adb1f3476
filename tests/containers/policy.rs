//! The policy between containers: on one host, where the firewall enforces it, and on two, where the tunnel does.

mod ipv6;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use meshd::protocol::local::{DeniedDirection, DeniedEnd, DeniedList, DeniedRow};
use meshd::records::kinds::Health;

use crate::hosts::{ECHO, Hosts, PORT};

const FILE: &str = "/run/policy.toml";

/// Puts a policy with these rules in force.
fn apply(hosts: &Hosts, rules: &[(&str, &str)]) {
    let rules = rules
        .iter()
        .map(|(from, to)| format!("[[allow]]\nfrom = [\"{from}\"]\nto = [\"{to}\"]\n"));
    let rules: String = rules.collect();
    let text = format!("language = 1\ndefault = \"deny\"\n{rules}");
    std::fs::write(hosts.outside.path(FILE), text).expect("its own file system");
    hosts.meshctl(&hosts.outside, &["policy", "apply", FILE]);
}

/// Whether a server answers over a protocol. A TCP connection that the policy denies must fail at once.
fn answers(hosts: &Hosts, (n, container): (usize, &str), protocol: &str, server: &str) -> bool {
    let answer = hosts.ask(n, container, protocol, server);
    if let Err(why) = &answer
        && protocol.starts_with("tcp")
    {
        // Over IPv6, the last one is what the kernel makes of an ICMP error about a prohibition.
        let fails_at_once = ["ConnectionRefused", "HostUnreachable", "PermissionDenied"]
            .iter()
            .any(|kind| why.contains(*kind));
        assert!(fails_at_once, "{server}: {why}");
    }
    answer.is_ok()
}

/// Starts the test's program in a container of a host. Its output is read when it ends.
fn start(hosts: &Hosts, (n, container): (usize, &str), words: &[&str]) -> Child {
    let words = hosts.words(container, words);
    let (program, arguments) = words.split_first().expect("a program");
    let mut command = hosts.nodes[n].host().command(program).expect("a host");
    command.args(arguments).stdout(Stdio::piped());
    command.spawn().expect("a program")
}

/// A server, a client that the policy will allow, and one that it will not, on node 1; and one client of each kind on node 0. The server
/// is on the network `project`, and the clients are on `clients`.
fn servers_and_clients(hosts: &Hosts, clients: &str) {
    hosts.serve(1, "db", "project", "db");
    for n in [0, 1] {
        for client in ["web", "other"] {
            hosts.serve(n, &format!("{client}-{n}"), clients, client);
        }
    }
    for n in [0, 1] {
        for (service, count) in [("db", 1), ("web", 2), ("other", 2)] {
            hosts.wait_for(n, service, count);
        }
    }
}

/// The same in networks of both families. Both nodes know the addresses of all of them.
fn dual_shop(hosts: &Hosts) {
    for n in [0, 1] {
        hosts.create_dual_network(n, "project", 101);
        hosts.create_dual_network(n, "clients", 102);
    }
    servers_and_clients(hosts, "clients");
    for n in [0, 1] {
        hosts.wait_for_v6(n, "db");
        for client in ["web", "other"] {
            let known = [0, 1].map(|of| instance_on(hosts, (n, of), client, true));
            assert_ne!(known[0], known[1]);
        }
    }
}

/// The same in networks of IPv4, and a server with a service address.
fn shop(hosts: &Hosts) {
    for n in [0, 1] {
        hosts.docker(n, &["network", "create", "project"]);
    }
    servers_and_clients(hosts, "bridge");
    let service = [
        "--label",
        "mesh.service=vip",
        "--label",
        "mesh.port=7777",
        "--label",
        "mesh.vip=true",
    ];
    hosts.run(1, "vip", "project", &service);
    for n in [0, 1] {
        hosts.wait_for(n, "vip", 1);
    }
}

const CLIENTS: [(usize, &str); 6] = [
    (0, "web-0"),
    (0, "other-0"),
    (0, ""),
    (1, "web-1"),
    (1, "other-1"),
    (1, ""),
];

#[test]
fn only_what_the_policy_allows_passes_between_containers_of_one_host_and_of_two() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    shop(&hosts);
    let db = hosts.wait_for(0, "db", 1)[0].to_string();
    let servers = [db.as_str(), "db.svc.mesh", "vip.svc.mesh"];
    for server in servers {
        for client in CLIENTS {
            assert!(
                answers(&hosts, client, "tcp", server),
                "{server} from {client:?}"
            );
        }
    }

    let tcp = [("web", "db:7777"), ("web", "vip:7777")];
    apply(&hosts, &tcp);
    for client in [(0, "other-0"), (1, "other-1")] {
        hosts.wait_until("the policy is in force", || {
            !answers(&hosts, client, "tcp", &db)
        });
    }
    for server in servers {
        for client in CLIENTS {
            let expected = client.1.starts_with("web");
            let found = answers(&hosts, client, "tcp", server);
            assert_eq!(found, expected, "{server} from {client:?}");
        }
    }
    for client in [(0, "web-0"), (1, "web-1")] {
        assert!(!answers(&hosts, client, "udp", &db), "{client:?}");
    }
    // A container reaches itself by its name, and the other direction is not allowed.
    assert!(answers(&hosts, (1, "db"), "tcp", "db.svc.mesh"));
    for instance in hosts.wait_for(0, "web", 2) {
        assert!(!answers(&hosts, (1, "db"), "tcp", &instance.to_string()));
    }

    let both = [
        tcp.as_slice(),
        &[("web", "db:7777/udp"), ("node:*", "db:7777")],
    ]
    .concat();
    apply(&hosts, &both);
    for client in [(0, "web-0"), (1, "web-1")] {
        hosts.wait_until("datagrams are allowed", || {
            answers(&hosts, client, "udp", &db)
        });
    }
    for client in CLIENTS {
        let expected = !client.1.starts_with("other");
        assert_eq!(answers(&hosts, client, "tcp", &db), expected, "{client:?}");
    }
}

/// What node 1 lists as denied between its own instances of two services, over IPv6 or over IPv4.
fn denied_on_one_host(hosts: &Hosts, [from, to]: [&str; 2], is_v6: bool) -> Vec<DeniedRow> {
    let text = hosts.meshctl(hosts.nodes[1].host(), &["policy", "denied", "--json"]);
    let list: DeniedList = serde_json::from_str(&text).expect("a list");
    let is_of = |end: &DeniedEnd, service: &str| {
        let mut services = end.services.iter();
        end.address.is_ipv6() == is_v6 && services.any(|name| name.to_string() == service)
    };
    let mut rows = list.denied;
    rows.retain(|row| {
        let is_local = row.from.node.is_some() && row.from.node == row.to.node;
        is_local && is_of(&row.from, from) && is_of(&row.to, to)
    });
    rows
}

/// Applies a policy, and looks whether what it denies between containers of one host is listed, before and after the rules are replaced.
/// The address `db` is of IPv6 or of IPv4.
fn denied_neighbours_are_listed(hosts: &Hosts, db: &str, is_v6: bool) {
    apply(hosts, &[("web", "db:7777")]);
    hosts.wait_until("the policy is in force", || {
        !answers(hosts, (1, "other-1"), "tcp", db)
    });
    assert!(!answers(hosts, (1, "other-1"), "udp", db));
    assert!(answers(hosts, (1, "web-1"), "tcp", db));
    let before = denied_on_one_host(hosts, ["other", "db"], is_v6);
    let asked: BTreeSet<&str> = before.iter().map(|row| row.asked.as_str()).collect();
    let expected = BTreeSet::from(["7777/tcp", "7777/udp"]);
    assert_eq!(asked, expected, "{before:?}");
    for row in &before {
        assert!(row.count > 0 && !row.passed, "{row:?}");
        assert_eq!(row.direction, DeniedDirection::Outgoing, "{row:?}");
    }
    let allowed = denied_on_one_host(hosts, ["web", "db"], is_v6);
    assert!(allowed.is_empty(), "{allowed:?}");

    hosts.serve(1, "more", "clients", "more");
    hosts.wait_for(1, "more", 1);
    let after = denied_on_one_host(hosts, ["other", "db"], is_v6);
    for row in before {
        let is_same = |other: &&DeniedRow| other.asked == row.asked;
        let found = after.iter().find(is_same);
        let is_kept = found.is_some_and(|found| found.count >= row.count);
        assert!(is_kept, "{row:?} in {after:?}");
    }
}

#[test]
fn what_the_policy_denies_between_containers_of_one_host_is_listed() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    hosts.docker(1, &["network", "create", "clients"]);
    shop(&hosts);
    let db = hosts.wait_for(1, "db", 1)[0].to_string();
    denied_neighbours_are_listed(&hosts, &db, false);
}

#[test]
fn a_change_of_the_policy_ends_connections_between_containers_of_one_host_and_of_two() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    shop(&hosts);
    a_change_ends_flows_to(&hosts, "db.svc.mesh");
}

/// Takes from the clients what they were allowed, while each has flows to `db`, whose name or address is `server`.
fn a_change_ends_flows_to(hosts: &Hosts, server: &str) {
    let allowed = [("web", "db:7777"), ("web", "db:7777/udp")];
    apply(hosts, &allowed);
    hosts.wait_until("the policy is in force", || {
        !answers(hosts, (0, "other-0"), "tcp", server)
            && !answers(hosts, (1, "other-1"), "tcp", server)
    });
    let server = format!("{server}:{PORT}");
    let clients = [(0, "web-0"), (1, "web-1")];
    let flows = clients.map(|client| start(hosts, client, &["flow", &server, "8"]));
    std::thread::sleep(Duration::from_secs(2));
    apply(hosts, &[]);
    for flow in flows {
        let output = flow.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // Requests are answered in the first two of eight seconds, and never again.
        let longest = text.lines().map(|line| {
            let before = line.split_once(" ms without").map(|(before, _)| before);
            let number = before.and_then(|before| before.split(' ').next_back());
            number.and_then(|number| number.parse::<u32>().ok())
        });
        let longest: Vec<Option<u32>> = longest.collect();
        let is_cut = |longest: &Option<u32>| longest.is_some_and(|ms| (4000..8000).contains(&ms));
        assert!(longest.iter().all(is_cut) && longest.len() == 2, "{text}");
    }
}

/// The datagrams that `db` counted, by their source.
fn counted(hosts: &Hosts) -> BTreeMap<IpAddr, u64> {
    let server = format!("{}:{PORT}", Ipv4Addr::LOCALHOST);
    let report = hosts.exec(1, &["docker", "exec", "db", ECHO, "report", &server]);
    let lines = report.lines().filter_map(|line| line.split_once(' '));
    let number = |count: &str| count.parse().expect("a number");
    let counts = lines.map(|(from, count)| (from.parse().expect("an address"), number(count)));
    counts.collect()
}

/// The address, of IPv6 or of IPv4, of the healthy instance of a service that node `at` knows on node `of`.
fn instance_on(hosts: &Hosts, (at, of): (usize, usize), service: &str, is_v6: bool) -> IpAddr {
    let node = hosts.status(of).node.expect("it has joined");
    let is_own = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !is_v6 && node.block_v4.contains(v4),
        IpAddr::V6(v6) => is_v6 && node.block_v6.contains(v6),
    };
    let mut found = None;
    hosts.wait_until(&format!("{service} of node {of} is up"), || {
        let rows = hosts.instances(at, service).into_iter();
        let healthy = rows.filter(|row| row.health == Health::Healthy);
        found = healthy.flat_map(|row| row.addresses).find(is_own);
        found.is_some()
    });
    found.expect("it was waited for")
}

/// An address as the programs take it before a port.
fn before_port(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

/// The own address of a container, of the family of `db`.
fn source_to(hosts: &Hosts, (n, container): (usize, &str), db: IpAddr) -> IpAddr {
    match db {
        IpAddr::V4(_) => hosts.container_address(n, container).into(),
        IpAddr::V6(_) => hosts.container_address_v6(n, container).into(),
    }
}

/// The clients that the policy denies everything: a neighbour of `db`, and one on another host.
const DENIED: [(usize, &str); 2] = [(1, "other-1"), (0, "other-0")];
/// The clients that the policy allows to reach `db`.
const ALLOWED: [(usize, &str); 2] = [(1, "web-1"), (0, "web-0")];
/// The file that ends the floods on its host.
const STOP: &str = "/run/stop";
/// The datagrams in one round of a flood, and the number of rounds that each flood has at least.
const ROUND: u64 = 1_000;
const ROUNDS: u64 = 12;
/// The number of denied datagrams that each flood sends at least.
const FLOOD: u64 = 10_000;

/// A script of a denied client that runs until the file [`STOP`] exists. Each line of its output is a number of datagrams that it sent, or
/// the result of an attempt to connect: `connected` or `refused`.
struct Attempts {
    client: (usize, &'static str),
    child: Child,
}

/// The outcomes of all attempts of one client.
#[derive(Debug, Default)]
struct Outcome {
    datagrams: u64,
    refused: u64,
    connected: u64,
}

impl Attempts {
    /// Runs a script of the shell in the network of a container. The engine takes no part in it, so it goes on while the engine is
    /// restarted.
    fn start(hosts: &Hosts, client: (usize, &'static str), script: &str) -> Self {
        let (n, container) = client;
        let pid = hosts.docker(n, &["inspect", "-f", "{{.State.Pid}}", container]);
        let mut command = hosts.nodes[n].host().command("nsenter").expect("a host");
        command.args(["--target", &pid, "--net", "sh", "-c", script]);
        let child = command.stdout(Stdio::piped()).spawn().expect("a program");
        Self { client, child }
    }

    /// Sends datagrams of one flow to `db`. The kernel knows this flow from the time before the policy.
    fn flood(hosts: &Hosts, client: (usize, &'static str), db: IpAddr) -> Self {
        let source = source_to(hosts, client, db);
        let echo = hosts.echo();
        let began = began(client.1);
        let script = format!(
            "n=0; while [ ! -e {STOP} ] || [ $n -lt {ROUNDS} ]; do \
             {echo} claim {source} {db} {PORT} {ROUND}; n=$((n + 1)); : >{began}; done"
        );
        Self::start(hosts, client, &script)
    }

    /// Tries to connect to `db`.
    fn connect(hosts: &Hosts, client: (usize, &'static str), db: IpAddr) -> Self {
        let echo = hosts.echo();
        let server = SocketAddr::new(db, PORT);
        let script = format!(
            "while :; do \
             if {echo} ask tcp '{server}' >/dev/null 2>&1; then echo connected; else echo refused; fi; \
             [ -e {STOP} ] && break; sleep 0.1; done"
        );
        Self::start(hosts, client, &script)
    }

    /// Waits until the script has ended.
    fn end(self) -> Outcome {
        let output = self.child.wait_with_output().expect("it ends");
        let mut outcome = Outcome::default();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            match line {
                "connected" => outcome.connected += 1,
                "refused" => outcome.refused += 1,
                count => outcome.datagrams += count.parse::<u64>().expect("a number"),
            }
        }
        outcome
    }
}

/// The file that the flood of a container creates when it has sent its first datagrams.
fn began(container: &str) -> String {
    format!("/run/began.{container}")
}

/// The path of a file on a host.
fn on_host(hosts: &Hosts, n: usize, file: &str) -> PathBuf {
    hosts.nodes[n].host().path(file)
}

/// Lets the denied clients send all the time while `disturb` runs, and until the allowed ones are answered after it. Returns how many
/// denied datagrams were sent.
fn while_denied_clients_send(
    hosts: &mut Hosts,
    db: IpAddr,
    what: &str,
    disturb: impl FnOnce(&mut Hosts),
) -> u64 {
    for (n, container) in DENIED {
        for file in [STOP, &began(container)] {
            let _ = std::fs::remove_file(on_host(hosts, n, file));
        }
    }
    let before = counted(hosts);
    let server = before_port(db);
    let floods = DENIED.map(|client| Attempts::flood(hosts, client, db));
    let connections = DENIED.map(|client| Attempts::connect(hosts, client, db));
    hosts.wait_until("both floods have begun", || {
        let has_begun = |(n, container)| on_host(hosts, n, &began(container)).exists();
        DENIED.into_iter().all(has_begun)
    });
    disturb(hosts);
    for (n, container) in ALLOWED {
        for protocol in ["tcp", "udp"] {
            hosts.wait_until(&format!("{container} is answered: {what}"), || {
                hosts.ask(n, container, protocol, &server).is_ok()
            });
        }
    }
    for n in [0, 1] {
        std::fs::write(on_host(hosts, n, STOP), "").expect("its own file system");
    }
    let mut sent = 0;
    for flood in floods {
        let (_, client) = flood.client;
        let outcome = flood.end();
        assert!(outcome.datagrams >= FLOOD, "{what}: {client}: {outcome:?}");
        sent += outcome.datagrams;
    }
    for attempts in connections {
        let (_, client) = attempts.client;
        let outcome = attempts.end();
        assert!(outcome.refused > 0, "{what}: {client}: {outcome:?}");
        assert_eq!(outcome.connected, 0, "{what}: {client}: {outcome:?}");
    }
    for (n, container) in DENIED {
        for protocol in ["tcp", "udp"] {
            let answer = hosts.ask(n, container, protocol, &server);
            assert!(answer.is_err(), "{what}: {container}: {answer:?}");
        }
    }
    let mut arrived = counted(hosts);
    arrived.retain(|source, count| *count > before.get(source).copied().unwrap_or_default());
    // The datagrams of the report itself and of the clients that the policy allows do not count.
    let own = ALLOWED.map(|(n, _)| instance_on(hosts, (n, n), "web", db.is_ipv6()));
    arrived.retain(|source, _| !source.is_loopback() && !own.contains(source));
    assert_eq!(arrived, BTreeMap::new(), "{what}");
    println!("{what}: of {sent} denied datagrams none arrived");
    sent
}

/// Two hosts whose containers go on while their engine is restarted.
fn hosts_with_lasting_containers() -> Option<Hosts> {
    let mut hosts = Hosts::joined(2)?;
    for n in [0, 1] {
        hosts.restart_engine(n, &["--live-restore"]);
    }
    Some(hosts)
}

#[test]
fn no_denied_packet_passes_while_rules_are_flushed_and_each_daemon_restarts() {
    let Some(mut hosts) = hosts_with_lasting_containers() else {
        return;
    };
    shop(&hosts);
    let db = hosts.wait_for(1, "db", 1)[0];
    nothing_denied_passes(&mut hosts, db.into());
}

/// Denies the clients everything, and disturbs the hosts in all ways while the clients send to `db`.
fn nothing_denied_passes(hosts: &mut Hosts, db: IpAddr) {
    // The kernels have translated the flows already when the policy comes.
    let others = DENIED.map(|(n, _)| instance_on(hosts, (n, n), "other", db.is_ipv6()));
    let (to, port) = (db.to_string(), PORT.to_string());
    hosts.wait_until("everything is allowed", || {
        for (n, container) in DENIED {
            let source = source_to(hosts, (n, container), db).to_string();
            let words = ["claim", &source, &to, &port, "500"];
            let mut flood = start(hosts, (n, container), &words);
            flood.wait().expect("it ends");
        }
        let counts = counted(hosts);
        others.iter().all(|other| counts.contains_key(other))
    });
    apply(hosts, &[("web", "db:7777"), ("web", "db:7777/udp")]);
    let server = before_port(db);
    hosts.wait_until("the policy is in force", || {
        let is_denied = |(n, container)| hosts.ask(n, container, "udp", &server).is_err();
        DENIED.into_iter().all(is_denied)
    });

    let family = if db.is_ipv6() { "ip6" } else { "ip" };
    let sent = [
        while_denied_clients_send(hosts, db, "our rules are flushed", |hosts| {
            for n in [0, 1, 0, 1, 0, 1, 0, 1] {
                hosts.exec(n, &["nft", "flush", "table", family, "meshd"]);
                std::thread::sleep(Duration::from_millis(50));
            }
        }),
        while_denied_clients_send(hosts, db, "all rules are flushed", |hosts| {
            for n in [0, 1] {
                hosts.exec(n, &["nft", "flush", "ruleset"]);
            }
        }),
        // The restart also brings the engine's own rules back.
        while_denied_clients_send(hosts, db, "dockerd restarts", |hosts| {
            for n in [0, 1] {
                hosts.restart_engine(n, &["--live-restore"]);
            }
        }),
        while_denied_clients_send(hosts, db, "meshd restarts", |hosts| {
            for n in [1, 0] {
                hosts.stop_daemon(n);
                std::thread::sleep(Duration::from_millis(200));
                hosts.start_daemon(n);
            }
        }),
        while_denied_clients_send(hosts, db, "the coordinator restarts", |hosts| {
            hosts.restart_coordinator();
            for n in [0, 1] {
                hosts.wait_until("the node is connected again", || {
                    let coordinator = hosts.status(n).coordinator;
                    coordinator.is_some_and(|coordinator| coordinator.connected)
                });
            }
        }),
    ];
    println!("{} denied datagrams in all", sent.iter().sum::<u64>());
}
