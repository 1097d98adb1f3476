//! Answers queries that the host and its containers send through the tunnel device.
//!
//! The data threads of the tunnel call this module, so only the fast path runs here. Every query that it does not
//! answer goes to the thread of the full path. TCP segments go to a task with a small TCP stack. Both wait in queues in
//! which each client has few places.
//!
//! Only the host and its containers send queries this way. The tunnel drops packets of other nodes to the DNS address. Other
//! nodes reach this node's resolver at the node's own addresses, through sockets.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead as _, AsyncWrite as _, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

use super::batch_context::{Outcome, QueryContext};
use super::drop_reason::DropReason;
use super::full_path::{self, clipped, hand_over};
use super::job::{Job, Reply};
use super::limits::{Pool, Share};
use super::resolver::Resolver;
use super::tcp::ConnectionSlot;
use super::transport::Transport;
use crate::model::MeshAddresses;
use crate::model::address::Block;
use crate::os::random;
use crate::os::tasks::{AbortOnDrop, Tasks};
use stack::{ConnectionId, Stack};

mod stack;

/// The port of DNS.
const PORT: u16 = 53;
/// The most bytes of a packet with a segment. The stack announces a smaller maximum segment size. The queue is bounded by the
/// number of segments only, so this bounds its memory.
const MAX_SEGMENT: usize = 2048;
/// The bytes that may wait between a connection and the task that answers it, in each direction.
const PIPE: usize = 8 * 1024;
/// A size in bytes that is enough for most replies.
const REPLY: usize = 256;
/// The maximum number of segments that are processed before segments are sent.
const BATCH: usize = 64;

/// Sends packets to the host through the tunnel device.
pub trait Device: Send + Sync + 'static {
    /// Sends a datagram.
    fn datagram(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]);
    /// Sends a whole packet.
    fn packet(&self, packet: &[u8]);
}

/// The result of a datagram or a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handled {
    /// This is the reply.
    Reply(Vec<u8>),
    /// The reply will be sent through the [`Device`].
    Later,
    /// There will be no reply.
    Refused,
    /// Too many queries or segments wait already.
    Overload,
}

/// A segment that waits for the stack.
struct Segment {
    packet: Vec<u8>,
    share: Share,
}

/// Answers at the DNS addresses of the mesh.
pub struct TunnelDns {
    resolver: Arc<Resolver>,
    mesh: MeshAddresses,
    block: Block,
    device: Arc<dyn Device>,
    segments: mpsc::Sender<Segment>,
    _task: AbortOnDrop,
}

impl TunnelDns {
    /// Starts to answer for the node of `block`. This has to be called inside the runtime.
    #[must_use]
    pub fn start(
        resolver: Arc<Resolver>,
        mesh: MeshAddresses,
        block: Block,
        device: Arc<dyn Device>,
    ) -> Self {
        full_path::start(&resolver);
        let (segments, received) = mpsc::channel(Pool::Segments.size());
        let streams = Streams {
            stack: Stack::new(
                &Self::addresses(&mesh),
                PORT,
                random::u64().unwrap_or_default(),
                Instant::now(),
            ),
            conversations: Vec::new(),
            resolver: Arc::clone(&resolver),
            device: Arc::clone(&device),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        };
        let task = Tasks::current().spawn_finite("TCP at the DNS address", streams.run(received));
        Self {
            resolver,
            mesh,
            block,
            device,
            segments,
            _task: task.abort_on_drop(),
        }
    }

    /// Returns the DNS addresses, which are the same on every node.
    #[must_use]
    pub fn addresses(mesh: &MeshAddresses) -> [IpAddr; 2] {
        [mesh.dns_v4().into(), mesh.dns_v6().into()]
    }

    /// Returns the addresses and the port at which it answers.
    #[must_use]
    pub fn listen(&self) -> [SocketAddr; 2] {
        Self::addresses(&self.mesh).map(|ip| SocketAddr::new(ip, PORT))
    }

    /// Handles a datagram without waiting.
    #[must_use]
    pub fn datagram(&self, client: SocketAddr, server: SocketAddr, payload: &[u8]) -> Handled {
        if server.port() != PORT || client.port() == 0 || self.is_forged(client.ip()) {
            return Handled::Refused;
        }
        let mut reply = Vec::with_capacity(REPLY);
        let outcome = QueryContext::new(&self.resolver).answer(
            payload,
            client.ip(),
            Transport::Udp,
            &mut reply,
        );
        match outcome {
            Outcome::Replied => Handled::Reply(reply),
            Outcome::Silent => Handled::Refused,
            Outcome::Busy => Handled::Overload,
            Outcome::FullPath(place) => {
                let device = Arc::clone(&self.device);
                let deliver = move |reply: Reply| device.datagram(server, client, &reply.message);
                let job = Job {
                    query: clipped(payload),
                    source: client,
                    transport: Transport::Udp,
                    place,
                    deliver: Box::new(deliver),
                };
                hand_over(&self.resolver, job);
                Handled::Later
            }
        }
    }

