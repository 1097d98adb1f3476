//! Threads that receive and send datagrams in batches. Each thread has a socket of its own. It answers queries by the fast path and
//! hands all others over to the full path.

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

/// The size of a socket's buffers in bytes. They hold what arrives while all cores are busy for some milliseconds.
const SOCKET_BUFFER: usize = 1024 * 1024;
/// The maximum number of sockets of one address.
const MAX_SOCKETS: usize = 4;
/// The number of cores for each socket of an address. The clients and the tunnel need cores too, and with fewer threads a batch has
/// more datagrams.
const CORES_A_SOCKET: usize = 2;
/// The number of connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// The wait after an error of the system before the next attempt to receive.
const RECEIVE_RETRY: Duration = Duration::from_millis(20);

/// The threads that answer at one address. Dropping this ends them.
pub(super) struct Datagrams {
    stopped: Arc<AtomicBool>,
    threads: Vec<(Arc<Socket>, JoinHandle<()>)>,
}

impl Datagrams {
    /// Starts to answer at `address`.
    pub(super) fn start(address: SocketAddr, resolver: &Arc<Resolver>) -> io::Result<Self> {
        // With SO_REUSEPORT a bind succeeds even if another program listens there. A bind without it shows that none does.
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
            // The call fails because the socket is not connected, but it wakes a thread that waits in it.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        for (_, thread) in self.threads.drain(..) {
            // A panic of the thread has been written to the log.
            let _ = thread.join();
        }
    }
}

/// Opens a listener for connections.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        // A socket of both families would take the port from a listener at 0.0.0.0.
        socket.set_only_v6(true)?;
    }
    // After a restart, connections of the previous process may not have ended.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
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
    // The system may limit the size.
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
                std::thread::sleep(RECEIVE_RETRY);
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
                        // If the buffer of the socket is full, the datagram is lost, and the client asks again.
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

    use super::*;

    #[test]
    fn listeners_at_all_addresses_of_each_family_share_a_port() {
        if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
            return crate::testbed::skip_test("there is no IPv6");
        }
        // Another process may have one of the ports already.
        let shared = (0..8).any(|_| {
            let v6 = listen((Ipv6Addr::UNSPECIFIED, 0).into()).expect("a listener");
            let port = v6.local_addr().expect("a bound socket").port();
            listen((Ipv4Addr::UNSPECIFIED, port).into()).is_ok()
        });
        assert!(shared, "no port is free for the other family");
    }
}
