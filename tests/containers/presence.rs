//! The rules stay while they are wanted, and go without a trace.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::hosts::{ECHO, Hosts, PORT};

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
fn removed_settings_are_restored_and_a_stop_leaves_the_machine_unchanged() {
    let Some(mut hosts) = Hosts::start(2) else {
        return;
    };
    hosts.docker(1, &["network", "create", "project"]);
    hosts.serve(1, "web", "project", "web");
    let before = shown(&hosts, 1);
    hosts.join(0);
    hosts.join(1);
    hosts.wait_for_peers();
    let web = hosts.wait_for(0, "web", 1)[0];
    let system = hosts.meshctl(hosts.nodes[1].host(), &["status", "--system"]);
    for entry in [
        "table ip meshd",
        "table bridge meshd",
        "DOCKER-USER",
        "hairpin",
    ] {
        assert!(system.contains(entry), "{entry}: {system}");
    }
    let during = shown(&hosts, 1);
    assert_ne!(during, before);
    assert_eq!(hosts.ask(0, "", "tcp", web), Ok(hosts.node(0).to_string()));

    let rule = "-m conntrack --ctstate DNAT --ctorigdst 10.210.0.0/16 -m comment --comment meshd -j ACCEPT";
    for damage in [
        "nft delete table ip meshd",
        "nft flush table ip meshd",
        "nft delete table bridge meshd",
        "nft add rule ip meshd guard drop",
        &format!("iptables -D DOCKER-USER {rule}"),
        "iptables -F DOCKER-USER",
        "docker network create --subnet 10.99.7.0/24 -o com.docker.network.bridge.name=another another",
    ] {
        let began = Instant::now();
        hosts.exec(1, &["sh", "-c", damage]);
        // Docker's own rules stay in its chain, so the test searches for our rule among all rules.
        let ours = |text: &str| {
            let mut lines: Vec<String> = Vec::new();
            let mut inside = false;
            // nft breaks long sets into lines. The network that is made below joins those of the engine.
            let mut text = text.replace(",\n\t\t\t     ", ", ");
            for its in ["\"another\"", "10.99.7.0/24"] {
                text = text.replace(&format!("{its}, "), "");
                text = text.replace(&format!(", {its}"), "");
            }
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

    hosts.stop_daemon(1);
    assert_eq!(shown(&hosts, 1), before);

    // And again, as after a restart of the machine: with what was known before.
    hosts.start_daemon(1);
    hosts.wait_until("the container is reached again", || {
        hosts.ask(0, "", "tcp", web) == Ok(hosts.node(0).to_string())
    });
    assert_eq!(hosts.status(1).problems, []);
    hosts.exec(1, &["nft", "flush", "ruleset"]);
    hosts.wait_until("our table is back", || {
        hosts
            .exec(1, &["nft", "list", "tables"])
            .contains("table ip meshd")
    });
    // It took Docker's own rules with it, which come with a restart of Docker.
    hosts.restart_engine(1, &[]);
    hosts.docker(1, &["start", "web"]);
    hosts.wait_until("the container is reached again", || {
        hosts.ask(0, "", "tcp", web) == Ok(hosts.node(0).to_string())
    });
}

#[test]
fn a_flow_follows_an_instance_address_to_its_containers_next_address() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    hosts.serve(1, "web", "bridge", "web");
    let at = || hosts.wait_for(0, "web", 1)[0].into();
    let own = |name: &str| hosts.container_address(1, name).into();
    a_flow_follows(&hosts, "bridge", hosts.node(0).into(), at, own);
}

#[test]
fn a_flow_over_ipv6_follows_an_instance_address_to_its_containers_next_address() {
    let Some(hosts) = Hosts::joined(2).filter(Hosts::have_ipv6) else {
        return;
    };
    hosts.create_dual_network(1, "project", 101);
    hosts.serve(1, "web", "project", "web");
    let at = || hosts.wait_for_v6(0, "web").into();
    let own = |name: &str| hosts.container_address_v6(1, name).into();
    a_flow_follows(&hosts, "project", hosts.node_v6(0).into(), at, own);
}

/// Sends datagrams of one flow from a node to the container `web` before and after that gets another address in its network, and another
/// container gets its former one. `at` waits for its instance address, and `own` is the own address of a container.
fn a_flow_follows(
    hosts: &Hosts,
    network: &str,
    caller: IpAddr,
    at: impl Fn() -> IpAddr,
    own: impl Fn(&str) -> IpAddr,
) {
    let web = at();
    let server = SocketAddr::new(web, PORT).to_string();
    let counted = |name: &str| {
        let own = format!("127.0.0.1:{PORT}");
        hosts.docker(1, &["exec", name, ECHO, "report", &own])
    };
    let caller = format!("{caller} 1");
    // One flow to the kernel: the port is the same.
    let call = || hosts.exec(0, &[hosts.echo(), "ask", "udp", &server, "from", "5000"]);
    call();
    assert!(counted("web").lines().any(|line| line == caller));
    let before = own("web");
    hosts.docker(1, &["stop", "web"]);
    hosts.run(1, "next", network, &[]);
    assert_eq!(own("next"), before);
    hosts.docker(1, &["start", "web"]);
    assert_ne!(own("web"), before);
    assert_eq!(at(), web, "it keeps its address");
    call();
    assert!(counted("web").lines().any(|line| line == caller));
    assert!(!counted("next").lines().any(|line| line == caller));
}
