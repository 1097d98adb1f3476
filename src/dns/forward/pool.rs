//! Connections to the upstreams: hickory-resolver's, over UDP, TCP and TLS.
//!
//! The schedule decides which upstream is asked when, in which form and over which transport. This module does one such
//! attempt: hickory opens the socket, encodes the request, draws the ID and the case of the letters, finds the response, and
//! multiplexes the requests of a TLS connection.
//!
//! hickory's own `NameServerPool` does not make the choice of the upstream, because it cannot keep what this resolver promises:
//! it returns a negative answer as an error without the AD flag and without the DNSSEC proofs, it does not return which
//! upstream answered, it randomizes the case of all names or of none, it does not repeat a question without EDNS, it does
//! not wait for the first upstream before it accepts that a name does not exist, and it asks a first upstream that failed again
//! only when the others become slower. So a pool here is one of connections and not of servers. TLS connections are made by
//! `tls_client_connect`, because hickory-resolver's provider turns SNI off, and some providers of DNS over TLS tell their
//! customers apart by it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{DnsRequest, DnsResponse};
use hickory_resolver::config::{ConnectionConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::{RuntimeProvider as _, Spawn as _};
use hickory_resolver::net::tls::tls_client_connect;
use hickory_resolver::net::udp::UdpClientStream;
use hickory_resolver::net::xfer::{
    DnsExchange, DnsHandle as _, DnsMultiplexer, DnsRequestSender as _, FirstAnswer as _,
};
use hickory_resolver::{ConnectionProvider as _, PoolContext, TlsConfig};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::sync::OnceCell;

use super::super::query::Question;
use super::Asker;
use super::exchange::{Form, Received, read, request};
use super::schedule::{SEARCH_TIMEOUT, Transport};
use super::server::Server;
use super::sockets::{QuestionMissing, Sockets, size_of};
use crate::os::tls;

/// How long a TLS connection that is not used is kept.
const IDLE: Duration = Duration::from_secs(20);
/// The most requests at once over one TLS connection. For more of them another connection is opened.
const MAX_REQUESTS: usize = 256;

type Connection = DnsExchange<Sockets>;

/// The open connections, and what is needed to open more.
pub(super) struct Pool {
    sockets: Sockets,
    context: PoolContext,
    /// Read when it is needed first, which is never on most nodes.
    tls: OnceCell<Arc<ClientConfig>>,
    /// The TLS connection to each upstream, and when it was used last.
    open: Mutex<HashMap<SocketAddr, (Connection, Instant)>>,
}

impl Default for Pool {
    fn default() -> Self {
        let mut options = ResolverOpts::default();
        options.timeout = SEARCH_TIMEOUT;
        // TLS is configured here, so this context has no authorities that could be trusted.
        let config = tls::client_of_roots(RootCertStore::empty());
        Self {
            sockets: Sockets::default(),
            context: PoolContext::new(options, TlsConfig { config }),
            tls: OnceCell::new(),
            open: Mutex::default(),
        }
    }
}

impl Pool {
    /// Trusts `roots` instead of the authorities of the system.
    #[cfg(test)]
    pub(super) fn with_roots(roots: RootCertStore) -> Self {
        Self {
            tls: OnceCell::new_with(Some(Arc::new(tls::client_of_roots(roots)))),
            ..Self::default()
        }
    }

    /// Asks `server` once, and returns its response. Memory for a large answer is reserved in the limits of `asker`.
    pub(super) async fn ask(
        &self,
        server: &Server,
        question: &Question,
        form: Form,
        transport: Transport,
        asker: Option<&Asker>,
    ) -> io::Result<Received> {
        // Mixed case protects against forged datagrams. A stream cannot be forged from off the path, and not every server
        // supports mixed case.
        let form = Form {
            mixed: form.mixed && transport == Transport::Udp,
            ..form
        };
        let stream = transport != Transport::Udp;
        let mut request = request(question, form);
        // The schedule decides when a question is sent again.
        request.options_mut().retry_interval = 2 * SEARCH_TIMEOUT;
        let sockets = Sockets::for_asker(asker.cloned());
        let response = match (transport, &server.name) {
            (Transport::Udp, _) => self.over_udp(server.address, request).await,
            (Transport::Tcp, _) => {
                self.over_tcp(server.address, request, sockets.clone())
                    .await
            }
            (Transport::Tls { new }, Some(name)) => {
                self.over_tls(server.address, name, request, new).await
            }
            (Transport::Tls { .. }, None) => {
                Err(io::Error::from(io::ErrorKind::InvalidInput).into())
            }
        };
        let response = match response {
            Ok(response) => response,
            Err(error) => return failed(error, form, stream),
        };
        let mut held = sockets.take_reserved();
        if let (None, Some(asker), Transport::Tls { .. }) = (&held, asker, transport) {
            held = asker.reserve(size_of(response.as_buffer()))?;
        }
        let mut received = read(question, form, response.into_message(), stream);
        if let Received::Answer(answer) = &mut received {
            answer.held = held.map(Arc::new);
        }
        Ok(received)
    }

    /// Sends a datagram from a socket of its own, whose port the system draws.
    async fn over_udp(
        &self,
        server: SocketAddr,
        request: DnsRequest,
    ) -> Result<DnsResponse, NetError> {
        let stream = UdpClientStream::builder(server, self.sockets.clone());
        let stream = stream
            .with_timeout(Some(2 * SEARCH_TIMEOUT))
            .with_os_port_selection(true);
        stream.build().send_message(request).first_answer().await
    }

    /// Opens a connection for one request. It is closed with `sockets`.
    async fn over_tcp(
        &self,
        server: SocketAddr,
        request: DnsRequest,
        sockets: Sockets,
    ) -> Result<DnsResponse, NetError> {
        let mut config = ConnectionConfig::tcp();
        config.port = server.port();
        let connection = sockets.new_connection(server.ip(), &config, &self.context)?;
        connection.await?.send(request).first_answer().await
    }

    /// Asks `server`, which has to prove that it is `name`, over the open connection, unless it has to be a `new` one. A
    /// connection that a firewall has forgotten stays open and silent.
    async fn over_tls(
        &self,
        server: SocketAddr,
        name: &ServerName<'static>,
        request: DnsRequest,
        new: bool,
    ) -> Result<DnsResponse, NetError> {
        if let Some(connection) = self.connection(server).filter(|_| !new) {
            // A server may close a connection whenever it likes (RFC 7858 section 3.4).
            if let Ok(response) = connection.send(request.clone()).first_answer().await {
                self.store(server, connection);
                return Ok(response);
            }
        }
        let config = async || tls::client_of_system().map(Arc::new);
        let config = Arc::clone(self.tls.get_or_try_init(config).await?);
        let sockets = self.sockets.clone();
        let mut tasks = sockets.create_handle();
        let (stream, sender) = tls_client_connect(server, name.clone(), config, sockets);
        let multiplexer = DnsMultiplexer::new(stream.await?, sender)
            .with_timeout(SEARCH_TIMEOUT)
            .with_max_active_requests(MAX_REQUESTS);
        let (connection, background) = DnsExchange::from_stream(multiplexer);
        tasks.spawn_bg(background);
        let response = connection.send(request).first_answer().await?;
        self.store(server, connection);
        Ok(response)
    }

    fn connection(&self, server: SocketAddr) -> Option<Connection> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, (_, used)| used.elapsed() < IDLE);
        open.get(&server).map(|(connection, _)| connection.clone())
    }

    fn store(&self, server: SocketAddr, connection: Connection) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(server, (connection, Instant::now()));
    }
}