    /// Handles a packet that contains a TCP segment, without waiting.
    #[must_use]
    pub fn segment(&self, source: IpAddr, packet: &[u8]) -> Handled {
        if self.is_forged(source) || packet.len() > MAX_SEGMENT {
            return Handled::Refused;
        }
        let Some(client) = self.resolver.admits(source) else {
            return Handled::Refused;
        };
        let Some(share) = self.resolver.admit_segment(client) else {
            return Handled::Overload;
        };
        let segment = Segment {
            packet: packet.to_vec(),
            share,
        };
        match self.segments.try_send(segment) {
            Ok(()) => Handled::Later,
            Err(_) => {
                self.resolver.counts().drop(DropReason::Queue);
                Handled::Overload
            }
        }
    }

    /// Returns whether the source of a packet is forged. Packets from the device are from the host and its containers.
    /// The host may also forward the packet of a neighbour, whose source is in the neighbour's own network. So of the
    /// addresses of the mesh only those of this node can be a source.
    fn is_forged(&self, client: IpAddr) -> bool {
        self.mesh.contains(client) && !self.block.contains(client)
    }
}

impl std::fmt::Debug for TunnelDns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelDns")
            .field("listen", &self.listen())
            .finish_non_exhaustive()
    }
}

/// Carries bytes between the stack's connections and the tasks that answer them.
struct Streams {
    stack: Stack,
    conversations: Vec<Conversation>,
    resolver: Arc<Resolver>,
    device: Arc<dyn Device>,
    timer: Pin<Box<tokio::time::Sleep>>,
}

/// A connection, and the pipe to the task that answers it.
struct Conversation {
    id: ConnectionId,
    pipe: DuplexStream,
    /// Everything that the client will send has been written to the pipe.
    read: bool,
    /// Everything that will be sent to the client has been read from the pipe.
    written: bool,
}

impl Streams {
    async fn run(mut self, mut segments: mpsc::Receiver<Segment>) {
        poll_fn(|task| self.poll(&mut segments, task)).await;
    }

    /// Is ready when the sender of the segments is dropped.
    fn poll(&mut self, segments: &mut mpsc::Receiver<Segment>, task: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut progress = false;
            for _ in 0..BATCH {
                match segments.poll_recv(task) {
                    Poll::Ready(Some(segment)) => self.take_in(segment),
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
                progress = true;
            }
            for conversation in &mut self.conversations {
                progress |= conversation.poll(&mut self.stack, task);
            }
            let stack = &mut self.stack;
            self.conversations
                .retain(|c| !c.written && !stack.is_over(c.id));
            let now = Instant::now();
            for packet in self.stack.poll(now) {
                self.device.packet(&packet);
            }
            self.stack.sweep(now);
            if progress {
                continue;
            }
            let Some(wait) = self.stack.wait(now) else {
                return Poll::Pending;
            };
            self.timer.as_mut().reset((now + wait).into());
            if std::future::Future::poll(self.timer.as_mut(), task).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn take_in(&mut self, segment: Segment) {
        let Segment { packet, share } = segment;
        let client = share.client();
        let Some((id, source)) = self.stack.handle_segment(packet, client, Instant::now()) else {
            return;
        };
        let Some(slot) = ConnectionSlot::take(&self.resolver, client) else {
            return self.stack.close(id, Instant::now());
        };
        let (pipe, end) = tokio::io::duplex(PIPE);
        Tasks::current().spawn_child("a DNS connection", slot.converse(source, end));
        self.conversations.push(Conversation {
            id,
            pipe,
            read: false,
            written: false,
        });
    }
}

impl Conversation {
    /// Moves as many bytes as possible, and returns whether there was any progress.
    fn poll(&mut self, stack: &mut Stack, task: &mut Context<'_>) -> bool {
        let mut progress = false;
        while !self.read {
            let received = stack.received(self.id);
            if received.is_empty() {
                if !stack.is_read(self.id) {
                    break;
                }
                // A pipe closes without waiting.
                let _ = Pin::new(&mut self.pipe).poll_shutdown(task);
                self.read = true;
            } else {
                match Pin::new(&mut self.pipe).poll_write(task, received) {
                    Poll::Ready(Ok(bytes)) => stack.consume(self.id, bytes),
                    // The task that answers has ended, so no more queries are needed.
                    Poll::Ready(Err(_)) => self.read = true,
                    Poll::Pending => break,
                }
            }
            progress = true;
        }
        let mut bytes = [0; 2048];
        while !self.written {
            let room = stack.room(self.id).min(bytes.len());
            let mut buffer = ReadBuf::new(&mut bytes[..room]);
            if room == 0 {
                break;
            }
            match Pin::new(&mut self.pipe).poll_read(task, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    stack.send(self.id, buffer.filled());
                }
                Poll::Ready(_) => {
                    stack.close(self.id, Instant::now());
                    self.written = true;
                }
                Poll::Pending => break,
            }
            progress = true;
        }
        progress
    }
}
