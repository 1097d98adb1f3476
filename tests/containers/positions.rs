//! From everywhere to a service of containers, by its name, and what the server sees.

use std::net::{IpAddr, Ipv6Addr};

use crate::hosts::{ECHO, Hosts, PORT, UDP_PORT};

#[test]
fn from_every_position_a_service_is_reached_by_name_and_sees_who_calls() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    for n in [0, 1] {
        hosts.docker(n, &["network", "create", "project"]);
        hosts.serve(n, "plain", "bridge", &format!("plain-{n}"));
        hosts.serve(n, "web", "project", &format!("web-{n}"));
        hosts.run(n, "unexposed", "project", &[]);
        // Its answers may leave by the other network.
        hosts.docker(n, &["network", "create", "a-second"]);
        hosts.serve(n, "twofold", "project", &format!("twofold-{n}"));
        hosts.docker(n, &["network", "connect", "a-second", "twofold"]);
    }
    let vip = [
        "--label",
        "mesh.service=vip",
        "--label",
        "mesh.port=7777",
        "--label",
        UDP_PORT,
        "--label",
        "mesh.vip=true",
    ];
    hosts.run(1, "balanced", "project", &vip);
    let of = |service: &str| {
        let there = hosts.wait_for(1, service, 1)[0];
        assert_eq!(hosts.wait_for(0, service, 1), [there]);
        there
    };
    let [plain_0, web_0, plain_1, web_1] = ["plain-0", "web-0", "plain-1", "web-1"].map(of);
    of("twofold-1");
    of("vip");
    let positions = [
        ("another host", 0, "", hosts.node(0)),
        ("a default bridge elsewhere", 0, "plain", plain_0),
        ("a project's network elsewhere", 0, "web", web_0),
        (
            "an unexposed container elsewhere",
            0,
            "unexposed",
            hosts.node(0),
        ),
        ("the same host", 1, "", hosts.node(1)),
        ("another bridge of the same host", 1, "plain", plain_1),
        ("an unexposed neighbour", 1, "unexposed", hosts.node(1)),
        ("itself", 1, "web", web_1),
    ];
    let set_rp_filter = |value: &str| {
        for n in [0, 1] {
            let all = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo $0 > $f; done";
            hosts.exec(n, &["sh", "-c", all, value]);
        }
    };
    let mut shown = Vec::new();
    for strict in ["0", "1"] {
        set_rp_filter(strict);
        for server in ["web-1.svc.mesh", "vip.svc.mesh"] {
            for (position, n, container, called) in positions {
                for protocol in ["tcp", "udp"] {
                    let answer = hosts.ask(n, container, protocol, server);
                    shown.push((
                        format!("{protocol} to {server} from {position}, rp_filter {strict}"),
                        answer,
                        Ok(called.to_string()),
                    ));
                }
            }
        }
    }
    let wrong: Vec<_> = shown
        .iter()
        .filter(|(_, answer, called)| answer != called)
        .collect();
    println!("{} of {} ways work", shown.len() - wrong.len(), shown.len());
    assert!(wrong.is_empty(), "{wrong:#?}");

    // An address without an instance refuses connections at once, so a client does not have to wait for its own time limit.
    let block = hosts.status(1).node.expect("it has joined").block_v4;
    let dead = block.hosts().nth(200).expect("the block is large");
    for (position, n, container, _) in positions {
        let answer = hosts.ask(n, container, "tcp", dead);
        let refused = answer
            .as_ref()
            .is_err_and(|why| why.contains("ConnectionRefused"));
        assert!(refused, "{dead} from {position}: {answer:?}");
    }
    set_rp_filter("0");
    for (position, n, container, called) in positions {
        let answer = hosts.ask(n, container, "tcp", "twofold-1.svc.mesh");
        assert_eq!(
            answer,
            Ok(called.to_string()),
            "two networks, from {position}"
        );
    }

    // A doctor looks from inside, and finds nothing to mend.
    let report = hosts.meshctl(hosts.nodes[1].host(), &["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).expect("a report");
    assert_eq!(report["ok"], true, "{report:#}");
    let places = report["places"].as_array().expect("a list");
    let seen: Vec<_> = places
        .iter()
        .map(|row| {
            (
                row["place"].as_str().expect("a text"),
                row["network"].as_str(),
            )
        })
        .collect();
    // Engines call the network that is there by itself differently.
    let name = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}";
    let default = hosts.docker(1, &["inspect", "-f", name, "plain"]);
    for (container, network) in [
        ("plain", default.as_str()),
        ("web", "project"),
        ("unexposed", "project"),
    ] {
        let place = format!("container {container}");
        assert!(seen.contains(&(&place, Some(network))), "{seen:?}");
    }
    // One whose resolver is another's is named, and what to do about it.
    hosts.docker(
        1,
        &[
            "run",
            "-d",
            "--name",
            "astray",
            "--dns",
            "192.0.2.53",
            "box",
            ECHO,
            "serve",
            "1",
        ],
    );
    let output = hosts.nodes[1].output(&[
        env!("CARGO_BIN_EXE_meshctl"),
        "--socket",
        "/run/meshd.sock",
        "doctor",
    ]);
    let output = output.expect("a program");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains(&format!(
            "container astray (network {default}): n2.node.mesh does not resolve"
        )),
        "{text}"
    );
}

