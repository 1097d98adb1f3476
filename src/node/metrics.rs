//! Metrics for Prometheus, over plain HTTP on an address of the operator's choice.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::{mpsc, oneshot};

use super::api::Command;
use super::mesh::Mesh;
use crate::path::watch::Reach;

/// Serves until the program ends. Without the port everything else goes on.
pub(super) async fn serve(listen: SocketAddr, commands: mpsc::Sender<Command>) {
    let listener = match tokio::net::TcpListener::bind(listen).await {
        Ok(listener) => listener,
        Err(error) => {
            return tracing::warn!(%listen, %error, "no metrics are served; set [metrics] listen");
        }
    };
    let router = Router::new()
        .route("/metrics", get(scrape))
        .with_state(commands);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::warn!(%error, "metrics are not served any more");
    }
}

async fn scrape(State(commands): State<mpsc::Sender<Command>>) -> Result<String, StatusCode> {
    let (reply, answer) = oneshot::channel();
    commands
        .send(Command::Metrics(reply))
        .await
        .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    answer
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or(StatusCode::SERVICE_UNAVAILABLE)
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
        "coordinator_connected",
        "gauge",
        "Whether the control stream is open.",
        &plain(u64::from(mesh.stream.connected)),
    );
    metric(
        "revision",
        "gauge",
        "The last revision held.",
        &plain(mesh.position.revision),
    );
    let unreachable = mesh
        .reach
        .values()
        .filter(|reach| **reach == Reach::Unreachable)
        .count();
    metric(
        "peers",
        "gauge",
        "Other members.",
        &plain(mesh.reach.len() as u64),
    );
    metric(
        "peers_unreachable",
        "gauge",
        "Members that do not answer.",
        &plain(unreachable as u64),
    );
    let zone = mesh.zone.load();
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
        let dropped = [
            ("foreign", &counts.foreign),
            ("malformed", &counts.malformed),
            ("overload", &counts.overload),
        ];
        let dropped: Vec<_> = dropped
            .iter()
            .map(|(reason, counter)| (format!("{{reason=\"{reason}\"}}"), read(counter)))
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
