//! Datagrams by the batch: threads with a socket each, which answer names of the mesh themselves and leave the rest to
//! others.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use super::message::{MAX_QUERY, Transport};
use super::resolver::{Dealt, Forwarding, Resolver};

/// Datagrams received and sent at once at most.
const BATCH: usize = 64;
/// Octets asked for as a socket's buffers: what comes while all cores are busy elsewhere for some milliseconds.
const SOCKET_BUFFER: usize = 1024 * 1024;
/// Sockets of one address at most, however many cores there are.
const MAX_SOCKETS: usize = 4;
/// Cores for each socket of an address: the clients and the tunnel want some too, and the fewer threads the datagrams are
/// spread over, the more of them come at once.
const CORES_A_SOCKET: usize = 2;
/// How long a thread rests when the system refuses to receive.
const REST: Duration = Duration::from_millis(20);

/// A query that is forwarded, and where its reply goes.
pub(super) struct Waiting {
    forwarding: Forwarding,
    client: SocketAddr,
    socket: Arc<Socket>,
}

impl Waiting {
    /// Waits for the upstreams and replies.
    pub(super) async fn finish(self, resolver: Arc<Resolver>) {
        let reply = resolver.forward(self.forwarding).await;
        // A full socket buffer loses datagrams as the network does; the client asks again.
        let _ = self
            .socket
            .send_to_with_flags(&reply, &self.client.into(), libc::MSG_DONTWAIT);
    }
}

/// The threads that answer at one address. Dropping it ends them.
pub(super) struct Datagrams {
    stopped: Arc<AtomicBool>,
    threads: Vec<(Arc<Socket>, JoinHandle<()>)>,
}

impl Datagrams {
    /// Begins to answer at `address`; what must be forwarded goes to `forwards`, or is lost if that is full.
    pub(super) fn start(
        address: SocketAddr,
        resolver: &Arc<Resolver>,
        forwards: &mpsc::Sender<Waiting>,
    ) -> io::Result<Self> {
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
            let (resolver, forwards) = (Arc::clone(resolver), forwards.clone());
            let thread = std::thread::Builder::new()
                .name("dns".into())
                .spawn(move || serve(&own, &resolver, &forwards, &stopped))?;
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

fn serve(
    socket: &Arc<Socket>,
    resolver: &Arc<Resolver>,
    forwards: &mpsc::Sender<Waiting>,
    stopped: &AtomicBool,
) {
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
        let mut sitting = resolver.sit();
        for index in 0..count {
            let Some((query, client, reply)) = batch.at(index) else {
                continue;
            };
            let Some(client) = client.filter(|c| c.port() != 0) else {
                continue;
            };
            match sitting.answer(query, client.ip(), Transport::Udp, reply) {
                Dealt::Replied | Dealt::Silent => {}
                Dealt::Forward(forwarding) => {
                    let socket = Arc::clone(socket);
                    let waiting = Waiting {
                        forwarding: *forwarding,
                        client,
                        socket,
                    };
                    if forwards.try_send(waiting).is_err() {
                        resolver.count_queue();
                    }
                }
            }
        }
        drop(sitting);
        batch.send(socket, count);
    }
}

/// Room for a batch. The addresses of buffers in it are handed to the system once and do not change: nothing in it is
/// ever moved or grown but the replies, of which the addresses are taken anew for each batch.
struct Batch {
    queries: Vec<[u8; MAX_QUERY + 1]>,
    replies: Vec<Vec<u8>>,
    names: Vec<libc::sockaddr_storage>,
    receive_slices: Vec<libc::iovec>,
    receive: Vec<libc::mmsghdr>,
    send_slices: Vec<libc::iovec>,
    send: Vec<libc::mmsghdr>,
}

impl Batch {
    fn new() -> Self {
        // SAFETY: all of these are plain data for which zeros are values.
        let (name, header, slice) = unsafe {
            (
                std::mem::zeroed::<libc::sockaddr_storage>(),
                std::mem::zeroed::<libc::mmsghdr>(),
                std::mem::zeroed::<libc::iovec>(),
            )
        };
        let mut batch = Self {
            queries: vec![[0; MAX_QUERY + 1]; BATCH],
            replies: (0..BATCH).map(|_| Vec::with_capacity(512)).collect(),
            names: vec![name; BATCH],
            receive_slices: vec![slice; BATCH],
            receive: vec![header; BATCH],
            send_slices: vec![slice; BATCH],
            send: vec![header; BATCH],
        };
        let slices = batch.receive_slices.iter_mut().zip(&mut batch.queries);
        let headers = batch.receive.iter_mut().zip(&mut batch.names);
        for ((slice, query), (header, name)) in slices.zip(headers) {
            slice.iov_base = query.as_mut_ptr().cast();
            slice.iov_len = query.len();
            header.msg_hdr.msg_iov = std::ptr::from_mut(slice);
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = NAME_LENGTH;
        }
        batch
    }

    /// Waits for a datagram and takes those that are there.
    fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        for reply in &mut self.replies {
            reply.clear();
        }
        // SAFETY: each header points to a slice and a name, and each slice to a query, all of this batch, which are not
        // moved and not used by anybody else meanwhile, with their true lengths.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.receive.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// A datagram received, who sent it, and room for the reply.
    fn at(&mut self, index: usize) -> Option<(&[u8], Option<SocketAddr>, &mut Vec<u8>)> {
        let header = self.receive.get_mut(index)?;
        header.msg_hdr.msg_namelen = NAME_LENGTH;
        let query = self.queries.get(index)?.get(..header.msg_len as usize)?;
        let client = address(self.names.get(index)?);
        Some((query, client, self.replies.get_mut(index)?))
    }

    /// Sends the replies to the first `count` datagrams, each to where its query came from.
    fn send(&mut self, socket: &Socket, count: usize) {
        let mut filled = 0;
        for (reply, name) in self.replies.iter_mut().zip(&mut self.names).take(count) {
            if reply.is_empty() {
                continue;
            }
            let (Some(slice), Some(header)) =
                (self.send_slices.get_mut(filled), self.send.get_mut(filled))
            else {
                break;
            };
            slice.iov_base = reply.as_mut_ptr().cast();
            slice.iov_len = reply.len();
            header.msg_hdr.msg_iov = std::ptr::from_mut(slice);
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = match i32::from(name.ss_family) {
                libc::AF_INET => size_of::<libc::sockaddr_in>() as libc::socklen_t,
                _ => size_of::<libc::sockaddr_in6>() as libc::socklen_t,
            };
            filled += 1;
        }
        let mut from = 0;
        while let Some(rest) = self.send.get_mut(from..filled).filter(|r| !r.is_empty()) {
            // SAFETY: each of these headers was pointed above to a slice, a name and a reply of this batch, which have
            // not been touched since, with their true lengths.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as u32,
                    libc::MSG_DONTWAIT,
                )
            };
            // One that cannot be sent, to a client that is gone, say, must not keep the others back.
            from += usize::try_from(sent).unwrap_or(1).max(1);
        }
    }
}

const NAME_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: of this family the storage holds this structure, and is large and aligned enough for all.
            let v4 = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = u32::from_be(v4.sin_addr.s_addr).into();
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let port = u16::from_be(v6.sin6_port);
            let ip = v6.sin6_addr.s6_addr.into();
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}
