//! Addresses that are somebody else's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::hosts::{ECHO, Hosts, PORT};

/// Datagrams of each kind.
const COUNT: &str = "10000";

/// The requests that the server counted for each source address.
fn counted(hosts: &Hosts, server: impl Into<IpAddr>) -> Vec<(String, u64)> {
    let server = SocketAddr::new(server.into(), PORT).to_string();
    hosts
        .exec(1, &["docker", "exec", "server", ECHO, "report", &server])
        .lines()
        .map(|line| {
            let (source, count) = line.split_once(' ').expect("two words");
            (source.to_owned(), count.parse().expect("a number"))
        })
        .collect()
}

#[test]
fn nobody_gets_through_with_an_address_of_somebody_else() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    for name in ["claimer", "neighbour"] {
        hosts.serve(0, name, "bridge", name);
    }
    hosts.serve(1, "server", "bridge", "server");
    let own_instance = hosts.wait_for(1, "claimer", 1)[0];
    let other_instance = hosts.wait_for(1, "neighbour", 1)[0];
    let server = hosts.wait_for(0, "server", 1)[0];
    let port = PORT.to_string();
    let to = server.to_string();
    let claim = |source: Ipv4Addr, count: &str| {
        let source = source.to_string();
        let sent = hosts.docker(
            0,
            &["exec", "claimer", ECHO, "claim", &source, &to, &port, count],
        );
        sent.parse::<u64>().expect("a number")
    };

    // With its own address a container gets through: what follows does not fail for another reason.
    let own = own_instance.to_string();
    let mut own_sent = 0;
    hosts.wait_until("its own datagrams arrive", || {
        own_sent += claim(hosts.container_address(0, "claimer"), "500");
        counted(&hosts, server)
            .iter()
            .any(|(source, count)| *source == own && *count > 100)
    });
    let known: Vec<String> = counted(&hosts, server)
        .into_iter()
        .map(|(s, _)| s)
        .collect();

    let neighbour = hosts.container_address(0, "neighbour");
    let [a, b, ..] = neighbour.octets();
    let foreign = [
        neighbour,
        // No container has this address of its network.
        Ipv4Addr::new(a, b, 99, 9),
        other_instance,
        hosts.node(0),
        hosts.node(1),
        "10.210.99.9".parse().expect("a literal"),
        "192.0.2.9".parse().expect("a literal"),
    ];
    for source in foreign {
        let sent = claim(source, COUNT);
        assert!(
            sent > 9_000,
            "{sent} of {COUNT} left the container with {source}"
        );
    }

    let below = hosts.nodes[1].host().v4().to_string();
    let outside = |words: &[&str]| {
        let (program, arguments) = words.split_first().expect("a program");
        let mut command = hosts.outside.command(program).expect("a namespace");
        let output = command.args(arguments).output().expect("a program");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    outside(&["ip", "route", "add", "10.210.0.0/16", "via", &below]);
    for source in [hosts.node(0), own_instance, hosts.outside.v4()] {
        let sent = outside(&[
            hosts.echo(),
            "claim",
            &source.to_string(),
            &to,
            &port,
            COUNT,
        ]);
        assert!(
            sent.parse::<u64>().expect("a number") > 9_000,
            "{sent} with {source}"
        );
    }

    let arrived: Vec<_> = counted(&hosts, server)
        .into_iter()
        .filter(|(source, _)| !known.contains(source) || *source == hosts.node(0).to_string())
        .collect();
    println!("of 10 x {COUNT} datagrams with somebody else's address arrived: {arrived:?}");
    assert_eq!(arrived, []);
    let own_count = |counts: Vec<(String, u64)>| {
        counts
            .iter()
            .find(|(source, _)| *source == own)
            .map_or(0, |(_, count)| *count)
    };
    assert!(
        own_count(counted(&hosts, server)) <= own_sent,
        "none under the claimer's own name either"
    );
}

#[test]
fn nobody_gets_through_with_an_ipv6_address_of_somebody_else() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    if !hosts.have_ipv6() {
        return;
    }
    for n in [0, 1] {
        hosts.create_dual_network(n, "project", 101);
    }
    for name in ["claimer", "neighbour"] {
        hosts.serve(0, name, "project", name);
    }
    hosts.serve(1, "server", "project", "server");
    let own_instance = hosts.wait_for_v6(1, "claimer");
    let other_instance = hosts.wait_for_v6(1, "neighbour");
    let server = hosts.wait_for_v6(0, "server");
    let (port, to) = (PORT.to_string(), server.to_string());
    let claim = |source: Ipv6Addr, count: &str| {
        let source = source.to_string();
        let claim = ["exec", "claimer", ECHO, "claim", &source, &to, &port, count];
        let sent = hosts.docker(0, &claim);
        sent.parse::<u64>().expect("a number")
    };

    // With its own address a container gets through.
    let own = own_instance.to_string();
    let address = hosts.container_address_v6(0, "claimer");
    hosts.wait_until("its own datagrams arrive", || {
        claim(address, "500");
        counted(&hosts, server)
            .iter()
            .any(|(source, count)| *source == own && *count > 100)
    });
    let known: Vec<String> = counted(&hosts, server)
        .into_iter()
        .map(|(source, _)| source)
        .collect();

    let [a, b, c, ..] = server.segments();
    let unused = u128::from(hosts.container_address_v6(0, "neighbour")) | 0x9900;
    let foreign = [
        hosts.container_address_v6(0, "neighbour"),
        // No container has this address of its network.
        Ipv6Addr::from(unused),
        other_instance,
        hosts.node_v6(0),
        hosts.node_v6(1),
        Ipv6Addr::new(a, b, c, 99, 0, 0, 0, 9),
        "2001:db8:9::9".parse().expect("a literal"),
    ];
    for source in foreign {
        let sent = claim(source, COUNT);
        assert!(sent > 9_000, "{sent} of {COUNT} left with {source}");
    }

    let below = hosts.nodes[1].host().v6().to_string();
    let outside = |words: &[&str]| {
        let (program, arguments) = words.split_first().expect("a program");
        let mut command = hosts.outside.command(program).expect("a namespace");
        let output = command.args(arguments).output().expect("a program");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let mesh = format!("{}/48", Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0));
    outside(&["ip", "-6", "route", "add", &mesh, "via", &below]);
    for source in [hosts.node_v6(0), own_instance, hosts.outside.v6()] {
        let source = source.to_string();
        let sent = outside(&[hosts.echo(), "claim", &source, &to, &port, COUNT]);
        let sent: u64 = sent.parse().expect("a number");
        assert!(sent > 9_000, "{sent} with {source}");
    }

    let node = hosts.node_v6(0).to_string();
    let arrived: Vec<_> = counted(&hosts, server)
        .into_iter()
        .filter(|(source, _)| !known.contains(source) || *source == node)
        .collect();
    assert_eq!(arrived, []);
}

