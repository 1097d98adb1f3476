//! Queries over one stream, each with its length in front (RFC 1035 section 4.2.2).
//!
//! A client may send queries ahead of the replies. Each query is answered as soon as its answer is known, so the replies may
//! come in another order (RFC 7766 section 6.2.1.1). A query that takes the full path or is forwarded holds up no other. At most
//! [`MAX_IN_FLIGHT`] queries of a connection are in progress at once. While there are so many, or while the client has no
//! place for more, exceeds its rate or has spent its share of a core, nothing more is read from the connection. So a client
//! that asks for too much over a stream waits and loses no reply.
//!
//! Queries are forwarded in tasks of their own: other clients may wait for the answer to the same question, and they must not
//! wait for a client that does not read.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::access::Client;
use super::batch_context::{Outcome, QueryContext};
use super::full_path::{clipped, hand_over};
use super::job::{Job, Reply};
use super::limits::Share;
use super::resolver::Resolver;
use super::transport::{MAX_QUERY, Transport};

/// How long a connection may be quiet, with no query waiting for its answer (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// The most queries of one connection that are in progress: a quarter of the forwarded queries that a client may have.
const MAX_IN_FLIGHT: usize = 64;
/// How long a query without a place waits before it is tried again.
const RETRY: Duration = Duration::from_millis(5);
/// Bytes of replies that are gathered before they are written.
const GATHERED: usize = 16 * 1024;

/// How long a connection may live.
const MAX_AGE: Duration = Duration::from_secs(120);

/// One of a client's connections.
pub(super) struct ConnectionSlot {
    resolver: Arc<Resolver>,
    _share: Share,
}

impl ConnectionSlot {
    /// Takes a slot for `client`, if there is one.
    pub(super) fn take(resolver: &Arc<Resolver>, client: Client) -> Option<Self> {
        let share = resolver.admit_connection(client)?;
        Some(Self {
            resolver: Arc::clone(resolver),
            _share: share,
        })
    }

    /// Answers queries of `source` until the client closes the stream or is quiet for too long.
    pub(super) async fn converse(
        self,
        source: SocketAddr,
        stream: impl AsyncRead + AsyncWrite + Unpin,
    ) {
        // The client sees the end of the connection, and there is nobody else to tell why.
        let _ = timeout(MAX_AGE, converse(stream, source, &self.resolver)).await;
    }
}

/// Answers queries until the client closes the stream, is quiet for too long or breaks the rules.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    client: SocketAddr,
    resolver: &Arc<Resolver>,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut received = Received::default();
    let mut in_flight = FuturesUnordered::new();
    let (mut reply, mut replies) = (Vec::new(), Vec::new());
    let mut reading = true;
    let mut quiet_until = Instant::now() + IDLE;
    loop {
        let mut busy = false;
        while reading && in_flight.len() < MAX_IN_FLIGHT && replies.len() < GATHERED {
            let query = match received.next() {
                Next::Query(query) => query,
                Next::Incomplete => break,
                Next::TooLong => {
                    reading = false;
                    break;
                }
            };
            quiet_until = Instant::now() + IDLE;
            let outcome =
                QueryContext::new(resolver).answer(query, client.ip(), Transport::Tcp, &mut reply);
            match outcome {
                Outcome::Replied => put(&reply, &mut replies)?,
                Outcome::FullPath(place) => {
                    in_flight.push(answer_in_full(query, client, place, resolver));
                }
                Outcome::Busy => {
                    busy = true;
                    break;
                }
                Outcome::Silent => reading = false,
            }
            received.consume();
        }
        if !replies.is_empty() {
            timeout(IDLE, writer.write_all(&replies)).await??;
            replies.clear();
            quiet_until = Instant::now() + IDLE;
            continue;
        }
        if !reading && in_flight.is_empty() {
            return Ok(());
        }
        let may_read = reading && !busy && in_flight.len() < MAX_IN_FLIGHT;
        tokio::select! {
            Some(made) = in_flight.next() => {
                match made {
                    Ok(made) => put(&made.message, &mut replies)?,
                    // This query gets no reply.
                    Err(_) => reading = false,
                }
            }
            length = reader.read(received.room()), if may_read => {
                match length? {
                    0 => reading = false,
                    length => received.add(length),
                }
            }
            () = sleep(RETRY), if busy => {}
            () = sleep_until(quiet_until), if in_flight.is_empty() => return Ok(()),
        }
    }
}

/// Hands a query over to the full path. Returns the receiver of the reply.
fn answer_in_full(
    query: &[u8],
    source: SocketAddr,
    place: Share,
    resolver: &Arc<Resolver>,
) -> oneshot::Receiver<Reply> {
    let (sender, made) = oneshot::channel();
    // If the connection has ended, nothing receives the reply.
    let deliver = |reply| drop(sender.send(reply));
    let job = Job {
        query: clipped(query),
        source,
        transport: Transport::Tcp,
        place,
        deliver: Box::new(deliver),
    };
    hand_over(resolver, job);
    made
}

/// Adds a reply with its length in front.
fn put(reply: &[u8], replies: &mut Vec<u8>) -> io::Result<()> {
    let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
    replies.extend_from_slice(&length.to_be_bytes());
    replies.extend_from_slice(reply);
    Ok(())
}

/// Bytes that came and are not answered. There is room for one query of any length, so that a query is always complete
/// before the room is full.
struct Received {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

enum Next<'a> {
    Query(&'a [u8]),
    Incomplete,
    TooLong,
}

impl Default for Received {
    fn default() -> Self {
        Self {
            // There is room for one byte more than a query may have, so that a query of that length gets an error as its reply.
            bytes: vec![0; 2 + MAX_QUERY + 1].into(),
            start: 0,
            end: 0,
        }
    }
}

impl Received {
    /// Returns the next query without removing it.
    fn next(&self) -> Next<'_> {
        let waiting = self.bytes.get(self.start..self.end).unwrap_or_default();
        let Some(length) = waiting.first_chunk() else {
            return Next::Incomplete;
        };
        let length = usize::from(u16::from_be_bytes(*length));
        if 2 + length > self.bytes.len() {
            return Next::TooLong;
        }
        match waiting.get(2..2 + length) {
            Some(query) => Next::Query(query),
            None => Next::Incomplete,
        }
    }

    /// Removes the next query.
    fn consume(&mut self) {
        if let Next::Query(query) = self.next() {
            self.start += 2 + query.len();
        }
    }

    /// Where the next bytes go.
    fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// `length` bytes were read into the free space.
    fn add(&mut self, length: usize) {
        self.end = self.bytes.len().min(self.end + length);
    }
}

#[cfg(test)]
mod tests;
