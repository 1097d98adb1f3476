//! Metrics for Prometheus, over plain HTTP on an address of the operator's choice.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::{mpsc, oneshot};

use super::api::{Command, Reply};
use super::mesh::Mesh;
use crate::path::watch::Reach;
use crate::protocol::local::Status;

/// Serves metrics until the program ends. If the address cannot be bound, it returns after a line in the log.
///
/// # Errors
/// The listener broke.
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

async fn ask<T>(
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
    ask(commands, Command::Metrics).await
}

/// As `meshctl status --check live`.
async fn live(commands: Commands) -> Result<&'static str, StatusCode> {
    ask(commands, Command::Status).await.map(|_| "ok\n")
}

/// As `meshctl status --check ready`.
async fn ready(commands: Commands) -> Result<&'static str, (StatusCode, String)> {
    let unavailable = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    let status: Status = ask(commands, Command::Status)
        .await
        .map_err(|_| unavailable("meshd is stopping"))?;
    status
        .why_not_ready()
        .map_or(Ok("ok\n"), |why| Err(unavailable(&why)))
}

/// The metrics as text.
pub(super) fn text(mesh: Option<&Mesh>) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, lines: &[(String, u64)]| {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "# HELP meshd_{name} {help}\n# TYPE meshd_{name} {kind}"
        );
        for (labels, value) in lines {
            let _ = writeln!(text, "meshd_{name}{labels} {value}");
        }
    };
    let plain = |value: u64| [(String::new(), value)];
    metric(
        "build_info",
        "gauge",
        "The version.",
        &[(
            concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}").to_owned(),
            1,
        )],
    );
    metric(
        "joined",
        "gauge",
        "Whether the node is in a mesh.",
        &plain(u64::from(mesh.is_some())),
    );
    let Some(mesh) = mesh else { return text };
    metric(
        "ready",
        "gauge",
        "Whether `meshctl status --check ready` holds.",
        &plain(u64::from(super::report::not_ready(mesh).is_none())),
    );
    metric(
        "coordinator_connected",
        "gauge",
        "Whether the control stream is open.",
        &plain(u64::from(mesh.replica.link().is_connected())),
    );
    metric(
        "revision",
        "gauge",
        "The last revision held.",
        &plain(mesh.replica.position().revision),
    );
    let unreachable = mesh
        .paths
        .reach()
        .values()
        .filter(|reach| **reach == Reach::Unreachable)
        .count();
    metric(
        "peers",
        "gauge",
        "Other members.",
        &plain(mesh.paths.reach().len() as u64),
    );
    metric(
        "peers_unreachable",
        "gauge",
        "Members that do not answer.",
        &plain(unreachable as u64),
    );
    let zone = mesh.names.zone().load();
    metric(
        "dns_names",
        "gauge",
        "Names with records.",
        &plain(zone.len() as u64),
    );
    metric(
        "dns_names_flagged",
        "gauge",
        "Names answered with what is not usable.",
        &plain(zone.flagged() as u64),
    );
    if let Some(dns) = &mesh.dns {
        let counts = dns.resolver.counts();
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        metric(
            "dns_queries_total",
            "counter",
            "Queries taken in.",
            &plain(read(&counts.queries)),
        );
        metric(
            "dns_forwarded_total",
            "counter",
            "Queries forwarded.",
            &plain(read(&counts.forwarded)),
        );
        metric(
            "dns_rebound_total",
            "counter",
            "Forwarded queries whose answer pointed into the mesh, and lost that.",
            &plain(read(&counts.rebound)),
        );
        let dropped: Vec<_> = counts
            .dropped()
            .map(|(reason, count)| (format!("{{reason=\"{}\"}}", reason.as_str()), count))
            .collect();
        metric("dns_dropped_total", "counter", "Queries dropped.", &dropped);
    }
    let (mut rx, mut tx) = (0, 0);
    for peer in mesh.tunnel.peers() {
        rx += peer.rx_bytes;
        tx += peer.tx_bytes;
    }
    metric(
        "tunnel_received_bytes_total",
        "counter",
        "Octets received from peers.",
        &plain(rx),
    );
    metric(
        "tunnel_sent_bytes_total",
        "counter",
        "Octets sent to peers.",
        &plain(tx),
    );
    let dropped: Vec<_> = mesh
        .tunnel
        .counters()
        .0
        .iter()
        .map(|(reason, count)| (format!("{{reason=\"{}\"}}", reason.as_str()), *count))
        .collect();
    metric(
        "tunnel_dropped_total",
        "counter",
        "Packets and datagrams dropped.",
        &dropped,
    );
    text
}
