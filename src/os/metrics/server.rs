//! Serves the metrics and the health of a program, over plain HTTP on an address that the operator chooses.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::process;
use crate::os::tasks::Tasks;

/// The maximum number of connections at once. A monitoring program needs one.
const MAX_CONNECTIONS: usize = 16;
/// How long one connection may take, from its first byte to the end of the answer.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// The maximum size of a request's head, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The content type of the text format 0.0.4.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The response to a scrape: `page`, and the metrics of this process.
#[must_use]
pub fn answer(mut page: String) -> Response {
    page.push_str(&process::text());
    ([(CONTENT_TYPE, TEXT_FORMAT)], page).into_response()
}

/// Serves until the program ends. Each connection serves one request and is closed soon, so that its file descriptor is free
/// for other uses.
pub async fn serve(listener: TcpListener, router: Router) {
    process::started();
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
