//! The API over the network: HTTP at the mesh addresses of this node, for callers with API tokens. Its calls are in
//! [`crate::protocol::web::calls`], and its handlers are those of the local API. The page ([`super::page`]) is served with it, or at an
//! address of its own.
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
use super::config::{ApiSettings, PagePlace};
use super::docker_face::{self, Face};
use super::page;
use crate::model::PublicKey;
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::os::web::{
    ConnectionPlace, Facts, Guard, Knowledge, LongAnswer, Places, Source, guarded,
};
use crate::page::frame::NODE;
use crate::page::server::with_page;
use crate::protocol::api::ApiError;
use crate::protocol::local::Problem;
use crate::protocol::web::calls::{ApiCall, OF_NODE};
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
pub(super) async fn serve(api: LocalApi, settings: ApiSettings) {
    let commands = api.commands.clone();
    let router = router(api, &settings);
    // Programs of this machine that hold all places of the page leave those of the mesh free.
    let (places_of_mesh, places_of_machine) = (Places::default(), Places::default());
    let mut listeners: BTreeMap<SocketAddr, AbortOnDrop> = BTreeMap::new();
    let mut failures = Failures::default();
    let mut reported = Vec::new();
    loop {
        let wanted = wanted(&commands, &settings).await;
        listeners.retain(|address, _| wanted.contains(address));
        failures.0.retain(|address, _| wanted.contains(address));
        for address in wanted {
            let Entry::Vacant(free) = listeners.entry(address) else {
                continue;
            };
            match listen(address) {
                Ok(listener) => {
                    failures.0.remove(&address);
                    let places = if settings.page == PagePlace::At(address) {
                        &places_of_machine
                    } else {
                        &places_of_mesh
                    };
                    let accepting = accept(listener, router.clone(), places.clone());
                    let task = Tasks::current().spawn("listener of the API", accepting);
                    free.insert(task.abort_on_drop());
                }
                Err(error) => {
                    let why = error.to_string();
                    if failures.handle_failure(address, why.clone()) {
                        tracing::warn!(address = %address.ip(), port = address.port(), %why, "the API is not served at this address; if another program has the port, `ss -tlpn` names it");
                    }
                }
            }
        }
        let problems = failures.problems(settings.page);
        if problems != reported {
            // An agent that has ended needs no problems.
            let _ = commands.send(Command::ApiProblems(problems.clone())).await;
            reported = problems;
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// The addresses at which this node cannot listen.
#[derive(Debug, Default)]
struct Failures(BTreeMap<SocketAddr, Failure>);

#[derive(Debug)]
struct Failure {
    why: String,
    /// Whether an attempt before the last one failed too. An address that is missing from the device for a moment is no problem.
    is_lasting: bool,
}

impl Failures {
    /// Handles an attempt that failed. Returns whether its reason is new.
    fn handle_failure(&mut self, address: SocketAddr, why: String) -> bool {
        let before = self.0.get(&address);
        let is_new = before.is_none_or(|before| before.why != why);
        let is_lasting = before.is_some();
        self.0.insert(address, Failure { why, is_lasting });
        is_new
    }

    /// The problems for `meshctl status`.
    fn problems(&self, page: PagePlace) -> Vec<Problem> {
        let lasting = self.0.iter().filter(|(_, failure)| failure.is_lasting);
        let problems = lasting.map(|(address, failure)| {
            let served = if page == PagePlace::At(*address) {
                "the page"
            } else {
                "the API"
            };
            Problem {
                what: format!("{served} is not served at {address}"),
                why: failure.why.clone(),
                fix: "if another program has the port, end that program: `ss -tlpn` names it; meshd tries again every few seconds"
                    .to_owned(),
            }
        });
        problems.collect()
    }
}

/// The handlers of the calls, and of the page if it is served, behind the check of their tokens. Where the page is served and the API is
/// not, there are no calls.
fn router(api: LocalApi, settings: &ApiSettings) -> Router {
    let calls: &[ApiCall] = if settings.is_on_network { OF_NODE } else { &[] };
    let guard = Guard::new(
        OfAgent(api.commands.clone()),
        calls,
        openapi::PATH_OF_NODE,
        api.audit.clone(),
    );
    let views = (settings.page != PagePlace::Nowhere).then(|| page::start(&api, &guard));
    let spawner = api.spawner.clone().filter(|_| settings.is_on_network);
    let face = spawner.map(|spawner| Face::new(guard.clone(), spawner));
    let calls = guarded(api::over_network(api), guard);
    let calls = docker_face::beside(calls, face);
    match views {
        Some(views) => with_page(&NODE, views, calls),
        None => calls,
    }
}

/// The addresses at which to listen now.
async fn wanted(commands: &mpsc::Sender<Command>, settings: &ApiSettings) -> Vec<SocketAddr> {
    let mut wanted = Vec::new();
    if let PagePlace::At(address) = settings.page {
        wanted.push(address);
    }
    if settings.is_on_network {
        let addresses = |reply| Command::Api(ApiQuery::Addresses(reply));
        // A node that is not in a mesh has no addresses.
        let own = api::send(commands, addresses).await.unwrap_or_default();
        wanted.extend(own.into_iter().map(|own| SocketAddr::new(own, PORT)));
    }
    wanted
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

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
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
    let limited = async {
        let ended = timeout(TIME_LIMIT, served.as_mut()).await;
        if ended.is_err() && long.is_set() {
            timeout(docker_face::LIFETIME, served.as_mut()).await
        } else {
            ended
        }
    };
    tokio::select! {
        ended = limited => {
            if let Ok(Err(error)) = ended {
                tracing::debug!(%error, "a connection of the API ended");
            }
        }
        () = long.has_to_end() => {
            tracing::debug!("a connection of the API was ended, since its caller may not have it any more");
        }
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

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;

    use super::*;
    use crate::os::audit::Audit;

    /// The status of the answer to a request without a token.
    async fn status_of(is_on_network: bool, page: PagePlace, method: &str, path: &str) -> u16 {
        // Nobody receives the commands, and no call without a token sends one.
        let (commands, _) = mpsc::channel(1);
        let api = LocalApi {
            commands,
            audit: Audit::none(),
            tasks: Tasks::new("test"),
            spawner: None,
        };
        let settings = ApiSettings {
            socket: "/run/meshd/meshd.sock".into(),
            is_on_network,
            page,
            templates: Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .extension(Source([127, 0, 0, 1].into()))
            .body(Body::empty());
        let router = TowerToHyperService::new(router(api, &settings));
        let answer = router.call(request.expect("a valid request")).await;
        answer.expect("it never fails").status().as_u16()
    }

    #[test]
    fn an_address_at_which_nothing_can_be_served_twice_is_a_problem() {
        let address = SocketAddr::from(([10, 210, 1, 1], PORT));
        let mut failures = Failures::default();
        assert!(failures.handle_failure(address, "not there".to_owned()));
        assert_eq!(failures.problems(PagePlace::WithApi), []);
        assert!(failures.handle_failure(address, "in use".to_owned()));
        assert!(!failures.handle_failure(address, "in use".to_owned()));
        for (page, what) in [
            (
                PagePlace::WithApi,
                "the API is not served at 10.210.1.1:7447",
            ),
            (
                PagePlace::At(address),
                "the page is not served at 10.210.1.1:7447",
            ),
        ] {
            let problems = failures.problems(page);
            let [problem] = problems.as_slice() else {
                panic!("{problems:?}");
            };
            assert_eq!(
                (problem.what.as_str(), problem.why.as_str()),
                (what, "in use")
            );
        }
    }

    #[tokio::test]
    async fn the_page_is_served_where_it_is_on_and_brings_no_call_that_changes_something() {
        let own = PagePlace::At(SocketAddr::from(([127, 0, 0, 1], 7448)));
        let drain = ("POST", "/v1/services/web/drain");
        for (is_on_network, place, (method, path), expected) in [
            (false, own, ("GET", "/page"), 200),
            (false, own, ("GET", "/page/view/nodes"), 401),
            (false, own, ("GET", "/page/view/changes"), 401),
            (false, own, ("GET", "/v1/events"), 404),
            (false, own, drain, 404),
            (true, PagePlace::WithApi, ("GET", "/page"), 200),
            (true, PagePlace::WithApi, drain, 401),
            (true, PagePlace::Nowhere, ("GET", "/page"), 404),
            (true, PagePlace::Nowhere, drain, 401),
        ] {
            let status = status_of(is_on_network, place, method, path).await;
            assert_eq!(status, expected, "{place:?} {path}");
        }
    }
}
