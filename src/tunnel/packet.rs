//! The parts of IP, TCP and UDP headers that a tunnel needs, and the internet checksum (RFC 1071).

use std::net::IpAddr;

/// The protocol number of TCP.
pub const TCP: u8 = 6;
/// The protocol number of UDP.
pub const UDP: u8 = 17;
/// The protocol number of ICMP.
pub const ICMP: u8 = 1;
/// The protocol number of ICMPv6.
pub const ICMP6: u8 = 58;

/// The values of an IP header. IPv6 extension headers are not followed: `transport` is the place of the first header after the
/// fixed one, and `protocol` is its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The protocol number of the header that follows.
    pub protocol: u8,
    /// The size of the IP header in bytes, including its options.
    pub transport: usize,
    /// The size of the packet in bytes, according to its header.
    pub total: usize,
    /// Whether it is a fragment of a larger packet.
    pub fragment: bool,
}

impl Ip {
    /// Parses the header of `packet`. Returns none if the packet is not complete.
    #[inline]
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let header = packet.first_chunk::<20>()?;
                let transport = usize::from(header[0] & 15) * 4;
                let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
                let [.., a, b, c, d, e, f, g, h] = *header;
                (transport >= 20 && total >= transport && packet.len() >= total).then_some(Self {
                    source: [a, b, c, d].into(),
                    destination: [e, f, g, h].into(),
                    protocol: header[9],
                    transport,
                    total,
                    fragment,
                })
            }
            6 => {
                let header = packet.first_chunk::<40>()?;
                let total = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
                let source: [u8; 16] = header[8..24].try_into().ok()?;
                let destination: [u8; 16] = header[24..40].try_into().ok()?;
                (packet.len() >= total).then_some(Self {
                    source: source.into(),
                    destination: destination.into(),
                    protocol: header[6],
                    transport: 40,
                    total,
                    fragment: header[6] == 44,
                })
            }
            _ => None,
        }
    }
}

/// The flow that a packet belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The protocol number.
    pub protocol: u8,
    /// A hash that is the same for all packets of one direction of a flow.
    pub hash: u16,
}

/// Reads the flow from the headers; `packet` may end after them. All bytes that are no packet have the same flow.
#[inline]
#[must_use]
pub fn flow(packet: &[u8]) -> Flow {
    let (protocol, transport, addresses) = match packet {
        [first, ..] if first >> 4 == 4 && packet.len() >= 20 => {
            // Only the first fragment of a packet has ports, so all fragments are treated as if they had none.
            let whole = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff == 0;
            let transport = whole.then_some(usize::from(first & 15) * 4);
            (packet[9], transport, &packet[12..20])
        }
        [first, ..] if first >> 4 == 6 && packet.len() >= 40 => {
            (packet[6], Some(40), &packet[8..40])
        }
        _ => (0, None, &[][..]),
    };
    let ports = transport
        .filter(|_| matches!(protocol, TCP | UDP))
        .and_then(|transport| packet.get(transport..transport + 4))
        .unwrap_or_default();
    let words = addresses.chunks_exact(4).chain(ports.chunks_exact(4));
    let hash = words.fold(0_u32, |hash, word| {
        let word = word
            .first_chunk()
            .map_or(0, |word| u32::from_be_bytes(*word));
        // Fibonacci hashing (Knuth, The Art of Computer Programming, volume 3, section 6.4).
        (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b1)
    });
    Flow {
        protocol,
        hash: (hash >> 16) as u16,
    }
}

/// Adds `bytes` to `sum` as big-endian 16-bit words. The result is not folded.
#[must_use]
pub fn sum(bytes: &[u8], sum: u64) -> u64 {
    // The one's complement sum does not depend on the byte order, as long as the result is swapped (RFC 1071 section 2).
    sum + u64::from(u16::from_be(fold(native_sum(bytes))))
}

#[cfg(target_arch = "x86_64")]
fn native_sum(bytes: &[u8]) -> u64 {
    if bytes.len() >= WIDE && is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2. No library is involved: a call of a function for other processor features than the
        // whole program is compiled for is `unsafe` in Rust.
        unsafe { wide_sum(bytes) }
    } else {
        sum_of_words(bytes)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn native_sum(bytes: &[u8]) -> u64 {
    sum_of_words(bytes)
}

/// The number of bytes from which on wider registers are faster.
#[cfg(target_arch = "x86_64")]
const WIDE: usize = 256;

/// [`sum_of_words`], compiled for registers that not every processor has.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn wide_sum(bytes: &[u8]) -> u64 {
    sum_of_words(bytes)
}

#[inline(always)]
fn sum_of_words(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(4);
    let mut total: u64 = chunks
        .by_ref()
        .map(|c| u64::from(u32::from_ne_bytes(c.try_into().expect("chunks of four"))))
        .sum();
    let rest = chunks.remainder();
    let mut last = [0u8; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_ne_bytes(last));
    total
}

/// The checksum for a sum that is not folded: its one's complement in 16 bits.
#[must_use]
pub fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// Folds a sum to 16 bits.
#[must_use]
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) of `packet`, with `length` bytes after its IP
/// header.
#[must_use]
pub fn pseudo_header_sum(packet: &[u8], protocol: u8, length: usize) -> u64 {
    let addresses = match packet.first().map(|v| v >> 4) {
        Some(4) => packet.get(12..20),
        _ => packet.get(8..40),
    };
    let length = u64::from(fold(length as u64));
    sum(addresses.unwrap_or_default(), u64::from(protocol) + length)
}

/// Writes the header checksum of an IPv4 packet whose header has `header` bytes.
pub fn write_ipv4_checksum(packet: &mut [u8], header: usize) {
    packet[10..12].fill(0);
    let checksum = finish(sum(&packet[..header], 0));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071_adds_up() {
        assert_eq!(
            fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0)),
            0xddf2
        );
    }

    #[test]
    fn packets_with_wrong_lengths_are_refused() {
        let mut packet = vec![0u8; 60];
        packet[0] = 0x45;
        packet[3] = 60;
        assert!(Ip::parse(&packet).is_some());
        packet[3] = 61;
        assert_eq!(Ip::parse(&packet), None, "longer than what is there");
        packet[3] = 19;
        assert_eq!(Ip::parse(&packet), None, "shorter than its header");
        packet[3] = 60;
        packet[0] = 0x44;
        assert_eq!(Ip::parse(&packet), None, "a header too short");
    }

    #[test]
    fn a_flow_depends_only_on_the_headers() {
        let mut packet = vec![0; 28];
        packet[..12].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, UDP, 0, 0]);
        packet[12..].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 0, 53, 0, 8, 0, 0]);
        let one = flow(&packet);
        assert_eq!(one.protocol, UDP);
        assert_eq!(flow(&[&packet[..], &[7; 99]].concat()), one);
        packet[20] = 9;
        assert_ne!(flow(&packet), one, "another port");
        // A fragment has data in the place of the ports, so only the addresses count.
        packet[6] = 0x20;
        let piece = flow(&packet);
        packet[20] = 1;
        assert_eq!(flow(&packet), piece);
        packet[15] = 9;
        assert_ne!(flow(&packet), piece, "another address");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = flow(&bytes);
            if let Some(ip) = Ip::parse(&bytes) {
                prop_assert!(ip.total <= bytes.len() && ip.transport <= ip.total);
            }
        }

        #[test]
        fn sums_agree_with_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            let mut words: u64 = 0;
            for pair in bytes.chunks(2) {
                words += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            }
            prop_assert_eq!(fold(sum(&bytes, 0)), fold(words));
        }
    }
}
