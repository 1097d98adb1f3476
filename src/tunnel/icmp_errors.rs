//! The ICMP errors that tell a sender on this machine why its packet is not sent to a peer. Pure.
//!
//! The source of an error is the destination of the packet rather than this node: the kernel drops packets from a device whose
//! source is an address of the kernel itself.

use std::net::IpAddr;
use std::time::Instant;

use super::packet::{self, ICMP, ICMP6, Ip};
use crate::model::rate::{Bucket, Rate};

/// The maximum size of an ICMP error in bytes (RFC 1812 section 4.3.2.3).
const MAX_V4: usize = 576;
/// The maximum size of an ICMPv6 error in bytes (RFC 4443 section 2.4(c)).
const MAX_V6: usize = 1280;
/// The maximum size of any error in bytes.
pub const MAX_ERROR: usize = MAX_V6;
/// The maximum number of errors a second and at once (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4(f)).
const ERRORS: Rate = Rate {
    per_second: 1000.0,
    burst: 50.0,
};
/// The precedence of network control (RFC 1812 section 4.3.2.5).
const NETWORK_CONTROL: u8 = 0xc0;

/// Why a packet is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The packet is larger than this MTU of the path: fragmentation needed (RFC 792, RFC 1191 section 4) or packet too big (RFC 4443
    /// section 3.2).
    TooBig(u16),
    /// The policy denies the packet: communication administratively prohibited (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1).
    Prohibited,
}

impl Reason {
    /// The type and code of the error about a packet of IPv4 or IPv6, and the last two bytes of its header.
    fn header(self, is_v4: bool) -> ([u8; 2], u16) {
        match (self, is_v4) {
            (Self::TooBig(fits), true) => ([3, 4], fits),
            (Self::TooBig(fits), false) => ([2, 0], fits),
            (Self::Prohibited, true) => ([3, 13], 0),
            (Self::Prohibited, false) => ([1, 1], 0),
        }
    }
}

/// Writes the error about `packet` and returns its length. Returns none if there must be no error about it.
#[must_use]
pub fn answer(packet: &[u8], ip: &Ip, reason: Reason, out: &mut [u8; MAX_ERROR]) -> Option<usize> {
    if !may_be_answered(packet, ip) {
        return None;
    }
    let (header, most, protocol) = match ip.source {
        IpAddr::V4(_) => (20, MAX_V4, ICMP),
        IpAddr::V6(_) => (40, MAX_V6, ICMP6),
    };
    let quoted = packet.len().min(ip.total).min(most - header - 8);
    let length = header + 8 + quoted;
    out[..header + 8].fill(0);
    match (ip.source, ip.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            out[..2].copy_from_slice(&[0x45, NETWORK_CONTROL]);
            out[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            out[8..10].copy_from_slice(&[64, ICMP]);
            out[12..16].copy_from_slice(&destination.octets());
            out[16..20].copy_from_slice(&source.octets());
            packet::write_ipv4_checksum(out, header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            out[0] = 0x60;
            out[4..6].copy_from_slice(&((8 + quoted) as u16).to_be_bytes());
            out[6..8].copy_from_slice(&[ICMP6, 64]);
            out[8..24].copy_from_slice(&destination.octets());
            out[24..40].copy_from_slice(&source.octets());
        }
        _ => return None,
    }
    let (kind, rest) = reason.header(protocol == ICMP);
    out[header..header + 2].copy_from_slice(&kind);
    out[header + 6..header + 8].copy_from_slice(&rest.to_be_bytes());
    out[header + 8..length].copy_from_slice(packet.get(..quoted)?);
    let error = &mut out[..length];
    let pseudo = match protocol {
        ICMP6 => packet::pseudo_header_sum(error, ICMP6, length - header),
        _ => 0,
    };
    let checksum = packet::finish(packet::sum(&error[header..], pseudo));
    error[header + 2..header + 4].copy_from_slice(&checksum.to_be_bytes());
    Some(length)
}

/// Whether there may be an error about a packet: not about an error, a packet to or from many hosts, or a fragment other than
/// the first (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4(e)).
fn may_be_answered(packet: &[u8], ip: &Ip) -> bool {
    let to_many = match ip.destination {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    };
    let from_one = match ip.source {
        IpAddr::V4(v4) => {
            !(v4.is_multicast() || v4.is_broadcast() || v4.is_unspecified() || v4.is_loopback())
        }
        IpAddr::V6(v6) => !(v6.is_multicast() || v6.is_unspecified() || v6.is_loopback()),
    };
    let first = match packet {
        [0x40..=0x4f, _, _, _, _, _, high, low, ..] => {
            u16::from_be_bytes([*high, *low]) & 0x1fff == 0
        }
        _ => true,
    };
    let kind = packet.get(ip.transport).copied();
    let error = match (ip.source, ip.protocol) {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        (IpAddr::V4(_), ICMP) => kind.is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12)),
        // All errors, and redirects.
        (IpAddr::V6(_), ICMP6) => kind.is_none_or(|kind| kind < 128 || kind == 137),
        _ => false,
    };
    from_one && first && !to_many && !error
}

/// Limits how many errors are sent.
#[derive(Debug)]
pub struct ErrorLimit(Bucket);

