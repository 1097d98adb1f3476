//! Questions over TLS (RFC 7858), to servers that prove who they are. A connection that is open is used again.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Asker, Streamed, exchange};

/// Where systems keep the authorities they trust.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];
/// Open connections kept to one server at most.
const MAX_IDLE: usize = 8;
/// How long one is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(20);

type Connection = TlsStream<TcpStream>;

/// What questions over TLS share: whom to trust, and connections that are open.
pub(super) struct Tls {
    connector: TlsConnector,
    idle: Mutex<HashMap<SocketAddr, Vec<(Connection, Instant)>>>,
}

impl Tls {
    /// Trusts whom the system trusts, at this moment.
    pub(super) fn of_system() -> io::Result<Self> {
        let there = BUNDLES.iter().map(Path::new).find(|path| path.exists());
        let bundle = there.ok_or_else(|| {
            io::Error::other(
                "the system's list of trusted authorities is missing: install ca-certificates",
            )
        })?;
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(bundle).map_err(io::Error::other)?;
        roots.add_parsable_certificates(certificates.filter_map(Result::ok));
        Ok(Self::trusting(roots))
    }

    pub(super) fn trusting(roots: RootCertStore) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has what these versions need")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            connector: TlsConnector::from(Arc::new(config)),
            idle: Mutex::default(),
        }
    }

    /// Asks `server`, which has to prove that it is `name`: over an open connection if there is one, unless it has to
    /// be a `new` one. A connection that a firewall has forgotten stays open and silent.
    pub(super) async fn exchange(
        &self,
        server: SocketAddr,
        name: &ServerName<'static>,
        query: &[u8],
        asker: Option<&Asker>,
        new: bool,
    ) -> io::Result<Streamed> {
        // A server may hang up whenever it likes (RFC 7858 section 3.4): then it is called again.
        while let Some(mut connection) = self.take(server).filter(|_| !new) {
            match exchange(&mut connection, query, asker).await {
                Ok(reply) => {
                    self.put(server, connection);
                    return Ok(reply);
                }
                // The asker has no memory left for the reply: no other connection would help.
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => return Err(error),
                Err(_) => {}
            }
        }
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        let mut connection = self.connector.connect(name.clone(), stream).await?;
        let reply = exchange(&mut connection, query, asker).await?;
        self.put(server, connection);
        Ok(reply)
    }

    fn take(&self, server: SocketAddr) -> Option<Connection> {
        let mut idle = self.lock();
        let connections = idle.get_mut(&server)?;
        connections.retain(|(_, since)| since.elapsed() < IDLE);
        connections.pop().map(|(connection, _)| connection)
    }

    fn put(&self, server: SocketAddr, connection: Connection) {
        let mut idle = self.lock();
        let connections = idle.entry(server).or_default();
        if connections.len() < MAX_IDLE {
            connections.push((connection, Instant::now()));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Vec<(Connection, Instant)>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
