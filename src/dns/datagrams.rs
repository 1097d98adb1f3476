//! Datagrams by the batch: threads with a socket each, which answer names of the mesh themselves and leave the rest to
//! others.

mod batch;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use self::batch::Batch;
use super::batch_context::{Outcome, QueryContext};
use super::full_path::{clipped, hand_over};
use super::job::{Job, Reply};
use super::resolver::Resolver;
use super::transport::Transport;

/// Octets asked for as a socket's buffers: what comes while all cores are busy elsewhere for some milliseconds.
const SOCKET_BUFFER: usize = 1024 * 1024;
/// Sockets of one address at most, however many cores there are.
const MAX_SOCKETS: usize = 4;
/// Cores for each socket of an address: the clients and the tunnel want some too, and the fewer threads the datagrams are
/// spread over, the more of them come at once.
const CORES_A_SOCKET: usize = 2;
/// How long a thread rests when the system refuses to receive.
const REST: Duration = Duration::from_millis(20);

/// The threads that answer at one address. Dropping it ends them.
pub(super) struct Datagrams {
    stopped: Arc<AtomicBool>,
    threads: Vec<(Arc<Socket>, JoinHandle<()>)>,
}

impl Datagrams {
    /// Begins to answer at `address`.
    pub(super) fn start(address: SocketAddr, resolver: &Arc<Resolver>) -> io::Result<Self> {
        // A port that others share among themselves could be shared unnoticed: so it is first taken alone.
        open(address, false)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let stopped = Arc::new(AtomicBool::new(false));
        let mut datagrams = Self {
            stopped: Arc::clone(&stopped),
            threads: Vec::new(),
        };
        for _ in 0..(cores / CORES_A_SOCKET).clamp(1, MAX_SOCKETS) {
            let socket = Arc::new(open(address, true)?);
            let (own, stopped) = (Arc::clone(&socket), Arc::clone(&stopped));
            let resolver = Arc::clone(resolver);
            let thread = std::thread::Builder::new()
                .name("dns".into())
                .spawn(move || serve(&own, &resolver, &stopped))?;
            datagrams.threads.push((socket, thread));
        }
        Ok(datagrams)
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        for (socket, _) in &self.threads {
            // It says that the socket is not connected, and wakes who waits in it all the same.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        for (_, thread) in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Listens for connections.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(shared)?;
    // The system gives what it will.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket)
}

fn serve(socket: &Arc<Socket>, resolver: &Arc<Resolver>, stopped: &AtomicBool) {
    let mut batch = Batch::new();
    while !stopped.load(Ordering::Acquire) {
        let count = match batch.receive(socket) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::debug!(%error, "cannot receive queries");
                std::thread::sleep(REST);
                continue;
            }
        };
        if stopped.load(Ordering::Acquire) {
            return;
        }
        let mut context = QueryContext::new(resolver);
        for index in 0..count {
            let Some((query, client, reply)) = batch.at(index) else {
                continue;
            };
            let Some(client) = client.filter(|c| c.port() != 0) else {
                continue;
            };
            match context.answer(query, client.ip(), Transport::Udp, reply) {
                Outcome::Replied | Outcome::Silent | Outcome::Busy => {}
                Outcome::FullPath(place) => {
                    let socket = Arc::clone(socket);
                    let deliver = move |reply: Reply| {
                        // A full socket buffer loses datagrams as the network does; the client asks again.
                        let flags = libc::MSG_DONTWAIT;
                        let _ = socket.send_to_with_flags(&reply.message, &client.into(), flags);
                    };
                    let job = Job {
                        query: clipped(query),
                        source: client,
                        transport: Transport::Udp,
                        place,
                        deliver: Box::new(deliver),
                    };
                    hand_over(resolver, job);
                }
            }
        }
        drop(context);
        batch.send(socket, count);
    }
}
