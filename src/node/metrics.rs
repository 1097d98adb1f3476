//! Metrics for Prometheus and the health of meshd, over plain HTTP on an address that the operator chooses.
//!
//! A page is written when it is asked for, from values that the parts keep anyway: nothing is measured for it on the way of a
//! packet or of a query.

mod peers;
mod reach;
mod services;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::api::{Command, Reply};
use super::config::MetricsSettings;
use super::joined::JoinedNode;
use super::report::{self, ProblemKind};
use super::state::ServicesFault;
use crate::model::Path;
use crate::model::time::Now;
use crate::os::clock;
use crate::os::metrics::{self, Kind, MetricsPage};
use crate::path::counts;
use crate::path::mapping::{Protocol, Refusal};
use crate::path::watch::Reach;
use crate::protocol::local::RouteState;

/// The maximum number of peers, and of services, that have metrics of their own. The series of a mesh grow with the square of
/// its nodes, because each node has metrics for each other node.
const MAX_NAMED: usize = 1000;

/// The value of the label `path` for peers without one.
const NO_PATH: &str = "none";

/// The pause between two attempts to listen.
const LISTEN_RETRY_PAUSE: Duration = Duration::from_secs(2);

/// The calls about metrics and health.
pub(super) fn router(commands: mpsc::Sender<Command>) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .with_state(commands)
}

/// Serves `router` until the program ends. It waits until the address can be bound: a mesh address of this node exists only after the
/// node has joined.
pub(super) async fn serve(listen: SocketAddr, router: Router) {
    let mut is_reported = false;
    let listener = loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => break listener,
            Err(error) if !is_reported => {
                is_reported = true;
                tracing::warn!(%listen, %error, "no metrics are served yet, and meshd tries again; if another program has the address, set another [metrics] listen");
            }
            Err(_) => {}
        }
        sleep(LISTEN_RETRY_PAUSE).await;
    };
    if is_reported {
        tracing::info!(%listen, "metrics are served now");
    }
    metrics::serve(listener, router).await;
}

type Commands = State<mpsc::Sender<Command>>;

async fn call<T>(
    State(commands): Commands,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Result<T, StatusCode> {
    let (reply, answer) = oneshot::channel();
    commands
        .send(command(reply))
        .await
        .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    answer
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or(StatusCode::SERVICE_UNAVAILABLE)
}

async fn scrape(commands: Commands) -> Result<Response, StatusCode> {
    call(commands, Command::Metrics).await.map(metrics::answer)
}

/// Answers like `meshctl status --check live`.
async fn live(commands: Commands) -> Result<&'static str, StatusCode> {
    call(commands, Command::Ready).await.map(|_| "ok\n")
}

/// Answers like `meshctl status --check ready`.
async fn ready(commands: Commands) -> Result<&'static str, (StatusCode, String)> {
    let unavailable = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    let not_ready = call(commands, Command::Ready)
        .await
        .map_err(|_| unavailable("meshd is stopping"))?;
    not_ready.map_or(Ok("ok\n"), |why| Err(unavailable(&why)))
}

/// What a page is written from.
pub(super) struct Scrape<'a> {
    pub node: Option<&'a JoinedNode>,
    pub settings: MetricsSettings,
    /// Why the services that were added by command are not known, if they are not.
    pub services_fault: Option<&'a ServicesFault>,
    /// The number of problems of the API over the network.
    pub api_problems: usize,
    /// The number of problems of a join.
    pub join_problems: usize,
}

/// The metrics as text.
pub(super) fn text(scrape: &Scrape<'_>) -> String {
    let mut page = MetricsPage::new("meshd_");
    page.build_info();
    let help = "Whether the node is in a mesh.";
    page.gauge("joined", help, scrape.node.is_some());
    add_problems(&mut page, scrape);
    if let Some(node) = scrape.node {
        let now = clock::now();
        add_node(&mut page, node);
        add_coordinator(&mut page, node, now);
        add_machine(&mut page, node);
        add_names(&mut page, node);
        add_routes(&mut page, node);
        add_changes(&mut page, node);
        add_tunnel(&mut page, node);
        add_paths(&mut page, node);
        add_guests(&mut page, node);
        add_mapping(&mut page, node);
        reach::add(&mut page, node);
        let (peers, services) = (scrape.settings.per_peer, scrape.settings.per_service);
        let mut left_out = Vec::new();
        if peers {
            left_out.push(("peers", peers::add(&mut page, node, now)));
        }
        if services {
            left_out.push(("services", services::add(&mut page, node)));
        }
        let help =
            "Peers and services that have no metrics of their own, because there are too many.";
        let mut family = page.family("metrics_left_out", Kind::Gauge, help);
        for (what, count) in left_out {
            family.sample(&[("what", what)], count);
        }
    }
    page.into_text()
}

