//! Probes: echo requests that the data plane sends and answers itself, so that no host's firewall is in the way.
//!
//! They are ordinary ICMP echoes (RFC 792, RFC 4443) with a mark in the payload. A meshd answers a probe to its own address
//! before its kernel sees it. Any other WireGuard passes it to its kernel, which answers as well.
//!
//! A probe may test whether a packet of its size fits through the path. Its sequence number is then the size. The answer is
//! short, so that it arrives even if the path back is narrower.
//!
//! Any program that may send packets from one of the peer's addresses can send echo replies, for example one in a container.
//! So only a random number is read from an answer. By this number [`Probes`] finds when the probe was sent and which size
//! it tested.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::packet::{self, ICMP, ICMP6, Ip};
use crate::model::path::{MAX_PATHS, Path};
use crate::protocol::path_messages::{ByeReason, Echo, Paths, PeerCall, RelayOffer, RowPart};

const MARK: [u8; 8] = *b"meshprob";
const IDENTIFIER: u16 = 0x6d65;
/// The maximum size in bytes of a probe that tests no size.
#[cfg(test)]
pub(super) const MAX_PROBE: usize = IPV6_HEADER + ECHO;
const IPV6_HEADER: usize = 40;
/// The size in bytes of an echo without padding: header, mark and nonce.
const ECHO: usize = 8 + 16;
/// The sequence number of a probe that tests no size.
const NO_SIZE: u16 = 1;
/// The maximum number of probes of one peer that wait for an answer: those of a search for the path's MTU, a burst by each of
/// some paths, and some pings.
const MAX_PENDING: usize = 64;
/// The maximum number of calls of one peer that wait until they are taken. Others are dropped, and their callers call again.
const MAX_CALLS: usize = 16;
/// A list of paths whose sequence number is behind by at most this is older than the last one.
const OUT_OF_ORDER: u32 = 64;
/// After this time an answer is not expected any more.
const FORGET: Duration = Duration::from_secs(60);
/// How long a burst of probes by one path takes. All of them may be samples.
const BURST: Duration = Duration::from_millis(700);

/// A probe or an answer to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// A probe.
    Request,
    /// An answer with this nonce.
    Reply(u64),
}

/// The probes of a peer that wait for an answer, and the results of those that were answered.
///
/// A round trip counts as a sample only if its probe left at once under a session that stayed the one in use until the answer
/// came. A probe that waits for a session measures the handshake instead of the path, and so does one whose session was
/// replaced meanwhile.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// The probes without an answer, from the oldest to the newest.
    pending: VecDeque<Pending>,
    /// The round trips of each path, the path that was last added last.
    trips: VecDeque<(Path, Trips)>,
    answered: Option<RoundTrip>,
    answered_size: Option<u16>,
    /// How many handshakes were completed.
    sessions: u32,
    said: Said,
}

/// What a peer said about paths. There is room for the last word of each kind, and for some calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// The last list of paths, which was not taken yet.
    pub paths: Option<Paths>,
    /// The peer is about to be unreachable by its present paths.
    pub bye: Option<ByeReason>,
    /// The calls that the peer asks this node to pass on, and those that it passes on to this node.
    pub calls: Vec<PeerCall>,
    /// The peer asks for the part of this node's row after this address.
    pub asks_row: Option<u32>,
    /// The last part of the peer's row.
    pub row: Option<RowPart>,
    /// The sequence number of the last list.
    seq: Option<u32>,
}

/// The round trips by one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Trips {
    /// The last one.
    pub(super) answered: Option<RoundTrip>,
    /// The last one that measures the path alone.
    pub(super) sample: Option<RoundTrip>,
    /// How many there were.
    pub(super) answers: u32,
    /// The address that the peer saw the last probe come from.
    pub(super) seen: Option<SocketAddr>,
    /// What the peer offers as a relay.
    pub(super) offer: Option<RelayOffer>,
}