#[test]
fn from_every_position_a_service_is_reached_by_ipv6_as_by_ipv4() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    if !hosts.have_ipv6() {
        return;
    }
    for n in [0, 1] {
        hosts.create_dual_network(n, "project", 101);
        hosts.create_dual_network(n, "other", 102);
        hosts.serve(n, "other", "other", &format!("other-{n}"));
        hosts.serve(n, "web", "project", &format!("web-{n}"));
        hosts.run(n, "unexposed", "project", &[]);
        hosts.docker(n, &["network", "create", "plain"]);
        hosts.serve(n, "plain", "plain", &format!("plain-{n}"));
    }
    // What a server calls each of them, by IPv4 and by IPv6.
    let of = |service: &str| -> [IpAddr; 2] {
        let v4 = hosts.wait_for(1, service, 1)[0];
        let v6 = hosts.wait_for_v6(1, service);
        assert_eq!(hosts.wait_for_v6(0, service), v6);
        [v4.into(), v6.into()]
    };
    let [other_0, web_0, other_1, web_1] = ["other-0", "web-0", "other-1", "web-1"].map(of);
    let node = |n| -> [IpAddr; 2] { [hosts.node(n).into(), hosts.node_v6(n).into()] };
    let positions = [
        ("another host", 0, "", node(0)),
        ("another network elsewhere", 0, "other", other_0),
        ("a project's network elsewhere", 0, "web", web_0),
        ("an unexposed container elsewhere", 0, "unexposed", node(0)),
        ("the same host", 1, "", node(1)),
        ("another bridge of the same host", 1, "other", other_1),
        ("an unexposed neighbour", 1, "unexposed", node(1)),
        ("itself", 1, "web", web_1),
    ];
    let mut shown = Vec::new();
    for (position, n, container, called) in positions {
        let families = ["tcp4", "udp4", "tcp6", "udp6"];
        for (protocol, called) in families
            .into_iter()
            .zip(called.into_iter().flat_map(|c| [c; 2]))
        {
            let answer = hosts.ask(n, container, protocol, "web-1.svc.mesh");
            let way = format!("{protocol} from {position}");
            shown.push((way, answer, Ok(called.to_string())));
        }
    }
    let wrong: Vec<_> = shown
        .iter()
        .filter(|(_, answer, called)| answer != called)
        .collect();
    println!("{} of {} ways work", shown.len() - wrong.len(), shown.len());
    assert!(wrong.is_empty(), "{wrong:#?}");

    // A container whose network has no IPv6 has no address of it, and its name no AAAA record.
    let plain = hosts.wait_for(0, "plain-1", 1)[0];
    let name = format!("plain-1.svc.mesh:{PORT}");
    let found = hosts.exec(0, &hosts.words("", &["look", &name]));
    assert_eq!(found, plain.to_string());

    // An address without an instance refuses connections at once.
    let block = hosts.status(1).node.expect("it has joined").block_v6;
    let dead = Ipv6Addr::from(u128::from(block.network()) | 200);
    for (position, n, container, _) in positions {
        let answer = hosts.ask(n, container, "tcp6", format!("[{dead}]"));
        let refused = answer
            .as_ref()
            .is_err_and(|why| why.contains("ConnectionRefused"));
        assert!(refused, "{dead} from {position}: {answer:?}");
    }

    // With its container, the address goes.
    hosts.docker(1, &["rm", "-f", "web"]);
    let [_, gone] = web_1;
    hosts.wait_until("the address of the removed container refuses", || {
        let answer = hosts.ask(0, "other", "tcp6", format!("[{gone}]"));
        answer.is_err_and(|why| why.contains("ConnectionRefused"))
    });
}