fn add_problems(page: &mut MetricsPage, scrape: &Scrape<'_>) {
    let counts = scrape
        .node
        .map(|node| report::problem_counts(node, scrape.services_fault));
    let counts = counts.unwrap_or_default();
    let help = "Problems that `meshctl status` shows, by what they are about.";
    let mut family = page.family("problems", Kind::Gauge, help);
    for kind in ProblemKind::ALL {
        let others = match kind {
            ProblemKind::Join => scrape.join_problems,
            ProblemKind::Device => scrape.api_problems,
            _ => 0,
        };
        let count = counts.iter().filter(|counted| **counted == kind).count();
        family.sample(&[("kind", kind.as_str())], others + count);
    }
}

fn add_node(page: &mut MetricsPage, node: &JoinedNode) {
    let ready = report::not_ready(node).is_none();
    let help = "Whether `meshctl status --check ready` passes.";
    page.gauge("ready", help, ready);
    let reach = node.paths.reach();
    let unreachable = reach.values().filter(|reach| **reach == Reach::Unreachable);
    let unreachable = unreachable.count();
    let help = "Other members, by the kind of the path that packets to them take. Those that do not answer have none.";
    let kinds = reach.iter().map(|(id, reach)| {
        let path = node.paths.changes.current(id);
        path_label(*reach, path)
    });
    let kinds: Vec<&str> = kinds.collect();
    let mut family = page.family("peers", Kind::Gauge, help);
    for kind in counts::KINDS.into_iter().chain([NO_PATH]) {
        let count = kinds.iter().filter(|of| **of == kind).count();
        family.sample(&[("path", kind)], count);
    }
    let help = "Members that do not answer.";
    page.gauge("peers_unreachable", help, unreachable);
}

/// The kind of the path to a peer, as the value of a label.
fn path_label(reach: Reach, path: Option<Path>) -> &'static str {
    let path = path.filter(|_| reach != Reach::Unreachable);
    let kind = path.and_then(|path| counts::KINDS.get(usize::from(path.kind())));
    kind.copied().unwrap_or(NO_PATH)
}

/// How the paths to peers changed.
fn add_paths(page: &mut MetricsPage, node: &JoinedNode) {
    let help =
        "How often packets to a peer took another path than before, by the kind of the new one.";
    let changes = node.paths.changes.counts();
    page.counters("path_changes_total", help, "to", changes);
    let help = "How long it took from the agreement on a direct path to a relayed peer until packets took it.";
    let times = node.device.reach.punching.times();
    page.durations("punch_seconds", help, times);
}

fn add_coordinator(page: &mut MetricsPage, node: &JoinedNode, now: Now) {
    let link = node.replica.link();
    let help = "Whether the control stream is open.";
    page.gauge("coordinator_connected", help, link.is_connected());
    let help = "How often the control stream was lost.";
    page.counter("coordinator_losses_total", help, link.losses());
    let help = "When the last message of a coordinator was received.";
    let mut family = page.family(
        "coordinator_last_received_timestamp_seconds",
        Kind::Gauge,
        help,
    );
    if let Some(at) = link.last_received() {
        family.sample(&[], unix_seconds(at, now));
    }
    let help = "The last revision received.";
    page.gauge("revision", help, node.replica.position().revision);
}

/// The container engine, and the disk.
fn add_machine(page: &mut MetricsPage, node: &JoinedNode) {
    let docker = node.workloads.docker.as_ref();
    let help =
        "Whether the container engine is connected. A machine that never had one has no value.";
    let mut family = page.family("container_engine_connected", Kind::Gauge, help);
    if let Some(is_connected) = docker.and_then(|docker| docker.is_connected()) {
        family.sample(&[], is_connected);
    }
    let exposed = docker.map_or(0, |docker| docker.len());
    page.gauge("containers", "Containers that are exposed.", exposed);
    let help = "Writes of the state of this node that failed.";
    let failures = node.disk.write_failures();
    page.counter("disk_write_failures_total", help, failures);
    let help =
        "Parts of the state of this node that are not on disk, since their last write failed.";
    page.gauge("disk_unwritten_parts", help, node.disk.unwritten().count());
}

fn add_names(page: &mut MetricsPage, node: &JoinedNode) {
    let zone = node.names.zone().load();
    page.gauge("dns_names", "Names with records.", zone.len());
    let help = "Names whose answers have only unusable instances.";
    page.gauge("dns_names_flagged", help, zone.flagged());
    let Some(dns) = &node.resolver.dns else {
        return;
    };
    let counts = dns.resolver.counts();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    page.counter(
        "dns_queries_total",
        "Queries received.",
        read(&counts.queries),
    );
    page.counter(
        "dns_forwarded_total",
        "Queries forwarded.",
        read(&counts.forwarded),
    );
    let help = "Forwarded queries whose answers had addresses of the mesh, which were removed.";
    page.counter("dns_rebound_total", help, read(&counts.rebound));
    let dropped = counts
        .dropped()
        .map(|(reason, count)| (reason.as_str(), count));
    page.counters("dns_dropped_total", "Queries dropped.", "reason", dropped);
}

