//! Merges consecutive packets of one flow, so that the kernel receives them as one packet (generic receive offload).
//!
//! Packets stay where they are in the arena. A run consists of the first packet and of the payloads of the packets that
//! follow it. A packet joins a run if three conditions hold: its headers equal those of the run except for lengths, sequence
//! number, checksums, identification and PSH; its payload continues the run's; and its transport checksum is correct,
//! since the kernel does not verify the checksum of a merged packet. A packet may join only the newest run of its flow, so
//! the order within a flow does not change.

use super::packet::{self, Ip, TCP, UDP};
use super::split::{VNET_HEADER, VnetHeader};

/// The maximum size of a merged packet in bytes: the largest value of an IP length field.
const MAX_MERGED: usize = 65_535;
/// The maximum number of segments of a merged packet.
pub const MAX_SEGMENTS: usize = 64;
/// The number of the newest runs among which a packet looks for its flow.
const FLOWS: usize = 8;

/// A packet in the arena, with the length of its headers and the next packet of its run.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: usize,
    end: usize,
    headers: usize,
    next: Option<usize>,
}

/// Packets that are merged.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: usize,
    last: usize,
    count: usize,
    /// The size of the merged packet.
    bytes: usize,
    protocol: u8,
    transport: usize,
    /// The payload size of each packet but the last, which may be shorter.
    segment: usize,
    next_sequence: u32,
    /// Whether no packet may join any more: the last one was shorter or had PSH, or this is not TCP or UDP.
    closed: bool,
    /// Whether the checksum of the first packet was verified.
    verified: bool,
}

/// Collects packets and merges them where possible. It is reused for each batch, and allocates nothing once its buffers have
/// grown.
#[derive(Debug, Default)]
pub struct Coalescer {
    pieces: Vec<Piece>,
    runs: Vec<Run>,
    udp: bool,
}

impl Coalescer {
    /// A coalescer that merges UDP packets only if the device accepts such packets (`udp`).
    #[must_use]
    pub fn new(udp: bool) -> Self {
        Self {
            pieces: Vec::with_capacity(512),
            runs: Vec::with_capacity(512),
            udp,
        }
    }

    /// Adds the packet at `start..end` of `arena`.
    pub fn push(&mut self, arena: &[u8], start: usize, end: usize) {
        let piece = self.pieces.len();
        self.pieces.push(Piece {
            start,
            end,
            headers: end - start,
            next: None,
        });
        let Some(candidate) = self.candidate(&arena[start..end], piece) else {
            self.runs.push(single(piece, end - start));
            return;
        };
        self.pieces[piece].headers = candidate.bytes - candidate.segment;
        let newest = self.runs.iter().rev().take(FLOWS).position(|run| {
            run.protocol == candidate.protocol
                && same_flow(arena, self.pieces[run.first], self.pieces[piece])
        });
        if let Some(back) = newest {
            let at = self.runs.len() - 1 - back;
            if self.joins(arena, at, &candidate) {
                let run = &mut self.runs[at];
                self.pieces[run.last].next = Some(piece);
                run.last = piece;
                run.count += 1;
                run.bytes += candidate.segment;
                run.next_sequence = candidate.next_sequence;
                run.closed = candidate.closed || candidate.segment < run.segment;
                return;
            }
        }
        self.runs.push(candidate);
    }

    /// The run that begins with a packet. Returns none if no other packet may join it.
    fn candidate(&self, packet: &[u8], piece: usize) -> Option<Run> {
        let ip = Ip::parse(packet)?;
        if ip.fragment || ip.total != packet.len() {
            return None;
        }
        let v4 = packet[0] >> 4 == 4;
        // The kernel gives merged packets new identifications. Only packets that are never fragmented allow that.
        if v4 && (ip.transport != 20 || packet[6] & 0x40 == 0) {
            return None;
        }
        let transport = ip.transport;
        match ip.protocol {
            TCP => {
                let tcp = packet.get(transport..transport + 20)?;
                let length = usize::from(tcp[12] >> 4) * 4;
                let payload = packet.len().checked_sub(transport + length)?;
                // Packets with ACK alone, or with ACK and PSH, may be merged. Any other flag belongs to its own packet.
                let flags = tcp[13];
                if length < 20 || payload == 0 || flags & !0x08 != 0x10 {
                    return None;
                }
                let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
                Some(Run {
                    protocol: TCP,
                    transport,
                    segment: payload,
                    next_sequence: sequence.wrapping_add(payload as u32),
                    closed: flags & 0x08 != 0,
                    ..single(piece, packet.len())
                })
            }
            UDP if self.udp => {
                let udp = packet.get(transport..transport + 8)?;
                let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
                let checksum = u16::from_be_bytes([udp[6], udp[7]]);
                if length != packet.len() - transport || length <= 8 || checksum == 0 {
                    return None;
                }
                Some(Run {
                    protocol: UDP,
                    transport,
                    segment: length - 8,
                    closed: false,
                    ..single(piece, packet.len())
                })
            }
            _ => None,
        }
    }

