//! A datagram is delivered once.

use std::time::Instant;

use meshd::tunnel::drops::DropReason;
use meshd::tunnel::noise::{Opened, room_for};

use super::session::{established, open};

const REPLAYS: usize = 10_000_000;
/// Different datagrams that are replayed: more than the window of counters that is remembered.
const DATAGRAMS: usize = 5_000;

#[test]
fn of_ten_million_replays_none_is_delivered() {
    let (mut to_b, mut to_a) = established();
    let mut packet = [0u8; 32];
    packet[0] = 0x45;
    packet[3] = 32;
    let mut output = vec![0; room_for(packet.len())];
    let datagrams: Vec<Vec<u8>> = (0..DATAGRAMS)
        .map(|_| {
            let mut datagram = vec![0; room_for(packet.len())];
            let (length, sealed) = to_b
                .seal(&packet, &mut datagram, Instant::now())
                .expect("a session");
            assert!(sealed);
            datagram.truncate(length);
            datagram
        })
        .collect();
    for datagram in &datagrams {
        assert_eq!(open(&mut to_a, datagram, &mut output), Opened::Packet(32));
    }

    let mut refused = 0;
    for datagram in datagrams.iter().cycle().take(REPLAYS) {
        refused += usize::from(
            open(&mut to_a, datagram, &mut output) == Opened::Refused(DropReason::NotAuthentic),
        );
    }

    assert_eq!(refused, REPLAYS);
    let (length, _) = to_b
        .seal(&packet, &mut output, Instant::now())
        .expect("a session");
    let mut delivered = vec![0; room_for(packet.len())];
    assert_eq!(
        open(&mut to_a, &output[..length], &mut delivered),
        Opened::Packet(32),
        "what is new still passes"
    );
}
