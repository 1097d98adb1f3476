//! Flows between hosts while what carries them is restarted.

use std::process::{Child, Stdio};
use std::time::Duration;

use crate::hosts::{Hosts, PORT, UDP_PORT};

/// Starts ten requests a second from node 0 to the service on node 1, for so many seconds.
fn flow(hosts: &Hosts, seconds: &str) -> Child {
    let server = format!("web.svc.mesh:{PORT}");
    let mut command = hosts.nodes[0].host().command(hosts.echo()).expect("a host");
    let started = command
        .args(["flow", &server, seconds])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a program");
    std::thread::sleep(Duration::from_secs(1));
    started
}

/// How many requests went unanswered, over TCP and over UDP.
fn lost(what: &str, flow: Child) -> Vec<u32> {
    let output = flow.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in text.lines() {
        println!("{what}: {line}");
    }
    text.lines()
        .map(|line| {
            let number = line.split(' ').nth(1).and_then(|word| word.parse().ok());
            number.expect("a number")
        })
        .collect()
}

/// Whether a program is on the hosts.
fn has(hosts: &Hosts, program: &str) -> bool {
    let there = hosts.nodes[1].output(&["sh", "-c", &format!("command -v {program}")]);
    let there = there.is_ok_and(|output| output.status.success());
    if !there {
        meshd::testbed::skip_test(&format!("{program} is not installed"));
    }
    there
}

/// A service on node 1, in a container.
fn web(hosts: &Hosts) {
    hosts.docker(1, &["network", "create", "project"]);
    hosts.serve(1, "web", "project", "web");
    hosts.wait_for(0, "web", 1);
}

/// Ten requests at most may be lost: those of one second.
fn at_most_a_second(what: &str, flow: Child) {
    let lost = lost(what, flow);
    assert!(lost.iter().all(|lost| *lost <= 10), "{what}: {lost:?}");
}

#[test]
fn flows_outlast_ufw_that_is_switched_on_and_reloaded() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    if !has(&hosts, "ufw") {
        return;
    }
    web(&hosts);
    let running = flow(&hosts, "10");
    for n in [0, 1] {
        for words in [
            "default deny incoming",
            "default deny routed",
            "allow 51820/udp",
            "--force enable",
        ] {
            let words: Vec<&str> = ["ufw"].into_iter().chain(words.split(' ')).collect();
            hosts.exec(n, &words);
        }
        assert!(hosts.exec(n, &["ufw", "status"]).contains("Status: active"));
    }
    at_most_a_second("ufw enable on both hosts", running);
    let running = flow(&hosts, "5");
    hosts.exec(1, &["ufw", "reload"]);
    at_most_a_second("ufw reload", running);

    // New ones too, both ways, by name.
    hosts.serve(0, "app", "bridge", "app");
    let app = hosts.wait_for(1, "app", 1)[0];
    let called = hosts.ask(0, "app", "tcp", "web.svc.mesh");
    assert_eq!(called, Ok(app.to_string()));
    let web = hosts.wait_for(0, "web", 1)[0];
    let called = hosts.ask(1, "web", "tcp", "app.svc.mesh");
    assert_eq!(called, Ok(web.to_string()));
    assert_eq!(hosts.status(1).problems, []);
}

#[test]
fn flows_outlast_firewalld_that_is_reloaded() {
    let Some(mut hosts) = Hosts::joined(2) else {
        return;
    };
    if !has(&hosts, "firewalld") || !has(&hosts, "dbus-daemon") {
        return;
    }
    // Before the engine, which tells it of its bridges.
    hosts.exec(1, &["mkdir", "-p", "/run/dbus"]);
    hosts.exec(1, &["dbus-daemon", "--system", "--fork"]);
    hosts.exec(1, &["firewall-offline-cmd", "--add-port=51820/udp"]);
    hosts.exec(1, &["firewalld"]);
    hosts.wait_until("firewalld runs", || {
        let state = hosts.nodes[1].exec(&["firewall-cmd", "--state"]);
        state.is_ok_and(|state| state == "running")
    });
    hosts.restart_engine(1, &[]);
    web(&hosts);
    for _ in 0..2 {
        let running = flow(&hosts, "6");
        hosts.exec(1, &["firewall-cmd", "--reload"]);
        at_most_a_second("firewall-cmd --reload", running);
    }
    let running = flow(&hosts, "8");
    hosts.exec(1, &["firewall-cmd", "--complete-reload"]);
    at_most_a_second("firewall-cmd --complete-reload", running);
    assert_eq!(hosts.status(1).problems, []);
}

#[test]
fn flows_outlast_restarts_and_flushed_rules() {
    let Some(mut hosts) = Hosts::joined(2) else {
        return;
    };
    hosts.docker(1, &["network", "create", "project"]);
    let labels = [
        "--restart",
        "always",
        "--label",
        "mesh.service=web",
        "--label",
        "mesh.port=7777",
        "--label",
        UDP_PORT,
    ];
    hosts.run(1, "web", "project", &labels);
    hosts.wait_for(0, "web", 1);

    let running = flow(&hosts, "5");
    hosts.exec(1, &["nft", "flush", "table", "ip", "meshd"]);
    let flushed = lost("nft flush table", running);
    assert!(flushed.iter().all(|lost| *lost <= 10), "{flushed:?}");

    let running = flow(&hosts, "5");
    hosts.exec(1, &["iptables", "-F", "DOCKER-USER"]);
    let flushed = lost("iptables -F DOCKER-USER", running);
    assert!(flushed.iter().all(|lost| *lost <= 10), "{flushed:?}");

    let running = flow(&hosts, "8");
    hosts.stop_daemon(1);
    hosts.start_daemon(1);
    let restarted = lost("meshd restarted", running);
    assert!(
        restarted.iter().all(|lost| *lost < 40),
        "it goes on: {restarted:?}"
    );

    // Without live-restore the containers end with the engine.
    let running = flow(&hosts, "14");
    hosts.restart_engine(1, &["--live-restore"]);
    let restarted = lost("dockerd restarted, its containers too", running);
    assert!(
        restarted.iter().all(|lost| *lost < 100),
        "it goes on: {restarted:?}"
    );
    hosts.wait_for(0, "web", 1);

    let running = flow(&hosts, "8");
    hosts.restart_engine(1, &["--live-restore"]);
    let restarted = lost("dockerd restarted with live-restore", running);
    assert!(restarted.iter().all(|lost| *lost <= 10), "{restarted:?}");
    // It may take five seconds until the engine is tried again.
    hosts.wait_until("nothing is wrong any more", || {
        hosts.status(1).problems.is_empty()
    });
}
