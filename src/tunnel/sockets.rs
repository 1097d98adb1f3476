//! The UDP sockets of a tunnel: datagrams merged by the kernel (UDP_GRO), and each datagram with the address of this host that
//! the peer uses (IP_PKTINFO, IPV6_PKTINFO).

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::streams::Streams;
use super::wakes::Recheck;

/// The size of socket buffers that is asked for, in bytes.
const SOCKET_BUFFER: usize = 7 * 1024 * 1024;

/// The sockets of both families on one port.
#[derive(Debug)]
pub(super) struct Sockets {
    v4: Socket,
    v6: Option<Socket>,
    port: u16,
    /// Whether the network accepts merged datagrams (UDP_SEGMENT), as far as known.
    pub(super) gso: AtomicBool,
    /// Whether merged datagrams were sent before.
    pub(super) gso_proven: AtomicBool,
    /// Held while the sockets do not let datagrams be fragmented.
    pub(super) unfragmented: Mutex<()>,
    /// Receives the endpoints whose source the kernel refused.
    pub(super) recheck: Arc<Recheck>,
    /// Take the datagrams that do not go by UDP.
    pub(super) streams: Arc<Streams>,
}

impl Sockets {
    /// Binds `count` pairs of sockets to one `port`, or to any free one if it is 0. The kernel passes all datagrams from one
    /// address to the same pair.
    pub(super) fn bind_group(
        port: u16,
        mark: u32,
        count: usize,
        recheck: &Arc<Recheck>,
        streams: &Arc<Streams>,
    ) -> io::Result<Vec<Self>> {
        let first = Self::bind(port, mark, false, recheck, streams)?;
        if count < 2 {
            return Ok(vec![first]);
        }
        // A socket that shares its port can be bound beside a socket of another program that does so too. The first bind,
        // which does not share, shows that there is none.
        let port = first.port;
        drop(first);
        (0..count)
            .map(|_| Self::bind(port, mark, true, recheck, streams))
            .collect()
    }

    /// Binds `port`, or any free one if it is 0, in both families, or in one if the kernel has no IPv6.
    pub(super) fn bind(
        port: u16,
        mark: u32,
        shared: bool,
        recheck: &Arc<Recheck>,
        streams: &Arc<Streams>,
    ) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        // A port that is free in one family may be in use in the other.
        for _ in 0..if port == 0 { 16 } else { 1 } {
            let v4 = open(Domain::IPV4, mark)?;
            v4.set_reuse_port(shared)?;
            v4.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
            let bound = v4.local_addr()?.as_socket().map_or(port, |a| a.port());
            let v6 = match open(Domain::IPV6, mark) {
                Ok(v6) => match v6.set_reuse_port(shared).and_then(|()| {
                    v6.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, bound)).into())
                }) {
                    Ok(()) => Some(v6),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        last = error;
                        continue;
                    }
                    Err(_) => None,
                },
                Err(_) => None,
            };
            return Ok(Self {
                v4,
                v6,
                port: bound,
                gso: AtomicBool::new(true),
                gso_proven: AtomicBool::new(false),
                unfragmented: Mutex::new(()),
                recheck: Arc::clone(recheck),
                streams: Arc::clone(streams),
            });
        }
        Err(last)
    }

    /// Sends an empty datagram to `to` that passes so many routers. Its only use is what it changes in the first ones, so nothing
    /// follows from an error.
    pub(super) fn send_short(&self, to: SocketAddr, hops: u8) {
        let Some(socket) = self.of(&to) else {
            return;
        };
        let hops = libc::c_int::from(hops);
        let control = match to {
            SocketAddr::V4(_) => ControlMessage::Ipv4Ttl(&hops),
            SocketAddr::V6(_) => ControlMessage::Ipv6HopLimit(&hops),
        };
        let (to, flags) = (SockaddrStorage::from(to), MsgFlags::MSG_DONTWAIT);
        let sent = sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&[])],
            &[control],
            flags,
            Some(&to),
        );
        if let Err(error) = sent {
            tracing::debug!(%error, "cannot send a datagram that opens a router");
        }
    }

    /// Sends one datagram that is no message of the tunnel. The sender repeats it if it is lost.
    pub(super) fn send_whole(&self, to: SocketAddr, datagram: &[u8]) {
        let sent = self.of(&to).map(|socket| {
            let flags = MsgFlags::MSG_DONTWAIT.bits();
            socket.send_to_with_flags(datagram, &to.into(), flags)
        });
        if let Some(Err(error)) = sent {
            tracing::debug!(%error, %to, "cannot send a datagram");
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.v4.set_mark(mark)?;
        self.v6.as_ref().map_or(Ok(()), |v6| v6.set_mark(mark))
    }

    /// The descriptors of both families; none for a family without a socket.
    pub(super) fn descriptors(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [Some(self.v4.as_fd()), self.v6.as_ref().map(|v6| v6.as_fd())]
    }

    /// Lets datagrams be fragmented on the way, or not.
    pub(super) fn allow_fragments(&self, allowed: bool) {
        allow_fragments(&self.v4, Domain::IPV4, allowed);
        if let Some(v6) = &self.v6 {
            allow_fragments(v6, Domain::IPV6, allowed);
        }
    }

    /// The socket for datagrams to `address`.
    #[inline]
    pub(super) fn of(&self, address: &SocketAddr) -> Option<&Socket> {
        match address {
            SocketAddr::V4(_) => Some(&self.v4),
            SocketAddr::V6(_) => self.v6.as_ref(),
        }
    }
}

/// Opens a socket. Without the options whose results are discarded here everything works, but slower or from another address.
fn open(domain: Domain, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    allow_fragments(&socket, domain, true);
    // Only a privileged process may exceed the system's limit.
    if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    }
    if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    }
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    let _ = match domain {
        Domain::IPV6 => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true),
        _ => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true),
    };
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

/// Lets datagrams of a socket be fragmented on the way, or not. Ordinarily they may be, as with every WireGuard: a datagram
/// that is too large is fragmented rather than lost.
///
/// In IPv4 that is `OMIT` rather than `DONT`: routers fragment all the same, and an ICMP error, which anyone can forge, does
/// not make the kernel refuse merged datagrams. In IPv6 only the sender fragments, and needs the ICMP errors for it.
fn allow_fragments(socket: &Socket, domain: Domain, allowed: bool) {
    // A kernel that refuses goes on as before.
    let _ = match (domain, allowed) {
        (Domain::IPV6, true) => setsockopt(socket, MtuDiscoverV6, &libc::IPV6_PMTUDISC_DONT),
        (Domain::IPV6, false) => setsockopt(socket, MtuDiscoverV6, &libc::IPV6_PMTUDISC_PROBE),
        (_, true) => setsockopt(socket, MtuDiscoverV4, &libc::IP_PMTUDISC_OMIT),
        (_, false) => setsockopt(socket, MtuDiscoverV4, &libc::IP_PMTUDISC_PROBE),
    };
}

/// IP_MTU_DISCOVER (ip(7)), which nix does not have.
#[derive(Clone)]
struct MtuDiscoverV4;

nix::setsockopt_impl!(
    MtuDiscoverV4,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int,
    sockopt::SetStruct<libc::c_int>
);

/// IPV6_MTU_DISCOVER (ipv6(7)), which nix does not have.
#[derive(Clone)]
struct MtuDiscoverV6;

nix::setsockopt_impl!(
    MtuDiscoverV6,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    libc::c_int,
    sockopt::SetStruct<libc::c_int>
);
