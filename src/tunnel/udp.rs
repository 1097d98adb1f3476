//! Sending and receiving over the UDP sockets: datagrams to one peer are sent as runs, which the kernel separates
//! (UDP_SEGMENT).

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use socket2::Socket;

use super::drops::{DropCounters, DropReason};
use super::endpoint::Endpoint;
use super::relay::HEADER;
use super::sockets::Sockets;
use crate::os::batch::{self, Message, Mode, Segments, WithAncillary};

/// The size of a receive buffer in bytes: the largest merged datagram.
const RECEIVE: usize = 65_536;
/// The maximum number of messages received at once.
const MAX_RECEIVED: usize = 8;
/// The maximum number of runs that are handed to the kernel at once.
const MAX_SENT: usize = 32;
/// The maximum number of runs that wait to be sent.
const MAX_RUNS: usize = 256;
/// The maximum number of bytes that wait to be sent.
const ARENA: usize = 256 * 1024;
/// The maximum size of a small datagram: a handshake message or a probe, and the space that sealing needs.
const SMALL: usize = 512;
/// The maximum number of bytes of small datagrams that wait to be sent.
const SMALL_ARENA: usize = 16 * 1024;
/// The maximum number of datagrams in a run (UDP_MAX_SEGMENTS of the kernel before 6.11 is 64).
const MAX_SEGMENTS: usize = 64;
/// The maximum size of a run in bytes: the size of an IP packet, with a margin for headers.
const MAX_RUN: usize = 65_000;

/// Receives datagrams by the batch.
pub(super) struct Receiver(batch::Receiver);

impl Receiver {
    pub(super) fn new() -> Self {
        Self(batch::Receiver::new(
            MAX_RECEIVED,
            RECEIVE,
            WithAncillary::Yes,
        ))
    }

    /// Receives the datagrams that the socket has and calls `each` with those that the kernel merged, or with a single one, and their
    /// sender, with the local address at which they arrived. Returns whether there may be more.
    pub(super) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        mut each: impl FnMut(Segments<'_>, Endpoint),
    ) -> io::Result<bool> {
        let count = match self.0.receive(socket, Mode::NonBlocking) {
            Ok(count) => count,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
                    _ => Err(error),
                };
            }
        };
        for index in 0..count {
            let Some(datagram) = self.0.datagram(index) else {
                continue;
            };
            let Some(address) = datagram.from else {
                continue;
            };
            let from = Endpoint {
                address,
                source: datagram.source,
                via: None,
            };
            each(datagram.segments(), from);
        }
        Ok(count == MAX_RECEIVED)
    }
}

/// Datagrams to one endpoint that lie next to each other. All but the last have the same length.
#[derive(Debug, Clone, Copy)]
struct Run {
    endpoint: Endpoint,
    start: usize,
    end: usize,
    segment: usize,
    count: usize,
    /// Whether the last datagram is shorter, so that no other can follow.
    closed: bool,
}

impl Run {
    /// The message with this run, whose bytes `part` has.
    #[inline]
    fn message<'a>(&self, part: &'a IoSlice<'a>) -> Message<'a> {
        Message {
            to: self.endpoint.address,
            source: self.endpoint.source,
            segment: (self.count > 1).then_some(self.segment as u16),
            parts: std::slice::from_ref(part),
        }
    }
}

