//! TCP resets for segments that the policy denies (RFC 9293 section 3.5.2), so that a program learns at once that it may not
//! connect. Pure.

use std::net::IpAddr;

use super::packet::{self, Ip, TCP};

/// The size in bytes of a TCP header without options.
const TCP_HEADER: usize = 20;
/// The maximum size of a reset in bytes.
pub(super) const MAX_RESET: usize = 40 + TCP_HEADER;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Writes the reset that answers `packet`, and returns its length. Returns none if the packet is no TCP segment, or is a reset.
pub(super) fn answer(packet: &[u8], ip: &Ip, out: &mut [u8; MAX_RESET]) -> Option<usize> {
    if ip.protocol != TCP || ip.fragment {
        return None;
    }
    let segment = packet.get(ip.transport..ip.total)?;
    let (ports, rest) = segment.split_first_chunk::<4>()?;
    let (sequence, rest) = rest.split_first_chunk::<4>()?;
    let (acknowledged, rest) = rest.split_first_chunk::<4>()?;
    // The window, the checksum and the urgent pointer follow.
    let [offset, flags, _, _, _, _, _, _, ..] = *rest else {
        return None;
    };
    if flags & RST != 0 {
        return None;
    }
    let payload = segment.len().checked_sub(usize::from(offset >> 4) * 4)?;
    let (sequence, acknowledged, answer) = if flags & ACK != 0 {
        (*acknowledged, [0; 4], RST)
    } else {
        // SYN and FIN each take one sequence number (RFC 9293 section 3.4).
        let flagged = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let next = u32::from_be_bytes(*sequence)
            .wrapping_add(payload as u32)
            .wrapping_add(flagged);
        ([0; 4], next.to_be_bytes(), RST | ACK)
    };
    out.fill(0);
    let header = match (ip.source, ip.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // The packet is never fragmented, so its identification has no meaning (RFC 6864 section 4.1).
            out[..10].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP]);
            out[12..16].copy_from_slice(&destination.octets());
            out[16..20].copy_from_slice(&source.octets());
            packet::write_ipv4_checksum(out, 20);
            20
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            out[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 20, TCP, 64]);
            out[8..24].copy_from_slice(&destination.octets());
            out[24..40].copy_from_slice(&source.octets());
            40
        }
        _ => return None,
    };
    let length = header + TCP_HEADER;
    let [a, b, c, d] = *ports;
    out[header..header + 4].copy_from_slice(&[c, d, a, b]);
    out[header + 4..header + 8].copy_from_slice(&sequence);
    out[header + 8..header + 12].copy_from_slice(&acknowledged);
    out[header + 12..header + 14].copy_from_slice(&[5 << 4, answer]);
    let pseudo = packet::pseudo_header_sum(&out[..length], TCP, TCP_HEADER);
    let checksum = packet::finish(packet::sum(&out[header..length], pseudo));
    out[header + 16..header + 18].copy_from_slice(&checksum.to_be_bytes());
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A segment with these flags, a sequence number of 1000, an acknowledgement of 2000 and some payload.
    fn segment(v6: bool, flags: u8, payload: usize) -> Vec<u8> {
        let header = if v6 { 40 } else { 20 };
        let mut packet = vec![0; header + TCP_HEADER + payload];
        let length = packet.len();
        if v6 {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            packet[6] = TCP;
            packet[8..10].copy_from_slice(&[0xfd, 1]);
            packet[24..26].copy_from_slice(&[0xfd, 2]);
        } else {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            packet[9] = TCP;
            packet[12..20].copy_from_slice(&[10, 210, 1, 1, 10, 210, 2, 1]);
        }
        let tcp = &mut packet[header..];
        tcp[..4].copy_from_slice(&[0x9c, 0x40, 0x15, 0x38]);
        tcp[4..8].copy_from_slice(&1000_u32.to_be_bytes());
        tcp[8..12].copy_from_slice(&2000_u32.to_be_bytes());
        tcp[12..14].copy_from_slice(&[5 << 4, flags]);
        packet
    }

    fn answer_of(packet: &[u8]) -> Option<Vec<u8>> {
        let ip = Ip::parse(packet).expect("a whole packet");
        let mut out = [7; MAX_RESET];
        answer(packet, &ip, &mut out).map(|length| out[..length].to_vec())
    }

    /// The ports, the sequence number, the acknowledgement and the flags.
    fn values(packet: &[u8]) -> ([u8; 4], u32, u32, u8) {
        let ip = Ip::parse(packet).expect("a whole packet");
        let number = |at: usize| {
            let bytes = packet[ip.transport + at..].first_chunk::<4>();
            u32::from_be_bytes(*bytes.expect("a whole segment"))
        };
        let ports = number(0).to_be_bytes();
        (ports, number(4), number(8), packet[ip.transport + 13])
    }

    #[test]
    fn a_segment_that_begins_a_connection_is_answered_as_a_closed_port_answers() {
        for v6 in [false, true] {
            let asked = segment(v6, SYN, 0);
            let reset = answer_of(&asked).expect("a reset");
            let (to, from) = (
                Ip::parse(&asked).expect("whole"),
                Ip::parse(&reset).expect("whole"),
            );
            assert_eq!((from.source, from.destination), (to.destination, to.source));
            let expected = ([0x15, 0x38, 0x9c, 0x40], 0, 1001, RST | ACK);
            assert_eq!(values(&reset), expected);
            let pseudo = packet::pseudo_header_sum(&reset, TCP, TCP_HEADER);
            let sum = packet::sum(&reset[from.transport..], pseudo);
            assert_eq!(packet::finish(sum), 0);
        }
    }

    #[test]
    fn a_segment_of_a_connection_is_answered_with_the_number_that_its_sender_expects() {
        let reset = answer_of(&segment(false, ACK, 100)).expect("a reset");
        assert_eq!(values(&reset), ([0x15, 0x38, 0x9c, 0x40], 2000, 0, RST));
        assert_eq!(packet::finish(packet::sum(&reset[..20], 0)), 0);
    }

    #[test]
    fn no_reset_and_no_other_protocol_is_answered() {
        assert_eq!(answer_of(&segment(false, RST, 0)), None);
        assert_eq!(answer_of(&segment(false, RST | ACK, 0)), None);
        let mut datagram = segment(false, SYN, 0);
        datagram[9] = packet::UDP;
        assert_eq!(answer_of(&datagram), None);
        let mut fragment = segment(false, SYN, 0);
        fragment[6] = 0x20;
        assert_eq!(answer_of(&fragment), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_with_a_whole_packet_or_not_at_all(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120),
            first in prop::sample::select(vec![0x45_u8, 0x46, 0x4f, 0x60]),
        ) {
            let length = bytes.len();
            if let Some(byte) = bytes.first_mut() { *byte = first; }
            if let Some(byte) = bytes.get_mut(3) { *byte = length as u8; }
            if let Some(byte) = bytes.get_mut(if first == 0x60 { 6 } else { 9 }) { *byte = TCP; }
            if let Some(ip) = Ip::parse(&bytes) {
                let mut out = [0; MAX_RESET];
                if let Some(length) = answer(&bytes, &ip, &mut out) {
                    let reset = Ip::parse(&out[..length]).expect("a whole packet");
                    prop_assert_eq!((reset.total, reset.destination), (length, ip.source));
                }
            }
        }
    }
}
