//! Metrics for Prometheus, over plain HTTP on an address of the operator's choice.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

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
        tokio::spawn(async move {
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
