//! The API over the network: HTTP at the mesh addresses of this node, for callers with API tokens. Its calls are in
//! [`crate::protocol::web::calls`], and its handlers are those of the local API.
//!
//! WireGuard encrypts what comes through the tunnel, and proves from which node it comes. So there is no TLS.

use std::collections::btree_map::{BTreeMap, Entry};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::api::{self, ApiQuery, Command, LocalApi};
use super::docker_face::{self, Face, LongAnswer};
use crate::model::PublicKey;
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::os::web::{ConnectionPlace, Facts, Guard, Knowledge, Places, Source, guarded};
use crate::protocol::api::ApiError;
use crate::protocol::web::calls::OF_NODE;
use crate::protocol::web::{PORT, openapi};

/// How often the addresses of this node are compared with those at which it listens. They change when it joins, leaves or moves to
/// another address block, and an address may be missing from the device for a moment.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// The pause after a connection that could not be accepted. The usual reason is that no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a caller may take to send the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one connection may take, from its first byte to the end of the answer, unless the answer is marked as a long one.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// How long a caller may read nothing while bytes wait for it. The kernel ends the connection then.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(120);
/// The time without a byte after which the kernel asks whether the caller is still there, and the time between two such questions.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// The maximum size of a request's head, in bytes. A token has at most half of that.
const MAX_HEAD: usize = 16 * 1024;
/// The maximum number of connections that wait to be accepted.
const BACKLOG: u32 = 64;

/// Serves until the program ends.
pub(super) async fn serve(api: LocalApi) {
    let commands = api.commands.clone();
    let guard = Guard::new(
        OfAgent(commands.clone()),
        OF_NODE,
        openapi::PATH_OF_NODE,
        api.audit.clone(),
    );
    let face = api.spawner.clone();
    let face = face.map(|spawner| Face::new(guard.clone(), spawner));
    let router = guarded(api::over_network(api), guard);
    let router = docker_face::beside(router, face);
    let places = Places::default();
    let mut listeners: BTreeMap<IpAddr, AbortOnDrop> = BTreeMap::new();
    let mut failed: BTreeMap<IpAddr, String> = BTreeMap::new();
    loop {
        let wanted = api::send(&commands, |reply| Command::Api(ApiQuery::Addresses(reply))).await;
        // A node that is not in a mesh has no addresses.
        let wanted = wanted.unwrap_or_default();
        listeners.retain(|address, _| wanted.contains(address));
        for address in wanted {
            let Entry::Vacant(free) = listeners.entry(address) else {
                continue;
            };
            match listen(address) {
                Ok(listener) => {
                    failed.remove(&address);
                    let accepting = accept(listener, router.clone(), places.clone());
                    let task = Tasks::current().spawn("listener of the API", accepting);
                    free.insert(task.abort_on_drop());
                }
                Err(error) => {
                    let why = error.to_string();
                    if failed.get(&address) != Some(&why) {
                        tracing::warn!(%address, port = PORT, %why, "the API is not served at this address; if another program has the port, `ss -tlpn` names it");
                        failed.insert(address, why);
                    }
                }
            }
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Where the check of a call gets its facts.
#[derive(Debug, Clone)]
struct OfAgent(mpsc::Sender<Command>);

impl Knowledge for OfAgent {
    async fn facts(&self, token: Option<PublicKey>, address: IpAddr) -> Result<Facts, ApiError> {
        let query = |reply| Command::Api(ApiQuery::Facts(token, address, reply));
        api::send(&self.0, query).await
    }
}

fn listen(address: IpAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        IpAddr::V4(_) => TcpSocket::new_v4(),
        IpAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(address, PORT))?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, router: Router, places: Places) {
    loop {
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for the API");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let source = peer.ip().to_canonical();
        if let Some(place) = places.take(source) {
            let served = connection(tcp, source, router.clone(), place);
            Tasks::current().spawn_child("API connection", served);
        }
    }
}

/// Serves one request.
async fn connection(tcp: TcpStream, source: IpAddr, router: Router, place: ConnectionPlace) {
    set_options(&tcp);
    let long = LongAnswer::default();
    let router = TowerToHyperService::new(router);
    let mark = long.clone();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Source(source));
        request.extensions_mut().insert(mark.clone());
        router.call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(tcp), service)
        .with_upgrades();
    let mut served = pin!(served);
    let mut ended = timeout(TIME_LIMIT, served.as_mut()).await;
    if ended.is_err() && long.is_set() {
        ended = timeout(docker_face::LIFETIME, served).await;
    }
    if let Ok(Err(error)) = ended {
        tracing::debug!(%error, "a connection of the API ended");
    }
    drop(place);
}

/// Sets the options of a connection. It works without those that the kernel refuses.
fn set_options(tcp: &TcpStream) {
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(UNREAD_TIMEOUT));
}
