//! Listens for queries on addresses of this node, over UDP and TCP.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::message::{MAX_QUERY, Outcome, Transport, handle};
use super::upstream::Upstream;
use super::zone::Zone;

/// Connections at once at most, of all clients and of one.
const MAX_CONNECTIONS: usize = 512;
const MAX_CONNECTIONS_OF_ONE: usize = 32;
/// How long a connection may be quiet (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// How long a connection may live.
const LIFE: Duration = Duration::from_secs(120);

/// Who may ask.
#[derive(Debug, Clone, Default)]
pub struct Allowed(pub Vec<IpNet>);

impl Allowed {
    fn admits(&self, source: IpAddr) -> bool {
        self.0
            .iter()
            .any(|net| net.contains(&source.to_canonical()))
    }
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Somebody else does.
    #[error("port {} of {} is in use by another resolver; find out which with `ss -ulpn sport = :{}`, or set `[dns] enabled = false`", .0.port(), .0.ip(), .0.port())]
    Taken(SocketAddr),
    /// The right is missing.
    #[error("may not listen on {0}: ports below 1024 need CAP_NET_BIND_SERVICE; run as root")]
    Permission(SocketAddr),
    /// The system refuses.
    #[error("cannot listen on {0}: {1}")]
    Io(SocketAddr, io::Error),
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Queries taken in.
    pub queries: AtomicU64,
    /// Of them, forwarded.
    pub forwarded: AtomicU64,
    /// Dropped: the source may not ask.
    pub foreign: AtomicU64,
    /// Dropped: no query.
    pub malformed: AtomicU64,
    /// Dropped: too many under way.
    pub overload: AtomicU64,
}

struct Context {
    zone: Arc<ArcSwap<Zone>>,
    allowed: Arc<ArcSwap<Allowed>>,
    upstream: Arc<Upstream>,
    counts: Counts,
    connections: Arc<Semaphore>,
    clients: Mutex<HashMap<IpAddr, usize>>,
}

/// A running server. Dropping it ends it.
pub struct DnsServer {
    context: Arc<Context>,
    listen: Vec<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
}

impl DnsServer {
    /// Listens on all of `addresses`, or on none.
    ///
    /// # Errors
    /// Says on which it cannot, and why.
    pub async fn bind(
        addresses: &[SocketAddr],
        zone: Arc<ArcSwap<Zone>>,
        allowed: Arc<ArcSwap<Allowed>>,
        upstream: Arc<Upstream>,
    ) -> Result<Self, DnsError> {
        let context = Arc::new(Context {
            zone,
            allowed,
            upstream,
            counts: Counts::default(),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            clients: Mutex::default(),
        });
        let mut bound = Vec::new();
        for address in addresses {
            let udp = UdpSocket::bind(address)
                .await
                .map_err(|e| explain(*address, e))?;
            let tcp = TcpListener::bind(address)
                .await
                .map_err(|e| explain(*address, e))?;
            bound.push((udp, tcp));
        }
        let mut tasks = Vec::new();
        for (udp, tcp) in bound {
            tasks.push(tokio::spawn(serve_udp(Arc::new(udp), Arc::clone(&context))));
            tasks.push(tokio::spawn(serve_tcp(tcp, Arc::clone(&context))));
        }
        Ok(Self {
            context,
            listen: addresses.to_vec(),
            tasks,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn listen(&self) -> &[SocketAddr] {
        &self.listen
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.context.counts
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn explain(address: SocketAddr, error: io::Error) -> DnsError {
    match error.kind() {
        io::ErrorKind::AddrInUse => DnsError::Taken(address),
        io::ErrorKind::PermissionDenied => DnsError::Permission(address),
        _ => DnsError::Io(address, error),
    }
}

fn entropy() -> u64 {
    getrandom::u64().unwrap_or_default()
}

async fn serve_udp(socket: Arc<UdpSocket>, context: Arc<Context>) {
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
        // A port below 1024 that is a server's own would send replies round in circles.
        if !context.admits(source.ip()) || source.port() == 0 {
            continue;
        }
        let zone = context.zone.load();
        match handle(&zone, octets, Transport::Udp, entropy()) {
            Outcome::Reply(reply) => {
                let _ = socket.send_to(&reply, source).await;
            }
            Outcome::Forward(pending) => {
                context.counts.forwarded.fetch_add(1, Ordering::Relaxed);
                let (socket, upstream) = (Arc::clone(&socket), Arc::clone(&context.upstream));
                // Bounded by the upstream: with too many under way it fails at once.
                tokio::spawn(async move {
                    let forwarded = upstream
                        .ask(pending.name.clone(), pending.record_type)
                        .await;
                    let _ = socket.send_to(&pending.finish(forwarded), source).await;
                });
            }
            Outcome::Silence(_) => {
                context.counts.malformed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, context: Arc<Context>) {
    loop {
        let Ok((stream, source)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        if !context.admits(source.ip()) {
            continue;
        }
        let Ok(slot) = Arc::clone(&context.connections).try_acquire_owned() else {
            context.counts.overload.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let Some(place) = Place::take(&context, source.ip()) else {
            continue;
        };
        tokio::spawn(async move {
            let _ = timeout(LIFE, converse(stream, &place.context)).await;
            drop((slot, place));
        });
    }
}

/// One of a client's connections.
struct Place {
    context: Arc<Context>,
    client: IpAddr,
}

impl Place {
    fn take(context: &Arc<Context>, client: IpAddr) -> Option<Self> {
        let mut clients = context
            .clients
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = clients.entry(client).or_default();
        if *count >= MAX_CONNECTIONS_OF_ONE {
            context.counts.overload.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *count += 1;
        Some(Self {
            context: Arc::clone(context),
            client,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self
            .context
            .clients
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

/// Queries one after another, each with its length in front (RFC 1035 section 4.2.2).
async fn converse(mut stream: TcpStream, context: &Context) -> io::Result<()> {
    let mut buffer = vec![0; MAX_QUERY + 1];
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        let Some(octets) = buffer.get_mut(..length) else {
            return Ok(());
        };
        timeout(IDLE, stream.read_exact(octets)).await??;
        context.counts.queries.fetch_add(1, Ordering::Relaxed);
        let outcome = handle(&context.zone.load(), octets, Transport::Tcp, entropy());
        let reply = match outcome {
            Outcome::Reply(reply) => reply,
            Outcome::Forward(pending) => {
                context.counts.forwarded.fetch_add(1, Ordering::Relaxed);
                let forwarded = context
                    .upstream
                    .ask(pending.name.clone(), pending.record_type)
                    .await;
                pending.finish(forwarded)
            }
            Outcome::Silence(_) => return Ok(()),
        };
        let Ok(length) = u16::try_from(reply.len()) else {
            return Ok(());
        };
        let framed = [&length.to_be_bytes()[..], &reply].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

impl Context {
    fn admits(&self, source: IpAddr) -> bool {
        let admitted = self.allowed.load().admits(source);
        let count = if admitted {
            &self.counts.queries
        } else {
            &self.counts.foreign
        };
        count.fetch_add(1, Ordering::Relaxed);
        admitted
    }
}
