//! The policy between containers: on one host, where the firewall enforces it, and on two, where the tunnel does.

use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::time::Duration;

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
        && protocol == "tcp"
    {
        let is_told = ["ConnectionRefused", "HostUnreachable"]
            .iter()
            .any(|kind| why.contains(*kind));
        assert!(is_told, "{server}: {why}");
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

/// A server, a client that the policy will allow, and one that it will not, on node 1; and one client of each kind on node 0.
fn shop(hosts: &Hosts) {
    for n in [0, 1] {
        hosts.docker(n, &["network", "create", "project"]);
    }
    hosts.serve(1, "db", "project", "db");
    hosts.serve(1, "web-1", "bridge", "web");
    hosts.serve(1, "other-1", "bridge", "other");
    hosts.serve(0, "web-0", "bridge", "web");
    hosts.serve(0, "other-0", "bridge", "other");
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
        for (service, count) in [("db", 1), ("web", 2), ("other", 2), ("vip", 1)] {
            hosts.wait_for(n, service, count);
        }
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

#[test]
fn a_change_of_the_policy_ends_connections_between_containers_of_one_host_and_of_two() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    shop(&hosts);
    let allowed = [("web", "db:7777"), ("web", "db:7777/udp")];
    apply(&hosts, &allowed);
    hosts.wait_until("the policy is in force", || {
        !answers(&hosts, (0, "other-0"), "tcp", "db.svc.mesh")
            && !answers(&hosts, (1, "other-1"), "tcp", "db.svc.mesh")
    });
    let server = format!("db.svc.mesh:{PORT}");
    let clients = [(0, "web-0"), (1, "web-1")];
    let flows = clients.map(|client| start(&hosts, client, &["flow", &server, "8"]));
    std::thread::sleep(Duration::from_secs(2));
    apply(&hosts, &[]);
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

/// The datagrams of a source that `db` counted.
fn counted(hosts: &Hosts, db: Ipv4Addr, source: Ipv4Addr) -> u64 {
    let server = format!("{db}:{PORT}");
    let report = hosts.exec(1, &["docker", "exec", "db", ECHO, "report", &server]);
    let counts = report.lines().filter_map(|line| line.split_once(' '));
    let mut of_source = counts.filter(|(from, _)| *from == source.to_string());
    of_source
        .next()
        .map_or(0, |(_, count)| count.parse().expect("a number"))
}

/// Starts to send `count` datagrams of one flow from the container `other-1` to `db`.
fn flood(hosts: &Hosts, db: Ipv4Addr, count: &str) -> Child {
    let source = hosts.container_address(1, "other-1").to_string();
    let (to, port) = (db.to_string(), PORT.to_string());
    let words = ["claim", &source, &to, &port, count];
    start(hosts, (1, "other-1"), &words)
}

#[test]
fn no_denied_packet_of_a_neighbour_passes_while_rules_are_flushed_and_meshd_restarts() {
    const MANY: &str = "100000";
    let Some(mut hosts) = Hosts::joined(2) else {
        return;
    };
    shop(&hosts);
    let db = hosts.wait_for(1, "db", 1)[0];
    let block = hosts.node(1).octets()[2];
    let others = hosts.wait_for(1, "other", 2);
    let other = others
        .into_iter()
        .find(|address| address.octets()[2] == block);
    let other = other.expect("an instance of node 1");
    // The kernel has translated the flow already when the policy comes.
    hosts.wait_until("everything is allowed", || {
        flood(&hosts, db, "500").wait().expect("it ends");
        counted(&hosts, db, other) > 0
    });
    apply(&hosts, &[("web", "db:7777/udp")]);
    hosts.wait_until("the policy is in force", || {
        !answers(&hosts, (1, "other-1"), "udp", &db.to_string())
            && answers(&hosts, (1, "web-1"), "udp", &db.to_string())
    });
    let before = counted(&hosts, db, other);

    let mut floods = vec![flood(&hosts, db, MANY)];
    for _ in 0..5 {
        hosts.exec(1, &["nft", "flush", "table", "ip", "meshd"]);
        std::thread::sleep(Duration::from_millis(50));
    }
    floods.push(flood(&hosts, db, MANY));
    hosts.stop_daemon(1);
    floods.push(flood(&hosts, db, MANY));
    hosts.start_daemon(1);
    for flood in floods {
        let output = flood.wait_with_output().expect("it ends");
        let sent = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            sent.trim().parse::<u32>().is_ok_and(|sent| sent > 10_000),
            "{sent}"
        );
    }
    hosts.wait_until("the allowed client is answered", || {
        answers(&hosts, (1, "web-1"), "udp", &db.to_string())
    });
    assert!(!answers(&hosts, (1, "other-1"), "udp", &db.to_string()));
    assert_eq!(counted(&hosts, db, other) - before, 0);
}
