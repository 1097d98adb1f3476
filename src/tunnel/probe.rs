//! Probes: echo requests made and answered inside the data plane, so that no host's firewall is in the way.
//!
//! They are ordinary ICMP echoes (RFC 792, RFC 4443) with a mark in the payload. A meshd answers one to its own
//! address before its kernel sees it; any other WireGuard hands it to its kernel, which answers as well.
//!
//! A probe may ask whether a packet of its size fits through: its sequence number is then the size. The answer is
//! short, so that a narrow way back does not hide that the question came through.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::packet::{self, ICMP, ICMP6, Ip};

const MARK: [u8; 8] = *b"meshprob";
const IDENTIFIER: u16 = 0x6d65;
/// Octets of a probe that asks for no size at most.
pub(super) const MAX_PROBE: usize = IPV6_HEADER + ECHO;
const IPV6_HEADER: usize = 40;
/// Octets of an echo without padding: header, mark, time.
const ECHO: usize = 8 + 16;
/// The sequence number of a probe that asks for no size.
const NO_SIZE: u16 = 1;

/// What a packet is to the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// To be answered.
    Request,
    /// An answer.
    Reply {
        /// When the question was sent.
        sent: Duration,
        /// What size was asked for.
        size: Option<u16>,
    },
}

/// Measures round trips to a peer.
///
/// A probe counts only if it left at once under a session that stayed the one in use until the answer came. A probe that
/// waits for a session measures the handshake instead of the path, and so does one whose session was replaced meanwhile.
#[derive(Debug, Default)]
pub(super) struct RoundTrips {
    /// When the last probe was sent, if its answer is a sample: time since the tunnel started.
    pending: Option<Duration>,
    last: Option<RoundTrip>,
}

/// A round trip to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundTrip {
    /// When the answer was received.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
}

impl RoundTrips {
    /// A probe that was written at `written` was sealed and sent, or waits for a session.
    pub(super) fn handle_probe(&mut self, written: Duration, sealed: bool) {
        self.pending = sealed.then_some(written);
    }

    /// A handshake message was processed: what is under way no longer measures the path alone.
    pub(super) fn handle_handshake(&mut self) {
        self.pending = None;
    }

    /// The answer to the probe that was written at `written` was received. Each probe counts once.
    pub(super) fn handle_answer(&mut self, written: Duration, since_start: Duration, now: Instant) {
        if self.pending != Some(written) {
            return;
        }
        self.pending = None;
        if let Some(took) = since_start.checked_sub(written) {
            self.last = Some(RoundTrip { at: now, took });
        }
    }

    /// The last round trip.
    pub(super) fn last(&self) -> Option<RoundTrip> {
        self.last
    }
}

/// What a probe that is written `now` carries of the time: whole microseconds since the tunnel started.
pub(super) fn written(started: Instant, now: Instant) -> Duration {
    let micros = now.saturating_duration_since(started).as_micros() as u64;
    Duration::from_micros(micros)
}

/// Writes a request from `source` to `destination`, padded to `size` octets if that is asked for; gives its length.
/// Nothing if the families differ or there is no room.
pub(super) fn write(
    source: IpAddr,
    destination: IpAddr,
    started: Instant,
    now: Instant,
    size: Option<u16>,
    out: &mut [u8],
) -> Option<usize> {
    let sent = written(started, now).as_micros() as u64;
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
    out[transport + 16..transport + ECHO].copy_from_slice(&sent.to_be_bytes());
    write_checksum(out, transport, protocol);
    Some(end)
}

/// Whether `packet`, whose header is `ip`, is a probe.
pub(super) fn parse(packet: &[u8], ip: &Ip) -> Option<Probe> {
    if !matches!(ip.protocol, ICMP | ICMP6) || ip.fragment || ip.total < ip.transport + ECHO {
        return None;
    }
    let echo = packet.get(ip.transport..ip.total)?;
    if echo.get(4..6)? != IDENTIFIER.to_be_bytes() || echo.get(8..16)? != MARK {
        return None;
    }
    // Each of the two belongs to one version of IP.
    match (ip.source.is_ipv4(), ip.protocol, echo.first()?) {
        (true, ICMP, 8) | (false, ICMP6, 128) => Some(Probe::Request),
        (true, ICMP, 0) | (false, ICMP6, 129) => {
            let sent = u64::from_be_bytes(echo.get(16..24)?.try_into().ok()?);
            let size = u16::from_be_bytes(echo.get(6..8)?.try_into().ok()?);
            Some(Probe::Reply {
                sent: Duration::from_micros(sent),
                size: (size != NO_SIZE).then_some(size),
            })
        }
        _ => None,
    }
}

