//! Serves metrics for Prometheus over plain HTTP, on an address that the operator chooses.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::{mpsc, oneshot};

use super::api::{Command, Reply};
use super::joined::JoinedNode;
use crate::os::metrics::MetricsPage;
use crate::path::watch::Reach;
use crate::protocol::local::Status;

/// Serves metrics until the program ends. If the address cannot be bound, it returns after a line in the log.
///
/// # Errors
/// The listener failed.
pub(super) async fn serve(
    listen: SocketAddr,
    commands: mpsc::Sender<Command>,
) -> std::io::Result<()> {
    let listener = match tokio::net::TcpListener::bind(listen).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%listen, %error, "no metrics are served; set [metrics] listen");
            return Ok(());
        }
    };
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .with_state(commands);
    axum::serve(listener, router).await
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

async fn scrape(commands: Commands) -> Result<String, StatusCode> {
    call(commands, Command::Metrics).await
}

/// Answers like `meshctl status --check live`.
async fn live(commands: Commands) -> Result<&'static str, StatusCode> {
    call(commands, Command::Status).await.map(|_| "ok\n")
}

/// Answers like `meshctl status --check ready`.
async fn ready(commands: Commands) -> Result<&'static str, (StatusCode, String)> {
    let unavailable = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    let status: Status = call(commands, Command::Status)
        .await
        .map_err(|_| unavailable("meshd is stopping"))?;
    status
        .why_not_ready()
        .map_or(Ok("ok\n"), |why| Err(unavailable(&why)))
}

/// The metrics as text.
pub(super) fn text(node: Option<&JoinedNode>) -> String {
    let mut page = MetricsPage::new("meshd_");
    page.build_info();
    page.gauge(
        "joined",
        "Whether the node is in a mesh.",
        u64::from(node.is_some()),
    );
    if let Some(node) = node {
        add_node(&mut page, node);
        add_names(&mut page, node);
        add_tunnel(&mut page, node);
    }
    page.into_text()
}

fn add_node(page: &mut MetricsPage, node: &JoinedNode) {
    let ready = super::report::not_ready(node).is_none();
    let help = "Whether `meshctl status --check ready` passes.";
    page.gauge("ready", help, u64::from(ready));
    let connected = node.replica.link().is_connected();
    let help = "Whether the control stream is open.";
    page.gauge("coordinator_connected", help, u64::from(connected));
    page.gauge(
        "revision",
        "The last revision received.",
        node.replica.position().revision,
    );
    let reach = node.paths.reach();
    let unreachable = reach.values().filter(|reach| **reach == Reach::Unreachable);
    let unreachable = unreachable.count() as u64;
    page.gauge("peers", "Other members.", reach.len() as u64);
    page.gauge(
        "peers_unreachable",
        "Members that do not answer.",
        unreachable,
    );
}

fn add_names(page: &mut MetricsPage, node: &JoinedNode) {
    let zone = node.names.zone().load();
    page.gauge("dns_names", "Names with records.", zone.len() as u64);
    let help = "Names whose answers have only unusable instances.";
    page.gauge("dns_names_flagged", help, zone.flagged() as u64);
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
}
