//! Listens for queries on addresses of this node, over UDP and TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

use super::message::{MAX_QUERY, Outcome, Transport};
use super::resolver::Resolver;

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Somebody else does.
    #[error("port {} of {} is in use by another resolver", .0.port(), .0.ip())]
    Taken(SocketAddr),
    /// The right is missing.
    #[error("may not listen on {0}: ports below 1024 need CAP_NET_BIND_SERVICE; run as root")]
    Permission(SocketAddr),
    /// The system refuses.
    #[error("cannot listen on {0}: {1}")]
    Io(SocketAddr, io::Error),
}

/// A running server. Dropping it ends it.
pub struct DnsServer {
    resolver: Arc<Resolver>,
    listen: Vec<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
}

impl DnsServer {
    /// Listens nowhere yet.
    #[must_use]
    pub fn new(resolver: Arc<Resolver>) -> Self {
        Self {
            resolver,
            listen: Vec::new(),
            tasks: Vec::new(),
        }
    }

    /// Listens on those of `addresses` that it can and does not listen on yet; says why not on the others.
    pub async fn listen_on(&mut self, addresses: &[SocketAddr]) -> Vec<DnsError> {
        let mut refused = Vec::new();
        for address in addresses {
            if self.listen.contains(address) {
                continue;
            }
            match bind(*address).await {
                Ok((udp, tcp)) => {
                    let resolver = || Arc::clone(&self.resolver);
                    self.tasks
                        .push(tokio::spawn(serve_udp(Arc::new(udp), resolver())));
                    self.tasks.push(tokio::spawn(serve_tcp(tcp, resolver())));
                    self.listen.push(*address);
                }
                Err(error) => refused.push(error),
            }
        }
        refused
    }

    /// Where it listens.
    #[must_use]
    pub fn listen(&self) -> &[SocketAddr] {
        &self.listen
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn bind(address: SocketAddr) -> Result<(UdpSocket, TcpListener), DnsError> {
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => DnsError::Taken(address),
        io::ErrorKind::PermissionDenied => DnsError::Permission(address),
        _ => DnsError::Io(address, error),
    };
    let udp = UdpSocket::bind(address).await.map_err(explain)?;
    let tcp = TcpListener::bind(address).await.map_err(explain)?;
    Ok((udp, tcp))
}

async fn serve_udp(socket: Arc<UdpSocket>, resolver: Arc<Resolver>) {
    let mut buffer = vec![0; MAX_QUERY + 1];
    loop {
        let (length, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "cannot receive a query");
                continue;
            }
        };
        let Some(octets) = buffer.get(..length) else {
            continue;
        };
        if source.port() == 0 || !resolver.admits(source.ip()) {
            continue;
        }
        match resolver.answer(octets, Transport::Udp) {
            Outcome::Reply(reply) => {
                let _ = socket.send_to(&reply, source).await;
            }
            Outcome::Forward(pending) => {
                let (socket, resolver) = (Arc::clone(&socket), Arc::clone(&resolver));
                tokio::spawn(async move {
                    let reply = resolver.forward(*pending).await;
                    let _ = socket.send_to(&reply, source).await;
                });
            }
            Outcome::Silence(_) => {}
        }
    }
}

async fn serve_tcp(listener: TcpListener, resolver: Arc<Resolver>) {
    loop {
        let Ok((stream, source)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        if !resolver.admits(source.ip()) {
            continue;
        }
        if let Some(place) = resolver.place(source.ip()) {
            tokio::spawn(place.converse(stream));
        }
    }
}