/// Collects datagrams and sends them as runs.
pub(super) struct Sender {
    arena: Vec<u8>,
    used: usize,
    runs: Vec<Run>,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self {
            arena: vec![0; ARENA],
            used: 0,
            runs: Vec::with_capacity(MAX_RUNS),
        }
    }

    /// A sender of handshakes and other small datagrams.
    pub(super) fn new_small() -> Self {
        Self {
            arena: vec![0; SMALL_ARENA],
            used: 0,
            runs: Vec::new(),
        }
    }

    /// Whether `bytes` more would not fit.
    #[inline]
    pub(super) fn is_full(&self, bytes: usize) -> bool {
        self.used + bytes + HEADER > self.arena.len() || self.runs.len() >= MAX_RUNS
    }

    /// Sends everything if another small datagram might not fit.
    pub(super) fn flush_if_full(&mut self, sockets: &Sockets, drops: &DropCounters) {
        if self.is_full(SMALL) {
            self.flush(sockets, drops);
        }
    }

    /// The space for the next datagram, which is to be sent to `endpoint`. To be asked for only if the sender is not full.
    #[inline]
    pub(super) fn space_to(&mut self, endpoint: &Endpoint) -> &mut [u8] {
        let header = header_of(endpoint);
        &mut self.arena[self.used + header..]
    }

    /// Adds the first `length` bytes of the space for `endpoint` as a datagram.
    #[inline]
    pub(super) fn commit(&mut self, length: usize, endpoint: Endpoint) {
        let start = self.used;
        let mut length = length;
        if let Some(via) = &endpoint.via {
            self.arena[start..start + HEADER].copy_from_slice(&via.header.to_bytes());
            length += HEADER;
        }
        self.used += length;
        if let Some(run) = self.runs.last_mut()
            && !run.closed
            && run.endpoint == endpoint
            && length <= run.segment
            && run.count < MAX_SEGMENTS
            && self.used - run.start <= MAX_RUN
        {
            run.end = self.used;
            run.count += 1;
            run.closed = length < run.segment;
            return;
        }
        self.runs.push(Run {
            endpoint,
            start,
            end: self.used,
            segment: length,
            count: 1,
            closed: false,
        });
    }

    /// Adds a datagram for `endpoint`, if there is room. Returns how many bytes that are.
    pub(super) fn add(&mut self, datagram: &[u8], endpoint: Endpoint) -> usize {
        if self.is_full(datagram.len()) {
            return 0;
        }
        let before = self.used;
        self.space_to(&endpoint)[..datagram.len()].copy_from_slice(datagram);
        self.commit(datagram.len(), endpoint);
        self.used - before
    }

    /// Sends everything.
    pub(super) fn flush(&mut self, sockets: &Sockets, drops: &DropCounters) {
        let mut rest = self.runs.as_slice();
        while let Some(first) = rest.first() {
            if let Some(via) = first.endpoint.stream() {
                let datagrams = self.arena[first.start..first.end].chunks(first.segment);
                let lost = sockets.streams.send(via, datagrams);
                drops.add_many(DropReason::StreamFull, lost);
                rest = &rest[1..];
                continue;
            }
            let Some(socket) = sockets.of(&first.endpoint.address) else {
                drops.add_many(DropReason::SendFailed, first.count);
                rest = &rest[1..];
                continue;
            };
            let family = first.endpoint.address.is_ipv4();
            let same = rest
                .iter()
                .take(MAX_SENT)
                .take_while(|r| r.endpoint.address.is_ipv4() == family)
                .take_while(|r| r.endpoint.stream().is_none())
                .count();
            let sent = self.send(socket, &rest[..same], sockets, drops);
            rest = &rest[sent..];
        }
        self.runs.clear();
        self.used = 0;
    }

    /// Sends everything so that each datagram arrives whole or not at all.
    ///
    /// The kernel has this setting only for a whole socket, and a socket of its own would be another endpoint to the peer. So
    /// the sockets are switched for the time of the call. A datagram that another thread sends in that time is not
    /// fragmented either, and is lost if it is larger than the path, as any datagram may be lost. That is a few microseconds
    /// for each probe of a size, and such probes are rare.
    pub(super) fn flush_unfragmented(&mut self, sockets: &Sockets, drops: &DropCounters) {
        let one_at_a_time = sockets.unfragmented.lock();
        let _guard = one_at_a_time.unwrap_or_else(PoisonError::into_inner);
        sockets.allow_fragments(false);
        self.flush(sockets, drops);
        sockets.allow_fragments(true);
    }

    /// Sends some of `runs`, at least one unless the call has to be repeated, and returns how many are done.
    fn send(
        &self,
        socket: &Socket,
        runs: &[Run],
        sockets: &Sockets,
        drops: &DropCounters,
    ) -> usize {
        let Some(first) = runs.first() else { return 0 };
        let gso = sockets.gso.load(Ordering::Relaxed);
        if !gso && first.count > 1 {
            self.send_singly(socket, first, sockets, drops);
            return 1;
        }
        let mut error = match self.send_runs(socket, runs, gso) {
            Ok(sent) => {
                if first.count > 1 && !sockets.gso_proven.load(Ordering::Relaxed) {
                    sockets.gso_proven.store(true, Ordering::Relaxed);
                }
                return sent;
            }
            Err(error) => error,
        };
        if first.endpoint.source.is_some() && refuses_source(&error) {
            let run = Run {
                endpoint: first.endpoint.without_source(),
                ..*first
            };
            match self.send_runs(socket, &[run], gso) {
                Ok(_) => {
                    sockets.recheck.refuse(first.endpoint);
                    return 1;
                }
                Err(other) => error = other,
            }
        }
        match error.raw_os_error() {
            Some(libc::EINTR) => 0,
            // Merged datagrams were accepted before: these are larger than the MTU that the kernel has for their path.
            Some(libc::EINVAL | libc::EMSGSIZE)
                if first.count > 1 && sockets.gso_proven.load(Ordering::Relaxed) =>
            {
                self.send_singly(socket, first, sockets, drops);
                1
            }
            Some(libc::EIO | libc::EINVAL) if first.count > 1 => {
                if sockets.gso.swap(false, Ordering::Relaxed) {
                    tracing::warn!(%error, "the network does not take merged datagrams (UDP GSO); sending them one by one");
                }
                0
            }
            _ => {
                drops.add_many(DropReason::SendFailed, first.count);
                tracing::debug!(%error, endpoint = %first.endpoint.address, "cannot send");
                1
            }
        }
    }

    /// Hands some of `runs` to the kernel and returns how many it accepted. Runs of several datagrams are sent only with
    /// `gso`.
    fn send_runs(&self, socket: &Socket, runs: &[Run], gso: bool) -> io::Result<usize> {
        let allowed = |run: &&Run| gso || run.count == 1;
        let runs = || runs.iter().take(MAX_SENT).take_while(allowed);
        let mut parts = [IoSlice::new(&[]); MAX_SENT];
        for (part, run) in parts.iter_mut().zip(runs()) {
            *part = IoSlice::new(&self.arena[run.start..run.end]);
        }
        let messages = runs().zip(&parts).map(|(run, part)| run.message(part));
        batch::send(socket, messages, Mode::Blocking)
    }

    /// Sends the datagrams of a run one by one.
    fn send_singly(&self, socket: &Socket, run: &Run, sockets: &Sockets, drops: &DropCounters) {
        let mut endpoint = run.endpoint;
        for datagram in self.arena[run.start..run.end].chunks(run.segment) {
            let mut sent = send_one(socket, datagram, &endpoint);
            if endpoint.source.is_some() && sent.as_ref().is_err_and(refuses_source) {
                endpoint = endpoint.without_source();
                sent = send_one(socket, datagram, &endpoint);
                if sent.is_ok() {
                    sockets.recheck.refuse(run.endpoint);
                }
            }
            if sent.is_err() {
                drops.add(DropReason::SendFailed);
            }
        }
    }
}

