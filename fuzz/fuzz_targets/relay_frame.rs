//! Frames to a relay: the first byte selects the sender's endpoint, the rest is the datagram. A frame that is forwarded has its length,
//! the label of its source and no tag, so that no relay forwards it again.
#![no_main]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use meshd::tunnel::relay::{Destination, Frame, Header, Relay, RelayLimit, is_frame};

fuzz_target!(|input: &[u8]| {
    let Some((from, datagram)) = input.split_first() else {
        return;
    };
    let Ok(frame) = Frame::parse(datagram) else {
        return;
    };
    assert!(is_frame(datagram));
    assert_eq!(
        [&frame.header.to_bytes()[..], frame.message].concat(),
        datagram
    );
    let now = Instant::now();
    let limit = RelayLimit {
        bits_per_second: 1_000_000,
    };
    let mut relay = Relay::new([7; 32], Some(limit), now);
    let member = |n: u8| Ipv4Addr::new(10, 210, n, 1);
    let endpoint = |n: u8| SocketAddr::from(([192, 0, 2, n], 51820));
    for n in 1..4 {
        relay.handle_paths(member(n), &[endpoint(n)], now);
    }
    let from = endpoint(from % 5);
    let find = |path: Ipv4Addr, _: &dyn Fn(SocketAddr) -> bool| {
        Some(Destination {
            path,
            heard: Some(now),
        })
    };
    let length = frame.message.len();
    // What is forwarded has the tag of the sender. A member cannot guess it, but a fuzzer sees what tags are compared with.
    let is_right = (1..4).any(|n| frame.header.tag == relay.tag(member(n), from, now));
    let forward = relay.decide(frame.header, from, length, find, now);
    assert!(is_right || forward.is_err());
    for n in 1..4 {
        let header = Header {
            label: frame.header.label,
            tag: relay.tag(member(n), from, now),
        };
        if let Ok(forward) = relay.decide(header, from, length, find, now) {
            assert_eq!((forward.to, from), (frame.header.label, endpoint(n)));
            assert_eq!(forward.header.label, member(n));
            assert!(
                relay
                    .decide(forward.header, from, length, find, now)
                    .is_err()
            );
        }
    }
});
