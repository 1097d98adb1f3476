//! Two ends with a session, without a network.

use std::time::Instant;

use meshd::tunnel::noise::{Message, Noise, Opened, StaticKeys, room_for};
use x25519_dalek::StaticSecret;

/// The ends of a session, the one that began it first.
pub(crate) fn established() -> (Noise, Noise) {
    let (a, b) = (
        StaticKeys::new(StaticSecret::from([1; 32])),
        StaticKeys::new(StaticSecret::from([2; 32])),
    );
    let now = Instant::now();
    let mut to_b = Noise::new(&a, b.public(), None, None, 1, now);
    let mut to_a = Noise::new(&b, a.public(), None, None, 2, now);
    let (mut x, mut y) = (vec![0; room_for(1420)], vec![0; room_for(1420)]);
    let length = to_b.initiate(&mut x).expect("none is under way");
    let Opened::Reply(length) = open(&mut to_a, &x[..length], &mut y) else {
        panic!("an initiation for this node is answered")
    };
    let Opened::Established(length) = open(&mut to_b, &y[..length], &mut x) else {
        panic!("a response begins a session")
    };
    assert_eq!(open(&mut to_a, &x[..length], &mut y), Opened::Keepalive);
    (to_b, to_a)
}

/// Opens a datagram as the data plane does.
pub(crate) fn open(noise: &mut Noise, datagram: &[u8], output: &mut [u8]) -> Opened {
    match Message::parse(datagram) {
        Ok(message) => noise.open(message, datagram, output),
        Err(reason) => Opened::Refused(reason),
    }
}
