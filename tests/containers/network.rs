//! Containers whose own addresses are those they have in the mesh.

use std::net::Ipv4Addr;

use crate::hosts::{ECHO, Hosts, PORT, UDP_PORT};

/// Two hosts with the network, or nothing where they cannot be.
fn hosts() -> Option<Hosts> {
    let mut hosts = Hosts::start(2)?;
    for n in [0, 1] {
        hosts.configure(n, "[docker]\naddressing = \"network\"\n");
        hosts.join(n);
    }
    hosts.wait_for_peers();
    for n in [0, 1] {
        wait_for_network(&hosts, n);
    }
    Some(hosts)
}

fn has_network(hosts: &Hosts, n: usize) -> bool {
    let names = hosts.docker(n, &["network", "ls", "--format", "{{.Name}}"]);
    names.lines().any(|name| name == "mesh")
}

fn wait_for_network(hosts: &Hosts, n: usize) {
    hosts.wait_until("the network is there", || has_network(hosts, n));
}

/// A container's address on the network `mesh`.
fn address(hosts: &Hosts, n: usize, name: &str) -> Ipv4Addr {
    let format = "{{.NetworkSettings.Networks.mesh.IPAddress}}";
    let address = hosts.docker(n, &["inspect", "-f", format, name]);
    address.parse().expect("an address")
}

#[test]
fn a_container_on_the_network_mesh_knows_its_address_and_is_known_by_it() {
    let Some(hosts) = hosts() else {
        return;
    };
    for n in [0, 1] {
        hosts.docker(n, &["network", "create", "project"]);
        hosts.serve(n, "own", "mesh", &format!("own-{n}"));
        hosts.serve(n, "mapped", "bridge", &format!("mapped-{n}"));
        hosts.run(n, "unexposed", "mesh", &[]);
        hosts.run(n, "plain", "project", &[]);
        // Its other network comes first by name, and takes its default route.
        hosts.run(
            n,
            "twofold",
            "mesh",
            &[
                "--label",
                &format!("mesh.service=twofold-{n}"),
                "--label",
                "mesh.port=7777",
                "--label",
                UDP_PORT,
            ],
        );
        hosts.docker(n, &["network", "create", "a-second"]);
        hosts.docker(n, &["network", "connect", "a-second", "twofold"]);
    }
    let balanced = [
        "--label",
        "mesh.service=vip",
        "--label",
        "mesh.port=7777",
        "--label",
        UDP_PORT,
        "--label",
        "mesh.vip=true",
    ];
    hosts.run(1, "balanced", "mesh", &balanced);
    let of = |service: &str| {
        let there = hosts.wait_for(1, service, 1)[0];
        assert_eq!(hosts.wait_for(0, service, 1), [there], "{service}");
        there
    };
    let [own_0, own_1, mapped_0, mapped_1] = ["own-0", "own-1", "mapped-0", "mapped-1"].map(of);
    let twofold = [of("twofold-0"), of("twofold-1")];
    of("vip");
    for (n, instance) in [(0, own_0), (1, own_1)] {
        assert_eq!(instance, address(&hosts, n, "own"));
        assert_eq!(twofold[n], address(&hosts, n, "twofold"));
        let block = hosts.status(n).node.expect("it has joined").block_v4;
        assert!(block.contains(&instance), "{instance} of {block}");
    }
    // The address that the software finds on its own interface.
    let shown = hosts.docker(1, &["exec", "own", "ip", "-4", "-o", "addr", "show"]);
    assert!(shown.contains(&format!("inet {own_1}/")), "{shown}");

    let unexposed = [0, 1].map(|n| address(&hosts, n, "unexposed"));
    let positions = [
        ("another host", 0, "", hosts.node(0)),
        ("one of its kind elsewhere", 0, "own", own_0),
        (
            "an unexposed one of its kind elsewhere",
            0,
            "unexposed",
            unexposed[0],
        ),
        ("a mapped one elsewhere", 0, "mapped", mapped_0),
        ("one with two networks elsewhere", 0, "twofold", twofold[0]),
        ("a plain one elsewhere", 0, "plain", hosts.node(0)),
        ("its own host", 1, "", hosts.node(1)),
        ("its neighbour", 1, "unexposed", unexposed[1]),
        ("a mapped one of its host", 1, "mapped", mapped_1),
        ("a plain one of its host", 1, "plain", hosts.node(1)),
        ("itself", 1, "own", own_1),
    ];
    let mut shown = Vec::new();
    for strict in ["0", "1"] {
        for n in [0, 1] {
            let all = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo $0 > $f; done";
            hosts.exec(n, &["sh", "-c", all, strict]);
        }
        let mut ask = |server: &str, positions: &[(&'static str, usize, &str, Ipv4Addr)]| {
            for (position, n, container, called) in positions {
                for protocol in ["tcp", "udp"] {
                    shown.push((
                        format!("{protocol} to {server} from {position}, rp_filter {strict}"),
                        hosts.ask(*n, container, protocol, server),
                        Ok(called.to_string()),
                    ));
                }
            }
        };
        ask("own-1.svc.mesh", &positions);
        ask("twofold-1.svc.mesh", &positions[..6]);
        ask("vip.svc.mesh", &positions[..7]);
        let near = [("own", "its neighbour"), ("balanced", "itself")];
        let near = near.map(|(container, position)| (position, 1, container, hosts.node(1)));
        ask("vip.svc.mesh", &near);
        ask("mapped-1.svc.mesh", &positions[..2]);
        ask(
            "mapped-1.svc.mesh",
            &[("one of its kind here", 1, "own", own_1)],
        );
    }
    let wrong: Vec<_> = shown
        .iter()
        .filter(|(_, answer, called)| answer != called)
        .collect();
    println!("{} of {} ways work", shown.len() - wrong.len(), shown.len());
    assert!(wrong.is_empty(), "{wrong:#?}");

    // Only what is exposed is reached from the mesh.
    let answer = hosts.ask(0, "", "tcp", unexposed[1]);
    assert!(
        answer
            .as_ref()
            .is_err_and(|why| why.contains("ConnectionRefused")),
        "{answer:?}"
    );
    // Outside the mesh they show themselves as their host.
    let mut serve = hosts.outside.command(hosts.echo()).expect("a namespace");
    serve.args(["serve", &PORT.to_string()]);
    let log = tempfile::NamedTempFile::new().expect("a temporary file");
    let _outside = hosts
        .outside
        .start(&mut serve, log.path())
        .expect("a program");
    let host = hosts.nodes[1].host().v4().to_string();
    hosts.wait_until("what is outside is reached", || {
        hosts.ask(1, "own", "tcp", hosts.outside.v4()) == Ok(host.clone())
    });
    // Nobody takes a neighbour's address.
    let claim = [own_1.to_string(), own_0.to_string(), PORT.to_string()];
    let claim: Vec<&str> = claim.iter().map(String::as_str).collect();
    let words = [&["exec", "unexposed", ECHO, "claim"], &claim[..], &["1000"]].concat();
    let before = hosts.docker(
        0,
        &["exec", "own", ECHO, "report", &format!("127.0.0.1:{PORT}")],
    );
    hosts.docker(1, &words);
    let after = hosts.docker(
        0,
        &["exec", "own", ECHO, "report", &format!("127.0.0.1:{PORT}")],
    );
    let count = |text: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{own_1} ")));
        line.map(ToOwned::to_owned)
    };
    assert_eq!(count(&after), count(&before));
    for n in [0, 1] {
        assert_eq!(hosts.status(n).problems, []);
    }
}

