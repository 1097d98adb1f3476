//! WireGuard messages: classified by type and length, then decrypted by a state that waits for an answer.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use meshd::tunnel::noise::{StaticKeys, Message, Noise, Opened, room_for};
use x25519_dalek::StaticSecret;

fuzz_target!(|datagram: &[u8]| {
    let identity = StaticKeys::new(StaticSecret::from([1; 32]));
    let peer = StaticKeys::new(StaticSecret::from([2; 32]));
    let _ = identity.is_for_us(datagram);
    let _ = identity.initiator(datagram);
    let Ok(message) = Message::parse(datagram) else {
        return;
    };
    let mut noise = Noise::new(&identity, peer.public(), None, None, 1, Instant::now());
    let mut output = vec![0; room_for(datagram.len())];
    noise.initiate(&mut output);
    let opened = noise.open(message, datagram, &mut output);
    // Nothing can authenticate: the keys of both sides are nobody else's.
    assert!(matches!(opened, Opened::Refused(_)));
});
