//! Containers that a program on another node spawns over meshd's own API, with a real engine.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::hosts::{ECHO, Hosts};

/// The node whose engine runs the containers, and the node of the caller.
const ENGINE: usize = 0;
const CALLER: usize = 1;
/// The port of the API.
const PORT: u16 = 7447;
/// Only a hang takes that long.
const TIMEOUT: Duration = Duration::from_secs(60);
const CONFIG: &str = r#"
[api]
enabled = true

[[spawn]]
name = "job"
from = ["node:n2"]
images = ["box:latest"]
command = true
memory = "64m"
cpus = 0.5
pids = 64
max = 2

[[spawn]]
name = "service"
from = ["runner"]
images = ["box:latest"]
command = true

[[spawn]]
name = "short"
from = ["node:n2"]
images = ["box:latest"]
command = true
memory = "64m"
ttl = "3s"
network = "none"
"#;

struct Spawning {
    hosts: Hosts,
    address: SocketAddr,
}

impl Spawning {
    fn start() -> Option<Self> {
        if std::env::var("MESHD_LAB_ENGINE").is_ok_and(|engine| engine == "podman") {
            meshd::testbed::skip_test("the test reads what Docker says about a container");
            return None;
        }
        let mut hosts = Hosts::start(2)?;
        hosts.configure(ENGINE, CONFIG);
        for n in [ENGINE, CALLER] {
            hosts.join(n);
        }
        hosts.wait_for_peers();
        let address = SocketAddr::from((hosts.node(ENGINE), PORT));
        let spawning = Self { hosts, address };
        spawning.wait_for_api();
        Some(spawning)
    }

    fn wait_for_api(&self) {
        self.hosts.wait_until("the node serves the API", || {
            self.call("GET", "/v1/spawn", "").0 == 200
        });
    }

    /// Sends a request from the node of the caller.
    fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.call_from(CALLER, method, path, body)
    }

    /// Sends a request from a node. Returns the status and the document; 0 if there is no answer.
    fn call_from(&self, n: usize, method: &str, path: &str, body: &str) -> (u16, Value) {
        let host = self.hosts.nodes[n].host();
        let sent = host.inside(|| send(self.address, method, path, body));
        let answer = sent.expect("a namespace").unwrap_or_default();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1);
        let status = status.and_then(|status| status.parse().ok());
        let document = serde_json::from_str(body).unwrap_or_default();
        (status.unwrap_or_default(), document)
    }

    /// Spawns a container that runs until it is removed.
    fn spawn(&self, template: &str, name: &str) -> Value {
        let body = json!({
            "template": template, "image": "box", "name": name,
            "command": [ECHO, "serve", "7777", "0"],
        });
        let (status, spawned) = self.call("POST", "/v1/spawn", &body.to_string());
        assert_eq!(status, 200, "{spawned}");
        assert_eq!(spawned["state"], "running", "{spawned}");
        spawned
    }

    /// The names of the caller's containers.
    fn listed(&self) -> Vec<String> {
        let (status, list) = self.call("GET", "/v1/spawn", "");
        assert_eq!(status, 200, "{list}");
        let containers = list["containers"].as_array().expect("a list");
        let names = containers.iter().filter_map(|row| row["name"].as_str());
        names.map(str::to_owned).collect()
    }

    /// The ids of all containers that the engine has.
    fn of_engine(&self) -> String {
        self.hosts
            .docker(ENGINE, &["ps", "--all", "--quiet", "--no-trunc"])
    }
}

fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn a_program_spawns_lists_and_removes_containers_within_its_template() {
    let Some(spawning) = Spawning::start() else {
        return;
    };
    let one = spawning.spawn("job", "one");
    let two = spawning.spawn("job", "two");
    assert_eq!(spawning.listed(), {
        let mut rows = [(one["id"].clone(), "one"), (two["id"].clone(), "two")];
        rows.sort_by_key(|(id, _)| id.to_string());
        rows.iter()
            .map(|(_, name)| (*name).to_owned())
            .collect::<Vec<_>>()
    });
    let id = one["container"].as_str().expect("an id");
    let text = spawning.hosts.docker(ENGINE, &["inspect", id]);
    let inspected: Value = serde_json::from_str(&text).expect("a list");
    let host = &inspected[0]["HostConfig"];
    assert_eq!(host["Privileged"], false);
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
    assert_eq!(host["Memory"], json!(64 << 20));
    assert_eq!(host["PidsLimit"], json!(64));
    let network = host["NetworkMode"].as_str().expect("a text").to_owned();
    assert!(network.starts_with("meshd-spawn-"), "{network}");

    // The quota of the template, fields beyond it, and another caller.
    let more = r#"{"template":"job","image":"box","command":["x"]}"#;
    assert_eq!(spawning.call("POST", "/v1/spawn", more).0, 429);
    for (body, status) in [
        (r#"{"template":"job","image":"alpine:3.20"}"#, 403),
        (r#"{"template":"other","image":"box"}"#, 404),
        (
            r#"{"template":"job","image":"box","environment":["A=1"]}"#,
            403,
        ),
        (r#"{"template":"job","image":"box","privileged":true}"#, 400),
    ] {
        let (got, problem) = spawning.call("POST", "/v1/spawn", body);
        assert_eq!(got, status, "{body}: {problem}");
    }
    let (status, problem) = spawning.call_from(ENGINE, "GET", "/v1/spawn", "");
    assert_eq!(status, 403, "{problem}");

    let (status, removed) = spawning.call("DELETE", "/v1/spawn/one", "");
    assert_eq!((status, &removed["state"]), (200, &json!("removed")));
    assert_eq!(spawning.call("GET", "/v1/spawn/one", "").0, 404);
    assert_eq!(spawning.listed(), ["two"]);
    assert!(!spawning.of_engine().contains(id));
    assert_eq!(spawning.call("DELETE", "/v1/spawn/two", "").0, 200);
    let networks = spawning.hosts.docker(ENGINE, &["network", "ls"]);
    assert!(!networks.contains(&network), "{networks}");
}

#[test]
fn a_spawned_container_expires_and_neither_it_nor_its_owner_is_lost_in_a_restart() {
    let Some(mut spawning) = Spawning::start() else {
        return;
    };
    let short = spawning.spawn("short", "short");
    let kept = spawning.spawn("job", "kept");
    let short = short["container"].as_str().expect("an id");
    spawning.hosts.wait_until("the container expires", || {
        spawning.listed() == ["kept"] && !spawning.of_engine().contains(short)
    });

    // While meshd does not run, another container expires, and one appears that no list has.
    let short = spawning.spawn("short", "short");
    let short = short["container"].as_str().expect("an id");
    spawning.hosts.stop_daemon(ENGINE);
    let orphan = ["create", "--label", "meshd.spawn=x", "box", "x"];
    let orphan = spawning.hosts.docker(ENGINE, &orphan);
    spawning.hosts.start_daemon(ENGINE);
    spawning.wait_for_api();
    let kept = kept["container"].as_str().expect("an id");
    spawning.hosts.wait_until("the leftovers are removed", || {
        let there = spawning.of_engine();
        !there.contains(short) && !there.contains(orphan.trim()) && there.contains(kept)
    });
    let (status, shown) = spawning.call("GET", "/v1/spawn/kept", "");
    assert_eq!((status, &shown["state"]), (200, &json!("running")));
    let audit = spawning
        .hosts
        .exec(ENGINE, &["cat", "/run/state/audit.jsonl"]);
    for what in ["spawned", "spawn_expired", "spawn_orphan_removed"] {
        assert!(audit.contains(&format!(r#""what":"{what}""#)), "{what}");
    }
}

#[test]
fn a_container_is_known_as_its_service_on_the_same_node_and_on_another_one() {
    let Some(spawning) = Spawning::start() else {
        return;
    };
    let hosts = &spawning.hosts;
    for (n, name) in [(ENGINE, "near"), (CALLER, "far")] {
        hosts.serve(n, name, "bridge", "runner");
        hosts.run(n, &format!("{name}-other"), "bridge", &[]);
    }
    hosts.wait_for(ENGINE, "runner", 2);
    let url = format!("http://{}/v1/spawn", spawning.address);
    let body = json!({
        "template": "service", "image": "box", "name": "one",
        "command": [ECHO, "serve", "7777", "0"],
    });
    let body = body.to_string();
    let spawn = [
        "exec",
        "near",
        "wget",
        "-q",
        "-O",
        "-",
        "--post-data",
        &body,
        &url,
    ];
    let mut spawned = String::new();
    hosts.wait_until("the runner is known by its address", || {
        let words = [&["docker"], &spawn[..]].concat();
        match hosts.nodes[ENGINE].exec(&words) {
            Ok(text) => spawned = text,
            Err(_) => return false,
        }
        true
    });
    assert!(spawned.contains(r#""name":"one""#), "{spawned}");
    // All instances of a service own its containers together.
    let list = |n: usize, name: &str| {
        let words = ["docker", "exec", name, "wget", "-q", "-O", "-", &url];
        hosts.nodes[n].exec(&words)
    };
    let far = list(CALLER, "far").expect("it is the same service");
    assert!(far.contains(r#""name":"one""#), "{far}");
    // A container without a service is nobody on its own node, and the node itself on another one.
    assert!(list(ENGINE, "near-other").is_err());
    let node = list(CALLER, "far-other").expect("it has the address of the node");
    assert_eq!(node, r#"{"schema":1,"containers":[]}"#);
}
