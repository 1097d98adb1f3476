//! Answers the STUN Binding requests of any client on UDP, at the port of the control stream: a client learns from which address its
//! datagrams come. Nodes ask where no peer tells them.
//!
//! Nothing is stored for a request but how many of them each sender has sent lately, and an answer is never larger than its request.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, UdpSocket as StdSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::model::address::link_of;
use crate::model::rate::{Quota, Rate};
use crate::os::batch::{self, Message, Mode, Receiver, WithAncillary};
use crate::protocol::stun::{MAX_MESSAGE, REQUEST, parse_request, write_answer};

/// The requests of one sender that are answered: a client repeats a request a few times, and many may be behind one address.
const PER_SENDER: Rate = Rate {
    per_second: 20.0,
    burst: 60.0,
};
/// The requests of all senders that are answered: about 1 % of a core.
const OF_ALL: Rate = Rate {
    per_second: 5_000.0,
    burst: 5_000.0,
};
/// The maximum number of senders that are counted. The requests of others are not answered.
const MAX_SENDERS: usize = 8192;
/// The maximum number of requests that one system call receives.
const BATCH: usize = 16;

/// Binds the UDP port. Without it everything else goes on, because most nodes learn their addresses from their peers.
pub(super) fn bind(listen: SocketAddr) -> Option<UdpSocket> {
    let bound = open(listen).and_then(|socket| {
        socket.set_nonblocking(true)?;
        // The answer has to leave from the address to which the request was sent.
        let reports = match listen {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true),
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true),
        };
        reports?;
        UdpSocket::from_std(socket)
    });
    bound
        .inspect_err(|error| {
            tracing::info!(%listen, %error, "STUN requests are not answered, because the UDP port cannot be opened; nodes that no peer reaches do not learn their address");
        })
        .ok()
}

/// A socket at `listen`, which is for both families if it is for all addresses of IPv6.
fn open(listen: SocketAddr) -> io::Result<StdSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, None)?;
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// Answers requests until the program ends.
pub(super) async fn serve(socket: UdpSocket) {
    let mut limits = limits(Instant::now());
    loop {
        let answered = socket.async_io(Interest::READABLE, || {
            // A receiver stays on its thread, and this task does not.
            let mut receiver = Receiver::new(BATCH, MAX_MESSAGE + 1, WithAncillary::Yes);
            let count = receiver.receive(&socket, Mode::NonBlocking)?;
            answer(&socket, &receiver, count, &mut limits, Instant::now());
            Ok(())
        });
        if let Err(error) = answered.await
            && error.kind() != io::ErrorKind::Interrupted
        {
            // Most often it is an ICMP error about an earlier answer.
            tracing::debug!(%error, "cannot receive a STUN request");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Answers the requests that were received. A full send buffer loses the answer, and the client asks again.
fn answer(
    socket: &UdpSocket,
    receiver: &Receiver,
    count: usize,
    limits: &mut Quota<IpAddr>,
    now: Instant,
) {
    for datagram in (0..count).filter_map(|index| receiver.datagram(index)) {
        let (Some(from), Some(transaction)) = (datagram.from, parse_request(datagram.bytes)) else {
            continue;
        };
        let mut out = [0; REQUEST];
        let asked = datagram.bytes.len();
        if limits.take(link_of(from.ip()), now)
            && let Some(length) = write_answer(&transaction, from, asked, &mut out)
        {
            let parts = [IoSlice::new(&out[..length])];
            let message = Message {
                to: from,
                source: datagram.source,
                segment: None,
                parts: &parts,
            };
            let _ = batch::send(socket, [message], Mode::NonBlocking);
        }
    }
}

/// How many requests of each sender are answered.
fn limits(now: Instant) -> Quota<IpAddr> {
    Quota::new(PER_SENDER, MAX_SENDERS, OF_ALL, now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::stun::{parse_answer, request};

    /// How long an answer is waited for: only a hang takes that long.
    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_node_learns_its_address_and_other_datagrams_are_not_answered() {
        let all = [
            ("127.0.0.1:0", "127.0.0.1"),
            ("0.0.0.0:0", "127.0.0.1"),
            ("[::]:0", "127.0.0.1"),
            ("[::]:0", "::1"),
        ];
        for (listen, at) in all {
            let at: IpAddr = at.parse().expect("a literal");
            if StdSocket::bind((at, 0)).is_err() {
                // This machine has no IPv6.
                continue;
            }
            let server = bind(listen.parse().expect("a literal")).expect("loopback");
            let port = server.local_addr().expect("bound").port();
            let server = tokio::spawn(serve(server));
            let node = UdpSocket::bind((at, 0)).await.expect("loopback");
            // An answer from another address than the one that was asked would not arrive.
            node.connect((at, port)).await.expect("loopback");
            let transaction = *b"transaction1";
            let asked = request(&transaction);
            for datagram in [&b"hello"[..], &asked[..20], &[0; 1400], &asked] {
                node.send(datagram).await.expect("loopback");
            }
            let mut answer = [0; 1500];
            let received = tokio::time::timeout(LIMIT, node.recv(&mut answer)).await;
            let length = received.expect("an answer").expect("loopback");
            assert!(length <= asked.len());
            let seen = parse_answer(&answer[..length], &transaction);
            assert_eq!(seen, node.local_addr().ok());
            server.abort();
        }
    }

    #[test]
    fn a_sender_that_floods_is_answered_at_its_rate_and_takes_nothing_from_the_others() {
        let start = Instant::now();
        let mut limits = limits(start);
        let (flood, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut answered = 0;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            for _ in 0..10 {
                answered += u32::from(limits.take(flood, now));
            }
            assert!(ms % 1000 != 0 || limits.take(other, now));
        }
        assert!((200..=300).contains(&answered), "{answered}");
    }

    #[test]
    fn forged_senders_are_bounded_and_forgotten() {
        let start = Instant::now();
        let mut limits = limits(start);
        for n in 0..100_000u32 {
            limits.take(IpAddr::from(n.to_be_bytes()), start);
        }
        assert!(limits.len() <= MAX_SENDERS);
        let later = start + Duration::from_secs(60);
        assert!(limits.take(IpAddr::from([203, 0, 113, 1]), later));
        assert!(limits.len() <= 1);
    }
}
