//! Metrics for Prometheus, over plain HTTP on an address of the operator's choice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::hub::{Hub, Size};
use crate::os::metrics::MetricsPage;
use crate::os::tasks::Tasks;

/// Binds the address. Without it everything else goes on.
pub(super) async fn bind(listen: SocketAddr) -> Option<TcpListener> {
    TcpListener::bind(listen)
        .await
        .inspect_err(
            |error| tracing::warn!(%listen, %error, "no metrics are served; set [metrics] listen"),
        )
        .ok()
}

/// The maximum number of connections at once. A monitoring program needs one.
const MAX_CONNECTIONS: usize = 16;
/// How long one connection may take, from its first byte to the end of the answer.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// The maximum size of a request's head, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Serves until the program ends. Each connection serves one request and is closed soon, so that its file descriptor is free
/// for a node.
pub(super) async fn serve(listener: TcpListener, hub: Arc<Hub>) {
    let router = Router::new()
        .route(
            "/metrics",
            get(|State(hub): State<Arc<Hub>>| async move { text(&hub) }),
        )
        .with_state(hub);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let served = hyper::server::conn::http1::Builder::new()
            .keep_alive(false)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(tcp), service);
        Tasks::current().spawn_child("metrics connection", async move {
            let _ = tokio::time::timeout(TIME_LIMIT, served).await;
            drop(place);
        });
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
    let mut page = MetricsPage::new("mesh_coordinator_");
    page.build_info();
    page.gauge("records", "Records held.", records as u64);
    page.gauge("revision", "The last revision.", revision);
    page.gauge("connections", "Control streams open.", connections as u64);
    let help = "Whether the store came from a backup and the nodes have not told everything yet.";
    page.gauge("refilling", help, refilling.into());
    let help = "Public URLs that do not lead back to this coordinator.";
    let failing = hub.url_problems.read().len();
    page.gauge("public_urls_failing", help, failing as u64);
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
