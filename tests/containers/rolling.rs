//! New versions of a service under load.

use std::process::{Child, Stdio};
use std::time::Duration;

use crate::hosts::{ECHO, Hosts, IMAGE, PORT};

/// New connections of each test.
const COUNT: &str = "1200";

/// Starts clients on node 0, so many a second, that keep an answer for `cache` milliseconds.
fn flood(hosts: &Hosts, rate: &str, cache: &str) -> Child {
    let server = format!("web.svc.mesh:{PORT}");
    let mut command = hosts.nodes[0].host().command(hosts.echo()).expect("a host");
    command
        .args(["flood", &server, COUNT, rate, cache])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a program")
}

fn failed(flood: Child) -> String {
    let output = flood.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Starts a container of the service, whose program goes on for `linger` milliseconds after its stop signal.
fn start(hosts: &Hosts, n: usize, linger: &str) {
    let port = PORT.to_string();
    let run = ["run", "-d", "--name", "web", "--network", "project"];
    let labels = ["--label", "mesh.service=web", "--label", "mesh.port=7777"];
    let program = [IMAGE, ECHO, "serve", &port, linger];
    hosts.docker(n, &[&run[..], &labels, &program].concat());
}

fn two_hosts(linger: &str) -> Option<Hosts> {
    let hosts = Hosts::joined(2)?;
    for n in [0, 1] {
        hosts.docker(n, &["network", "create", "project"]);
        start(&hosts, n, linger);
    }
    for n in [0, 1] {
        hosts.wait_for(n, "web", 2);
    }
    Some(hosts)
}

#[test]
fn a_container_is_replaced_under_load_and_nobody_notices() {
    let Some(hosts) = two_hosts("2000") else {
        return;
    };
    let clients = flood(&hosts, "100", "0");
    std::thread::sleep(Duration::from_secs(2));
    // As `docker compose up -d` does with a new version.
    hosts.docker(1, &["stop", "web"]);
    hosts.docker(1, &["rename", "web", "old_web"]);
    start(&hosts, 1, "2000");
    hosts.docker(1, &["rm", "old_web"]);
    hosts.wait_for(0, "web", 2);
    let failed = failed(clients);
    println!("replaced: {failed}");
    assert_eq!(failed, format!("0 of {COUNT} failed []"));
}

#[test]
fn a_rollout_spares_clients_that_remember_from_an_app_that_ends_at_once() {
    let Some(hosts) = two_hosts("0") else {
        return;
    };
    let clients = flood(&hosts, "80", "5000");
    std::thread::sleep(Duration::from_secs(2));
    let replace = format!(
        "docker rm -f web && docker run -d --name web --network project --label mesh.service=web --label mesh.port={PORT} {IMAGE} {ECHO} serve {PORT}"
    );
    let host = hosts.nodes[1].host();
    hosts.meshctl(host, &["rollout", "web", "--", "sh", "-c", &replace]);
    hosts.wait_for(0, "web", 2);
    let failed = failed(clients);
    println!("rolled over: {failed}");
    assert_eq!(failed, format!("0 of {COUNT} failed []"));
}
