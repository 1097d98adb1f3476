//! Metrics for Prometheus and the health of the coordinator, over plain HTTP on an address of the operator's choice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use super::hub::{Hub, Size};
use crate::os::metrics::{self, MetricsPage};

/// Binds the address, if there is one. Without it everything else goes on.
pub(super) async fn bind(listen: Option<SocketAddr>) -> Option<TcpListener> {
    let listen = listen?;
    TcpListener::bind(listen)
        .await
        .inspect_err(
            |error| tracing::warn!(%listen, %error, "no metrics are served; set [metrics] listen"),
        )
        .ok()
}

/// Serves until the program ends.
pub(super) async fn serve(listener: TcpListener, hub: Arc<Hub>) {
    let scrape = |State(hub): State<Arc<Hub>>| async move { metrics::answer(text(&hub)) };
    let ready = |State(hub): State<Arc<Hub>>| async move { ready(&hub) };
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(hub);
    metrics::serve(listener, router).await;
}

/// Whether nodes can join: the same answer on the port of the nodes and on that of the metrics.
pub(super) fn ready(hub: &Hub) -> (StatusCode, &'static str) {
    if hub.mesh_state().mesh.is_some() {
        (StatusCode::OK, "ready\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "there is no mesh yet; run `meshctl init`\n",
        )
    }
}

pub(super) fn text(hub: &Hub) -> String {
    let Size {
        members,
        records,
        revision,
        connections,
        refilling,
    } = hub.size();
    let counts = &hub.counts;
    let mut page = MetricsPage::new("mesh_coordinator_");
    page.build_info();
    let help = "Whether there is a mesh, so that nodes can join.";
    page.gauge("ready", help, ready(hub).0 == StatusCode::OK);
    page.gauge("members", "Nodes that are members of the mesh.", members);
    page.gauge("records", "Records held.", records);
    page.gauge("revision", "The last revision.", revision);
    page.gauge("connections", "Control streams open.", connections);
    let help = "Whether the store came from a backup and the nodes have not offered all their records yet.";
    page.gauge("refilling", help, refilling);
    let help = "Public URLs that do not lead back to this coordinator.";
    let failing = hub.url_problems.read().len();
    page.gauge("public_urls_failing", help, failing);
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    page.counters(
        "joins_total",
        "Join requests.",
        "result",
        [
            ("admitted", read(&counts.joins)),
            ("refused", read(&counts.joins_refused)),
        ],
    );
    page.counters(
        "records_published_total",
        "Records offered by nodes.",
        "result",
        [
            ("accepted", read(&counts.published)),
            ("refused", read(&counts.publish_refused)),
        ],
    );
    let help = "Writes that the store refused, such as for want of room.";
    page.counter("store_failures_total", help, read(&counts.store_failures));
    page.into_text()
}
