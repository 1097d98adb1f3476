//! Packets that do not fit through the path to their peer. Pure.
//!
//! An IPv4 packet that may be fragmented is sent all the same: the datagram around it may be fragmented too, and few programs send
//! such packets today.

/// The least MTU of a link that carries IPv6 (RFC 8200 section 5). An error never reports less.
const LEAST_IPV6: usize = 1280;
const DONT_FRAGMENT: u8 = 0x40;

/// Decides whether a packet with this header, whose largest segment has `length` bytes, is refused on a path with an MTU of
/// `limit`. Returns the MTU to report if it is.
#[must_use]
pub fn refused(packet: &[u8], length: usize, limit: usize) -> Option<u16> {
    let fits = match packet.first()? >> 4 {
        4 if packet.get(6)? & DONT_FRAGMENT == 0 => return None,
        4 => limit,
        // No sender of IPv6 has to send less than this. On a narrower path, the datagrams around the packets are fragmented.
        _ => limit.max(LEAST_IPV6),
    };
    (length > fits).then(|| u16::try_from(fits).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(flags: u16) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[6..8].copy_from_slice(&flags.to_be_bytes());
        packet
    }

    fn v6() -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet
    }

    #[test]
    fn a_packet_that_may_be_fragmented_is_not_refused_and_ipv6_never_below_1280() {
        assert_eq!(refused(&v4(0x4000), 1400, 1399), Some(1399));
        assert_eq!(refused(&v4(0x4000), 1400, 1400), None);
        assert_eq!(refused(&v4(0), 1400, 1300), None);
        assert_eq!(refused(&v4(0x4000), 1400, 600), Some(600));
        assert_eq!(refused(&v6(), 1400, 600), Some(1280));
        assert_eq!(refused(&v6(), 1280, 600), None);
        assert_eq!(refused(&[], 1280, 600), None);
    }
}
