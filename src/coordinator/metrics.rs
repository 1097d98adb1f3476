//! Metrics for Prometheus, over plain HTTP on an address of the operator's choice.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use tokio::net::TcpListener;

use super::hub::{Hub, Size};

/// Binds the address. Without it everything else goes on.
pub(super) async fn bind(listen: SocketAddr) -> Option<TcpListener> {
    TcpListener::bind(listen)
        .await
        .inspect_err(
            |error| tracing::warn!(%listen, %error, "no metrics are served; set [metrics] listen"),
        )
        .ok()
}

/// Serves until the program ends.
pub(super) async fn serve(listener: TcpListener, hub: Arc<Hub>) {
    let router = Router::new()
        .route(
            "/metrics",
            get(|State(hub): State<Arc<Hub>>| async move { text(&hub) }),
        )
        .with_state(hub);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::warn!(%error, "metrics are not served any more");
    }
}

fn text(hub: &Hub) -> String {
    let Size {
        records,
        revision,
        connections,
        refilling,
    } = hub.size();
    let counts = &hub.counts;
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, lines: &[(&str, u64)]| {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "# HELP mesh_coordinator_{name} {help}\n# TYPE mesh_coordinator_{name} {kind}"
        );
        for (labels, value) in lines {
            let _ = writeln!(text, "mesh_coordinator_{name}{labels} {value}");
        }
    };
    metric(
        "build_info",
        "gauge",
        "The version.",
        &[(concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1)],
    );
    metric("records", "gauge", "Records held.", &[("", records as u64)]);
    metric("revision", "gauge", "The last revision.", &[("", revision)]);
    metric(
        "connections",
        "gauge",
        "Control streams open.",
        &[("", connections as u64)],
    );
    metric(
        "refilling",
        "gauge",
        "Whether the store came from a backup and the nodes have not told everything yet.",
        &[("", refilling.into())],
    );
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    metric(
        "joins_total",
        "counter",
        "Join requests.",
        &[
            ("{result=\"admitted\"}", read(&counts.joins)),
            ("{result=\"refused\"}", read(&counts.joins_refused)),
        ],
    );
    metric(
        "records_published_total",
        "counter",
        "Records offered by nodes.",
        &[
            ("{result=\"accepted\"}", read(&counts.published)),
            ("{result=\"refused\"}", read(&counts.publish_refused)),
        ],
    );
    metric(
        "store_failures_total",
        "counter",
        "Writes that the store refused, such as for want of room.",
        &[("", read(&counts.store_failures))],
    );
    text
}
