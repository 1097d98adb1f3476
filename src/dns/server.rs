//! Listens for queries on addresses of this node, over UDP and TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::datagrams::{self, Datagrams};
use super::full_path;
use super::resolver::Resolver;
use super::tcp::ConnectionSlot;
use crate::os::tasks::{AbortOnDrop, Tasks};

/// The wait before the next connection is accepted when the process has no more file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The reason why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Another program listens at the address.
    #[error("port {} of {} is in use by another resolver", .0.port(), .0.ip())]
    Handled(SocketAddr),
    /// The process lacks the capability.
    #[error(
        "may not listen on {0}: ports below 1024 need root or CAP_NET_BIND_SERVICE; use sudo or `systemctl start meshd`"
    )]
    Permission(SocketAddr),
    /// Another error of the system.
    #[error("cannot listen on {0}: {1}")]
    Io(SocketAddr, io::Error),
}

/// A running server. Dropping this ends it.
pub struct DnsServer {
    resolver: Arc<Resolver>,
    listen: Vec<SocketAddr>,
    datagrams: Vec<Datagrams>,
    _tasks: Vec<AbortOnDrop>,
}

impl DnsServer {
    /// Makes a server that does not listen anywhere yet.
    #[must_use]
    pub fn new(resolver: Arc<Resolver>) -> Self {
        Self {
            resolver,
            listen: Vec::new(),
            datagrams: Vec::new(),
            _tasks: Vec::new(),
        }
    }

    /// Listens on each of `addresses`, unless it does already. Returns the errors.
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
        let accept = accept(streams, Arc::clone(&self.resolver));
        let task = Tasks::current().spawn("DNS over TCP", accept);
        self._tasks.push(task.abort_on_drop());
        Ok(())
    }

    /// Returns the addresses on which it listens.
    #[must_use]
    pub fn listen(&self) -> &[SocketAddr] {
        &self.listen
    }
}

async fn accept(listener: TcpListener, resolver: Arc<Resolver>) {
    loop {
        let Ok((stream, source)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let client = resolver.admits(source.ip());
        if let Some(slot) = client.and_then(|client| ConnectionSlot::take(&resolver, client)) {
            Tasks::current().spawn_child("a DNS connection", slot.converse(source, stream));
        }
    }
}