/// The networks outside the mesh.
fn add_routes(page: &mut MetricsPage, node: &JoinedNode) {
    let rows = report::routes(node);
    let help = "Networks outside the mesh, once for each node that routes to them, by how this node uses that.";
    let mut family = page.family("routes", Kind::Gauge, help);
    for state in RouteState::ALL {
        let count = rows.iter().filter(|row| row.state == state).count();
        family.sample(&[("state", state.as_str())], count);
    }
}

/// How long the parts of changes took.
fn add_changes(page: &mut MetricsPage, node: &JoinedNode) {
    let help = "How long the parts of a change took, from the start of a container to the answers for its name.";
    let times = node.workloads.times.by_stage();
    page.durations_by("change_seconds", help, "stage", times);
}

fn add_tunnel(page: &mut MetricsPage, node: &JoinedNode) {
    let (mut rx, mut tx) = (0, 0);
    for peer in node.device.tunnel.peers() {
        rx += peer.rx_bytes;
        tx += peer.tx_bytes;
    }
    page.counter(
        "tunnel_received_bytes_total",
        "Bytes received from peers.",
        rx,
    );
    page.counter("tunnel_sent_bytes_total", "Bytes sent to peers.", tx);
    let counters = node.device.tunnel.counters();
    let dropped = counters
        .0
        .iter()
        .map(|(reason, count)| (reason.as_str(), *count));
    let help = "Packets and datagrams dropped.";
    page.counters("tunnel_dropped_total", help, "reason", dropped);
    let (forwarded, dropped) = node.device.tunnel.steering().own_relay().counts();
    let help = "Bytes of WireGuard messages that this node forwarded for its peers.";
    page.counter("relay_bytes_total", help, forwarded);
    let dropped = dropped
        .iter()
        .map(|(reason, count)| (reason.as_str(), *count));
    let help = "Frames of peers that this node did not forward.";
    page.counters("relay_dropped_total", help, "reason", dropped);
    let help = "Streams that this node refused because a member opened them too often.";
    page.counter(
        "relay_streams_refused_total",
        help,
        node.device.streams.refused(),
    );
}

/// The guests for which this node is the door.
fn add_guests(page: &mut MetricsPage, node: &JoinedNode) {
    let (mut here, mut away) = (0_u64, 0_u64);
    for guest in node.device.guests.views() {
        let count = if guest.lease.heard {
            &mut here
        } else {
            &mut away
        };
        *count += 1;
    }
    let help = "Guests for which this node is the door, by whether it heard them in the last three minutes.";
    let mut family = page.family("guests", Kind::Gauge, help);
    for (state, count) in [("here", here), ("away", away)] {
        family.sample(&[("state", state)], count);
    }
}

/// The port that the router maps to this node.
fn add_mapping(page: &mut MetricsPage, node: &JoinedNode) {
    let mapping = &node.device.reach.mapping.state;
    let help = "Whether the router maps a port to this node by this protocol, and a peer has sent through it.";
    let mut family = page.family("port_mapping_info", Kind::Gauge, help);
    let proven = mapping.report().filter(|report| report.proven.is_some());
    let proven = proven.map(|report| report.granted.protocol);
    for protocol in Protocol::ALL {
        family.sample(&[("protocol", protocol.as_str())], proven == Some(protocol));
    }
    let help = "How often there was no port mapping, or it ended, because of the router.";
    let refused = Refusal::NAMES.iter().copied().zip(*mapping.refused());
    page.counters("port_mapping_refused_total", help, "reason", refused);
}

/// The date of `at`, in seconds since 1970 and to the millisecond.
fn unix_seconds(at: Instant, now: Now) -> f64 {
    let ago = now.monotonic.saturating_duration_since(at);
    let date = now.wall.checked_sub(ago).unwrap_or(UNIX_EPOCH);
    let since = date.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;
    use crate::model::NodeAddress;
    use crate::os::tasks::Tasks;

    #[tokio::test]
    async fn metrics_are_served_as_soon_as_their_address_is_free() {
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let listen = taken.local_addr().expect("it is bound");
        let serving = serve(listen, Router::new());
        let _task = Tasks::current()
            .spawn_child("metrics", serving)
            .abort_on_drop();
        // The task finds that the port is taken.
        tokio::task::yield_now().await;
        drop(taken);
        let is_served = async {
            while TcpStream::connect(listen).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let is_served = timeout(Duration::from_secs(30), is_served).await;
        is_served.expect("it listens in the end");
    }

    #[test]
    fn a_peer_counts_for_the_kind_of_its_path_unless_it_does_not_answer() {
        let node = NodeAddress([10, 210, 1, 1].into());
        let direct = Path::Direct(([192, 0, 2, 1], 51820).into());
        for (path, label) in [
            (Some(direct), "direct"),
            (Some(Path::Relay(node)), "relay"),
            (Some(Path::Stream(node)), "stream"),
            (None, "none"),
        ] {
            assert_eq!(path_label(Reach::Reachable, path), label);
            assert_eq!(path_label(Reach::Unknown, path), label);
            assert_eq!(path_label(Reach::Unreachable, path), "none");
        }
    }
}
