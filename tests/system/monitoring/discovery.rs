//! A real Prometheus that gets its targets from meshd.

use meshd::testbed::skip_test;
use serde_json::{Value, json};

use super::prometheus::{get, get_by_name};
use crate::mesh::{Mesh, SOCKET, programs, write};
use crate::tool::find_program;

const METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 9560);
const PROMETHEUS: ([u8; 4], u16) = ([127, 0, 0, 1], 9090);
const TARGETS: &str = "/v1/sd/prometheus";
/// The targets are asked for each second. Prometheus waits for some seconds before it follows a change.
const CONFIGURATION: &str = "global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
- job_name: mesh
  http_sd_configs:
  - {url: \"http://127.0.0.1:9560/v1/sd/prometheus\", refresh_interval: 1s}
  relabel_configs:
  - {source_labels: [__meta_mesh_port_name], regex: metrics, action: keep}
  - {source_labels: [__meta_mesh_service], target_label: service}
  - {source_labels: [__meta_mesh_node], target_label: node}
";

/// Node 1 serves the targets of the mesh. Node 2 has a service with metrics, and one without.
fn mesh() -> Option<Mesh> {
    let mut mesh = Mesh::hosts(programs(), 2)?;
    mesh.start_coordinator();
    assert_eq!(mesh.admin(&["init"]).code, 0);
    let token = mesh.token(&["--uses", "2"]);
    for (n, text) in [
        (0, "[metrics]\ndiscovery = true\n"),
        (
            1,
            "[metrics]\nlisten = \"0.0.0.0:9560\"\n\
             [[service]]\nname = \"db\"\nport = 9560\nport_name = \"metrics\"\n\
             [[service]]\nname = \"web\"\nport = 80\npublic = [\"shop.example.com\"]\n",
        ),
    ] {
        let path = write(&mesh.nodes[n].host, "/run/meshd.toml", text);
        mesh.start_node_with(n, &["--config", &path]);
        let joined = mesh.on(n, &["join", &token]);
        assert_eq!(joined.code, 0, "{joined:?}");
    }
    mesh.wait_until("the nodes reach each other", || {
        (0..2).all(|n| mesh.reaches(n) == 1)
    });
    Some(mesh)
}

/// The targets that node 1 serves.
fn served(mesh: &Mesh) -> Value {
    let (_, body) = get(&mesh.nodes[0].host, METRICS.into(), TARGETS);
    serde_json::from_str(&body).unwrap_or_default()
}

#[test]
fn targets_are_the_ports_of_the_mesh_and_are_served_only_where_that_is_wanted() {
    let Some(mesh) = mesh() else {
        return;
    };
    let target = |service: &str, port: u16| {
        json!({
            "targets": [format!("10.210.2.1:{port}")],
            "labels": {
                "__meta_mesh_health": "unknown",
                "__meta_mesh_instance": format!("n2-{port}"),
                "__meta_mesh_node": "n2",
                "__meta_mesh_node_tags": ",",
                "__meta_mesh_port": port.to_string(),
                "__meta_mesh_reachable": "true",
                "__meta_mesh_service": service,
                "__meta_mesh_services": format!(",{service},"),
                "__meta_mesh_source": "config",
            },
        })
    };
    let mut web = target("web", 80);
    web["labels"]["__meta_mesh_public"] = json!(",shop.example.com,");
    let mut database = target("db", 9560);
    database["labels"]["__meta_mesh_port_name"] = json!("metrics");
    let expected = json!([web, database]);
    mesh.wait_until("node 1 serves the targets", || served(&mesh) == expected);

    let first = &mesh.nodes[0].host;
    for (name, status) in [
        ("127.0.0.1:9560", 200),
        ("localhost:9560", 200),
        ("rebound.example:9560", 403),
    ] {
        let (answered, _) = get_by_name(first, METRICS.into(), name, TARGETS);
        assert_eq!(answered, status, "{name}");
    }
    // Metrics and health are as before.
    assert_eq!(get(first, METRICS.into(), "/healthz").0, 200);
    // The configuration of node 2 does not enable these calls at the address of the metrics. Its local socket has them.
    let second = &mesh.nodes[1].host;
    assert_eq!(get(second, METRICS.into(), TARGETS).0, 404);
    for (call, is_right) in [
        (TARGETS, true),
        ("/v1/traefik", true),
        ("/v1/caddy?listen=:8080&https=off", true),
        ("/v1/caddy?listen=8080", false),
    ] {
        let url = format!("http://meshd{call}");
        let arguments = ["-sf", "--unix-socket", SOCKET, &url];
        assert_eq!(mesh.succeeds(1, "curl", &arguments), is_right, "{call}");
    }
}

#[test]
fn a_real_prometheus_scrapes_what_has_metrics_and_forgets_what_left() {
    let Some(program) = find_program("prometheus") else {
        return skip_test("there is no prometheus");
    };
    let Some(mesh) = mesh() else {
        return;
    };
    let host = &mesh.nodes[0].host;
    let path = write(host, "/run/prometheus.yml", CONFIGURATION);
    let mut command = host
        .command(program.to_str().expect("a plain path"))
        .expect("a namespace");
    command
        .arg(format!("--config.file={path}"))
        .arg("--storage.tsdb.path=/run/prometheus")
        .arg("--web.listen-address=127.0.0.1:9090");
    let log = mesh.logs.path().join("prometheus");
    let _prometheus = host.start(&mut command, &log).expect("a program");
    // The labels and the health of each target, without those that the rules dropped.
    let active = || {
        let (_, body) = get(host, PROMETHEUS.into(), "/api/v1/targets?state=active");
        let answer: Value = serde_json::from_str(&body).unwrap_or_default();
        let targets = answer["data"]["activeTargets"].as_array().cloned()?;
        let targets = targets.iter().map(|t| json!([t["labels"], t["health"]]));
        Some(targets.collect::<Vec<Value>>())
    };
    let labels = json!({
        "instance": "10.210.2.1:9560",
        "job": "mesh",
        "node": "n2",
        "service": "db",
    });
    let expected = Some(vec![json!([labels, "up"])]);
    mesh.wait_until("the service with metrics is scraped", || {
        active() == expected
    });
    let left = mesh.on(1, &["leave"]);
    assert_eq!(left.code, 0, "{left:?}");
    mesh.wait_until("the service is no target any more", || {
        active() == Some(vec![])
    });
}
