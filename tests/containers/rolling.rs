//! New versions of a service under load.

use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use meshd::records::kinds::Health;

use crate::hosts::{ECHO, Hosts, IMAGE, PORT};

/// New connections of each test.
const COUNT: &str = "1200";

/// Starts clients on node 0, so many a second, that keep an answer for `cache` milliseconds. `command` is that of the test's program.
fn flood(hosts: &Hosts, command: &str, rate: &str, cache: &str) -> Child {
    let server = format!("web.svc.mesh:{PORT}");
    let mut program = hosts.nodes[0].host().command(hosts.echo()).expect("a host");
    program
        .args([command, &server, COUNT, rate, cache])
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
    replace_under_load(&hosts, "flood");
}

#[test]
fn a_container_is_replaced_under_load_over_ipv6_and_nobody_notices() {
    let Some(hosts) = Hosts::joined(2).filter(Hosts::have_ipv6) else {
        return;
    };
    for n in [0, 1] {
        hosts.create_dual_network(n, "project", 101);
        start(&hosts, n, "2000");
    }
    wait_for_both_by_ipv6(&hosts);
    replace_under_load(&hosts, "flood6");
}

/// Waits until node 0 knows the IPv6 addresses of two instances.
fn wait_for_both_by_ipv6(hosts: &Hosts) {
    hosts.wait_until("two instances are up with IPv6", || {
        let rows = hosts.instances(0, "web").into_iter();
        let healthy = rows.filter(|row| row.health == Health::Healthy);
        let addresses = healthy.flat_map(|row| row.addresses);
        addresses.filter(IpAddr::is_ipv6).count() == 2
    });
}

/// Replaces the container of node 1 while clients connect to the service without a pause.
fn replace_under_load(hosts: &Hosts, command: &str) {
    let clients = flood(hosts, command, "100", "0");
    std::thread::sleep(Duration::from_secs(2));
    // As `docker compose up -d` does with a new version.
    hosts.docker(1, &["stop", "web"]);
    hosts.docker(1, &["rename", "web", "old_web"]);
    start(hosts, 1, "2000");
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
    let clients = flood(&hosts, "flood", "80", "5000");
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
