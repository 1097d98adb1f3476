//! A new version of a service on all nodes, one after the other and from one place, under load.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::hosts::{ECHO, Hosts, IMAGE, PORT};

/// New connections a second.
const RATE: u32 = 100;
/// The port of the API.
const API_PORT: u16 = 7447;
/// What stands in for ssh on the first node: it leaves the command in a file for the test, which runs it on the named node.
const SSH: &str = r#"#!/bin/sh
node=$1
shift
echo "$*" > "/run/ssh.$node.new"
mv "/run/ssh.$node.new" "/run/ssh.$node.ask"
while [ ! -e "/run/ssh.$node.done" ]; do sleep 0.1; done
status=$(cat "/run/ssh.$node.done")
rm "/run/ssh.$node.done"
exit "$status"
"#;

/// The number of nodes: the goal is six, and three show the same in less time.
fn count() -> usize {
    let wanted = std::env::var("MESHD_ROLLOUT_NODES").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// Nodes that serve the API, each with a container of the service.
fn serving() -> Option<Hosts> {
    let mut hosts = Hosts::start(count())?;
    for n in 0..count() {
        hosts.configure(n, "[api]\nenabled = true\n");
        hosts.join(n);
    }
    hosts.wait_for_peers();
    for n in 0..count() {
        hosts.docker(n, &["network", "create", "project"]);
        hosts.exec(n, &["sh", "-c", &start(PORT)]);
    }
    for n in 0..count() {
        hosts.wait_for(n, "web", count());
        wait_for_api(&hosts, n);
    }
    let first = hosts.nodes[0].host();
    let token = hosts.meshctl(
        &hosts.outside,
        &[
            "api-token",
            "create",
            "--name",
            "rollout",
            "--scope",
            "drain",
        ],
    );
    std::fs::write(first.path("/run/rollout.token"), token).expect("its own file system");
    std::fs::write(first.path("/run/ssh"), SSH).expect("its own file system");
    hosts.exec(0, &["chmod", "700", "/run/ssh"]);
    Some(hosts)
}

fn wait_for_api(hosts: &Hosts, n: usize) {
    let api = SocketAddr::new(hosts.node(n).into(), API_PORT);
    hosts.wait_until("the node serves the API", || {
        let connected = || TcpStream::connect_timeout(&api, Duration::from_secs(2)).is_ok();
        hosts.nodes[0]
            .host()
            .inside(connected)
            .expect("a namespace")
    });
}

/// The command that replaces the container of a node by one whose program listens on `port`. The service has another port if the
/// version is a bad one.
fn start(port: u16) -> String {
    format!(
        "docker rm -f web; docker run -d --name web --network project --label mesh.service=web --label mesh.port={PORT} {IMAGE} {ECHO} serve {port} 0"
    )
}

fn on_each(port: u16) -> String {
    format!("/run/ssh {{node}} '{}'", start(port))
}

/// Starts clients on the first node, which keep an answer for as long as it is valid.
fn flood(hosts: &Hosts, seconds: u32) -> Child {
    let server = format!("web.svc.mesh:{PORT}");
    let (count, rate) = ((seconds * RATE).to_string(), RATE.to_string());
    let mut command = hosts.nodes[0].host().command(hosts.echo()).expect("a host");
    command
        .args(["flood", &server, &count, &rate, "5000"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a program")
}

fn failed(flood: Child) -> String {
    let output = flood.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A rollout on node `n`.
fn rollout(hosts: &Hosts, n: usize, words: &[&str]) -> Command {
    let host = hosts.nodes[n].host();
    let mut command = host.command(env!("CARGO_BIN_EXE_meshctl")).expect("a host");
    command
        .args(["rollout", "web"])
        .args(words)
        .args(["--api-token-file", "/run/rollout.token"])
        .env("MESHD_SOCKET", "/run/meshd.sock")
        .env("XDG_STATE_HOME", "/run/xdg");
    command
}

/// Runs a rollout on the first node, and the commands that it sends to the nodes.
fn roll_out(hosts: &Hosts, words: &[&str]) -> Output {
    let has_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..count() {
            let has_ended = &has_ended;
            scope.spawn(move || {
                while !has_ended.load(Ordering::Relaxed) {
                    serve_ssh(hosts, n);
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }
        let output = rollout(hosts, 0, words).output();
        has_ended.store(true, Ordering::Relaxed);
        output.expect("a program")
    })
}

/// Runs the command that waits for node `n`, if there is one.
fn serve_ssh(hosts: &Hosts, n: usize) {
    let first = hosts.nodes[0].host();
    let name = hosts.nodes[n].host().name();
    let ask = first.path(&format!("/run/ssh.{name}.ask"));
    let Ok(command) = std::fs::read_to_string(&ask) else {
        return;
    };
    std::fs::remove_file(&ask).expect("it was there");
    let output = hosts.nodes[n].output(&["sh", "-c", &command]);
    let code = output.expect("a shell").status.code().unwrap_or(255);
    let new = first.path(&format!("/run/ssh.{name}.done.new"));
    std::fs::write(&new, code.to_string()).expect("its own file system");
    std::fs::rename(&new, first.path(&format!("/run/ssh.{name}.done"))).expect("its own directory");
}

/// The ids of the containers of the service, node by node.
fn containers(hosts: &Hosts) -> Vec<String> {
    let nodes = 0..hosts.nodes.len();
    nodes
        .map(|n| hosts.docker(n, &["ps", "-q", "--no-trunc", "--filter", "name=web"]))
        .collect()
}

#[test]
fn a_rollout_over_all_nodes_loses_no_connection() {
    let Some(hosts) = serving() else {
        return;
    };
    let before = containers(&hosts);
    let seconds = u32::try_from(count() * 20 + 15).expect("a small number");
    let clients = flood(&hosts, seconds);
    std::thread::sleep(Duration::from_secs(2));
    let output = roll_out(&hosts, &["--each", &on_each(PORT), "--json"]);
    let failed = failed(clients);
    println!(
        "rolled out: {failed}\n{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(output.status.success(), "{output:?}");
    let all = seconds * RATE;
    assert_eq!(failed, format!("0 of {all} failed []"));
    let after = containers(&hosts);
    assert!(
        before
            .iter()
            .zip(&after)
            .all(|(before, after)| before != after)
    );
    let events = String::from_utf8_lossy(&output.stdout);
    let documents: Vec<serde_json::Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).expect("a document in each line"))
        .collect();
    let changed = documents.iter().filter(|event| event["event"] == "changed");
    assert_eq!(changed.count(), count());
    assert_eq!(documents.last().expect("an event")["event"], "done");
}

#[test]
fn a_bad_version_stops_at_the_canary_is_taken_back_and_nobody_notices() {
    let Some(hosts) = serving() else {
        return;
    };
    let before = containers(&hosts);
    let clients = flood(&hosts, 70);
    std::thread::sleep(Duration::from_secs(2));
    let (bad, good) = (on_each(PORT + 1), on_each(PORT));
    let words = ["--each", &bad, "--rollback", &good, "--canary", "1"];
    let output = roll_out(&hosts, &[&words[..], &["--timeout", "20s"]].concat());
    let failed = failed(clients);
    let said = String::from_utf8_lossy(&output.stderr);
    println!("stopped: {failed}\n{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("n1: rolled back"), "{said}");
    assert!(
        said.contains("this rollout leaves no node drained"),
        "{said}"
    );
    assert_eq!(failed, format!("0 of {} failed []", 70 * RATE));
    let after = containers(&hosts);
    assert_ne!(before[0], after[0], "the canary has the old version again");
    assert_eq!(before[1..], after[1..], "no other node was changed");
    hosts.wait_for(0, "web", count());
}

#[test]
fn a_second_rollout_from_another_node_is_refused_until_the_first_one_has_ended() {
    let Some(hosts) = serving() else {
        return;
    };
    let token = |n: usize| hosts.nodes[n].host().path("/run/rollout.token");
    std::fs::copy(token(0), token(1)).expect("its own file system");
    let each = ["--each", "true {node}"];
    let watching = [&each[..], &["--canary", "1", "--soak", "30s"]].concat();
    let first = rollout(&hosts, 0, &watching)
        .stderr(Stdio::piped())
        .spawn()
        .expect("a program");
    let journal = hosts.nodes[0]
        .host()
        .path("/run/xdg/meshd/rollout-web.jsonl");
    // While the canary is watched, no node is drained.
    hosts.wait_until("the canary is changed", || {
        let journal = std::fs::read_to_string(&journal);
        journal.is_ok_and(|text| text.contains(r#""step":"changed""#))
    });
    let refused = rollout(&hosts, 1, &each).output().expect("a program");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("another rollout has reserved web"), "{said}");
    let first = first.wait_with_output().expect("it ends");
    assert!(first.status.success(), "{first:?}");
    let second = rollout(&hosts, 1, &each).output().expect("a program");
    assert!(second.status.success(), "{second:?}");
}

#[test]
fn an_engine_that_restarts_while_its_node_is_drained_sends_it_no_clients() {
    let Some(mut hosts) = serving() else {
        return;
    };
    let name = hosts.nodes[0].host().name().to_owned();
    let files = hosts.nodes[0].host().path("/run");
    for n in 1..count() {
        let go = format!("go.{}", hosts.nodes[n].host().name());
        std::fs::write(files.join(go), "").expect("its own file system");
    }
    let command = "touch /run/ready.{node}; while [ ! -e /run/go.{node} ]; do sleep 0.1; done";
    let running = rollout(&hosts, 0, &["--each", command])
        .stderr(Stdio::piped())
        .spawn()
        .expect("a program");
    let ready = files.join(format!("ready.{name}"));
    hosts.wait_until("the command runs", || ready.exists());
    hosts.restart_engine(0, &[]);
    hosts.exec(0, &["sh", "-c", &start(PORT)]);
    // The new container is healthy within a moment.
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let instances = hosts.instances(1, "web");
        let own = instances.iter().find(|row| row.node.as_str() == name);
        let is_up = own.is_some_and(|row| row.health.is_usable());
        assert!(!is_up, "it was published while it was drained");
        std::thread::sleep(Duration::from_millis(100));
    }
    std::fs::write(files.join(format!("go.{name}")), "").expect("its own file system");
    let ended = running.wait_with_output().expect("it ends");
    assert!(ended.status.success(), "{ended:?}");
    for n in 0..count() {
        hosts.wait_for(n, "web", count());
    }
}