/// A probe that was sent.
#[derive(Debug)]
struct Pending {
    nonce: u64,
    sent: Instant,
    /// The path by which it left. None if it waited for a session, or there was no path.
    path: Option<Path>,
    size: Option<u16>,
    is_sample: bool,
}

/// A round trip to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundTrip {
    /// When the answer was received.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
}

impl Probes {
    /// A probe with `nonce` was made at `sent`. It left at once by `path`, or, without one, it waits for a session. The probes
    /// by the same path that were sent some time before no longer count as samples: an answer to one of them was delayed by
    /// more than the path.
    pub(super) fn handle_probe(&mut self, nonce: u64, sent: Instant, path: Option<Path>) {
        for probe in &mut self.pending {
            let is_old = sent.saturating_duration_since(probe.sent) >= BURST;
            if is_old && (path.is_none() || probe.path == path) {
                probe.is_sample = false;
            }
        }
        self.add(Pending {
            nonce,
            sent,
            path,
            size: None,
            is_sample: path.is_some(),
        });
    }

    /// A probe with `nonce` that tests `size` was sent.
    pub(super) fn handle_sized_probe(&mut self, nonce: u64, sent: Instant, size: u16) {
        self.add(Pending {
            nonce,
            sent,
            path: None,
            size: Some(size),
            is_sample: false,
        });
    }

    fn add(&mut self, probe: Pending) {
        let is_over = |of: &Pending| probe.sent.saturating_duration_since(of.sent) >= FORGET;
        while self.pending.len() >= MAX_PENDING || self.pending.front().is_some_and(is_over) {
            self.pending.pop_front();
        }
        self.pending.push_back(probe);
    }

    /// A handshake was completed. The pending probes no longer measure the path alone, so none of them is a sample.
    pub(super) fn handle_handshake(&mut self) {
        self.sessions = self.sessions.wrapping_add(1);
        for probe in &mut self.pending {
            probe.is_sample = false;
        }
    }

    /// The time since the pending probe with `nonce` was sent. Returns none if there is no such probe.
    pub(super) fn round_trip(&self, nonce: u64, now: Instant) -> Option<Duration> {
        let probe = self.pending.iter().find(|probe| probe.nonce == nonce)?;
        Some(now.saturating_duration_since(probe.sent))
    }

    /// An answer with `nonce` arrived by the path `by` at `now`, after the round trip `rtt`. Each probe counts once. An answer
    /// without a pending probe changes nothing.
    pub(super) fn handle_answer(&mut self, nonce: u64, by: Path, rtt: Duration, now: Instant) {
        let asked = self.pending.iter().position(|probe| probe.nonce == nonce);
        let Some(probe) = asked.and_then(|at| self.pending.remove(at)) else {
            return;
        };
        if let Some(size) = probe.size {
            self.answered_size = self.answered_size.max(Some(size));
            return;
        }
        let trip = RoundTrip { at: now, took: rtt };
        self.answered = Some(trip);
        // A peer that answers by another path than the one that was asked shows nothing about either.
        if probe.path.is_some_and(|path| path != by) {
            return;
        }
        let trips = self.of_mut(by);
        trips.answered = Some(trip);
        trips.answers = trips.answers.saturating_add(1);
        if probe.is_sample {
            trips.sample = Some(trip);
        }
    }

    /// An echo of one of the probes by `path` arrived.
    pub(super) fn handle_echo(&mut self, path: Path, echo: &Echo) {
        let trips = self.of_mut(path);
        trips.seen = echo.seen;
        trips.offer = echo.relay;
    }

    /// The peer listed its paths. A list that is older than the last one is ignored.
    pub(super) fn handle_paths(&mut self, paths: Paths) {
        // A peer that was restarted counts from the beginning, so only a list that is slightly older is out of order.
        let behind = self.said.seq.map(|seq| seq.wrapping_sub(paths.seq));
        if behind.is_none_or(|behind| behind == 0 || behind > OUT_OF_ORDER) {
            self.said.seq = Some(paths.seq);
            self.said.paths = Some(paths);
        }
    }

