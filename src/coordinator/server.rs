//! What nodes reach: HTTP over TLS 1.3 on one TCP port.
//!
//! Each connection holds one of a bounded number of slots from its first octet to its last, as a stream too. Until it
//! has become a stream it may not dawdle: handshake, head and body each have a limit.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::control::{self, Served};
use super::hub::Hub;
use super::{Failure, admin};
use crate::wire::api::{ApiError, ErrorCode, MAX_BODY};
use crate::wire::join::{self, JoinRequest};
use crate::wire::unix_server::failure;

/// Connections at once at most.
pub(super) const MAX_CONNECTIONS: usize = 8192;
/// Connections that wait to be accepted at most, of which the kernel may allow fewer. All nodes come at once when a
/// coordinator is back, and one that finds the queue full waits a second.
const BACKLOG: u32 = 4096;
/// How long a TLS handshake, the head of a request, or its body may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection's place among those there may be; given back when the last copy goes.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    _permit: Arc<OwnedSemaphorePermit>,
}

/// Binds the port.
///
/// # Errors
/// Says who may have it.
pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    listen(address).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Failure::new(
            ErrorCode::Configuration,
            format!(
                "TCP port {} is in use; find out by whom with `ss -tlpn`, or set another `listen`",
                address.port()
            ),
        ),
        std::io::ErrorKind::PermissionDenied => Failure::new(
            ErrorCode::Permission,
            format!("may not listen on {address}; ports below 1024 need root"),
        ),
        _ => Failure::new(
            ErrorCode::Configuration,
            format!("cannot listen on {address}: {error}"),
        ),
    })
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves at most `most` connections until `stop` says so, and then until they have ended.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    hub: Arc<Hub>,
    most: usize,
    mut stop: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route(join::PATH, post(join))
        .route(join::CHECK_PATH, post(check_join))
        .route(crate::wire::control::PATH, get(control::upgrade))
        .fallback(|| async {
            failure(ApiError::new(
                ErrorCode::NotFound,
                "this is a mesh-coordinator; there is nothing at this path",
            ))
        })
        .with_state(Served::new(hub, stop.clone()));
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(most));
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
        let slot = Slot {
            _permit: Arc::new(slot),
        };
        tokio::spawn(connection(
            tcp,
            acceptor.clone(),
            router.clone(),
            slot,
            stop.clone(),
        ));
    }
    drop(listener);
    // All slots are back when all connections have ended.
    let _ = slots
        .acquire_many(u32::try_from(most).unwrap_or(u32::MAX))
        .await;
}

async fn connection(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    slot: Slot,
    mut stop: watch::Receiver<bool>,
) {
    let _ = tcp.set_nodelay(true);
    let tls = tokio::select! {
        accepted = timeout(PATIENCE, acceptor.accept(tcp)) => accepted,
        _ = stop.changed() => return,
    };
    let Ok(Ok(tls)) = tls else { return };
    let router = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<_>| {
        // A stream goes on when this connection has been handed over, and takes the slot along.
        request.extensions_mut().insert(slot.clone());
        router.call(request)
    });
    let mut served = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(64 * 1024)
            .serve_connection(TokioIo::new(tls), service)
            .with_upgrades()
    );
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        _ = stop.changed() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn ready(State(served): State<Served>) -> Response {
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

async fn join(State(served): State<Served>, request: Request) -> Response {
    let request: JoinRequest = match read_json(request).await {
        Ok(request) => request,
        Err(error) => return failure(error),
    };
    admin::answer(served.write(move |hub| hub.join(&request)).await)
}

async fn check_join(State(served): State<Served>, request: Request) -> Response {
    let request: JoinRequest = match read_json(request).await {
        Ok(request) => request,
        Err(error) => return failure(error),
    };
    admin::answer(served.write(move |hub| hub.check_join(&request)).await)
}

/// Reads a request's body within bounds of size and time, and parses it.
async fn read_json<T: serde::de::DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    let bad = |message: String| ApiError::new(ErrorCode::BadRequest, message);
    let body = timeout(
        PATIENCE,
        axum::body::to_bytes(request.into_body(), MAX_BODY),
    )
    .await
    .map_err(|_| bad("the request did not arrive in time".into()))?
    .map_err(|_| {
        bad(format!(
            "the request cannot be read, or has more than {} KiB",
            MAX_BODY / 1024
        ))
    })?;
    serde_json::from_slice(&body)
        .map_err(|error| bad(format!("the request cannot be read: {error}")))
}

/// An answer as JSON.
pub(super) fn document(document: impl serde::Serialize) -> Response {
    Json(document).into_response()
}
