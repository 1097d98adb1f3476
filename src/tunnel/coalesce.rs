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
mod tests {
    use super::super::split::split;
    use super::*;
    use proptest::prelude::*;

    /// A valid TCP or UDP packet.
    fn packet(
        v6: bool,
        protocol: u8,
        port: u16,
        sequence: u32,
        flags: u8,
        payload: &[u8],
    ) -> Vec<u8> {
        let transport = if v6 { 40 } else { 20 };
        let headers = transport + if protocol == TCP { 32 } else { 8 };
        let total = headers + payload.len();
        let mut p = vec![0u8; total];
        if v6 {
            p[0] = 0x60;
            p[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
            p[6] = protocol;
            p[7] = 64;
            p[23] = 1;
            p[39] = 2;
        } else {
            p[0] = 0x45;
            p[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            p[6] = 0x40;
            p[8] = 64;
            p[9] = protocol;
            p[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
            packet::write_ipv4_checksum(&mut p, 20);
        }
        p[transport..transport + 2].copy_from_slice(&port.to_be_bytes());
        p[transport + 2..transport + 4].copy_from_slice(&80u16.to_be_bytes());
        p[headers..].copy_from_slice(payload);
        let at = if protocol == TCP {
            p[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
            p[transport + 12] = 8 << 4;
            p[transport + 13] = flags;
            transport + 16
        } else {
            p[transport + 4..transport + 6]
                .copy_from_slice(&((total - transport) as u16).to_be_bytes());
            transport + 6
        };
        let pseudo = packet::pseudo_header_sum(&p, protocol, total - transport);
        let mut checksum = packet::finish(packet::sum(&p[transport..], pseudo));
        if checksum == 0 && protocol == UDP {
            checksum = 0xffff;
        }
        p[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        p
    }

    /// What the device is given for `packets`.
    fn coalesce(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
        let mut arena = Vec::new();
        let mut coalescer = Coalescer::new(true);
        for packet in packets {
            let start = arena.len();
            arena.extend_from_slice(packet);
            coalescer.push(&arena, start, arena.len());
        }
        let (mut plans, mut written) = (Vec::new(), Vec::new());
        coalescer.flush(&mut arena, |_, header, parts| {
            plans.push((header, parts.collect::<Vec<_>>()))
        });
        for (header, parts) in plans {
            written.push((
                header,
                parts
                    .into_iter()
                    .flat_map(|(s, e)| arena[s..e].to_vec())
                    .collect(),
            ));
        }
        written
    }

    fn split_again(written: Vec<(VnetHeader, Vec<u8>)>) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for (header, mut packet) in written {
            split(header, &mut packet, |segment| {
                packets.push(segment.to_vec())
            })
            .expect("what was merged can be split");
        }
        packets
    }

    #[test]
    fn segments_of_a_stream_become_one_packet() {
        let packets: Vec<_> = (0..10)
            .map(|i| packet(false, TCP, 1, i * 100, 0x10, &[i as u8; 100]))
            .collect();
        let written = coalesce(&packets);
        assert_eq!(written.len(), 1);
        assert_eq!(written[0].1.len(), 52 + 1000);
    }

    #[test]
    fn a_gap_another_flow_or_a_broken_checksum_does_not_merge() {
        let a = packet(false, TCP, 1, 0, 0x10, &[1; 100]);
        assert_eq!(
            coalesce(&[a.clone(), packet(false, TCP, 1, 101, 0x10, &[1; 100])]).len(),
            2
        );
        assert_eq!(
            coalesce(&[a.clone(), packet(false, TCP, 2, 100, 0x10, &[1; 100])]).len(),
            2
        );
        assert_eq!(
            coalesce(&[a.clone(), packet(true, TCP, 1, 100, 0x10, &[1; 100])]).len(),
            2
        );
        let mut broken = packet(false, TCP, 1, 100, 0x10, &[1; 100]);
        broken[60] ^= 1;
        assert_eq!(coalesce(&[a.clone(), broken.clone()]).len(), 2);
        assert_eq!(
            coalesce(&[broken, packet(false, TCP, 1, 200, 0x10, &[1; 100])]).len(),
            2
        );
        for flags in [0x11, 0x12, 0x14, 0x30, 0x90] {
            assert_eq!(
                coalesce(&[a.clone(), packet(false, TCP, 1, 100, flags, &[1; 100])]).len(),
                2
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn coalesced_then_split_every_flow_is_as_it_was(
            steps in prop::collection::vec((0u16..4, any::<bool>(), prop::bool::weighted(0.1), 1usize..1400, prop::bool::weighted(0.7)), 1..120),
        ) {
            let mut sequences = [0u32; 4];
            let mut last = [1000usize; 4];
            let mut packets = Vec::new();
            for (flow, push, gap, length, same) in steps {
                let at = usize::from(flow);
                let length = if same { last[at] } else { length };
                last[at] = length;
                let (v6, protocol) = (flow & 1 == 1, if flow & 2 == 2 { UDP } else { TCP });
                if gap { sequences[at] = sequences[at].wrapping_add(7); }
                let payload: Vec<u8> = (0..length).map(|i| (i * 7 + packets.len()) as u8).collect();
                packets.push(packet(v6, protocol, 1000 + flow, sequences[at], if push { 0x18 } else { 0x10 }, &payload));
                sequences[at] = sequences[at].wrapping_add(length as u32);
            }
            let again = split_again(coalesce(&packets));
            prop_assert_eq!(again.len(), packets.len());
            // Identification, PSH and with them the checksums may differ; order and everything else may not.
            let canon = |packets: &[Vec<u8>], flow: u16| -> Vec<Vec<u8>> {
                packets.iter().filter_map(|p| {
                    let mut p = p.clone();
                    let t = if p[0] >> 4 == 4 { 20 } else { 40 };
                    let tcp = (if t == 20 { p[9] } else { p[6] }) == TCP;
                    if u16::from_be_bytes([p[t], p[t + 1]]) != 1000 + flow { return None; }
                    let pseudo = packet::pseudo_header_sum(&p, if tcp { TCP } else { UDP }, p.len() - t);
                    assert_eq!(packet::finish(packet::sum(&p[t..], pseudo)), 0, "a valid checksum");
                    if t == 20 { p[4..6].fill(0); p[10..12].fill(0); }
                    if tcp { p[t + 13] &= !0x08; p[t + 16..t + 18].fill(0); }
                    Some(p)
                }).collect()
            };
            for flow in 0..4 {
                prop_assert_eq!(canon(&again, flow), canon(&packets, flow));
            }
        }

        #[test]
        fn large_packets_split_and_interleaved_are_merged_to_what_they_were(
            batches in prop::collection::vec((
                prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 1usize..1381, 2usize..=64, 0usize..1380), 1..=FLOWS),
                any::<u64>(),
            ), 1..4),
        ) {
            let mut sequences = [u32::MAX - 50_000; FLOWS];
            for (flows, order) in batches {
                let large: Vec<(VnetHeader, Vec<u8>)> = flows.iter().enumerate()
                    .map(|(flow, (v6, tcp, push, segment, count, short))| {
                        let protocol = if *tcp { TCP } else { UDP };
                        let transport = if *v6 { 40 } else { 20 };
                        let headers = transport + if *tcp { 32 } else { 8 };
                        // As many whole segments as a packet holds, and perhaps a shorter one.
                        let count = (*count).min((MAX_MERGED - headers) / segment);
                        let bytes = segment * count - short % segment;
                        // Whether a short segment ended a write cannot be told from it: the merge says that it did.
                        let push = *push || bytes % segment != 0;
                        let payload: Vec<u8> = (0..bytes).map(|i| (i * 31 + flow) as u8).collect();
                        let flags = if push { 0x18 } else { 0x10 };
                        let mut packet = packet(*v6, protocol, 1000 + flow as u16, sequences[flow], flags, &payload);
                        sequences[flow] = sequences[flow].wrapping_add(bytes as u32);
                        if bytes <= *segment {
                            return (VnetHeader::default(), packet);
                        }
                        // The kernel leaves the sum of the pseudo-header in the checksum's place.
                        let length = packet.len() - transport;
                        let at = transport + if *tcp { 16 } else { 6 };
                        let pseudo = packet::fold(packet::pseudo_header_sum(&packet, protocol, length));
                        packet[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
                        (VnetHeader::merged(*v6, protocol, transport, headers, *segment), packet)
                    })
                    .collect();
                let mut waiting: Vec<std::collections::VecDeque<Vec<u8>>> = large.iter()
                    .map(|(header, packet)| {
                        let mut segments = std::collections::VecDeque::new();
                        split(*header, &mut packet.clone(), |segment| segments.push_back(segment.to_vec()))
                            .expect("a valid packet");
                        segments
                    })
                    .collect();
                // The first segments in order, then whichever flow's turn it is by chance.
                let mut packets: Vec<Vec<u8>> = waiting.iter_mut().filter_map(|flow| flow.pop_front()).collect();
                let mut chance = order;
                while waiting.iter().any(|flow| !flow.is_empty()) {
                    chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let turn = (chance >> 33) as usize % waiting.len();
                    packets.extend(waiting[turn].pop_front());
                }
                prop_assert_eq!(coalesce(&packets), large);
            }
        }

        #[test]
        fn any_packet_and_offload_header_split_or_are_refused(
            header in any::<[u8; VNET_HEADER]>(),
            mut bytes in prop::collection::vec(any::<u8>(), 0..400),
            version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
            kind in 0u8..8,
        ) {
            if let Some(first) = bytes.first_mut() { *first = version; }
            let length = bytes.len();
            if length >= 40 {
                if version == 0x45 { bytes[2..4].copy_from_slice(&(length as u16).to_be_bytes()); bytes[6] = 0; bytes[7] = 0; bytes[9] = 6; }
                if version == 0x60 { bytes[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes()); bytes[6] = 6; }
            }
            let mut header = header;
            header[1] = kind;
            let _ = split(VnetHeader::read(&header), &mut bytes, |segment| assert!(segment.len() <= length));
        }
    }
}
