//! Queries for names of the mesh, and a node that has such names.

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use meshd::testbed::Host;
use nix::sys::socket::{setsockopt, sockopt};

/// The services of the node.
pub(crate) const SERVICES: usize = 1_000;
/// The size of a client's receive buffer, in bytes. With the usual buffer of a socket, a client that waits for the processor for some
/// hundredths of a second loses replies that the server has sent.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The part of a configuration with the services of the first node of a mesh, which has the block 10.210.1.0/24.
pub(crate) fn services() -> String {
    let mut text = String::new();
    for n in 0..SERVICES {
        let last = n % 250 + 2;
        let _ = writeln!(
            text,
            "[[service]]\nname = \"s{n}\"\nport = 80\naddress = \"10.210.1.{last}\""
        );
    }
    text
}

/// A query for the address of one of the services. The numbers spread over all of them.
pub(crate) fn query_of_service(number: u64) -> Vec<u8> {
    let name = format!("s{}", number.wrapping_mul(7_919) % SERVICES as u64);
    query(number, &[&name, "svc", "mesh"])
}

/// A query for an address (RFC 1035 section 4.1), of which the id is the end of `number`.
pub(crate) fn query(number: u64, labels: &[&str]) -> Vec<u8> {
    let mut bytes = (number as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in labels {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

/// The id of a reply, if it is one without an error.
pub(crate) fn answered(reply: &[u8]) -> Option<u16> {
    match reply {
        [a, b, _, code, ..] if code & 15 == 0 => Some(u16::from_be_bytes([*a, *b])),
        _ => None,
    }
}

/// A socket that asks `server`.
pub(crate) fn client(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // Without the right to this, the buffer stays as it is.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    socket.connect(server).expect("a route");
    socket
}

/// Waits until a server answers for the services.
pub(crate) fn await_answer(host: &Host, server: SocketAddr) {
    let end = Instant::now() + Duration::from_secs(30);
    let is_answered = || {
        host.inside(|| {
            let socket = client(server);
            let second = Some(Duration::from_secs(1));
            socket.set_read_timeout(second).expect("a socket");
            let sent = socket.send(&query_of_service(1)).is_ok();
            let mut buffer = [0; 1500];
            let length = socket.recv(&mut buffer).unwrap_or(0);
            sent && answered(&buffer[..length]).is_some()
        })
        .expect("a namespace")
    };
    while !is_answered() {
        assert!(Instant::now() < end, "no answer at {server}");
        // While nothing listens there, the refusal comes at once.
        std::thread::sleep(Duration::from_millis(20));
    }
}