#[test]
fn a_container_does_not_reach_its_nodes_mesh_address_from_its_link_local_one() {
    const SERVED: &str = "9000";
    let Some(hosts) = Hosts::joined(1).filter(Hosts::have_ipv6) else {
        return;
    };
    hosts.create_dual_network(0, "project", 101);
    hosts.serve(0, "claimer", "project", "claimer");
    hosts.wait_for_v6(0, "claimer");
    let host = hosts.nodes[0].host();
    let mut serve = host.command(hosts.echo()).expect("a host");
    serve.args(["serve", SERVED]);
    let log = host.path("/run/served.log");
    let _server = host.start(&mut serve, &log).expect("a program");
    let node = hosts.node_v6(0).to_string();
    let claim = |source: &str| {
        let words = [
            "exec", "claimer", ECHO, "claim", source, &node, SERVED, "500",
        ];
        let sent = hosts.docker(0, &words);
        sent.parse::<u64>().expect("a number")
    };
    let counted = || {
        let own = format!("[::1]:{SERVED}");
        let counted = hosts.nodes[0].exec(&[hosts.echo(), "report", &own]);
        counted.unwrap_or_default()
    };

    let own = hosts.container_address_v6(0, "claimer").to_string();
    hosts.wait_until("datagrams from its own address arrive", || {
        claim(&own);
        counted().lines().any(|line| line.starts_with(&own))
    });
    let pid = hosts.docker(0, &["inspect", "-f", "{{.State.Pid}}", "claimer"]);
    let enter = ["nsenter", "--target", &pid, "--net"];
    let show = ["ip", "-6", "-o", "address", "show", "scope", "link"];
    let shown = hosts.exec(0, &[&enter[..], &show].concat());
    let link_local = shown
        .split_whitespace()
        .find_map(|word| word.strip_suffix("/64"))
        .expect("an address of its link");
    assert!(link_local.starts_with("fe80:"), "{shown}");
    assert!(claim(link_local) > 400);
    let counted = counted();
    assert!(!counted.contains("fe80:"), "{counted}");
}

#[test]
fn a_neighbor_takes_no_ipv6_address_of_an_exposed_container_and_is_no_router_of_it() {
    let Some(hosts) = Hosts::joined(1).filter(Hosts::have_ipv6) else {
        return;
    };
    hosts.create_dual_network(0, "project", 101);
    hosts.serve(0, "victim", "project", "victim");
    for name in ["plain", "pretender"] {
        hosts.run(0, name, "project", &[]);
    }
    hosts.wait_for_v6(0, "victim");
    let link_address = |address: &str| {
        hosts.exec(0, &["ping", "-c", "1", "-W", "5", address]);
        let pretend = ["exec", "pretender", ECHO, "pretend", address];
        let entry = || {
            let shown = hosts.exec(0, &["ip", "-6", "neigh", "show", address]);
            let (_, rest) = shown.split_once("lladdr ").expect("it answered");
            rest.split(' ').next().unwrap_or_default().to_owned()
        };
        let before = entry();
        hosts.docker(0, &pretend);
        // The kernel has taken it in when the engine's client has ended; this is for a busy machine.
        std::thread::sleep(Duration::from_millis(500));
        (before, entry())
    };
    // What nobody exposes, meshd does not guard. So the messages are those that take an address.
    let plain = hosts.container_address_v6(0, "plain").to_string();
    let (before, after) = link_address(&plain);
    assert_ne!(before, after);
    let victim = hosts.container_address_v6(0, "victim").to_string();
    let (before, after) = link_address(&victim);
    assert_eq!(before, after);
    let pid = hosts.docker(0, &["inspect", "-f", "{{.State.Pid}}", "victim"]);
    let enter = ["nsenter", "--target", &pid, "--net"];
    let show = ["ip", "-6", "route", "show", "default"];
    let routes = hosts.exec(0, &[&enter[..], &show].concat());
    assert!(!routes.contains("proto ra"), "{routes}");
}