    /// The peer says good-bye.
    pub(super) fn handle_bye(&mut self, reason: ByeReason) {
        self.said.bye = Some(reason);
    }

    /// The peer sent a call. Returns false if too many wait.
    pub(super) fn handle_call(&mut self, call: PeerCall) -> bool {
        let has_room = self.said.calls.len() < MAX_CALLS;
        if has_room {
            self.said.calls.push(call);
        }
        has_room
    }

    /// The peer asks for a part of this node's row. Returns false if an earlier request waits.
    pub(super) fn handle_row_asked(&mut self, after: u32) -> bool {
        self.said.asks_row.replace(after).is_none()
    }

    /// The peer sent a part of its row. Returns false if an earlier part waits.
    pub(super) fn handle_row(&mut self, part: RowPart) -> bool {
        self.said.row.replace(part).is_none()
    }

    /// Takes what the peer said since the last call of this method.
    pub(super) fn take_said(&mut self) -> Said {
        Said {
            paths: self.said.paths.take(),
            bye: self.said.bye.take(),
            calls: std::mem::take(&mut self.said.calls),
            asks_row: self.said.asks_row.take(),
            row: self.said.row.take(),
            seq: self.said.seq,
        }
    }

    /// The round trips by `path`.
    pub(super) fn of(&self, path: &Path) -> Trips {
        let mut trips = self.trips.iter();
        trips
            .find(|(of, _)| of == path)
            .map_or_else(Trips::default, |(_, trips)| *trips)
    }

    fn of_mut(&mut self, path: Path) -> &mut Trips {
        let known = self.trips.iter().position(|(of, _)| *of == path);
        let at = known.unwrap_or_else(|| {
            if self.trips.len() >= MAX_PATHS {
                self.trips.pop_front();
            }
            self.trips.push_back((path, Trips::default()));
            self.trips.len() - 1
        });
        &mut self.trips[at].1
    }

    /// How many handshakes were completed.
    pub(super) fn sessions(&self) -> u32 {
        self.sessions
    }

    /// The last round trip by any path, including the time in which its probe waited for a handshake.
    pub(super) fn answered(&self) -> Option<RoundTrip> {
        self.answered
    }

    /// Returns the largest size that was answered since the last call.
    pub(super) fn take_answered_size(&mut self) -> Option<u16> {
        self.answered_size.take()
    }
}

/// Writes a request with `nonce` from `source` to `destination`, padded to `size` bytes if a size is given, and returns its
/// length. Returns none if the families differ or there is no room.
pub(super) fn write(
    source: IpAddr,
    destination: IpAddr,
    nonce: u64,
    size: Option<u16>,
    out: &mut [u8],
) -> Option<usize> {
    let (transport, protocol, kind) = match source {
        IpAddr::V4(_) => (20, ICMP, 8),
        IpAddr::V6(_) => (IPV6_HEADER, ICMP6, 128),
    };
    let end = usize::from(size.unwrap_or(0)).max(transport + ECHO);
    let out = out.get_mut(..end)?;
    out.fill(0);
    match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, ICMP, 0, 0]);
            out[12..16].copy_from_slice(&from.octets());
            out[16..20].copy_from_slice(&to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            out[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, ICMP6, 64]);
            out[8..24].copy_from_slice(&from.octets());
            out[24..40].copy_from_slice(&to.octets());
        }
        _ => return None,
    }
    write_length(out, transport);
    out[transport] = kind;
    out[transport + 4..transport + 6].copy_from_slice(&IDENTIFIER.to_be_bytes());
    out[transport + 6..transport + 8].copy_from_slice(&size.unwrap_or(NO_SIZE).to_be_bytes());
    out[transport + 8..transport + 16].copy_from_slice(&MARK);
    out[transport + 16..transport + ECHO].copy_from_slice(&nonce.to_be_bytes());
    write_checksum(out, transport, protocol);
    Some(end)
}

