//! Metrics, alerts, the dashboard and the log, as an operator has them: with the tools of Prometheus, which `tests/run` unpacks.

mod discovery;
mod documents;
mod journal;
mod picture;
mod prometheus;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use meshd::testbed::{Host, skip_test};

use self::prometheus::{Prometheus, get};
use crate::mesh::{Mesh, programs, write};
use crate::tool::find_program;

/// How long an alert may take to fire or to resolve. The coordinator is dialled again after a pause that grows.
const ALERT_TIMEOUT: Duration = Duration::from_secs(60);
/// The port of the service whose health changes.
const SERVICE_PORT: u16 = 5432;

/// The file or folder of this repository.
fn repository(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), path].iter().collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).expect(path)
}

/// Runs promtool in `monitoring/`. The test is skipped without it.
fn promtool(arguments: &[&str]) -> Option<Output> {
    let Some(program) = find_program("promtool") else {
        skip_test("there is no promtool");
        return None;
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(repository("monitoring"));
    Some(command.output().expect("a program"))
}

#[test]
fn the_alerts_are_valid_and_each_fires_and_resolves_in_its_unit_test() {
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts.test.yml"],
    ] {
        let Some(output) = promtool(&arguments) else {
            return;
        };
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    let tested = read("monitoring/alerts.test.yml");
    for name in documents::alerts(&read("monitoring/alerts.yml")) {
        let fires = tested.matches(&format!("alertname: {name}\n")).count();
        let resolves = format!("alertname: {name}, exp_alerts: []");
        assert!(fires > 0, "no test shows that {name} fires");
        assert!(
            tested.contains(&resolves),
            "no test shows that {name} resolves"
        );
    }
}

/// A server that accepts connections in the network of a host until it is dropped.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(host: &Host) -> Self {
        let listener = host
            .inside(|| TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, SERVICE_PORT)))
            .expect("a namespace")
            .expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = listener.accept();
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Three members and a fourth node that is refused. Each serves its metrics on its address outside the mesh, and logs JSON if its
/// number is 2. Node 2 has a service.
fn mesh() -> Option<(Mesh, Server)> {
    let mut mesh = Mesh::hosts(programs(), 4)?;
    let server = Server::start(&mesh.nodes[1].host);
    mesh.start_coordinator();
    assert_eq!(mesh.admin(&["init"]).code, 0);
    let token = mesh.token(&["--uses", "3"]);
    for n in 0..4 {
        let host = &mesh.nodes[n].host;
        let mut text = format!("[metrics]\nlisten = \"{}:9560\"\n", host.v4());
        if n == 1 {
            text.push_str("[log]\nformat = \"json\"\n");
            text.push_str(&format!(
                "[[service]]\nname = \"db\"\nport = {SERVICE_PORT}\n"
            ));
            text.push_str(
                "check = { tcp = true, interval = \"500ms\", timeout = \"1s\", fall = 1 }\n",
            );
        }
        let path = write(host, "/run/meshd.toml", &text);
        mesh.start_node_with(n, &["--config", &path]);
        let joined = mesh.on(n, &["join", &token]);
        assert_eq!(joined.code == 0, n < 3, "{joined:?}");
    }
    mesh.wait_until("all nodes reach each other", || {
        (0..3).all(|n| mesh.reaches(n) == 2)
    });
    Some((mesh, server))
}

/// Cuts node `n` off from the UDP packets of all others, or ends that. Its metrics are still served.
fn cut(mesh: &Mesh, n: usize, is_cut: bool) {
    let rules = if is_cut {
        "table inet cut { chain i { type filter hook input priority 0; meta l4proto udp drop; }; chain o { type filter hook output priority 0; meta l4proto udp drop; }; }"
    } else {
        "delete table inet cut"
    };
    assert!(mesh.succeeds(n, "nft", &[rules]), "nft {rules}");
}

/// The metrics of meshd on node `n`.
fn scrape_node(mesh: &Mesh, n: usize) -> String {
    let host = &mesh.nodes[n].host;
    let address = SocketAddr::from((host.v4(), 9560));
    get(host, address, "/metrics").1
}

