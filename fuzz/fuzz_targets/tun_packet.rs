//! A packet from the TUN device with its offload header: every segment lies within bounds, and all that is merged again
//! lies within the arena.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::tunnel::coalesce::Coalescer;
use meshd::tunnel::packet::Ip;
use meshd::tunnel::split::{VNET_HEADER, VnetHeader, split};

fuzz_target!(|bytes: &[u8]| {
    let Some((header, packet)) = bytes.split_first_chunk::<VNET_HEADER>() else {
        return;
    };
    let mut packet = packet.to_vec();
    let whole = packet.len();
    let (mut arena, mut ends) = (Vec::new(), Vec::new());
    let _ = split(VnetHeader::read(header), &mut packet, |segment| {
        assert!(segment.len() <= whole);
        if arena.len() < 1 << 20 {
            arena.extend_from_slice(segment);
            ends.push(arena.len());
        }
    });
    let mut coalescer = Coalescer::new(true);
    let mut start = 0;
    for end in ends {
        assert!(Ip::parse(&arena[start..end]).is_none_or(|ip| ip.total <= end - start));
        coalescer.push(&arena, start, end);
        start = end;
    }
    let length = arena.len();
    coalescer.flush(&mut arena, |_, _, parts| {
        for (start, end) in parts {
            assert!(start <= end && end <= length);
        }
    });
});
