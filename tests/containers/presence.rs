//! The rules stay while they are wanted, and go without a trace.

use std::time::{Duration, Instant};

use crate::hosts::{ECHO, Hosts, PORT, Wired};

/// Everything that the wiring might change, as text, without counters and times.
fn shown(hosts: &Hosts, n: usize) -> String {
    let lists = [
        "nft -s list ruleset",
        "iptables-save",
        "ip route show table all",
        "ip link",
        "bridge -d link",
        "sysctl net.ipv4.ip_forward",
    ];
    let mut text = String::new();
    for list in lists {
        text += &format!("== {list}\n");
        let words: Vec<&str> = list.split(' ').collect();
        // Link-local addresses come up on their own some time after their link.
        let passing = |line: &&str| {
            line.starts_with('#') || line.contains("fe80::") || line.contains("ff00::")
        };
        for line in hosts.exec(n, &words).lines().filter(|line| !passing(line)) {
            text += line.split(" [").next().unwrap_or_default();
            text.push('\n');
        }
    }
    text
}

#[test]
fn what_is_taken_away_comes_back_and_a_stop_leaves_the_machine_as_it_was() {
    let Some(mut hosts) = Hosts::joined(2) else {
        return;
    };
    hosts.docker(1, &["network", "create", "project"]);
    hosts.run(1, "web", "project");
    let before = shown(&hosts, 1);
    let wired = Wired::start(&hosts.nodes[1]);
    let entries = wired.set(hosts.wiring(1, &["web"]));
    let kinds: Vec<&str> = entries.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["rule", "rule", "rule", "rule", "link"],
        "{entries:#?}"
    );
    let during = shown(&hosts, 1);
    assert_ne!(during, before);
    let web = hosts.instance(1, 0);
    assert_eq!(hosts.ask(0, "", "tcp", web), Ok(hosts.node(0).to_string()));

    let rule = "-m conntrack --ctstate DNAT --ctorigdst 10.210.0.0/16 -m comment --comment meshd -j ACCEPT";
    for damage in [
        "nft delete table ip meshd",
        "nft flush table ip meshd",
        "nft delete table bridge meshd",
        "nft add rule ip meshd guard drop",
        &format!("iptables -D DOCKER-USER {rule}"),
        "iptables -F DOCKER-USER",
        "docker network create another",
    ] {
        let began = Instant::now();
        hosts.exec(1, &["sh", "-c", damage]);
        // What Docker itself adds to its chain stays; ours is looked for in all that is shown.
        let ours = |text: &str| {
            let mut lines: Vec<String> = Vec::new();
            let mut inside = false;
            for line in text.lines() {
                inside |= line.starts_with("table ") && line.contains(" meshd ");
                if inside || (line.contains("--comment meshd") && line.contains("DOCKER-USER")) {
                    lines.push(line.to_owned());
                }
                inside &= line != "}";
            }
            lines.sort();
            lines
        };
        hosts.wait_until(damage, || ours(&shown(&hosts, 1)) == ours(&during));
        let took = began.elapsed();
        println!("{damage}: back after at most {} ms", took.as_millis());
        assert!(took < Duration::from_secs(10), "before the regular look");
    }
    hosts.docker(1, &["network", "rm", "another"]);
    assert_eq!(hosts.ask(0, "", "tcp", web), Ok(hosts.node(0).to_string()));

    wired.stop();
    assert_eq!(shown(&hosts, 1), before);

    let wired = Wired::start(&hosts.nodes[1]);
    wired.set(hosts.wiring(1, &["web"]));
    hosts.restart_engine(1);
    hosts.exec(1, &["docker", "start", "web"]);
    wired.set(hosts.wiring(1, &["web"]));
    assert_eq!(hosts.ask(0, "", "tcp", web), Ok(hosts.node(0).to_string()));
    hosts.exec(1, &["nft", "flush", "ruleset"]);
    hosts.wait_until("our table is back", || {
        hosts
            .exec(1, &["nft", "list", "tables"])
            .contains("table ip meshd")
    });
    assert_eq!(hosts.ask(0, "", "tcp", web), Ok(hosts.node(0).to_string()));
    wired.stop();
}

#[test]
fn a_flow_follows_an_instance_address_to_its_next_container() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    for name in ["first", "second"] {
        hosts.run(1, name, "bridge");
    }
    let wired = Wired::start(&hosts.nodes[1]);
    let server = format!("{}:{PORT}", hosts.instance(1, 0));
    let counted = |name: &str| {
        let own = format!("127.0.0.1:{PORT}");
        hosts.docker(1, &["exec", name, ECHO, "report", &own])
    };
    let caller = format!("{} 1", hosts.node(0));
    for name in ["first", "second"] {
        wired.set(hosts.wiring(1, &[name]));
        // One flow to the kernel: the port is the same.
        hosts.exec(0, &[hosts.echo(), "ask", "udp", &server, "from", "5000"]);
        assert!(counted(name).lines().any(|line| line == caller), "{name}");
    }
    wired.stop();
}
