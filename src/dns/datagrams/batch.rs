//! Queries received together, and the replies to them sent together.

use std::io::{self, IoSlice};
use std::net::SocketAddr;

use socket2::Socket;

use crate::dns::transport::MAX_QUERY;
use crate::os::batch::{self, Message, Mode, Receiver, WithAncillary};

/// The maximum number of datagrams received or sent at once. It is also how many the kernel accepts as one
/// (UDP_MAX_SEGMENTS).
const BATCH: usize = batch::MAX_MESSAGES;
/// The maximum size of a run of replies in bytes, so that it is a datagram of IPv4 or IPv6 whatever its headers.
const MAX_RUN: usize = 60_000;

/// The queries of one batch and the replies to them.
pub(super) struct Batch {
    queries: Receiver,
    replies: Vec<Vec<u8>>,
    /// The replies to send: the client, the length and the index of each.
    order: Vec<(SocketAddr, usize, usize)>,
    runs: Vec<Run>,
    /// Whether the kernel accepts several datagrams as one.
    merges: bool,
}

/// Replies of one length to one client, which lie next to each other in the order.
#[derive(Debug, Clone, Copy)]
struct Run {
    client: SocketAddr,
    length: usize,
    start: usize,
    count: usize,
}

impl Run {
    /// The message with these replies, given the replies in their order.
    fn message<'a>(&self, replies: &'a [IoSlice<'a>]) -> Message<'a> {
        let end = self.start + self.count;
        Message {
            to: self.client,
            source: None,
            segment: u16::try_from(self.length).ok().filter(|_| self.count > 1),
            parts: replies.get(self.start..end).unwrap_or_default(),
        }
    }
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            queries: Receiver::new(BATCH, MAX_QUERY + 1, WithAncillary::No),
            replies: (0..BATCH).map(|_| Vec::with_capacity(512)).collect(),
            order: Vec::with_capacity(BATCH),
            runs: Vec::with_capacity(BATCH),
            merges: true,
        }
    }

    /// Waits for a datagram, receives all that are there, and returns how many there are.
    pub(super) fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        for reply in &mut self.replies {
            reply.clear();
        }
        self.queries.receive(socket, Mode::Blocking)
    }

    /// A datagram that was received, its sender, and the space for the reply.
    pub(super) fn at(&mut self, index: usize) -> Option<(&[u8], Option<SocketAddr>, &mut Vec<u8>)> {
        let query = self.queries.datagram(index)?;
        Some((query.bytes, query.from, self.replies.get_mut(index)?))
    }

    /// Sends the replies to the first `count` datagrams, each to the sender of its query. Replies of one length to one
    /// client go to the kernel as one message (UDP_SEGMENT, udp(7)), since the way through the kernel is most of the cost
    /// of a reply.
    pub(super) fn send(&mut self, socket: &Socket, count: usize) {
        self.gather(count);
        let mut replies = [IoSlice::new(&[]); BATCH];
        for (slice, (.., index)) in replies.iter_mut().zip(&self.order) {
            *slice = IoSlice::new(self.replies.get(*index).map_or(&[], Vec::as_slice));
        }
        let mut rest = self.runs.as_slice();
        while let Some(first) = rest.first() {
            let messages = rest.iter().map(|run| run.message(&replies));
            let done = match batch::send(socket, messages, Mode::NonBlocking) {
                Ok(sent) => sent,
                // A reply that cannot be sent, for example because its client is gone, must not delay the others.
                Err(_) if first.count == 1 => 1,
                Err(error) => {
                    // The device on the way cannot compute checksums, for example, or the kernel knows no UDP_SEGMENT.
                    let refused = matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL));
                    self.merges &= !refused;
                    send_singly(socket, &first.message(&replies));
                    1
                }
            };
            rest = rest.get(done..).unwrap_or_default();
        }
    }

    /// Sorts the replies to the first `count` datagrams into runs.
    fn gather(&mut self, count: usize) {
        self.order.clear();
        for (index, reply) in self.replies.iter().enumerate().take(count) {
            let client = self.queries.datagram(index).and_then(|query| query.from);
            if let Some(client) = client.filter(|_| !reply.is_empty()) {
                self.order.push((client, reply.len(), index));
            }
        }
        self.order.sort_unstable();
        self.runs.clear();
        let mut start = 0;
        while let Some((client, length, _)) = self.order.get(start) {
            let most = if self.merges { MAX_RUN / length } else { 1 };
            let same =
                |(other, of, _): &&(SocketAddr, usize, usize)| other == client && of == length;
            let rest = self.order.iter().skip(start).take(most.max(1));
            let count = rest.take_while(same).count();
            self.runs.push(Run {
                client: *client,
                length: *length,
                start,
                count,
            });
            start += count;
        }
    }
}

