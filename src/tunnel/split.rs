//! Splits a packet that the kernel left for segmentation offload, in place.
//!
//! The kernel passes one header and up to 64 KiB of payload (virtio 1.2 section 5.1.6.2). The header of each segment is written
//! right before its payload, over the end of the segment before it, which has been sealed by then. So only headers are copied.

use super::packet::{self, Ip, TCP, UDP};

/// The size in bytes of the offload header, which precedes every packet of a TUN device with offloads.
pub const VNET_HEADER: usize = 10;
/// The maximum size in bytes of the headers of a segment: IPv6 or IPv4 with options, and TCP with options.
const MAX_HEADERS: usize = 120;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// The flag for congestion (CWR), which only the first segment of a split packet keeps (RFC 3168 section 6.1.2).
const GSO_ECN: u8 = 0x80;

/// The offload header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    flags: u8,
    gso_type: u8,
    header_length: u16,
    segment: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl VnetHeader {
    /// Reads the header, which is in the machine's byte order.
    #[inline]
    #[must_use]
    pub fn read(bytes: &[u8; VNET_HEADER]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *bytes;
        Self {
            flags,
            gso_type,
            header_length: u16::from_ne_bytes([a, b]),
            segment: u16::from_ne_bytes([c, d]),
            checksum_start: u16::from_ne_bytes([e, f]),
            checksum_offset: u16::from_ne_bytes([g, h]),
        }
    }

    /// The header as bytes.
    #[inline]
    #[must_use]
    pub fn to_bytes(self) -> [u8; VNET_HEADER] {
        let [a, b] = self.header_length.to_ne_bytes();
        let [c, d] = self.segment.to_ne_bytes();
        let [e, f] = self.checksum_start.to_ne_bytes();
        let [g, h] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }

    /// A header for a merged packet. The transport header begins at byte `transport` and ends at byte `headers`. Each segment has
    /// `segment` bytes of payload.
    #[must_use]
    pub fn merged(
        v6: bool,
        protocol: u8,
        transport: usize,
        headers: usize,
        segment: usize,
    ) -> Self {
        let small = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        Self {
            flags: NEEDS_CHECKSUM,
            gso_type: match (protocol, v6) {
                (UDP, _) => GSO_UDP,
                (_, false) => GSO_TCP4,
                (_, true) => GSO_TCP6,
            },
            header_length: small(headers),
            segment: small(segment),
            checksum_start: small(transport),
            checksum_offset: if protocol == UDP { 6 } else { 16 },
        }
    }
}

/// The size in bytes of the largest segment that `packet` will be split into.
#[must_use]
pub fn largest_segment(header: VnetHeader, packet: &[u8]) -> usize {
    if header.gso_type & !GSO_ECN == GSO_NONE {
        return packet.len();
    }
    let transport = usize::from(header.checksum_start);
    let length = match header.gso_type & !GSO_ECN {
        GSO_UDP => 8,
        _ => packet
            .get(transport + 12)
            .map_or(0, |offset| usize::from(offset >> 4) * 4),
    };
    (transport + length + usize::from(header.segment)).min(packet.len())
}

/// The lengths of a packet and its offload header contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the packet and its offload header do not go together")]
pub struct Malformed;

/// Calls `each` with every segment of `packet`, in order.
///
/// # Errors
/// The lengths are wrong. `each` was then not called.
pub fn split(
    header: VnetHeader,
    packet: &mut [u8],
    mut each: impl FnMut(&[u8]),
) -> Result<(), Malformed> {
    let ip = Ip::parse(packet).ok_or(Malformed)?;
    let end = packet.len();
    match header.gso_type & !GSO_ECN {
        GSO_NONE => {
            if header.flags & NEEDS_CHECKSUM != 0 {
                complete_checksum(header, packet).ok_or(Malformed)?;
            }
            each(&packet[..ip.total]);
            Ok(())
        }
        kind @ (GSO_TCP4 | GSO_TCP6 | GSO_UDP) => {
            let plan = SplitPlan::new(kind, header, &ip, packet, end).ok_or(Malformed)?;
            plan.run(packet, &mut each);
            Ok(())
        }
        _ => Err(Malformed),
    }
}