#[test]
fn an_unused_network_mesh_is_removed_and_one_of_others_is_a_problem() {
    let Some(mut hosts) = hosts() else {
        return;
    };
    hosts.serve(1, "own", "mesh", "own");
    hosts.wait_for(0, "own", 1);
    // A stopped container whose network is gone could never be started again.
    hosts.docker(1, &["stop", "-t", "0", "own"]);
    hosts.stop_daemon(1);
    assert!(has_network(&hosts, 1), "a container is on it");
    hosts.start_daemon(1);
    hosts.docker(1, &["start", "own"]);
    let own = hosts.wait_for(0, "own", 1)[0];
    assert_eq!(own, address(&hosts, 1, "own"));
    hosts.wait_until("it is reached again", || {
        hosts.ask(0, "", "tcp", own) == Ok(hosts.node(0).to_string())
    });
    hosts.docker(1, &["rm", "-f", "own"]);
    hosts.stop_daemon(1);
    assert!(!has_network(&hosts, 1), "nothing is on it");

    hosts.docker(1, &["network", "create", "mesh"]);
    hosts.start_daemon(1);
    hosts.wait_until("it says what is in the way", || {
        let problems = hosts.status(1).problems;
        problems
            .iter()
            .any(|p| p.why.contains("the network mesh exists, but its bridge"))
    });
    hosts.docker(1, &["network", "rm", "mesh"]);
    wait_for_network(&hosts, 1);
    hosts.wait_until("nothing is in the way", || {
        hosts.status(1).problems.is_empty()
    });
}