/// Sends the replies of a run that the kernel does not accept as one message. A reply that cannot be sent is lost, as it may
/// be in the network.
fn send_singly(socket: &Socket, run: &Message<'_>) {
    for reply in run.parts {
        let one = Message {
            segment: None,
            parts: std::slice::from_ref(reply),
            ..*run
        };
        let _ = batch::send(socket, [one], Mode::NonBlocking);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    /// Sends each client's queries from it, answers each with what `reply` makes of it, and gives what each client got.
    fn exchange(
        batch: &mut Batch,
        queries: &[&[&str]],
        reply: fn(&str) -> String,
        prepare: fn(&Socket),
    ) -> Vec<Vec<String>> {
        let server = UdpSocket::bind("127.0.0.1:0").expect("loopback");
        let at = server.local_addr().expect("an address");
        let clients: Vec<UdpSocket> = queries
            .iter()
            .map(|own| {
                let client = UdpSocket::bind("127.0.0.1:0").expect("loopback");
                client
                    .set_read_timeout(Some(Duration::from_secs(5)))
                    .expect("a socket");
                for query in *own {
                    client.send_to(query.as_bytes(), at).expect("loopback");
                }
                client
            })
            .collect();
        let server = Socket::from(server);
        prepare(&server);
        let mut left: usize = queries.iter().map(|own| own.len()).sum();
        while left > 0 {
            let count = batch.receive(&server).expect("a socket");
            for index in 0..count {
                let (query, _, room) = batch.at(index).expect("a datagram");
                let query = std::str::from_utf8(query).expect("text");
                room.extend_from_slice(reply(query).as_bytes());
            }
            batch.send(&server, count);
            left -= count;
        }
        let got = clients.iter().zip(queries).map(|(client, own)| {
            let mut buffer = [0; 2000];
            let mut got: Vec<String> = own
                .iter()
                .filter(|query| !reply(query).is_empty())
                .map(|_| {
                    let (length, _) = client.recv_from(&mut buffer).expect("a reply");
                    String::from_utf8_lossy(&buffer[..length]).into_owned()
                })
                .collect();
            client.set_nonblocking(true).expect("a socket");
            assert!(client.recv(&mut buffer).is_err(), "one reply too many");
            got.sort();
            got
        });
        got.collect()
    }

    #[test]
    fn every_client_gets_the_replies_to_its_queries_merged_or_not() {
        let reply = |query: &str| match query {
            "silence" => String::new(),
            "long" => "l".repeat(1232),
            other => format!("re {other}"),
        };
        let queries: &[&[&str]] = &[
            &["a", "b", "cc", "silence", "d", "ee", "f"],
            &["x"],
            &["long", "y", "long", "z", "silence"],
        ];
        for merges in [true, false] {
            let mut batch = Batch::new();
            batch.merges = merges;
            for _ in 0..2 {
                let got = exchange(&mut batch, queries, reply, |_| ());
                for (got, own) in got.iter().zip(queries) {
                    let mut wanted: Vec<String> = own.iter().map(|query| reply(query)).collect();
                    wanted.retain(|reply| !reply.is_empty());
                    wanted.sort();
                    assert_eq!(*got, wanted);
                }
            }
            assert_eq!(batch.merges, merges);
        }
    }

    /// SO_NO_CHECK, which nix does not have.
    #[derive(Clone)]
    struct NoCheck;

    nix::setsockopt_impl!(
        NoCheck,
        libc::SOL_SOCKET,
        libc::SO_NO_CHECK,
        libc::c_int,
        sockopt::SetStruct<libc::c_int>
    );

    #[test]
    fn replies_that_the_kernel_does_not_accept_as_one_batch_are_sent_one_by_one() {
        let mut batch = Batch::new();
        let without_checksums = |server: &Socket| {
            setsockopt(server, NoCheck, &1).expect("a UDP socket");
        };
        let got = exchange(
            &mut batch,
            &[&["1", "2", "3"]],
            str::to_owned,
            without_checksums,
        );
        assert_eq!(got, [["1", "2", "3"]]);
        assert!(!batch.merges);
    }
}