/// Completes a checksum: the kernel left the sum of the pseudo-header in its place.
fn complete_checksum(header: VnetHeader, packet: &mut [u8]) -> Option<()> {
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    let checksum = packet::finish(packet::sum(packet.get(start..)?, 0));
    // A UDP checksum of zero would mean that there is none (RFC 768).
    let checksum = if checksum == 0 && header.checksum_offset == 6 {
        0xffff
    } else {
        checksum
    };
    packet
        .get_mut(at..at + 2)?
        .copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

/// How a packet is split.
struct SplitPlan {
    v4: bool,
    protocol: u8,
    transport: usize,
    headers: usize,
    segment: usize,
    template: [u8; MAX_HEADERS],
}

impl SplitPlan {
    fn new(kind: u8, header: VnetHeader, ip: &Ip, packet: &[u8], end: usize) -> Option<Self> {
        let v4 = packet.first()? >> 4 == 4;
        let protocol = if kind == GSO_UDP { UDP } else { TCP };
        if (kind == GSO_TCP4 && !v4) || (kind == GSO_TCP6 && v4) || ip.total != end || ip.fragment {
            return None;
        }
        // The transport header begins where the checksum starts: after the extension headers, if there are any.
        let transport = usize::from(header.checksum_start);
        if transport < ip.transport || (transport == ip.transport && ip.protocol != protocol) {
            return None;
        }
        let length = match protocol {
            TCP => usize::from(packet.get(transport + 12)? >> 4) * 4,
            _ => 8,
        };
        let headers = transport.checked_add(length)?;
        if (protocol == TCP && length < 20)
            || headers > MAX_HEADERS
            || headers > end
            || header.segment == 0
        {
            return None;
        }
        let mut template = [0; MAX_HEADERS];
        template[..headers].copy_from_slice(packet.get(..headers)?);
        Some(Self {
            v4,
            protocol,
            transport,
            headers,
            segment: usize::from(header.segment),
            template,
        })
    }

    fn run(&self, packet: &mut [u8], each: &mut impl FnMut(&[u8])) {
        let payload = packet.len() - self.headers;
        let mut offset = 0;
        let mut index = 0u16;
        loop {
            let length = self.segment.min(payload - offset);
            let last = offset + length == payload;
            let whole = self.headers + length;
            let segment = &mut packet[offset..offset + whole];
            self.write_headers(segment, index, offset, last);
            each(segment);
            if last {
                return;
            }
            offset += length;
            index = index.wrapping_add(1);
        }
    }

    fn write_headers(&self, segment: &mut [u8], index: u16, offset: usize, last: bool) {
        let total = segment.len();
        segment[..self.headers].copy_from_slice(&self.template[..self.headers]);
        if self.v4 {
            let id = u16::from_be_bytes([self.template[4], self.template[5]]).wrapping_add(index);
            segment[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            segment[4..6].copy_from_slice(&id.to_be_bytes());
            packet::write_ipv4_checksum(segment, usize::from(self.template[0] & 15) * 4);
        } else {
            segment[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
        }
        let transport = self.transport;
        let at = if self.protocol == TCP {
            let sequence = u32::from_be_bytes([
                self.template[transport + 4],
                self.template[transport + 5],
                self.template[transport + 6],
                self.template[transport + 7],
            ]);
            let sequence = sequence.wrapping_add(offset as u32);
            segment[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
            const FIN_PSH: u8 = 0x09;
            const CWR: u8 = 0x80;
            if !last {
                segment[transport + 13] &= !FIN_PSH;
            }
            if index > 0 {
                segment[transport + 13] &= !CWR;
            }
            transport + 16
        } else {
            segment[transport + 4..transport + 6]
                .copy_from_slice(&((total - transport) as u16).to_be_bytes());
            transport + 6
        };
        segment[at..at + 2].fill(0);
        let pseudo = packet::pseudo_header_sum(segment, self.protocol, total - transport);
        let checksum = packet::finish(packet::sum(&segment[transport..], pseudo));
        let checksum = if checksum == 0 && self.protocol == UDP {
            0xffff
        } else {
            checksum
        };
        segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}
