//! The sockets that hickory uses for the upstreams.
//!
//! They differ from hickory's own in two points. A datagram socket is connected, so the system reports at once that nothing
//! listens at the upstream, and drops datagrams of others. A TCP stream reserves memory in the limits before hickory reads a
//! large response: a record takes some hundred bytes when it is parsed, and eleven in a message.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::io::{AsyncRead, AsyncWrite};
use hickory_proto::op::Message;
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{
    DnsTcpStream, DnsUdpSocket, RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime,
};
use tokio::io::ReadBuf;
use tokio::net::{TcpStream, UdpSocket};

use super::super::limits::Share;
use super::Asker;
use super::exchange::refuses_edns;

/// The most bytes of memory that a response may take without a reservation: about as much as one in a datagram.
const SMALL: usize = 4096;
/// The bytes of memory that a record takes when it is parsed, beside its bytes in the message. It is held twice: by the flight,
/// and by the client that gets the answer.
const RECORD: usize = 640;
/// The fewest bytes that a record has in a message: a name of one byte, the type, the class, the TTL and a length of zero.
const LEAST_RECORD: usize = 11;
const HEADER: usize = 12;
/// The length in front of a message over a stream (RFC 1035 section 4.2.2).
const LENGTH: usize = 2;

/// Opens the sockets. The tasks of its connections end when the last clone is dropped.
#[derive(Clone, Default)]
pub(super) struct Sockets {
    tasks: TokioRuntimeProvider,
    asker: Option<Asker>,
    reserved: Arc<Mutex<Option<Share>>>,
}

impl Sockets {
    /// Makes sockets for one request. `asker` pays for the memory of the response.
    pub(super) fn for_asker(asker: Option<Asker>) -> Self {
        Self {
            asker,
            ..Self::default()
        }
    }

    /// Takes the memory that was reserved for the response.
    pub(super) fn take_reserved(&self) -> Option<Share> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.take()
    }
}

impl Asker {
    /// Reserves memory in the pool that bounds the large answers in progress, if `bytes` are many.
    pub(super) fn reserve(&self, bytes: usize) -> io::Result<Option<Share>> {
        if bytes <= SMALL {
            return Ok(None);
        }
        // There is no memory for this client, which says nothing about the upstream.
        let full = || io::Error::from_raw_os_error(libc::ENOMEM);
        Ok(Some(self.hold(bytes).ok_or_else(full)?))
    }
}

/// Returns the bytes of memory that a message takes, at most.
pub(super) fn size_of(message: &[u8]) -> usize {
    let header = message.first_chunk().map_or(0, records);
    size(message.len(), header)
}

fn size(length: usize, records: usize) -> usize {
    length + records.min(length / LEAST_RECORD) * RECORD
}

/// Returns the number of records that the header of a message states.
fn records(header: &[u8; HEADER]) -> usize {
    let [.., a, b, c, d, e, f] = *header;
    let counts = [[a, b], [c, d], [e, f]];
    counts
        .map(|n| usize::from(u16::from_be_bytes(n)))
        .iter()
        .sum()
}

impl RuntimeProvider for Sockets {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = Datagrams;
    type Tcp = Stream;

    fn create_handle(&self) -> TokioHandle {
        self.tasks.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Stream>>>> {
        let connect = self.tasks.connect_tcp(server, local, timeout);
        let (asker, reserved) = (self.asker.clone(), Arc::clone(&self.reserved));
        Box::pin(async move {
            Ok(Stream {
                inner: connect.await?,
                start: Vec::new(),
                asker,
                reserved,
            })
        })
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Datagrams>>>> {
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            socket.connect(server).await?;
            Ok(Datagrams {
                socket,
                server,
                sent: AtomicU32::new(u32::MAX),
            })
        })
    }
}

/// A datagram socket for one request to one upstream.
pub(super) struct Datagrams {
    socket: UdpSocket,
    server: SocketAddr,
    /// The ID of the request, once it is sent.
    sent: AtomicU32,
}

impl DnsUdpSocket for Datagrams {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(self.socket.poll_recv(context, &mut buffer))?;
        let message = buffer.filled();
        if QuestionMissing::is_in(message, self.sent.load(Ordering::Relaxed)) {
            return Poll::Ready(Err(io::Error::other(QuestionMissing)));
        }
        Poll::Ready(Ok((message.len(), self.server)))
    }

    fn poll_send_to(
        &self,
        context: &mut Context<'_>,
        message: &[u8],
        _: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        if let Some(id) = message.first_chunk() {
            let id = u16::from_be_bytes(*id);
            self.sent.store(id.into(), Ordering::Relaxed);
        }
        self.socket.poll_send(context, message)
    }
}

/// An old server refuses EDNS without repeating the question, which it cannot parse. hickory ignores such a response.
#[derive(Debug, thiserror::Error)]
#[error("the upstream refuses EDNS")]
pub(super) struct QuestionMissing;

impl QuestionMissing {
    /// Returns whether `message` is such a response to the request `id`.
    fn is_in(message: &[u8], id: u32) -> bool {
        let [a, b, flags, _, 0, 0, ..] = *message else {
            return false;
        };
        u32::from(u16::from_be_bytes([a, b])) == id
            && flags & 0x80 != 0
            && Message::from_vec(message).is_ok_and(|message| refuses_edns(&message))
    }

    /// Returns whether `error` is this one.
    pub(super) fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// A stream to an upstream, over which one response is read.
pub(super) struct Stream {
    inner: AsyncIoTokioAsStd<TcpStream>,
    /// The length of the response and its header, as far as they are read.
    start: Vec<u8>,
    asker: Option<Asker>,
    reserved: Arc<Mutex<Option<Share>>>,
}

impl Stream {
    /// Reserves memory for the response, once its length and its header are read.
    fn reserve(&self, asker: &Asker) -> io::Result<()> {
        let Some(([a, b], header)) = self.start.split_first_chunk::<LENGTH>() else {
            return Ok(());
        };
        let Some(header) = header.first_chunk() else {
            return Ok(());
        };
        let length = u16::from_be_bytes([*a, *b]).into();
        let share = asker.reserve(size(length, records(header)))?;
        *self.reserved.lock().unwrap_or_else(PoisonError::into_inner) = share;
        Ok(())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let missing = (LENGTH + HEADER).saturating_sub(self.start.len());
        let Some(asker) = self.asker.clone().filter(|_| missing > 0) else {
            return Pin::new(&mut self.inner).poll_read(context, buffer);
        };
        let most = buffer.len().min(missing);
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        let length = ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.start.extend(buffer.iter().take(length));
        self.reserve(&asker)?;
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

impl DnsTcpStream for Stream {
    type Time = TokioTime;
}
