//! Probes: echo requests made and answered inside the data plane, so that no host's firewall is in the way.
//!
//! They are ordinary ICMP echoes (RFC 792, RFC 4443) with a mark in the payload. A meshd answers one to its own
//! address before its kernel sees it; any other WireGuard hands it to its kernel, which answers as well.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::packet::{self, ICMP, ICMP6, Ip};

const MARK: [u8; 8] = *b"meshprob";
const IDENTIFIER: u16 = 0x6d65;
/// Octets of a probe at most.
pub(super) const MAX_PROBE: usize = 40 + 8 + 16;

/// What a packet is to the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// To be answered.
    Request,
    /// An answer, and when the question was sent.
    Reply(Duration),
}

/// Writes a request from `source` to `destination`; gives its length. Nothing if the families differ.
pub(super) fn write(
    source: IpAddr,
    destination: IpAddr,
    started: Instant,
    now: Instant,
    out: &mut [u8; MAX_PROBE],
) -> Option<usize> {
    let sent = now.saturating_duration_since(started).as_micros() as u64;
    let (transport, protocol, kind) = match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out[..20].copy_from_slice(&[
                0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, ICMP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ]);
            out[12..16].copy_from_slice(&from.octets());
            out[16..20].copy_from_slice(&to.octets());
            packet::write_ipv4_checksum(out, 20);
            (20, ICMP, 8)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            out[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 24, ICMP6, 64]);
            out[8..24].copy_from_slice(&from.octets());
            out[24..40].copy_from_slice(&to.octets());
            (40, ICMP6, 128)
        }
        _ => return None,
    };
    let end = transport + 24;
    out[transport..transport + 4].copy_from_slice(&[kind, 0, 0, 0]);
    out[transport + 4..transport + 6].copy_from_slice(&IDENTIFIER.to_be_bytes());
    out[transport + 6..transport + 8].copy_from_slice(&[0, 1]);
    out[transport + 8..transport + 16].copy_from_slice(&MARK);
    out[transport + 16..end].copy_from_slice(&sent.to_be_bytes());
    write_checksum(&mut out[..end], transport, protocol);
    Some(end)
}

/// Whether `packet`, whose header is `ip`, is a probe.
pub(super) fn parse(packet: &[u8], ip: &Ip) -> Option<Probe> {
    if !matches!(ip.protocol, ICMP | ICMP6) || ip.fragment || ip.total != ip.transport + 24 {
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
            Some(Probe::Reply(Duration::from_micros(sent)))
        }
        _ => None,
    }
}

/// Makes a request its own answer.
pub(super) fn answer(packet: &mut [u8], ip: &Ip) {
    let v4 = ip.protocol == ICMP;
    let (first, length) = if v4 { (12, 4) } else { (8, 16) };
    let (left, right) = packet[first..].split_at_mut(length);
    left.swap_with_slice(&mut right[..length]);
    packet[ip.transport] = if v4 { 0 } else { 129 };
    write_checksum(&mut packet[..ip.total], ip.transport, ip.protocol);
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

    #[test]
    fn a_probe_and_its_answer_are_valid_echoes() {
        let started = Instant::now();
        for (a, b) in [("10.210.1.1", "10.210.2.1"), ("fd00::1", "fd00::2")] {
            let (a, b): (IpAddr, IpAddr) =
                (a.parse().expect("a literal"), b.parse().expect("a literal"));
            let mut out = [0; MAX_PROBE];
            let length = write(a, b, started, started + Duration::from_micros(77), &mut out)
                .expect("one family");
            let ip = Ip::parse(&out[..length]).expect("a whole packet");
            assert_eq!((ip.source, ip.destination), (a, b));
            assert_eq!(parse(&out[..length], &ip), Some(Probe::Request));
            answer(&mut out[..length], &ip);
            let ip = Ip::parse(&out[..length]).expect("a whole packet");
            assert_eq!((ip.source, ip.destination), (b, a));
            assert_eq!(
                parse(&out[..length], &ip),
                Some(Probe::Reply(Duration::from_micros(77)))
            );
            let pseudo = if a.is_ipv6() {
                packet::pseudo_header_sum(&out, ICMP6, 24)
            } else {
                0
            };
            assert_eq!(
                packet::finish(packet::sum(&out[ip.transport..length], pseudo)),
                0
            );
        }
    }
}