/// The size in bytes of what precedes a datagram to `endpoint`.
#[inline]
fn header_of(endpoint: &Endpoint) -> usize {
    endpoint.via.map_or(0, |_| HEADER)
}

/// Whether the kernel may have refused to send because of the source: its address is gone, or no route begins there.
fn refuses_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINVAL
                | libc::EADDRNOTAVAIL
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENODEV
                | libc::ENXIO
        )
    )
}

fn send_one(socket: &Socket, datagram: &[u8], endpoint: &Endpoint) -> io::Result<()> {
    let message = Message {
        to: endpoint.address,
        source: endpoint.source,
        segment: None,
        parts: &[IoSlice::new(datagram)],
    };
    batch::send(socket, [message], Mode::Blocking).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::super::streams::Streams;
    use super::super::wakes::Recheck;
    use super::*;
    use crate::os::batch::Source;

    const LENGTHS: [usize; 12] = [100, 100, 100, 40, 1000, 1000, 1, 1, 1, 1400, 1401, 5];

    fn sockets() -> Sockets {
        let recheck = Recheck::new().expect("an event");
        Sockets::bind(0, 0, false, &recheck, &Streams::new(1)).expect("loopback")
    }

    fn commit(sender: &mut Sender, endpoint: Endpoint) {
        for (n, length) in LENGTHS.iter().enumerate() {
            sender.space_to(&endpoint)[..*length].fill(n as u8);
            sender.commit(*length, endpoint);
        }
    }

    /// What of one family arrives, until there are as many datagrams as [`commit`] makes.
    fn received(sockets: &Sockets, family: usize) -> Vec<(Vec<u8>, Endpoint)> {
        let mut receiver = Receiver::new();
        let mut got = Vec::new();
        for _ in 0..500 {
            receiver
                .receive(
                    sockets.descriptors()[family].expect("both families"),
                    |merged, from| got.extend(merged.map(|d| (d.to_vec(), from))),
                )
                .expect("bound");
            if got.len() >= LENGTHS.len() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        got
    }

    fn to(address: [u8; 4], sockets: &Sockets) -> SocketAddr {
        SocketAddr::from((address, sockets.port()))
    }

    #[test]
    fn runs_arrive_as_the_datagrams_they_were() {
        let (a, b) = (sockets(), sockets());
        let drops = DropCounters::default();
        let mut sender = Sender::new();
        for gso in [true, false] {
            a.gso.store(gso, Ordering::Relaxed);
            commit(&mut sender, to([127, 0, 0, 1], &b).into());
            sender.flush(&a, &drops);
            let got = received(&b, 0);
            let sent: Vec<Vec<u8>> = LENGTHS
                .iter()
                .enumerate()
                .map(|(n, length)| vec![n as u8; *length])
                .collect();
            assert_eq!(got.iter().map(|(d, _)| d.clone()).collect::<Vec<_>>(), sent);
            assert!(got.iter().all(|(_, from)| from.address.port() == a.port()));
        }
        assert_eq!(drops.read().of(DropReason::SendFailed), 0);
    }

    #[test]
    fn a_reply_is_sent_from_the_address_to_which_the_datagram_was_sent() {
        let (a, b) = (sockets(), sockets());
        let drops = DropCounters::default();
        let mut sender = Sender::new();
        for gso in [true, false] {
            b.gso.store(gso, Ordering::Relaxed);
            for asked in [[127, 0, 0, 2], [127, 77, 0, 3]] {
                commit(&mut sender, to(asked, &b).into());
                sender.flush(&a, &drops);
                let from = received(&b, 0).first().expect("they arrive").1;
                assert_eq!(from.source.expect("known").address, IpAddr::from(asked));
                commit(&mut sender, from);
                sender.flush(&b, &drops);
                let back = received(&a, 0);
                assert_eq!(back.len(), LENGTHS.len());
                assert!(back.iter().all(|(_, from)| from.address == to(asked, &b)));
            }
        }
        assert_eq!(drops.read().of(DropReason::SendFailed), 0);
    }

    #[test]
    fn a_run_holds_only_datagrams_of_one_source() {
        let b = sockets();
        let mut sender = Sender::new();
        let from = |last| Endpoint {
            address: to([127, 0, 0, 1], &b),
            source: Some(Source {
                address: IpAddr::from([127, 0, 0, last]),
                interface: 1,
            }),
            via: None,
        };
        for last in [1, 1, 2, 2, 1] {
            sender.commit(100, from(last));
        }
        sender.commit(100, from(1).without_source());
        let counts: Vec<usize> = sender.runs.iter().map(|run| run.count).collect();
        assert_eq!(counts, [2, 2, 1, 1]);
    }

    #[test]
    fn a_source_that_is_gone_is_left_out_and_reported_and_nothing_is_lost() {
        let (a, b) = (sockets(), sockets());
        let drops = DropCounters::default();
        let mut sender = Sender::new();
        let gone = |source: &str, to: SocketAddr| Endpoint {
            address: to,
            source: Some(Source {
                address: source.parse().expect("a literal"),
                interface: 1,
            }),
            via: None,
        };
        let v4 = gone("203.0.113.9", to([127, 0, 0, 1], &b));
        let v6 = gone(
            "2001:db8::9",
            SocketAddr::from((Ipv6Addr::LOCALHOST, b.port())),
        );
        for (family, endpoint) in [v4, v6].into_iter().enumerate() {
            for gso in [true, false] {
                a.gso.store(gso, Ordering::Relaxed);
                commit(&mut sender, endpoint);
                sender.flush(&a, &drops);
                assert_eq!(received(&b, family).len(), LENGTHS.len(), "{endpoint:?}");
                assert_eq!(a.recheck.refused(), [endpoint]);
            }
        }
        assert_eq!(drops.read().of(DropReason::SendFailed), 0);
    }

    #[test]
    fn a_source_that_is_gone_and_a_peer_without_a_route_do_not_end_merging() {
        let a = sockets();
        let drops = DropCounters::default();
        let mut sender = Sender::new();
        // A broadcast is refused, whatever it leaves from.
        let endpoint = Endpoint {
            address: SocketAddr::from((Ipv4Addr::BROADCAST, 9)),
            source: Some(Source {
                address: IpAddr::from([203, 0, 113, 9]),
                interface: 1,
            }),
            via: None,
        };
        commit(&mut sender, endpoint);
        sender.flush(&a, &drops);
        assert!(a.gso.load(Ordering::Relaxed));
        assert_eq!(
            drops.read().of(DropReason::SendFailed),
            LENGTHS.len() as u64
        );
    }
}
