//! The server for nodes: HTTP over TLS 1.3 on one TCP port.
//!
//! Each connection holds one of a limited number of slots from its first byte to its last, also after it became a stream (see
//! [`super::slots`]). A stream's opening has one deadline, and so has any other request up to its answer. Nothing that the
//! sender sends extends it. A connection serves one request. The API for programs with tokens ([`super::web`]) has paths of its own.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep_until;
use tokio_rustls::TlsAcceptor;

use super::control::{self, Served};
use super::enroll::{self, Proven};
use super::hub::Hub;
use super::slots::{Slot, Slots};
use super::{Failure, metrics, reply, web};
use crate::model::{Label, PublicKey};
use crate::os::audit::{Event, Outcome, Text, Transition, What, Who};
use crate::os::clock;
use crate::os::tasks::Tasks;
use crate::os::unix_server::failure;
use crate::os::web::Source;
use crate::page;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::join;
use crate::protocol::join::JoinRequest;
use crate::protocol::web::COORDINATOR_PREFIX;

/// The maximum number of open connections.
pub(super) const MAX_CONNECTIONS: usize = 8192;
/// The maximum number of connections that wait to be accepted; the kernel may allow fewer. All nodes connect at once when a
/// coordinator is back, and a node that finds the queue full waits for a second.
const BACKLOG: u32 = 4096;
/// The maximum size of a request's head, and of the buffer that it is read into, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The maximum size of a join request, in bytes. It carries a certificate and a signature.
const MAX_JOIN: usize = 32 * 1024;
/// How many unsent bytes the kernel queues for a node that does not read, besides those that are in flight.
const MAX_UNSENT: u32 = 64 * 1024;

/// Binds the port.
///
/// # Errors
/// The port is in use, or the process may not bind it.
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
            format!("this program may not listen on {address}: ports below 1024 need root or CAP_NET_BIND_SERVICE; set another `listen`, such as [::]:7443, or give its unit that right (`systemctl edit mesh-coordinator` with AmbientCapabilities=CAP_NET_BIND_SERVICE, CapabilityBoundingSet=CAP_NET_BIND_SERVICE and PrivateUsers=no)"),
        ),
        _ => Failure::new(
            ErrorCode::Configuration,
            format!("cannot listen on {address}: {error}"),
        ),
    })
}

/// Listens on `address`. `[::]` stands for all addresses of both families, and for those of IPv4 on a machine without IPv6.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let (socket, address) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, address),
        SocketAddr::V6(v6) => match TcpSocket::new_v6() {
            Ok(socket) => {
                // Without this, the sysctl `net.ipv6.bindv6only` decides.
                SockRef::from(&socket).set_only_v6(false)?;
                (socket, address)
            }
            Err(_) if v6.ip().is_unspecified() => {
                let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, v6.port()));
                (TcpSocket::new_v4()?, any)
            }
            Err(error) => return Err(error),
        },
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves at most `most` connections until `stop` becomes true. Then it waits until they have ended.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    hub: Arc<Hub>,
    most: usize,
    mut stop: watch::Receiver<bool>,
) {
    let api = web::router(Arc::clone(&hub), stop.clone());
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route(join::PATH, post(join))
        .route(join::CHECK_PATH, post(check_join))
        .route(crate::protocol::control::PATH, get(control::upgrade))
        .fallback(|| async {
            failure(ApiError::new(
                ErrorCode::NotFound,
                "this is a mesh-coordinator; there is nothing at this path",
            ))
        })
        .with_state(Served::new(hub, stop.clone()));
    let routers = Routers { nodes: router, api };
    let acceptor = TlsAcceptor::from(tls);
    let slots = Slots::new(most);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => break,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // The usual reason is that no file descriptor is free. Other connections will be closed.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(slot) = slots.arrive(peer.ip().to_canonical()) else {
            continue;
        };
        let (acceptor, routers, stop) = (acceptor.clone(), routers.clone(), stop.clone());
        Tasks::current().spawn_child("connection", async move {
            tokio::select! {
                () = connection(tcp, acceptor, routers, slot.clone(), stop) => {}
                () = sleep_until(slot.deadline()) => {}
                () = slot.revoked() => {}
            }
        });
    }
    drop(listener);
    slots.emptied().await;
}

/// The handlers of requests.
#[derive(Clone)]
struct Routers {
    /// The handlers for nodes.
    nodes: Router,
    /// The handlers for programs with API tokens, and for the page.
    api: Router,
}

