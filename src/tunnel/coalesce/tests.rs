//! Tests of the coalescer: streams, gaps, wrong checksums, and packets of any shape.

use super::*;
use crate::tunnel::split::split;
use proptest::prelude::*;

/// A valid TCP or UDP packet.
fn packet(v6: bool, protocol: u8, port: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
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

/// The packets that are written to the device for `packets`.
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
    fn packets_that_are_merged_and_split_again_are_the_same_in_each_flow(
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
        // Identification, PSH and therefore the checksums may differ. The order and everything else may not.
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
    fn large_packets_that_are_split_and_interleaved_are_merged_again(
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
                    // The packet has as many whole segments as fit, and perhaps a shorter one.
                    let count = (*count).min((MAX_MERGED - headers) / segment);
                    let bytes = segment * count - short % segment;
                    // A short segment does not show whether it ended a write. The merged packet says that it did.
                    let push = *push || bytes % segment != 0;
                    let payload: Vec<u8> = (0..bytes).map(|i| (i * 31 + flow) as u8).collect();
                    let flags = if push { 0x18 } else { 0x10 };
                    let mut packet = packet(*v6, protocol, 1000 + flow as u16, sequences[flow], flags, &payload);
                    sequences[flow] = sequences[flow].wrapping_add(bytes as u32);
                    if bytes <= *segment {
                        return (VnetHeader::default(), packet);
                    }
                    // The kernel leaves the sum of the pseudo-header in the place of the checksum.
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
            // The first segments are in order. Then each next segment is of a random flow.
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
    fn any_packet_with_any_offload_header_is_split_or_refused(
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
