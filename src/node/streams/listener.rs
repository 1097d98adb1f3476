//! Takes streams of members, over TLS or behind a proxy that ends it.
//!
//! Everybody can connect, so what is open without a proof of membership is bounded in number and in time, for each address and
//! for all together. A member has one stream: a new one takes the place of the one before.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;

use super::opening::{self, Admission, OPENING_TIMEOUT};
use super::{carrying, tls};
use crate::model::address::link_of;
use crate::node::config::StreamListen;
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::protocol::local::Problem;
use crate::protocol::stream::PATH;
use crate::protocol::token::SpkiPin;
use crate::tunnel::{OtherEnd, StreamOpener};

/// The maximum number of connections.
const MAX_CONNECTIONS: usize = 1024;
/// The maximum number of connections of nodes that have not proved their membership.
const MAX_OPENING: usize = 128;
/// The maximum number of those from one address, or from one IPv6 network of 64 bits. Behind a proxy all have its address, so this does
/// not apply there.
const MAX_OPENING_OF_ADDRESS: usize = 16;
/// The pause between two attempts to listen.
const LISTEN_RETRY_PAUSE: Duration = Duration::from_secs(10);

/// What every stream of a member needs.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) admission: Admission,
    pub(super) opener: StreamOpener,
}

/// A listener for streams. Dropping it ends it, and the streams with it.
pub(super) struct Listener {
    listen: StreamListen,
    pin: Option<SpkiPin>,
    failure: Arc<Mutex<Option<String>>>,
    _task: Option<AbortOnDrop>,
}

impl Listener {
    pub(super) fn start(listen: StreamListen, state_dir: &Path, served: Served) -> Self {
        let failure = Arc::new(Mutex::new(None));
        let mut listener = Self {
            listen,
            pin: None,
            failure: Arc::clone(&failure),
            _task: None,
        };
        let acceptor = match listen.has_tls.then(|| tls::of_relay(state_dir)).transpose() {
            Ok(tls) => {
                listener.pin = tls.as_ref().map(|tls| tls.pin);
                tls.map(|tls| TlsAcceptor::from(tls.config))
            }
            Err(error) => {
                tracing::warn!(%error, "cannot listen for streams");
                note(&failure, Some(error.to_string()));
                return listener;
            }
        };
        let task = listen_on(listen.address, acceptor, served, failure);
        let task = Tasks::current().spawn("listener for streams", task);
        listener._task = Some(task.abort_on_drop());
        listener
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.listen.address
    }

    /// Whether it has what it needs for the connections that it takes.
    pub(super) fn is_usable(&self) -> bool {
        !self.listen.has_tls || self.pin.is_some()
    }

    /// The hash of the TLS key, unless a proxy ends TLS.
    pub(super) fn pin(&self) -> Option<SpkiPin> {
        self.pin
    }

    /// Why no stream is taken.
    pub(super) fn problem(&self) -> Option<Problem> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let why = failure.clone()?;
        let address = self.listen.address;
        let fix = if self.is_usable() {
            format!(
                "find out with `ss -tlpn` which program has TCP port {}, or set another `listen`; if a reverse proxy has port 443, let meshd listen behind it (docs/howto/relay-over-tls.md)",
                address.port()
            )
        } else {
            "correct that, and restart meshd".to_owned()
        };
        Some(Problem {
            what: format!(
                "this node cannot take streams at {address}, the address of `[relay] listen`"
            ),
            why,
            fix,
        })
    }
}

/// Sets why no stream is taken. Returns whether the reason was another one before.
fn note(failure: &Mutex<Option<String>>, why: Option<String>) -> bool {
    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
    let is_new = *failure != why;
    *failure = why;
    is_new
}

async fn listen_on(
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    served: Served,
    failure: Arc<Mutex<Option<String>>>,
) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if note(&failure, Some(error.to_string())) {
                    tracing::warn!(%address, %error, "cannot listen for streams");
                }
            }
        }
        sleep(LISTEN_RETRY_PAUSE).await;
    };
    note(&failure, None);
    tracing::info!(%address, "takes streams of nodes whose network drops UDP");
    accept_all(&listener, acceptor.as_ref(), &served).await;
}

/// Accepts connections for as long as the task runs.
async fn accept_all(listener: &TcpListener, acceptor: Option<&TlsAcceptor>, served: &Served) -> ! {
    let places = Places::new(acceptor.is_some());
    loop {
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // The usual reason is that no file descriptor is free. Other connections will be closed.
                tracing::warn!(%error, "cannot accept a stream");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = places.take(from.ip()) else {
            continue;
        };
        let (acceptor, served) = (acceptor.cloned(), served.clone());
        Tasks::current().spawn_child("stream of a member", async move {
            carrying::set_options(&tcp);
            let why = match acceptor {
                Some(acceptor) => over_tls(tcp, &acceptor, &served, place).await,
                None => serve(tcp, &served, place, OPENING_TIMEOUT).await,
            };
            tracing::debug!(source = %from.ip(), %why, "a stream ended");
        });
    }
}

