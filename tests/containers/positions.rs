//! From everywhere to an instance, and what the server sees.

use crate::hosts::{Hosts, Wired};

#[test]
fn from_every_position_an_instance_is_reached_and_sees_who_calls() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    for n in [0, 1] {
        hosts.docker(n, &["network", "create", "project"]);
        hosts.run(n, "plain", "bridge");
        hosts.run(n, "web", "project");
        hosts.run(n, "unexposed", "project");
        // Its answers may leave by the other network.
        hosts.docker(n, &["network", "create", "a-second"]);
        hosts.run(n, "twofold", "project");
        hosts.docker(n, &["network", "connect", "a-second", "twofold"]);
    }
    let wired: Vec<Wired> = hosts.nodes.iter().map(Wired::start).collect();
    let vip = "10.210.0.64".parse().expect("a literal");
    let dead_vip = "10.210.0.65".parse().expect("a literal");
    for (n, wired) in wired.iter().enumerate() {
        let mut wiring = hosts.wiring(n, &["plain", "web", "twofold"]);
        wiring.service_addresses = [(vip, vec![hosts.instance(1, 1)]), (dead_vip, vec![])].into();
        wired.set(wiring);
    }
    let (plain_0, web_0) = (hosts.instance(0, 0), hosts.instance(0, 1));
    let (plain_1, web_1) = (hosts.instance(1, 0), hosts.instance(1, 1));
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
        for server in [web_1, vip] {
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

    // What leads nowhere says so at once, which a client sees as a refusal and not as its own time limit.
    for dead in [hosts.instance(1, 7), dead_vip] {
        for (position, n, container, _) in positions {
            let answer = hosts.ask(n, container, "tcp", dead);
            let refused = answer
                .as_ref()
                .is_err_and(|why| why.contains("ConnectionRefused"));
            assert!(refused, "{dead} from {position}: {answer:?}");
        }
    }
    let twofold = hosts.instance(1, 2);
    set_rp_filter("0");
    for (position, n, container, called) in positions {
        let answer = hosts.ask(n, container, "tcp", twofold);
        assert_eq!(
            answer,
            Ok(called.to_string()),
            "two networks, from {position}"
        );
    }
    for wired in wired {
        wired.stop();
    }
}
