//! Listens for queries on addresses of this node, over UDP and TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::datagrams::{self, Datagrams};
use super::full_path;
use super::resolver::Resolver;
use super::tcp::ConnectionSlot;

/// How long accepting rests when the system has no more files to give.
const REST: Duration = Duration::from_millis(50);

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Somebody else does.
    #[error("port {} of {} is in use by another resolver", .0.port(), .0.ip())]
    Handled(SocketAddr),
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
    datagrams: Vec<Datagrams>,
    tasks: Vec<JoinHandle<()>>,
}

impl DnsServer {
    /// Listens nowhere yet.
    #[must_use]
    pub fn new(resolver: Arc<Resolver>) -> Self {
        Self {
            resolver,
            listen: Vec::new(),
            datagrams: Vec::new(),
            tasks: Vec::new(),
        }
    }

    /// Listens on those of `addresses` that it can and does not listen on yet; says why not on the others.
    pub fn listen_on(&mut self, addresses: &[SocketAddr]) -> Vec<DnsError> {
        let mut refused = Vec::new();
        for address in addresses {
            if self.listen.contains(address) {
                continue;
            }
            match self.listen_at(*address) {
                Ok(()) => self.listen.push(*address),
                Err(error) => refused.push(error),
            }
        }
        refused
    }

    fn listen_at(&mut self, address: SocketAddr) -> Result<(), DnsError> {
        let explain = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => DnsError::Handled(address),
            io::ErrorKind::PermissionDenied => DnsError::Permission(address),
            _ => DnsError::Io(address, error),
        };
        let streams = datagrams::listen(address).and_then(TcpListener::from_std);
        let streams = streams.map_err(explain)?;
        full_path::start(&self.resolver);
        let datagrams = Datagrams::start(address, &self.resolver).map_err(explain)?;
        self.datagrams.push(datagrams);
        self.tasks
            .push(tokio::spawn(accept(streams, Arc::clone(&self.resolver))));
        Ok(())
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

async fn accept(listener: TcpListener, resolver: Arc<Resolver>) {
    loop {
        let Ok((stream, source)) = listener.accept().await else {
            tokio::time::sleep(REST).await;
            continue;
        };
        let client = resolver.admits(source.ip());
        if let Some(slot) = client.and_then(|client| ConnectionSlot::take(&resolver, client)) {
            tokio::spawn(slot.converse(source, stream));
        }
    }
}