/// Parses `packet`, whose header is `ip`, as a probe or an answer.
#[inline]
pub(super) fn parse(packet: &[u8], ip: &Ip) -> Option<Probe> {
    if !matches!(ip.protocol, ICMP | ICMP6) || ip.fragment || ip.total < ip.transport + ECHO {
        return None;
    }
    let echo = packet.get(ip.transport..ip.total)?;
    if echo.get(4..6)? != IDENTIFIER.to_be_bytes() || echo.get(8..16)? != MARK {
        return None;
    }
    // Each of the two protocols belongs to one version of IP.
    match (ip.source.is_ipv4(), ip.protocol, echo.first()?) {
        (true, ICMP, 8) | (false, ICMP6, 128) => Some(Probe::Request),
        (true, ICMP, 0) | (false, ICMP6, 129) => {
            let nonce = u64::from_be_bytes(echo.get(16..24)?.try_into().ok()?);
            Some(Probe::Reply(nonce))
        }
        _ => None,
    }
}

/// Turns a request into its answer, without the padding, and returns the length.
pub(super) fn answer(packet: &mut [u8], ip: &Ip) -> usize {
    let packet = &mut packet[..ip.transport + ECHO];
    write_length(packet, ip.transport);
    turn_echo(packet, ip);
    packet.len()
}

/// Turns an echo request into its answer, of the same length (RFC 792, RFC 4443 section 4.2).
pub(super) fn turn_echo(packet: &mut [u8], ip: &Ip) {
    let v4 = ip.protocol == ICMP;
    let (first, length) = if v4 { (12, 4) } else { (8, 16) };
    let (left, right) = packet[first..].split_at_mut(length);
    left.swap_with_slice(&mut right[..length]);
    packet[ip.transport] = if v4 { 0 } else { 129 };
    write_checksum(packet, ip.transport, ip.protocol);
}

/// Writes the length of `packet` into its IP header.
fn write_length(packet: &mut [u8], transport: usize) {
    let length = packet.len();
    if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet::write_ipv4_checksum(packet, transport);
    } else {
        packet[4..6].copy_from_slice(&((length - IPV6_HEADER) as u16).to_be_bytes());
    }
}

