//! Packets and datagrams of hostile peers, networks and kernels: no code panics, nothing is delivered, and all sizes stay within
//! their limits.

use std::time::Instant;

use proptest::prelude::*;

use super::coalesce::Coalescer;
use super::drops::DropReason;
use super::noise::tests::{established, open, packet};
use super::noise::{Opened, room_for};
use super::packet::{ICMP, ICMP6, Ip, TCP, UDP};
use super::probe;
use super::split::{VNET_HEADER, VnetHeader, split};

#[test]
fn datagrams_of_every_length_are_refused() {
    let (mut to_b, mut to_a) = established();
    let mut output = vec![0; room_for(65_535)];
    let (length, _) = to_b
        .seal(&packet(1), &mut output, Instant::now())
        .expect("a session");
    let sealed = output[..length].to_vec();
    let mut datagram = vec![0x5a; 65_535];
    for kind in 0..=5u32 {
        datagram[..4].copy_from_slice(&kind.to_le_bytes());
        // First with the index of no session, then with the index in use.
        for (index, step) in [([0xee; 4], 1), (sealed[4..8].try_into().expect("four"), 61)] {
            datagram[4..8].copy_from_slice(&index);
            datagram[8..16].copy_from_slice(&99u64.to_le_bytes());
            for length in (0..=65_535).step_by(step) {
                let opened = open(&mut to_a, &datagram[..length], &mut output);
                assert!(
                    matches!(opened, Opened::Refused(_)),
                    "type {kind}, {length} bytes: {opened:?}"
                );
            }
        }
    }
    assert_eq!(open(&mut to_a, &sealed, &mut output), Opened::Packet(48));
}

#[test]
fn none_of_ten_million_replays_is_delivered() {
    let (mut to_b, mut to_a) = established();
    let (mut x, mut y) = (vec![0; 4096], vec![0; 4096]);
    let seen: Vec<Vec<u8>> = (0..1000)
        .map(|n| {
            let (length, _) = to_b
                .seal(&packet(n as u8), &mut x, Instant::now())
                .expect("a session");
            assert_eq!(open(&mut to_a, &x[..length], &mut y), Opened::Packet(48));
            x[..length].to_vec()
        })
        .collect();
    for n in 0..10_000_000 {
        let opened = open(&mut to_a, &seen[n * 7 % seen.len()], &mut y);
        assert_eq!(opened, Opened::Refused(DropReason::NotAuthentic));
    }
    let (length, _) = to_b
        .seal(&packet(9), &mut x, Instant::now())
        .expect("a session");
    assert_eq!(open(&mut to_a, &x[..length], &mut y), Opened::Packet(48));
}

#[test]
fn a_forged_counter_at_any_limit_does_not_move_the_window() {
    let (mut to_b, mut to_a) = established();
    let (mut x, mut y) = (vec![0; 4096], vec![0; 4096]);
    let limit = u64::MAX - (1 << 13);
    for counter in [0, 1, 1 << 31, 1 << 32, 1 << 60, limit - 1, limit, u64::MAX] {
        let (length, _) = to_b
            .seal(&packet(3), &mut x, Instant::now())
            .expect("a session");
        let mut forged = x[..length].to_vec();
        forged[8..16].copy_from_slice(&counter.to_le_bytes());
        let opened = open(&mut to_a, &forged, &mut y);
        let expected = if counter >= limit {
            DropReason::Exhausted
        } else {
            DropReason::NotAuthentic
        };
        assert_eq!(opened, Opened::Refused(expected), "{counter}");
        assert_eq!(open(&mut to_a, &x[..length], &mut y), Opened::Packet(48));
    }
}

