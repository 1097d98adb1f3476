//! Answers queries that come inside the tunnel device.
//!
//! The data threads of the tunnel call this module, so only the fast path runs here: a query for anything but a plain name
//! with few instances goes to the thread of the full path. TCP segments go to a task with a small TCP stack. Both wait in
//! queues in which each client has few places.
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
use tokio::task::JoinHandle;

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
use stack::{ConnectionId, Stack};

mod stack;

/// The port of DNS.
const PORT: u16 = 53;
/// The most bytes of a packet with a segment. The stack announces a smaller maximum segment size. The queue is bounded by the
/// number of segments only, so this bounds its memory.
const MAX_SEGMENT: usize = 2048;
/// Octets between a connection and who answers it, in each direction.
const PIPE: usize = 8 * 1024;
/// Octets that most replies fit.
const REPLY: usize = 256;
/// Segments taken in before those that are due go out.
const BATCH: usize = 64;

/// The way back into the device.
pub trait Device: Send + Sync + 'static {
    /// Sends a datagram.
    fn datagram(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]);
    /// Sends a whole packet.
    fn packet(&self, packet: &[u8]);
}

/// What became of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handled {
    /// This is the reply.
    Reply(Vec<u8>),
    /// The reply comes by the [`Device`].
    Later,
    /// There will be none.
    Refused,
    /// Too many wait already.
    Overload,
}

/// A segment that waits for the stack.
struct Segment {
    packet: Vec<u8>,
    share: Share,
}

/// The mesh's DNS addresses, answered.
pub struct TunnelDns {
    resolver: Arc<Resolver>,
    mesh: MeshAddresses,
    block: Block,
    device: Arc<dyn Device>,
    segments: mpsc::Sender<Segment>,
    task: JoinHandle<()>,
}

impl TunnelDns {
    /// Begins to answer for the node of `block`. To be called inside the runtime.
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
                getrandom::u64().unwrap_or_default(),
                Instant::now(),
            ),
            conversations: Vec::new(),
            resolver: Arc::clone(&resolver),
            device: Arc::clone(&device),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        };
        let task = tokio::spawn(streams.run(received));
        Self {
            resolver,
            mesh,
            block,
            device,
            segments,
            task,
        }
    }

    /// The addresses answered: the same on every node.
    #[must_use]
    pub fn addresses(mesh: &MeshAddresses) -> [IpAddr; 2] {
        [mesh.dns_v4().into(), mesh.dns_v6().into()]
    }

    /// Where it answers.
    #[must_use]
    pub fn listen(&self) -> [SocketAddr; 2] {
        Self::addresses(&self.mesh).map(|ip| SocketAddr::new(ip, PORT))
    }

    /// Deals with a datagram, without waiting.
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

    /// Deals with a packet that holds a TCP segment, without waiting.
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

    /// What comes out of the device is the host's and its containers'. A neighbour's packet that the host forwards has
    /// a source of its own network, or a forged one: of the mesh's, only this node's may be right.
    fn is_forged(&self, client: IpAddr) -> bool {
        self.mesh.contains(client) && !self.block.contains(client)
    }
}

impl Drop for TunnelDns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for TunnelDns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelDns")
            .field("listen", &self.listen())
            .finish_non_exhaustive()
    }
}

/// Carries octets between the stack's connections and the tasks that answer them.
struct Streams {
    stack: Stack,
    conversations: Vec<Conversation>,
    resolver: Arc<Resolver>,
    device: Arc<dyn Device>,
    timer: Pin<Box<tokio::time::Sleep>>,
}

/// A connection, and the pipe to who answers it.
struct Conversation {
    id: ConnectionId,
    pipe: DuplexStream,
    /// All that the client will send has gone into the pipe.
    read: bool,
    /// All that will be sent to the client has come out of it.
    written: bool,
}

impl Streams {
    async fn run(mut self, mut segments: mpsc::Receiver<Segment>) {
        poll_fn(|task| self.poll(&mut segments, task)).await;
    }

    /// Ready once nobody sends segments any more.
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
        tokio::spawn(slot.converse(source, end));
        self.conversations.push(Conversation {
            id,
            pipe,
            read: false,
            written: false,
        });
    }
}

impl Conversation {
    /// Moves what can be moved; gives whether that was anything.
    fn poll(&mut self, stack: &mut Stack, task: &mut Context<'_>) -> bool {
        let mut progress = false;
        while !self.read {
            let received = stack.received(self.id);
            if received.is_empty() {
                if !stack.is_read(self.id) {
                    break;
                }
                // A pipe always closes at once.
                let _ = Pin::new(&mut self.pipe).poll_shutdown(task);
                self.read = true;
            } else {
                match Pin::new(&mut self.pipe).poll_write(task, received) {
                    Poll::Ready(Ok(octets)) => stack.consume(self.id, octets),
                    // Whoever answers has hung up: nothing more is wanted.
                    Poll::Ready(Err(_)) => self.read = true,
                    Poll::Pending => break,
                }
            }
            progress = true;
        }
        let mut octets = [0; 2048];
        while !self.written {
            let room = stack.room(self.id).min(octets.len());
            let mut buffer = ReadBuf::new(&mut octets[..room]);
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