fn scrape_coordinator(mesh: &Mesh) -> String {
    let address = SocketAddr::from(([127, 0, 0, 1], 9561));
    get(&mesh.coordinator_host, address, "/metrics").1
}

#[test]
fn what_is_scraped_is_valid_and_what_documents_alerts_and_dashboard_name() {
    let Some((mesh, _server)) = mesh() else {
        return;
    };
    mesh.wait_until("node 1 knows the service", || {
        scrape_node(&mesh, 0)
            .contains("meshd_service_mesh_instances{service=\"db\",usable=\"true\"} 1")
    });
    let pages = [
        scrape_node(&mesh, 0),
        scrape_node(&mesh, 1),
        scrape_coordinator(&mesh),
    ];
    documents::check(&pages);
    if find_program("promtool").is_none() {
        return skip_test("there is no promtool");
    }
    for page in &pages {
        documents::check_with_promtool(page);
    }
    for (n, path, status) in [
        (0, "/healthz", 200),
        (0, "/readyz", 200),
        (3, "/healthz", 200),
        (3, "/readyz", 503),
    ] {
        let host = &mesh.nodes[n].host;
        let address = SocketAddr::from((host.v4(), 9560));
        assert_eq!(get(host, address, path).0, status, "node {}: {path}", n + 1);
    }
    // Without an address nothing is served.
    let mut mesh = mesh;
    mesh.kill_node(3);
    let path = write(
        &mesh.nodes[3].host,
        "/run/meshd.toml",
        "[metrics]\nlisten = \"\"\n",
    );
    mesh.start_node_with(3, &["--config", &path]);
    let default = SocketAddr::from(([127, 0, 0, 1], 9560));
    assert_eq!(get(&mesh.nodes[3].host, default, "/healthz").0, 0);
    for path in ["/healthz", "/readyz"] {
        let address = SocketAddr::from(([127, 0, 0, 1], 9561));
        assert_eq!(get(&mesh.coordinator_host, address, path).0, 200, "{path}");
    }
}

#[test]
fn alerts_fire_and_resolve_and_the_log_has_one_line_for_each_transition() {
    let Some((mut mesh, server)) = mesh() else {
        return;
    };
    let Some(program) = find_program("prometheus") else {
        return skip_test("there is no prometheus");
    };
    let prometheus = Prometheus::start(&program, &mesh);
    let wait = |mesh: &Mesh, what: &str, alerts: &[(&str, &[(&str, &str)])], fires: bool| {
        mesh.wait_within(ALERT_TIMEOUT, what, || {
            let firing = prometheus.firing(mesh);
            let matches = |(name, labels): &(&str, &[(&str, &str)])| {
                firing.iter().any(|alert| alert.is(name, labels))
            };
            if fires {
                alerts.iter().all(matches)
            } else {
                !alerts.iter().any(matches)
            }
        });
    };
    let [n1, n2, n3] = [0, 1, 2].map(|n: usize| format!("{}:9560", mesh.nodes[n].host.v4()));
    mesh.wait_within(ALERT_TIMEOUT, "all targets are scraped", || {
        prometheus.targets_up(&mesh) == 5
    });
    // The node that was refused has no mesh, and nothing else is wrong.
    wait(
        &mesh,
        "node 4 has not joined",
        &[("MeshdNotJoined", &[])],
        true,
    );

    let lost: &[(&str, &[(&str, &str)])] = &[
        ("MeshdPeerUnreachable", &[("instance", &n1), ("peer", "n3")]),
        ("MeshdPeerUnreachable", &[("instance", &n2), ("peer", "n3")]),
        ("MeshdCutOff", &[("instance", &n3)]),
    ];
    wait(&mesh, "no peer is lost", lost, false);
    cut(&mesh, 2, true);
    wait(&mesh, "node 3 is lost", lost, true);
    cut(&mesh, 2, false);
    wait(&mesh, "node 3 is back", lost, false);

    let unhealthy: &[(&str, &[(&str, &str)])] = &[
        (
            "MeshdServiceUnhealthy",
            &[("instance", &n2), ("service", "db")],
        ),
        (
            "MeshdServiceWithoutUsableInstance",
            &[("instance", &n1), ("service", "db")],
        ),
    ];
    wait(&mesh, "the service is healthy", unhealthy, false);
    drop(server);
    wait(&mesh, "the service is unhealthy", unhealthy, true);
    let server = Server::start(&mesh.nodes[1].host);
    wait(&mesh, "the service is healthy again", unhealthy, false);

    let away: &[(&str, &[(&str, &str)])] = &[
        ("MeshdCoordinatorAway", &[("instance", &n1)]),
        ("MeshdCoordinatorAway", &[("instance", &n2)]),
        ("MeshdCoordinatorAway", &[("instance", &n3)]),
        ("MeshCoordinatorDown", &[]),
    ];
    wait(&mesh, "the coordinator is there", away, false);
    mesh.coordinator.take().expect("it runs").kill();
    wait(&mesh, "the coordinator is away", away, true);
    mesh.start_coordinator();
    wait(&mesh, "the coordinator is back", away, false);
    if let Some(path) = std::env::var_os("MESHD_PICTURE") {
        picture::write(&prometheus, &mesh, path.as_ref());
    }

    let renamed = mesh.on(2, &["rename", "n5"]);
    assert_eq!(renamed.code, 0, "{renamed:?}");
    assert_eq!(mesh.on(2, &["leave"]).code, 0);
    check_logs(&mesh);
    drop(server);
}