/// Makes a request its own answer, without the padding; gives its length.
pub(super) fn answer(packet: &mut [u8], ip: &Ip) -> usize {
    let packet = &mut packet[..ip.transport + ECHO];
    write_length(packet, ip.transport);
    turn(packet, ip);
    packet.len()
}

/// Makes an echo request its own answer, of the same length (RFC 792, RFC 4443 section 4.2).
pub(super) fn turn(packet: &mut [u8], ip: &Ip) {
    let v4 = ip.protocol == ICMP;
    let (first, length) = if v4 { (12, 4) } else { (8, 16) };
    let (left, right) = packet[first..].split_at_mut(length);
    left.swap_with_slice(&mut right[..length]);
    packet[ip.transport] = if v4 { 0 } else { 129 };
    write_checksum(packet, ip.transport, ip.protocol);
}

/// Writes into the IP header how long `packet` is.
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
    // ICMP's checksum has no pseudo-header, ICMPv6's has.
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
    fn a_probe_and_its_answer_are_valid_echoes_and_the_answer_is_short() {
        let started = Instant::now();
        for (a, b) in [("10.210.1.1", "10.210.2.1"), ("fd00::1", "fd00::2")] {
            let (a, b): (IpAddr, IpAddr) =
                (a.parse().expect("a literal"), b.parse().expect("a literal"));
            for size in [None, Some(1280), Some(1401), Some(9000)] {
                let mut out = vec![1; 9000];
                let now = started + Duration::from_micros(77);
                let length = write(a, b, started, now, size, &mut out).expect("one family");
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
                let sent = Duration::from_micros(77);
                assert_eq!(
                    parse(&out[..length], &ip),
                    Some(Probe::Reply { sent, size })
                );
            }
        }
    }

    #[test]
    fn only_a_probe_that_left_at_once_under_a_session_that_lasted_is_a_round_trip() {
        let start = Instant::now();
        let at = Duration::from_millis;
        let answer = |trips: &mut RoundTrips, written, now| {
            trips.handle_answer(at(written), at(now), start + at(now));
            trips.last().map(|last| last.took)
        };
        let mut trips = RoundTrips::default();
        trips.handle_probe(at(10), false);
        assert_eq!(
            answer(&mut trips, 10, 13_255),
            None,
            "it waited for a session"
        );
        trips.handle_probe(at(20), true);
        trips.handle_handshake();
        assert_eq!(
            answer(&mut trips, 20, 900),
            None,
            "its session was replaced"
        );
        trips.handle_probe(at(30), true);
        assert_eq!(answer(&mut trips, 29, 31), None, "nobody sent such a probe");
        assert_eq!(answer(&mut trips, 30, 32), Some(at(2)));
        assert_eq!(answer(&mut trips, 30, 99), Some(at(2)), "a second answer");
        trips.handle_probe(at(40), true);
        trips.handle_probe(at(50), true);
        assert_eq!(
            answer(&mut trips, 40, 100),
            Some(at(2)),
            "a later probe took its place"
        );
        assert_eq!(answer(&mut trips, 50, 101), Some(at(51)));
    }

    #[test]
    fn a_probe_without_room_or_of_two_families_is_not_written() {
        let now = Instant::now();
        let address = |text: &str| text.parse::<IpAddr>().expect("a literal");
        let mut out = [0; 100];
        let (v4, v6) = (address("10.0.0.1"), address("fd00::1"));
        assert_eq!(write(v4, v4, now, now, Some(101), &mut out), None);
        assert_eq!(write(v4, v6, now, now, None, &mut out), None);
    }
}