/// A packet that is mostly correct, and an offload header that fits it sometimes.
fn packets() -> impl Strategy<Value = (Vec<u8>, [u8; VNET_HEADER])> {
    let payload = prop_oneof![4 => 0usize..400, 1 => 0usize..65_000];
    let protocol = prop_oneof![
        Just(TCP),
        Just(UDP),
        Just(ICMP),
        Just(ICMP6),
        Just(0u8),
        Just(44u8),
        any::<u8>()
    ];
    let damage = prop::collection::vec((0usize..80, any::<u8>()), 0..4);
    let header = (
        prop_oneof![Just(0u8), Just(1), any::<u8>()],
        prop_oneof![
            Just(0u8),
            Just(1),
            Just(4),
            Just(5),
            Just(0x81),
            any::<u8>()
        ],
        prop_oneof![Just(0u16), 1u16..2000, any::<u16>()],
        prop_oneof![Just(20u16), Just(40), Just(60), any::<u16>()],
        prop_oneof![Just(6u16), Just(16), any::<u16>()],
    );
    (any::<bool>(), 5u8..=15, payload, protocol, damage, header).prop_map(
        |(v4, words, payload, protocol, damage, (flags, kind, segment, start, offset))| {
            let ip = if v4 { usize::from(words) * 4 } else { 40 };
            let total = (ip + 20 + payload).min(65_535);
            let mut packet: Vec<u8> = (0..total).map(|i| i as u8).collect();
            packet[..40.min(total)].fill(1);
            if v4 {
                packet[0] = 0x40 | words;
                packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
                packet[6..8].copy_from_slice(&[0x40, 0]);
                packet[9] = protocol;
            } else {
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
                packet[6] = protocol;
            }
            packet[ip + 12] = 0x50;
            packet[ip + 13] = 0x10;
            for (at, byte) in damage {
                if let Some(place) = packet.get_mut(at) {
                    *place = byte;
                }
            }
            let mut header = [0; VNET_HEADER];
            header[0] = flags;
            header[1] = kind;
            header[4..6].copy_from_slice(&segment.to_ne_bytes());
            header[6..8].copy_from_slice(&start.to_ne_bytes());
            header[8..10].copy_from_slice(&offset.to_ne_bytes());
            (packet, header)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn segments_of_packets_with_wrong_lengths_are_whole_packets_or_none((packet, header) in packets()) {
        let mut bytes = packet.clone();
        let (mut count, mut sum) = (0usize, 0usize);
        let mut broken = None;
        let result = split(VnetHeader::read(&header), &mut bytes, |segment| {
            count += 1;
            sum += segment.len();
            if Ip::parse(segment).is_none_or(|ip| ip.total != segment.len()) {
                broken = Some(segment.to_vec());
            }
        });
        prop_assert_eq!(broken, None);
        prop_assert!(count <= packet.len(), "{} segments", count);
        prop_assert!(sum <= packet.len() + count * 120, "at most the headers again");
        prop_assert!(result.is_ok() || count == 0);
    }

    #[test]
    fn packets_with_wrong_lengths_are_merged_within_the_arena(packets in prop::collection::vec(packets(), 1..12)) {
        let mut coalescer = Coalescer::new(true);
        let mut arena = Vec::new();
        let mut lengths = 0;
        for (packet, _) in &packets {
            let start = arena.len();
            arena.extend_from_slice(packet);
            if let Some(ip) = Ip::parse(packet) {
                let _ = probe::parse(packet, &ip);
                coalescer.push(&arena, start, start + ip.total);
                lengths += ip.total;
            }
        }
        let (whole, mut written) = (arena.len(), 0);
        coalescer.flush(&mut arena, |_, _, parts| {
            for (start, end) in parts {
                assert!(start <= end && end <= whole);
                written += end - start;
            }
        });
        prop_assert!(written <= lengths);
    }

    #[test]
    fn a_malformed_probe_is_answered_within_its_bounds(
        v4: bool,
        mut bytes in prop::collection::vec(any::<u8>(), 64),
        kind in prop_oneof![Just(8u8), Just(128), any::<u8>()],
        protocol in prop_oneof![Just(ICMP), Just(ICMP6)],
    ) {
        let transport = if v4 { 20 } else { 40 };
        bytes.truncate(transport + 24);
        if v4 {
            bytes[..10].copy_from_slice(&[0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, protocol]);
        } else {
            bytes[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 24, protocol, 64]);
        }
        bytes[transport] = kind;
        bytes[transport + 4..transport + 6].copy_from_slice(&[0x6d, 0x65]);
        bytes[transport + 8..transport + 16].copy_from_slice(b"meshprob");
        let ip = Ip::parse(&bytes).expect("a whole packet");
        if probe::parse(&bytes, &ip) == Some(probe::Probe::Request) {
            prop_assert_eq!(v4, protocol == ICMP);
            probe::answer(&mut bytes, &ip);
            let turned = Ip::parse(&bytes).expect("still one");
            prop_assert_eq!((turned.source, turned.destination), (ip.destination, ip.source));
        }
    }
}