/// Each transition has one line, with its level and its values.
fn check_logs(mesh: &Mesh) {
    let text = |n: usize| std::fs::read_to_string(mesh.log(n)).expect("a log");
    mesh.wait_until("node 1 logs that node 3 left", || {
        text(0).contains(" node left node=n5 ")
    });
    let source = mesh.nodes[3].host.v4();
    let coordinator = mesh.logs.path().join("coordinator");
    let coordinator = std::fs::read_to_string(coordinator).expect("a log");
    let first = text(0);
    for (log, start, values) in [
        (
            &first,
            "WARN peer lost peer=n3 endpoint=",
            "reason=\"its last packet",
        ),
        (&first, "INFO peer back peer=n3 endpoint=", "away_seconds="),
        (
            &first,
            "WARN coordinator away; names and tunnels go on url=",
            "reason=",
        ),
        (&first, "INFO coordinator back url=", "away_seconds="),
        (&first, "INFO node joined node=n2 id=", "address=10.210.2.1"),
        (&first, "INFO node joined node=n3 id=", "address=10.210.3.1"),
        (&first, "INFO node renamed node=n5 id=", "before=n3"),
        (&first, "INFO node left node=n5 id=", ""),
        (
            &coordinator,
            "INFO node admitted node=n1 id=",
            "block=10.210.1.0/24",
        ),
        (
            &coordinator,
            "INFO node admitted node=n3 id=",
            "block=10.210.3.0/24",
        ),
        (
            &coordinator,
            &format!("WARN join refused source={source} node=n4 reason="),
            "the token is spent",
        ),
        (&coordinator, "INFO node renamed node=n5 id=", "before=n3"),
        (&coordinator, "INFO node left node=n5 id=", ""),
    ] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(start)).collect();
        let is_one = lines.len() == 1 && lines[0].contains(values);
        assert!(is_one, "{start} .. {values}: {lines:?}\n{log}");
    }
    let second = text(1);
    let lines: Vec<serde_json::Value> = second
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    for (level, message) in [
        ("INFO", "service published"),
        ("WARN", "service unhealthy"),
        ("WARN", "peer lost"),
        ("INFO", "peer back"),
    ] {
        let found = lines.iter().filter(|line| line["message"] == message);
        let found: Vec<_> = found.collect();
        assert!(
            found.len() == 1 && found[0]["level"] == level,
            "{message}: {found:?}\n{second}"
        );
    }
    let unhealthy = lines
        .iter()
        .find(|line| line["message"] == "service unhealthy");
    let reason = unhealthy.and_then(|line| line["reason"].as_str());
    assert!(
        reason.is_some_and(|reason| reason.starts_with("cannot connect to 10.210.2.1:5432: ")),
        "{reason:?}"
    );
}
