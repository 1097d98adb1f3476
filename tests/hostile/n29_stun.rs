//! The STUN port of a coordinator sends nobody more than it received, and answers one sender at a limited rate.

use std::net::UdpSocket;
use std::time::Duration;

use meshd::protocol::stun::{parse_answer, request};

use crate::kit::Coordinator;

/// How many requests of one sender are answered at once, and how many each second after that.
const BURST: usize = 60;
const RATE: usize = 20;

/// The sizes of the datagrams that arrive until the socket is silent.
fn answers(socket: &UdpSocket) -> Vec<usize> {
    let mut buffer = [0; 1500];
    let arrived = std::iter::from_fn(|| socket.recv(&mut buffer).ok());
    arrived.collect()
}

#[test]
fn a_coordinator_answers_no_sender_with_more_than_it_sent_and_a_flood_at_its_rate() {
    let coordinator = Coordinator::start();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    socket.connect(coordinator.address()).expect("loopback");
    let limit = Some(Duration::from_secs(1));
    socket.set_read_timeout(limit).expect("a socket");
    let asked = request(b"transaction1");
    // The header alone is a whole request, and smaller than any answer.
    let mut bare = asked[..20].to_vec();
    bare[2..4].copy_from_slice(&[0, 0]);
    for datagram in [&bare[..], &asked[..32], b"", &[0xff; 1200]] {
        socket.send(datagram).expect("loopback");
    }
    assert_eq!(answers(&socket), [0; 0]);
    socket.send(&asked).expect("loopback");
    let mut answer = [0; 1500];
    let length = socket.recv(&mut answer).expect("an answer");
    assert!(length <= asked.len());
    let seen = parse_answer(&answer[..length], b"transaction1");
    assert_eq!(seen, socket.local_addr().ok());
    for _ in 0..1000 {
        socket.send(&asked).expect("loopback");
    }
    let answered = answers(&socket);
    // Only a machine that hangs for ten seconds answers more.
    assert!(
        (1..=BURST + 10 * RATE).contains(&answered.len()),
        "{}",
        answered.len()
    );
    assert!(answered.iter().all(|length| *length <= asked.len()));
}