async fn over_tls(tcp: TcpStream, acceptor: &TlsAcceptor, served: &Served, place: Place) -> String {
    let began = tokio::time::Instant::now();
    match timeout(OPENING_TIMEOUT, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => {
            let rest = OPENING_TIMEOUT.saturating_sub(began.elapsed());
            serve(tls, served, place, rest).await
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the TLS handshake was not completed in time".to_owned(),
    }
}

/// Serves a connection until it ends, and returns why it did.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    connection: S,
    served: &Served,
    place: Place,
    limit: Duration,
) -> String {
    let opened = timeout(limit, async {
        let limits = Some(carrying::limits());
        let socket = accept_hdr_async_with_config(connection, check_path, limits).await;
        let mut socket = socket.map_err(|error| error.to_string())?;
        let member = opening::accept(&mut socket, &served.admission).await?;
        Ok::<_, String>((socket, member))
    });
    let (socket, (node, address)) = match opened.await {
        Ok(Ok(opened)) => opened,
        Ok(Err(why)) => return why,
        Err(_) => return "the stream was not opened in time".to_owned(),
    };
    let _place = place.proven();
    let end = served.opener.open(address, OtherEnd::Member);
    tokio::select! {
        why = carrying::carry(socket, &end) => why,
        () = served.admission.revoked(&node, address) => {
            "the node is not a member any more, or this node does not relay".to_owned()
        }
    }
}

/// Answers requests for anything else than a stream. A proxy may leave the path of its own URL before that of the stream.
#[expect(
    clippy::result_large_err,
    reason = "the library's trait has this signature"
)]
fn check_path(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
    if request.uri().path().ends_with(PATH) {
        return Ok(response);
    }
    let text = "there is nothing at this path\n".to_owned();
    let mut response = ErrorResponse::new(Some(text));
    *response.status_mut() = StatusCode::NOT_FOUND;
    Err(response)
}

/// The places for connections.
pub(super) struct Places {
    all: Arc<Semaphore>,
    opening: Arc<Semaphore>,
    /// The number of openings of each address, if they are counted.
    addresses: Option<Arc<Mutex<HashMap<IpAddr, usize>>>>,
}

/// The place of a connection.
pub(super) struct Place {
    all: OwnedSemaphorePermit,
    _opening: OwnedSemaphorePermit,
    _address: Option<AtAddress>,
}

/// An opening that is counted for its address.
struct AtAddress(IpAddr, Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Drop for AtAddress {
    fn drop(&mut self) {
        let mut counts = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.0);
            }
        }
    }
}

impl Places {
    pub(super) fn new(counts_addresses: bool) -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            opening: Arc::new(Semaphore::new(MAX_OPENING)),
            addresses: counts_addresses.then(Arc::default),
        }
    }

    /// A place for a connection from there, if there is one.
    pub(super) fn take(&self, from: IpAddr) -> Option<Place> {
        let all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let opening = Arc::clone(&self.opening).try_acquire_owned().ok()?;
        let from = link_of(from);
        let address = match &self.addresses {
            Some(counts) => {
                let mut counted = counts.lock().unwrap_or_else(PoisonError::into_inner);
                let count = counted.entry(from).or_insert(0);
                if *count >= MAX_OPENING_OF_ADDRESS {
                    return None;
                }
                *count += 1;
                drop(counted);
                Some(AtAddress(from, Arc::clone(counts)))
            }
            None => None,
        };
        Some(Place {
            all,
            _opening: opening,
            _address: address,
        })
    }
}

impl Place {
    /// The node has proved its membership: its connection no longer counts as an opening.
    pub(super) fn proven(self) -> OwnedSemaphorePermit {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_bounded_for_each_address_and_for_all_and_members_are_none() {
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        let places = Places::new(true);
        let mut taken: Vec<Place> = Vec::new();
        for n in 0..100 {
            taken.extend((0..50).map_while(|_| places.take(address(n))));
        }
        assert_eq!(taken.len(), MAX_OPENING);
        assert!(places.take(address(200)).is_none());
        let proven: Vec<_> = taken
            .drain(..MAX_OPENING_OF_ADDRESS)
            .map(Place::proven)
            .collect();
        assert!(places.take(address(0)).is_some(), "they are members now");
        drop((taken, proven));
        let proxied = Places::new(false);
        let taken: Vec<Place> = (0..500).map_while(|_| proxied.take(address(1))).collect();
        assert_eq!(taken.len(), MAX_OPENING);
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_share_a_bound() {
        let places = Places::new(true);
        let address = |network: u16, n: u16| IpAddr::from([0x2001, 0xdb8, 0, network, 0, 0, 0, n]);
        let taken = (0..100).map_while(|n| places.take(address(1, n)));
        let taken: Vec<Place> = taken.collect();
        assert_eq!(taken.len(), MAX_OPENING_OF_ADDRESS);
        assert!(places.take(address(2, 0)).is_some());
    }

    #[test]
    fn members_are_bounded_as_well() {
        let places = Places::new(false);
        let members = (0..2 * MAX_CONNECTIONS).map_while(|_| {
            let place = places.take(IpAddr::from([192, 0, 2, 1]));
            place.map(Place::proven)
        });
        assert_eq!(members.collect::<Vec<_>>().len(), MAX_CONNECTIONS);
    }
}
