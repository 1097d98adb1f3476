//! A real Prometheus on the host of the coordinator.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use meshd::testbed::{Host, Running};
use serde_json::Value;

use crate::mesh::Mesh;

const PORT: u16 = 9090;

/// Status and body of the answer to a GET request in the network of `host`.
pub(super) fn get(host: &Host, address: SocketAddr, path: &str) -> (u16, String) {
    get_by_name(host, address, &address.to_string(), path)
}

/// Does the same as [`get`] with a request that names `name` as its host.
pub(super) fn get_by_name(
    host: &Host,
    address: SocketAddr,
    name: &str,
    path: &str,
) -> (u16, String) {
    let answer = host.inside(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        // With this version, neither side sends the body in chunks.
        write!(stream, "GET {path} HTTP/1.0\r\nhost: {name}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = answer.expect("a namespace").unwrap_or_default();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    (status.unwrap_or_default(), body.to_owned())
}

/// An alert that fires.
#[derive(Debug)]
pub(super) struct Alert(BTreeMap<String, String>);

impl Alert {
    pub(super) fn is(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        let has = |(label, value): &(&str, &str)| self.0.get(*label).is_some_and(|v| v == value);
        has(&("alertname", name)) && labels.iter().all(has)
    }
}

pub(super) struct Prometheus {
    _running: Running,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    /// Starts it with the alerts of `monitoring/`, which fire after a second instead of minutes.
    pub(super) fn start(program: &Path, mesh: &Mesh) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        std::fs::write(
            path("alerts.yml"),
            impatient(&super::read("monitoring/alerts.yml")),
        )
        .expect("a new file");
        std::fs::write(path("prometheus.yml"), configuration(mesh)).expect("a new file");
        let mut command = mesh
            .coordinator_host
            .command(program.to_str().expect("a plain path"))
            .expect("a namespace");
        command
            .arg(format!(
                "--config.file={}",
                path("prometheus.yml").display()
            ))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"));
        let log = mesh.logs.path().join("prometheus");
        let running = mesh.coordinator_host.start(&mut command, &log);
        let started = Self {
            _running: running.expect("a program"),
            _directory: directory,
        };
        mesh.wait_until("prometheus answers", || {
            get(&mesh.coordinator_host, address(), "/-/ready").0 == 200
        });
        started
    }

    /// The data of an answer of its API.
    pub(super) fn ask(&self, mesh: &Mesh, path: &str) -> Value {
        let (_, body) = get(&mesh.coordinator_host, address(), path);
        let mut answer: Value = serde_json::from_str(&body).unwrap_or_default();
        answer["data"].take()
    }

    /// The alerts that fire now.
    pub(super) fn firing(&self, mesh: &Mesh) -> Vec<Alert> {
        let data = self.ask(mesh, "/api/v1/alerts");
        let alerts = data["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing
            .filter_map(|alert| serde_json::from_value(alert["labels"].clone()).ok())
            .map(Alert)
            .collect()
    }

    /// The number of targets whose last scrape succeeded.
    pub(super) fn targets_up(&self, mesh: &Mesh) -> usize {
        let data = self.ask(mesh, "/api/v1/targets?state=active");
        let targets = data["activeTargets"].as_array().cloned();
        let targets = targets.unwrap_or_default();
        targets.iter().filter(|t| t["health"] == "up").count()
    }
}

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], PORT))
}

/// The rules with `for` of one second, so that a test need not wait for minutes. What they ask for is unchanged.
fn impatient(rules: &str) -> String {
    let lines = rules.lines().map(|line| {
        if line.trim_start().starts_with("for: ") {
            "        for: 1s\n".to_owned()
        } else {
            format!("{line}\n")
        }
    });
    lines.collect()
}

fn configuration(mesh: &Mesh) -> String {
    let nodes = mesh
        .nodes
        .iter()
        .map(|n| format!("\"{}:9560\"", n.host.v4()));
    let nodes: Vec<String> = nodes.collect();
    format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
         rule_files: [alerts.yml]\n\
         scrape_configs:\n\
         - {{job_name: meshd, static_configs: [{{targets: [{}]}}]}}\n\
         - {{job_name: mesh-coordinator, static_configs: [{{targets: [\"127.0.0.1:9561\"]}}]}}\n",
        nodes.join(", ")
    )
}