/// Returns what an error means for the form of the question. An error without such a meaning is returned as an error. `stream` says
/// that the question was asked over a stream, where nothing is cut off. The question to an upstream over TLS must not be asked again
/// over TCP, where others can read it.
fn failed(error: NetError, form: Form, stream: bool) -> io::Result<Received> {
    match error {
        NetError::QueryCaseMismatch => Ok(Received::LostCase),
        // A server that does not regard the size that it may send sends a datagram that does not fit into the buffer.
        NetError::Proto(_) if !stream => Ok(Received::Cut),
        NetError::Io(error) if QuestionMissing::is(&error) => Ok(match form.edns {
            true => Received::NoEdns,
            false => Received::Failed,
        }),
        // The system's error code is kept, because it shows whether this host lacks resources.
        NetError::Io(error) => Err(match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        }),
        error => Err(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Message;

    #[test]
    fn bytes_that_are_no_message_were_cut_off_in_a_datagram_and_are_an_error_over_a_stream() {
        let form = Form {
            mixed: false,
            edns: true,
        };
        let error = || NetError::from(Message::from_vec(&[0]).expect_err("it is too short"));
        assert!(matches!(failed(error(), form, false), Ok(Received::Cut)));
        assert!(failed(error(), form, true).is_err());
    }
}