async fn connection(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    routers: Routers,
    slot: Slot,
    mut stop: watch::Receiver<bool>,
) {
    let _ = tcp.set_nodelay(true);
    let _ = SockRef::from(&tcp).set_tcp_notsent_lowat(MAX_UNSENT);
    let tls = tokio::select! {
        tls = async {
            if slot.served().await {
                acceptor.accept(tcp).await.ok()
            } else {
                None
            }
        } => tls,
        _ = stop.changed() => return,
    };
    let Some(tls) = tls else { return };
    let nodes = TowerToHyperService::new(routers.nodes);
    let api = TowerToHyperService::new(routers.api);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<_>| {
        // A stream continues after the HTTP connection was upgraded, and it keeps the slot.
        request.extensions_mut().insert(slot.clone());
        request.extensions_mut().insert(Source(slot.address()));
        let path = request.uri().path();
        let is_api = path.starts_with(COORDINATOR_PREFIX) || page::calls::is_at(path);
        let router = if is_api { &api } else { &nodes };
        let answer = router.call(request);
        async move {
            let mut answer = answer.await?;
            if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(CONNECTION, close);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut served = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD)
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

async fn ready(State(served): State<Served>) -> (StatusCode, &'static str) {
    metrics::ready(&served.hub)
}

async fn join(
    State(served): State<Served>,
    Extension(slot): Extension<Slot>,
    request: Request,
) -> Response {
    let mut name = None;
    let mut by = joiner(slot.address(), None);
    let joined = async {
        let asked = join_request(&served, &slot, request).await?;
        (name, by) = (asked.name(), asked.by(slot.address()));
        match asked {
            Asked::Proven(proven) => {
                let by = by.clone();
                let join = move |hub: &Hub| hub.join_proven(&proven, by, clock::now());
                served.write_for_unverified(join).await
            }
            Asked::Unproven(request) => {
                let by = by.clone();
                let join = move |hub: &Hub| hub.join(&request, by, clock::now());
                served.write_for_unverified(join).await
            }
        }
    };
    let joined = joined.await;
    match &joined {
        Ok(_) => slot.handle_joined(),
        Err(error) => note_refused(&served.hub, &by, name.as_ref(), error),
    }
    reply::answer(joined)
}

async fn check_join(
    State(served): State<Served>,
    Extension(slot): Extension<Slot>,
    request: Request,
) -> Response {
    let mut name = None;
    let mut by = joiner(slot.address(), None);
    let checked = async {
        let asked = join_request(&served, &slot, request).await?;
        (name, by) = (asked.name(), asked.by(slot.address()));
        match asked {
            Asked::Proven(proven) => {
                let check = move |hub: &Hub| hub.check_proven(&proven, clock::now());
                served.write_for_unverified(check).await
            }
            Asked::Unproven(request) => {
                let check = move |hub: &Hub| hub.check_join(&request, clock::now());
                served.write_for_unverified(check).await
            }
        }
    };
    let checked = checked.await;
    if let Err(error) = &checked {
        note_refused(&served.hub, &by, name.as_ref(), error);
    }
    reply::answer(checked)
}

/// The machine that wants to join, with the id of its token if it proved to have the token.
fn joiner(address: IpAddr, token: Option<PublicKey>) -> Who {
    Who::Joiner { address, token }
}

fn note_refused(hub: &Hub, by: &Who, node: Option<&Label>, error: &ApiError) {
    hub.audit().note(&JoinRefused { by, node, error });
}

/// A join that is refused. Anybody can cause that, so the lines of the log and the events are bounded.
struct JoinRefused<'a> {
    by: &'a Who,
    /// The name that the node wants.
    node: Option<&'a Label>,
    error: &'a ApiError,
}

impl Transition for JoinRefused<'_> {
    fn log(&self) {
        let node = self.node.map(tracing::field::display);
        let source = match self.by {
            Who::Joiner { address, .. } => Some(tracing::field::display(address)),
            _ => None,
        };
        tracing::warn!(source, node, reason = self.error.message, "join refused");
    }

    fn event(&self) -> Option<Event> {
        let what = What::JoinRefused {
            node: self.node.cloned(),
        };
        let result = Outcome::Refused(Text::from(self.error.message.as_str()));
        Some(Event {
            result,
            ..Event::done(self.by.clone(), what)
        })
    }
}

/// A join request, whose signatures are verified once: at once if it carries a known token, otherwise in the writer's thread.
enum Asked {
    Proven(Box<Proven>),
    Unproven(JoinRequest),
}

impl Asked {
    /// The name that the node wants.
    fn name(&self) -> Option<Label> {
        match self {
            Self::Proven(proven) => Some(proven.name().clone()),
            Self::Unproven(request) => enroll::claimed_name(request),
        }
    }

    fn by(&self, address: IpAddr) -> Who {
        match self {
            Self::Proven(proven) => joiner(address, Some(proven.envelope().signer)),
            Self::Unproven(_) => joiner(address, None),
        }
    }
}

/// Reads a join request. A connection whose request carries a known token and valid proofs no longer counts as opening.
async fn join_request(served: &Served, slot: &Slot, request: Request) -> Result<Asked, ApiError> {
    let request: JoinRequest = read_json(request).await?;
    if !served.hub.knows_token(&request.membership.signer) {
        return Ok(Asked::Unproven(request));
    }
    Ok(match enroll::prove(&request) {
        Ok(proven) => {
            slot.handle_joining();
            Asked::Proven(Box::new(proven))
        }
        // The hub counts and explains the refusal.
        Err(_) => Asked::Unproven(request),
    })
}

/// Reads a request's body and parses it.
async fn read_json<T: serde::de::DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    let body = axum::body::to_bytes(request.into_body(), MAX_JOIN)
        .await
        .map_err(|_| {
            let text = format!(
                "the request cannot be read, or has more than {} KiB",
                MAX_JOIN / 1024
            );
            ApiError::new(ErrorCode::BadRequest, text)
        })?;
    serde_json::from_slice(&body).map_err(|error| ApiError::unreadable(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::log::captured;
    use crate::os::repeats::BURST;

    const DOCUMENT: &str = include_str!("../../docs/logs.md");

    #[test]
    fn a_refused_join_is_one_line_with_its_source_and_a_flood_of_them_is_bounded() {
        let source = IpAddr::from([192, 0, 2, 7]);
        let name = Label::parse("web-1").expect("a literal");
        let error = ApiError::new(ErrorCode::Forbidden, "the token\nexpired");
        let by = joiner(source, None);
        let refused = JoinRefused {
            by: &by,
            node: Some(&name),
            error: &error,
        };
        let refuse = || refused.log();
        let lines = captured::lines(refuse);
        assert_eq!(
            lines,
            [r#"WARN join refused source=192.0.2.7 node=web-1 reason="the token\nexpired""#]
        );
        captured::assert_documented(&lines[0], DOCUMENT);
        let many = captured::lines(|| (0..1000).for_each(|_| refuse()));
        assert_eq!(many.len(), BURST as usize);
    }
}