fn write_checksum(packet: &mut [u8], transport: usize, protocol: u8) {
    packet[transport + 2..transport + 4].fill(0);
    // The checksum of ICMPv6 includes a pseudo-header, the one of ICMP does not.
    let pseudo = if protocol == ICMP6 {
        packet::pseudo_header_sum(packet, ICMP6, packet.len() - transport)
    } else {
        0
    };
    let checksum = packet::finish(packet::sum(&packet[transport..], pseudo));
    packet[transport + 2..transport + 4].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PublicKey, SigningKey};
    use crate::protocol::call::Call;
    use crate::protocol::path_messages::CallEnd;

    /// The path of all probes that name no other one.
    fn path() -> Path {
        Path::Direct(([192, 0, 2, 1], 51820).into())
    }

    /// Handles an answer as a data thread does.
    fn handle_answer(probes: &mut Probes, nonce: u64, now: Instant) {
        if let Some(rtt) = probes.round_trip(nonce, now) {
            probes.handle_answer(nonce, path(), rtt, now);
        }
    }

    fn sample(probes: &Probes) -> Option<RoundTrip> {
        probes.of(&path()).sample
    }

    fn is_valid(packet: &[u8], ip: &Ip) -> bool {
        let pseudo = if ip.protocol == ICMP6 {
            packet::pseudo_header_sum(packet, ICMP6, packet.len() - ip.transport)
        } else {
            0
        };
        let header =
            ip.protocol == ICMP6 || packet::finish(packet::sum(&packet[..ip.transport], 0)) == 0;
        ip.total == packet.len()
            && header
            && packet::finish(packet::sum(&packet[ip.transport..], pseudo)) == 0
    }

    #[test]
    fn a_peer_that_asks_for_rows_without_end_has_one_request_waiting() {
        let mut probes = Probes::default();
        let news = (0..100).filter(|after| probes.handle_row_asked(*after));
        assert_eq!(news.count(), 1);
        let news = (0..100).filter(|_| probes.handle_row(RowPart::default()));
        assert_eq!(news.count(), 1);
        let said = probes.take_said();
        assert_eq!(said.asks_row, Some(99));
        assert_eq!(said.row, Some(RowPart::default()));
        assert_eq!(probes.take_said(), Said::default());
    }

    #[test]
    fn calls_wait_in_order_and_a_peer_that_sends_them_without_end_has_few_waiting() {
        let (key, to) = (SigningKey::from_seed(&[1; 32]), PublicKey([2; 32]));
        let call = |at| PeerCall {
            end: CallEnd::To(to),
            call: Call::sign(&key, &to, true, Vec::new(), at),
        };
        let mut probes = Probes::default();
        let kept = (0..100).filter(|at| probes.handle_call(call(*at)));
        assert_eq!(kept.count(), MAX_CALLS);
        let waiting = probes.take_said().calls.into_iter().map(|of| of.call.at);
        assert_eq!(waiting.collect::<Vec<u64>>(), (0..16).collect::<Vec<u64>>());
        assert!(probes.take_said().calls.is_empty());
        assert!(probes.handle_call(call(100)));
    }

    #[test]
    fn a_probe_and_its_answer_are_valid_echoes_and_the_answer_is_short() {
        for (a, b) in [("10.210.1.1", "10.210.2.1"), ("fd00::1", "fd00::2")] {
            let (a, b): (IpAddr, IpAddr) =
                (a.parse().expect("a literal"), b.parse().expect("a literal"));
            for size in [None, Some(1280), Some(1401), Some(9000)] {
                let mut out = vec![1; 9000];
                let length = write(a, b, 77, size, &mut out).expect("one family");
                let short = if a.is_ipv4() { 44 } else { 64 };
                assert_eq!(length, size.map_or(short, usize::from));
                let ip = Ip::parse(&out[..length]).expect("a whole packet");
                assert_eq!((ip.source, ip.destination), (a, b));
                assert!(is_valid(&out[..length], &ip));
                assert_eq!(parse(&out[..length], &ip), Some(Probe::Request));
                let length = answer(&mut out[..length], &ip);
                assert_eq!(length, short);
                let ip = Ip::parse(&out[..length]).expect("a whole packet");
                assert_eq!((ip.source, ip.destination), (b, a));
                assert!(is_valid(&out[..length], &ip));
                assert_eq!(parse(&out[..length], &ip), Some(Probe::Reply(77)));
            }
        }
    }

    #[test]
    fn a_probe_is_a_sample_only_if_it_left_at_once_and_its_session_stayed_in_use() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let took = |trip: Option<RoundTrip>| trip.map(|trip| trip.took.as_millis());
        let mut probes = Probes::default();
        probes.handle_probe(1, at(10), None);
        handle_answer(&mut probes, 1, at(13_265));
        assert_eq!(sample(&probes), None, "it waited for a session");
        assert_eq!(took(probes.answered()), Some(13_255));
        probes.handle_probe(2, at(20), Some(path()));
        probes.handle_handshake();
        handle_answer(&mut probes, 2, at(900));
        assert_eq!(sample(&probes), None, "its session was replaced");
        assert_eq!(took(probes.answered()), Some(880));
        probes.handle_probe(3, at(30), Some(path()));
        handle_answer(&mut probes, 3, at(32));
        assert_eq!(took(sample(&probes)), Some(2));
        probes.handle_probe(4, at(1040), Some(path()));
        probes.handle_probe(5, at(1740), Some(path()));
        handle_answer(&mut probes, 4, at(1800));
        assert_eq!(
            took(sample(&probes)),
            Some(2),
            "a later probe took its place"
        );
        handle_answer(&mut probes, 5, at(1791));
        assert_eq!(took(sample(&probes)), Some(51));
    }

    #[test]
    fn each_probe_of_a_burst_is_a_sample_of_its_own_path() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let other = Path::Direct(([192, 0, 2, 2], 51820).into());
        let mut probes = Probes::default();
        for (nonce, sent) in [(1, 0), (2, 40), (3, 80)] {
            probes.handle_probe(nonce, at(sent), Some(path()));
            probes.handle_probe(nonce + 10, at(sent), Some(other));
        }
        let trip = |at, ms| RoundTrip {
            at,
            took: Duration::from_millis(ms),
        };
        for (nonce, by, ms) in [
            (1, path(), 100),
            (2, path(), 90),
            (11, other, 7),
            (13, path(), 9),
        ] {
            probes.handle_answer(nonce, by, Duration::from_millis(ms), at(200));
        }
        let trips = probes.of(&path());
        assert_eq!((trips.answers, trips.sample), (2, Some(trip(at(200), 90))));
        let trips = probes.of(&other);
        assert_eq!(
            (trips.answers, trips.sample),
            (1, Some(trip(at(200), 7))),
            "an answer by another path shows nothing about this one"
        );
    }

    #[test]
    fn the_round_trips_of_twelve_paths_are_kept() {
        let now = Instant::now();
        let mut probes = Probes::default();
        let path = |n: u16| Path::Direct(([192, 0, 2, 1], n).into());
        for n in 0..1000 {
            probes.handle_probe(u64::from(n), now, Some(path(n)));
            probes.handle_answer(u64::from(n), path(n), Duration::ZERO, now);
        }
        assert_eq!(probes.trips.len(), MAX_PATHS);
        assert_eq!(probes.of(&path(0)), Trips::default());
        assert_eq!(probes.of(&path(999)).answers, 1);
    }

    #[test]
    fn an_answer_without_a_probe_or_a_repeated_one_changes_nothing() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut probes = Probes::default();
        handle_answer(&mut probes, 0, at(1));
        assert_eq!((sample(&probes), probes.answered()), (None, None));
        probes.handle_probe(7, at(10), Some(path()));
        probes.handle_sized_probe(8, at(11), 1280);
        handle_answer(&mut probes, 6, at(12));
        assert_eq!((sample(&probes), probes.answered()), (None, None));
        assert_eq!(probes.take_answered_size(), None);
        handle_answer(&mut probes, 8, at(13));
        assert_eq!(probes.take_answered_size(), Some(1280));
        assert_eq!(probes.answered(), None, "that was about a size");
        handle_answer(&mut probes, 7, at(14));
        let first = probes.answered();
        assert_eq!((sample(&probes), first.is_some()), (first, true));
        for nonce in [7, 8] {
            handle_answer(&mut probes, nonce, at(5000));
        }
        assert_eq!((sample(&probes), probes.answered()), (first, first));
        assert_eq!(probes.take_answered_size(), None);
    }

    #[test]
    fn probes_without_answers_are_bounded_and_the_oldest_are_forgotten() {
        let now = Instant::now();
        let mut probes = Probes::default();
        for nonce in 0..1000 {
            probes.handle_probe(nonce, now, Some(path()));
        }
        assert_eq!(probes.pending.len(), MAX_PENDING);
        handle_answer(&mut probes, 0, now);
        assert_eq!(probes.answered(), None);
        handle_answer(&mut probes, 999, now);
        assert!(probes.answered().is_some() && sample(&probes).is_some());
    }

    #[test]
    fn a_probe_without_space_or_of_two_families_is_not_written() {
        let address = |text: &str| text.parse::<IpAddr>().expect("a literal");
        let mut out = [0; 100];
        let (v4, v6) = (address("10.0.0.1"), address("fd00::1"));
        assert_eq!(write(v4, v4, 1, Some(101), &mut out), None);
        assert_eq!(write(v4, v6, 1, None, &mut out), None);
    }
}
