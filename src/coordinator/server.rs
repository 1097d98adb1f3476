//! What nodes reach: HTTP over TLS 1.3 on one TCP port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::hub::Hub;
use super::{Failure, control};
use crate::wire::api::{ApiError, ErrorCode, MAX_BODY};
use crate::wire::join::{self, JoinRequest};
use crate::wire::unix_server::failure;

/// Connections at once at most.
const MAX_CONNECTIONS: usize = 8192;
/// How long a TLS handshake, or the head of a request, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Binds the port.
///
/// # Errors
/// Says who may have it.
pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Failure::new(ErrorCode::Configuration, format!("TCP port {} is in use; find out by whom with `ss -tlpn`, or set another `listen`", address.port())),
        std::io::ErrorKind::PermissionDenied => Failure::new(ErrorCode::Permission, format!("may not listen on {address}; ports below 1024 need root")),
        _ => Failure::new(ErrorCode::Configuration, format!("cannot listen on {address}: {error}")),
    })
}

/// Serves until `stop` says so.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    hub: Arc<Hub>,
    mut stop: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route(join::PATH, post(join))
        .route(crate::wire::control::PATH, get(control::upgrade))
        .fallback(|| async {
            failure(ApiError::new(
                ErrorCode::NotFound,
                "this is a mesh-coordinator; there is nothing at this path",
            ))
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(control::Served {
            hub,
            stop: stop.clone(),
        });
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => break,
        };
        let (tcp, _) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most often: others will be closed.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            connection(tcp, acceptor, router).await;
            drop(slot);
        });
    }
}

async fn connection(tcp: TcpStream, acceptor: TlsAcceptor, router: Router) {
    let _ = tcp.set_nodelay(true);
    let Ok(Ok(tls)) = timeout(PATIENCE, acceptor.accept(tcp)).await else {
        return;
    };
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(tls), TowerToHyperService::new(router))
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn ready(State(served): State<control::Served>) -> Response {
    if served.hub.mesh_state().mesh.is_some() {
        "ready\n".into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "there is no mesh yet; run `meshctl init`\n",
        )
            .into_response()
    }
}

async fn join(State(served): State<control::Served>, body: axum::body::Bytes) -> Response {
    let request: JoinRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            return failure(ApiError::new(
                ErrorCode::BadRequest,
                format!("the join request cannot be read: {error}"),
            ));
        }
    };
    // The disk is waited for; other streams are not to wait with it.
    match tokio::task::spawn_blocking(move || served.hub.join(&request)).await {
        Ok(Ok(response)) => Json(response).into_response(),
        Ok(Err(error)) => failure(error),
        Err(_) => failure(ApiError::new(
            ErrorCode::Internal,
            "the coordinator failed; look at its log",
        )),
    }
}