impl ErrorLimit {
    /// A limit that admits a burst at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self(Bucket::full(ERRORS, now))
    }

    /// Whether one more may be sent.
    pub fn admit(&mut self, now: Instant) -> bool {
        self.0.take(now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    fn v4(length: usize, protocol: u8, flags: u16) -> Vec<u8> {
        let mut packet = vec![0; length];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&flags.to_be_bytes());
        packet[9] = protocol;
        packet[12..20].copy_from_slice(&[10, 210, 1, 1, 10, 210, 2, 1]);
        packet::write_ipv4_checksum(&mut packet, 20);
        packet
    }

    fn v6(length: usize, protocol: u8) -> Vec<u8> {
        let mut packet = vec![0; length];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        packet[6] = protocol;
        packet[8..10].copy_from_slice(&[0xfd, 1]);
        packet[24..26].copy_from_slice(&[0xfd, 2]);
        packet
    }

    fn answer_for(packet: &[u8], reason: Reason) -> Option<Vec<u8>> {
        let ip = Ip::parse(packet).expect("a whole packet");
        let mut out = [1; MAX_ERROR];
        answer(packet, &ip, reason, &mut out).map(|length| out[..length].to_vec())
    }

    fn answer_of(packet: &[u8], fits: u16) -> Option<Vec<u8>> {
        answer_for(packet, Reason::TooBig(fits))
    }

    #[test]
    fn an_ipv4_packet_is_answered_with_fragmentation_needed() {
        let packet = v4(1400, packet::TCP, 0x4000);
        let error = answer_of(&packet, 1334).expect("an error");
        let ip = Ip::parse(&error).expect("a whole packet");
        let asked = Ip::parse(&packet).expect("a whole packet");
        assert_eq!(
            (ip.source, ip.destination, ip.protocol),
            (asked.destination, asked.source, ICMP)
        );
        assert_eq!(error.len(), 576);
        assert_eq!(packet::finish(packet::sum(&error[..20], 0)), 0);
        assert_eq!(packet::finish(packet::sum(&error[20..], 0)), 0);
        assert_eq!(error[20..22], [3, 4]);
        assert_eq!(error[24..28], [0, 0, 0x05, 0x36]);
        assert_eq!(error[28..], packet[..548]);
    }

    #[test]
    fn an_ipv6_packet_is_answered_with_packet_too_big() {
        let packet = v6(1420, packet::UDP);
        let error = answer_of(&packet, 1334).expect("an error");
        let ip = Ip::parse(&error).expect("a whole packet");
        let asked = Ip::parse(&packet).expect("a whole packet");
        assert_eq!(
            (ip.source, ip.destination, ip.protocol),
            (asked.destination, asked.source, ICMP6)
        );
        assert_eq!((error.len(), ip.total), (1280, 1280));
        let pseudo = packet::pseudo_header_sum(&error, ICMP6, error.len() - 40);
        assert_eq!(packet::finish(packet::sum(&error[40..], pseudo)), 0);
        assert_eq!(error[40..42], [2, 0]);
        assert_eq!(error[44..48], 1334u32.to_be_bytes());
        assert_eq!(error[48..], packet[..1232]);
    }

    #[test]
    fn there_are_no_errors_about_errors_later_fragments_and_multicast() {
        let mut unreachable = v4(1400, ICMP, 0x4000);
        unreachable[20] = 3;
        assert_eq!(answer_of(&unreachable, 1300), None);
        unreachable[20] = 8;
        assert!(answer_of(&unreachable, 1300).is_some(), "an echo");
        let mut error = v6(1400, ICMP6);
        error[40] = 1;
        assert_eq!(answer_of(&error, 1300), None);
        error[40] = 128;
        assert!(answer_of(&error, 1300).is_some(), "an echo");
        assert_eq!(answer_of(&v4(1400, packet::UDP, 0x4001), 1300), None);
        for at in [12, 16] {
            let mut multicast = v4(1400, packet::UDP, 0x4000);
            multicast[at] = 224;
            assert_eq!(answer_of(&multicast, 1300), None);
        }
        let mut multicast = v6(1400, packet::UDP);
        multicast[24] = 0xff;
        assert_eq!(answer_of(&multicast, 1300), None);
    }

    #[test]
    fn a_packet_that_the_policy_denies_is_answered_with_administratively_prohibited() {
        for (packet, header, kind) in [
            (v4(60, packet::UDP, 0), 20, [3, 13]),
            (v6(60, packet::UDP), 40, [1, 1]),
        ] {
            let error = answer_for(&packet, Reason::Prohibited).expect("an error");
            assert_eq!(error[header..header + 2], kind);
            assert_eq!(error[header + 4..header + 8], [0; 4]);
            assert_eq!(error[header + 8..], packet);
        }
    }

    #[test]
    fn errors_are_limited_to_a_burst_and_a_rate() {
        let start = Instant::now();
        let mut limit = ErrorLimit::new(start);
        let admitted = |limit: &mut ErrorLimit, at| (0..1000).filter(|_| limit.admit(at)).count();
        assert_eq!(admitted(&mut limit, start), 50);
        assert_eq!(admitted(&mut limit, start + Duration::from_millis(10)), 10);
        assert_eq!(admitted(&mut limit, start + Duration::from_secs(100)), 50);
    }

    proptest! {
        #[test]
        fn any_packet_is_answered_within_the_limits_or_not_at_all(bytes in prop::collection::vec(any::<u8>(), 0..2000), fits in any::<u16>()) {
            if let Some(ip) = Ip::parse(&bytes) {
                let mut out = [0; MAX_ERROR];
                if let Some(length) = answer(&bytes, &ip, Reason::TooBig(fits), &mut out) {
                    let error = Ip::parse(&out[..length]).expect("a whole packet");
                    prop_assert_eq!((error.total, error.destination), (length, ip.source));
                }
            }
        }
    }
}
