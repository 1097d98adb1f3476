//! Flows between hosts while what carries them is restarted.

use std::process::{Child, Stdio};
use std::time::Duration;

use crate::hosts::{Hosts, PORT};

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
    assert_eq!(hosts.status(1).problems, []);
}