    /// Whether the packet of run `next` continues run `at`, which has the same flow.
    fn joins(&mut self, arena: &[u8], at: usize, next: &Run) -> bool {
        let run = self.runs[at];
        let (first, piece) = (self.pieces[run.first], self.pieces[next.first]);
        let fits = !run.closed
            && run.count < MAX_SEGMENTS
            && run.bytes + next.segment <= MAX_MERGED
            && next.segment <= run.segment
            && first.headers == piece.headers;
        if !fits
            || !same_headers(
                &arena[first.start..],
                &arena[piece.start..],
                run.transport,
                first.headers,
                run.protocol,
            )
        {
            return false;
        }
        if run.protocol == TCP
            && run.next_sequence != sequence_of(&arena[piece.start..], run.transport)
        {
            return false;
        }
        if !run.verified {
            if !checksum_holds(&arena[first.start..first.end], run.transport, run.protocol) {
                self.runs[at].closed = true;
                return false;
            }
            self.runs[at].verified = true;
        }
        checksum_holds(&arena[piece.start..piece.end], run.transport, run.protocol)
    }

    /// Calls `write` for each run with its offload header and the places of its parts in the arena, in order, and removes all
    /// runs.
    pub fn flush(
        &mut self,
        arena: &mut [u8],
        mut write: impl FnMut(&[u8], VnetHeader, &mut dyn Iterator<Item = (usize, usize)>),
    ) {
        for run in self.runs.drain(..) {
            let first = self.pieces[run.first];
            let header = if run.count > 1 {
                merge_headers(&mut arena[first.start..first.end], &run, first.headers);
                let v6 = arena[first.start] >> 4 == 6;
                VnetHeader::merged(v6, run.protocol, run.transport, first.headers, run.segment)
            } else {
                VnetHeader::default()
            };
            let mut at = Some((first.start, first.end, first.next));
            let mut parts = std::iter::from_fn(|| {
                let (start, end, next) = at?;
                at = next.map(|n| {
                    let piece = self.pieces[n];
                    (piece.start + piece.headers, piece.end, piece.next)
                });
                Some((start, end))
            });
            write(arena, header, &mut parts);
        }
        self.pieces.clear();
    }

    /// The number of packets that were added.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether no packet was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

/// A run of one packet that no other may join.
fn single(piece: usize, bytes: usize) -> Run {
    Run {
        first: piece,
        last: piece,
        count: 1,
        bytes,
        protocol: 0,
        transport: 0,
        segment: 0,
        next_sequence: 0,
        closed: true,
        verified: false,
    }
}

fn sequence_of(packet: &[u8], transport: usize) -> u32 {
    packet
        .get(transport + 4..transport + 8)
        .map_or(0, |s| u32::from_be_bytes([s[0], s[1], s[2], s[3]]))
}

/// Whether two packets have the same version, addresses and ports.
fn same_flow(arena: &[u8], a: Piece, b: Piece) -> bool {
    let key = |piece: Piece| {
        let packet = &arena[piece.start..piece.end];
        let (addresses, transport) = if packet[0] >> 4 == 4 {
            (12..20, 20)
        } else {
            (8..40, 40)
        };
        Some((
            packet.get(addresses)?,
            packet.get(transport..transport + 4)?,
        ))
    };
    key(a).is_some() && key(a) == key(b)
}

/// Whether two packets have the same values in all fields that a merged packet has only once.
fn same_headers(a: &[u8], b: &[u8], transport: usize, headers: usize, protocol: u8) -> bool {
    let same =
        |from: usize, to: usize| a.get(from..to).is_some() && a.get(from..to) == b.get(from..to);
    // IPv4: version, TOS, flags, TTL and protocol. IPv6: version, class, label, next header and hop limit.
    let ip = if transport == 20 {
        same(0, 2) && same(6, 10)
    } else {
        same(0, 4) && same(6, 8)
    };
    ip && match protocol {
        // Acknowledgement number, data offset, window, urgent pointer and options.
        TCP => {
            same(transport + 8, transport + 13)
                && same(transport + 14, transport + 16)
                && same(transport + 18, headers)
        }
        _ => true,
    }
}

fn checksum_holds(packet: &[u8], transport: usize, protocol: u8) -> bool {
    let pseudo = packet::pseudo_header_sum(packet, protocol, packet.len() - transport);
    packet::finish(packet::sum(&packet[transport..], pseudo)) == 0
}

/// Writes the lengths and checksums of the merged packet into the headers of the first packet.
fn merge_headers(packet: &mut [u8], run: &Run, headers: usize) {
    debug_assert!(
        headers <= packet.len(),
        "headers lie within the first piece"
    );
    let total = run.bytes;
    if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        packet::write_ipv4_checksum(packet, run.transport);
    } else {
        packet[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
    }
    let at = if run.protocol == TCP {
        if run.closed {
            // The last packet may have had PSH. Without it the reader would wait; that it is set too early does no harm.
            packet[run.transport + 13] |= 0x08;
        }
        run.transport + 16
    } else {
        packet[run.transport + 4..run.transport + 6]
            .copy_from_slice(&((total - run.transport) as u16).to_be_bytes());
        run.transport + 6
    };
    // The device completes the checksum, which begins as the sum of the pseudo-header.
    let pseudo = packet::fold(packet::pseudo_header_sum(
        packet,
        run.protocol,
        total - run.transport,
    ));
    packet[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
}

/// The maximum size of a write to the device in bytes.
pub const MAX_WRITE: usize = MAX_MERGED + VNET_HEADER;

#[cfg(test)]
mod tests;
