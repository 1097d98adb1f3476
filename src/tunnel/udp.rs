//! UDP sockets: received datagrams merged by the kernel (UDP_GRO), runs sent as one message (UDP_SEGMENT), each way with
//! the address of this host that the peer uses (IP_PKTINFO, IPV6_PKTINFO).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};

use super::control::{Control, Received};
use super::drops::{DropCounters, DropReason};
use super::endpoint::Endpoint;
use super::routes::Recheck;

/// Octets of a receive buffer: the largest merged datagram.
const RECEIVE: usize = 65_536;
/// Messages received at once at most.
const MESSAGES: usize = 8;
/// Octets waiting to be sent at most.
const ARENA: usize = 256 * 1024;
/// Octets of a small datagram at most: a handshake message or a probe, and what sealing wants.
const SMALL: usize = 512;
/// Octets of small datagrams waiting at most.
const SMALL_ARENA: usize = 16 * 1024;
/// Datagrams in a run at most (UDP_MAX_SEGMENTS of the kernel before 6.11 is 64).
const MAX_SEGMENTS: usize = 64;
/// Octets of a run at most: what one IP packet holds, with a margin for headers.
const MAX_RUN: usize = 65_000;
/// Octets asked for as socket buffers.
const SOCKET_BUFFER: usize = 7 * 1024 * 1024;

/// The two sockets of a device, on one port.
#[derive(Debug)]
pub(super) struct Sockets {
    v4: Socket,
    v6: Option<Socket>,
    port: u16,
    gso: AtomicBool,
    /// Whether merged datagrams were ever sent.
    gso_proven: AtomicBool,
    /// One sender of unsplit datagrams at a time.
    whole: Mutex<()>,
    /// Asked for when a source is refused.
    recheck: Arc<Recheck>,
}

impl Sockets {
    /// `count` pairs on one `port`, or on any free one if it is 0. The kernel gives what comes from one address always
    /// to the same pair.
    pub(super) fn bind_group(
        port: u16,
        mark: u32,
        count: usize,
        recheck: &Arc<Recheck>,
    ) -> io::Result<Vec<Self>> {
        let first = Self::bind(port, mark, false, recheck)?;
        if count < 2 {
            return Ok(vec![first]);
        }
        // A socket that shares its port would be let in beside another program's that does; the first bind has shown
        // that there is none.
        let port = first.port;
        drop(first);
        (0..count)
            .map(|_| Self::bind(port, mark, true, recheck))
            .collect()
    }

    /// Binds `port`, or any free one if it is 0, in both families; without IPv6 in the kernel in one.
    fn bind(port: u16, mark: u32, shared: bool, recheck: &Arc<Recheck>) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        // A free port of one family may be taken in the other.
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
                whole: Mutex::new(()),
                recheck: Arc::clone(recheck),
            });
        }
        Err(last)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.v4.set_mark(mark)?;
        self.v6.as_ref().map_or(Ok(()), |v6| v6.set_mark(mark))
    }

    /// The descriptors to wait for; a family without a socket has none.
    pub(super) fn descriptors(&self) -> [RawFd; 2] {
        [
            self.v4.as_raw_fd(),
            self.v6.as_ref().map_or(-1, |v6| v6.as_raw_fd()),
        ]
    }

    fn set_splitting(&self, allowed: bool) {
        set_splitting(&self.v4, Domain::IPV4, allowed);
        if let Some(v6) = &self.v6 {
            set_splitting(v6, Domain::IPV6, allowed);
        }
    }

    fn of(&self, endpoint: &SocketAddr) -> Option<&Socket> {
        match endpoint {
            SocketAddr::V4(_) => Some(&self.v4),
            SocketAddr::V6(_) => self.v6.as_ref(),
        }
    }
}

fn open(domain: Domain, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    let fd = socket.as_raw_fd();
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    set_splitting(&socket, domain, true);
    for (forced, plain) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    ] {
        if !set_option(fd, libc::SOL_SOCKET, forced, SOCKET_BUFFER as i32) {
            set_option(fd, libc::SOL_SOCKET, plain, SOCKET_BUFFER as i32);
        }
    }
    set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    let (level, name) = match domain {
        Domain::IPV6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        _ => (libc::IPPROTO_IP, libc::IP_PKTINFO),
    };
    set_option(fd, level, name, 1);
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

/// Whether datagrams may be split on the way. They may, as with every WireGuard: one that is too large is split rather than
/// lost.
///
/// In IPv4 that is `OMIT` rather than `DONT`: routers split all the same, and an ICMP error, which anybody can forge, does
/// not make the kernel refuse merged datagrams. In IPv6 only the sender splits, and has to hear what is too large.
fn set_splitting(socket: &Socket, domain: Domain, allowed: bool) {
    let (level, name, value) = match (domain, allowed) {
        (Domain::IPV6, true) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
        ),
        (Domain::IPV6, false) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        ),
        (_, true) => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_OMIT,
        ),
        (_, false) => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_PROBE,
        ),
    };
    set_option(socket.as_raw_fd(), level, name, value);
}

/// Sets an option without which everything still works, if slower or from another address; returns whether the kernel accepted it.
fn set_option(fd: RawFd, level: i32, name: i32, value: i32) -> bool {
    // SAFETY: the pointer and length describe `value`, which outlives the call.
    unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        ) == 0
    }
}

/// Receives batches into buffers that are reused for ever.
pub(super) struct Receiver {
    buffers: Vec<u8>,
    names: [libc::sockaddr_storage; MESSAGES],
    controls: [Control; MESSAGES],
}

impl Receiver {
    pub(super) fn new() -> Self {
        // SAFETY: a sockaddr_storage of zeros is a valid value.
        let name: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        Self {
            buffers: vec![0; RECEIVE * MESSAGES],
            names: [name; MESSAGES],
            controls: [Control::EMPTY; MESSAGES],
        }
    }

    /// Receives what is there and calls `each` with every datagram, where it came from and the address of this host that
    /// it came to. Gives whether more may be waiting.
    pub(super) fn receive(
        &mut self,
        fd: RawFd,
        mut each: impl FnMut(&[u8], Endpoint),
    ) -> io::Result<bool> {
        // SAFETY: an mmsghdr of zeros is a valid value; every pointer set below is into `self`, which outlives
        // the call.
        let mut messages: [libc::mmsghdr; MESSAGES] = unsafe { std::mem::zeroed() };
        let mut vectors: [libc::iovec; MESSAGES] = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; MESSAGES];
        for (i, message) in messages.iter_mut().enumerate() {
            vectors[i] = libc::iovec {
                iov_base: self.buffers[i * RECEIVE..].as_mut_ptr().cast(),
                iov_len: RECEIVE,
            };
            message.msg_hdr.msg_name = (&raw mut self.names[i]).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
            message.msg_hdr.msg_iov = &raw mut vectors[i];
            message.msg_hdr.msg_iovlen = 1;
            self.controls[i].receive_into(&mut message.msg_hdr);
        }
        // SAFETY: `messages` holds MESSAGES valid headers.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                messages.as_mut_ptr(),
                MESSAGES as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
                _ => Err(error),
            };
        }
        let count = count as usize;
        for (i, message) in messages.iter().enumerate().take(count) {
            let length = (message.msg_len as usize).min(RECEIVE);
            let Some(address) = socket_address(&self.names[i]) else {
                continue;
            };
            let received = Received::read(&message.msg_hdr);
            let from = Endpoint {
                address,
                source: received.source,
            };
            let segment = received.segment.filter(|s| *s > 0).unwrap_or(length.max(1));
            let datagram = &self.buffers[i * RECEIVE..i * RECEIVE + length];
            if datagram.is_empty() {
                each(datagram, from);
            }
            datagram.chunks(segment).for_each(|d| each(d, from));
        }
        Ok(count == MESSAGES)
    }
}

fn socket_address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is a sockaddr_in, which is no larger than the storage.
            let name: &libc::sockaddr_in = unsafe { &*(&raw const *name).cast() };
            let address = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
            Some(SocketAddr::V4(SocketAddrV4::new(
                address,
                u16::from_be(name.sin_port),
            )))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let name: &libc::sockaddr_in6 = unsafe { &*(&raw const *name).cast() };
            let address = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Some(SocketAddr::V6(SocketAddrV6::new(
                address,
                u16::from_be(name.sin6_port),
                0,
                name.sin6_scope_id,
            )))
        }
        _ => None,
    }
}

#[derive(Debug, Clone, Copy)]
struct Run {
    endpoint: Endpoint,
    start: usize,
    end: usize,
    segment: usize,
    count: usize,
    closed: bool,
}

/// Collects datagrams and sends them as runs.
pub(super) struct Sender {
    arena: Vec<u8>,
    used: usize,
    runs: Vec<Run>,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self {
            arena: vec![0; ARENA],
            used: 0,
            runs: Vec::with_capacity(256),
        }
    }

    /// One for handshakes and other small datagrams.
    pub(super) fn new_small() -> Self {
        Self {
            arena: vec![0; SMALL_ARENA],
            used: 0,
            runs: Vec::new(),
        }
    }

    /// Whether `octets` more would not fit.
    pub(super) fn is_full(&self, octets: usize) -> bool {
        self.used + octets > self.arena.len() || self.runs.len() >= 256
    }

    /// Sends everything if another small datagram might not fit.
    pub(super) fn flush_if_full(&mut self, sockets: &Sockets, drops: &DropCounters) {
        if self.is_full(SMALL) {
            self.flush(sockets, drops);
        }
    }

    /// Where the next datagram goes. To be asked for only if it is not full.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    /// The first `length` octets of the space are a datagram to `endpoint`.
    pub(super) fn commit(&mut self, length: usize, endpoint: Endpoint) {
        let start = self.used;
        self.used += length;
        if let Some(run) = self.runs.last_mut()
            && !run.closed
            && run.endpoint == endpoint
            && length <= run.segment
            && run.count < MAX_SEGMENTS
            && self.used - run.start <= MAX_RUN
        {
            run.end = self.used;
            run.count += 1;
            run.closed = length < run.segment;
            return;
        }
        self.runs.push(Run {
            endpoint,
            start,
            end: self.used,
            segment: length,
            count: 1,
            closed: false,
        });
    }

    /// Sends everything.
    pub(super) fn flush(&mut self, sockets: &Sockets, drops: &DropCounters) {
        let mut rest = self.runs.as_slice();
        while let Some(first) = rest.first() {
            let Some(socket) = sockets.of(&first.endpoint.address) else {
                drops.add_many(DropReason::SendFailed, first.count);
                rest = &rest[1..];
                continue;
            };
            let family = first.endpoint.address.is_ipv4();
            let same = rest
                .iter()
                .take(MESSAGES * 4)
                .take_while(|r| r.endpoint.address.is_ipv4() == family)
                .count();
            let sent = self.send(socket.as_raw_fd(), &rest[..same], sockets, drops);
            rest = &rest[sent..];
        }
        self.runs.clear();
        self.used = 0;
    }

    /// Sends everything so that it arrives whole or not at all.
    ///
    /// The kernel knows that for a whole socket only, and a socket of its own would be another endpoint to the peer. So the
    /// socket is switched over for the call: a datagram that another thread sends meanwhile goes unsplit as well, and is
    /// lost if it is larger than the path, as a datagram may be. That is a few microseconds at each probe, which are rare.
    pub(super) fn flush_whole(&mut self, sockets: &Sockets, drops: &DropCounters) {
        let _one = sockets.whole.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.set_splitting(false);
        self.flush(sockets, drops);
        sockets.set_splitting(true);
    }

    /// Sends some of `runs`, at least one unless the kernel has to be asked again; gives how many are done with.
    fn send(&self, fd: RawFd, runs: &[Run], sockets: &Sockets, drops: &DropCounters) -> usize {
        let Some(first) = runs.first() else { return 0 };
        let gso = sockets.gso.load(Ordering::Relaxed);
        if !gso && first.count > 1 {
            self.send_singly(fd, first, sockets, drops);
            return 1;
        }
        let mut error = match self.send_runs(fd, runs, gso) {
            Ok(sent) => {
                if first.count > 1 && !sockets.gso_proven.load(Ordering::Relaxed) {
                    sockets.gso_proven.store(true, Ordering::Relaxed);
                }
                return sent;
            }
            Err(error) => error,
        };
        if first.endpoint.source.is_some() && refuses_source(&error) {
            let run = Run {
                endpoint: first.endpoint.without_source(),
                ..*first
            };
            match self.send_runs(fd, &[run], gso) {
                Ok(_) => {
                    sockets.recheck.refuse(first.endpoint);
                    return 1;
                }
                Err(other) => error = other,
            }
        }
        match error.raw_os_error() {
            Some(libc::EINTR) => 0,
            // Merged datagrams were taken before: these are larger than what the kernel knows of their path.
            Some(libc::EINVAL | libc::EMSGSIZE)
                if first.count > 1 && sockets.gso_proven.load(Ordering::Relaxed) =>
            {
                self.send_singly(fd, first, sockets, drops);
                1
            }
            Some(libc::EIO | libc::EINVAL) if first.count > 1 => {
                if sockets.gso.swap(false, Ordering::Relaxed) {
                    tracing::warn!(%error, "the network does not take merged datagrams (UDP GSO); sending them one by one");
                }
                0
            }
            _ => {
                drops.add_many(DropReason::SendFailed, first.count);
                tracing::debug!(%error, endpoint = %first.endpoint.address, "cannot send");
                1
            }
        }
    }

    /// Hands some of `runs` to the kernel, of several datagrams only with `gso`; gives how many it took.
    fn send_runs(&self, fd: RawFd, runs: &[Run], gso: bool) -> io::Result<usize> {
        const BATCH: usize = MESSAGES * 4;
        // SAFETY: zeros are valid values of these C structures.
        let (mut messages, mut names): ([libc::mmsghdr; BATCH], [libc::sockaddr_storage; BATCH]) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let mut vectors = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; BATCH];
        let mut controls = [Control::EMPTY; BATCH];
        let mut count = 0;
        for (i, run) in runs.iter().enumerate().take(BATCH) {
            if !gso && run.count > 1 {
                break;
            }
            let octets = &self.arena[run.start..run.end];
            vectors[i] = libc::iovec {
                iov_base: octets.as_ptr().cast_mut().cast(),
                iov_len: octets.len(),
            };
            let header = &mut messages[i].msg_hdr;
            header.msg_namelen = write_address(&run.endpoint.address, &mut names[i]);
            header.msg_name = (&raw mut names[i]).cast();
            header.msg_iov = &raw mut vectors[i];
            header.msg_iovlen = 1;
            let segment = (run.count > 1).then_some(run.segment as u16);
            controls[i].attach(header, run.endpoint.source.as_ref(), segment);
            count += 1;
        }
        // SAFETY: the first `count` headers are valid, and all they point to lives until the call returns.
        let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count as u32, 0) };
        if sent > 0 {
            Ok(sent as usize)
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn send_singly(&self, fd: RawFd, run: &Run, sockets: &Sockets, drops: &DropCounters) {
        let mut endpoint = run.endpoint;
        for datagram in self.arena[run.start..run.end].chunks(run.segment) {
            let mut sent = send_one(fd, datagram, &endpoint);
            if endpoint.source.is_some() && sent.as_ref().is_err_and(refuses_source) {
                endpoint = endpoint.without_source();
                sent = send_one(fd, datagram, &endpoint);
                if sent.is_ok() {
                    sockets.recheck.refuse(run.endpoint);
                }
            }
            if sent.is_err() {
                drops.add(DropReason::SendFailed);
            }
        }
    }
}

/// Whether the kernel may have refused to send because of the source: its address is gone, or no route begins there.
fn refuses_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINVAL
                | libc::EADDRNOTAVAIL
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENODEV
                | libc::ENXIO
        )
    )
}

fn send_one(fd: RawFd, datagram: &[u8], endpoint: &Endpoint) -> io::Result<()> {
    // SAFETY: zeros are valid values of these C structures.
    let (mut header, mut name): (libc::msghdr, libc::sockaddr_storage) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let mut vector = libc::iovec {
        iov_base: datagram.as_ptr().cast_mut().cast(),
        iov_len: datagram.len(),
    };
    let mut control = Control::EMPTY;
    header.msg_namelen = write_address(&endpoint.address, &mut name);
    header.msg_name = (&raw mut name).cast();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    control.attach(&mut header, endpoint.source.as_ref(), None);
    // SAFETY: the header is valid, and all it points to lives until the call returns.
    match unsafe { libc::sendmsg(fd, &raw const header, 0) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn write_address(endpoint: &SocketAddr, name: &mut libc::sockaddr_storage) -> u32 {
    match endpoint {
        SocketAddr::V4(v4) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*v4.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_in fits into the storage, which is aligned for it.
            unsafe { (&raw mut *name).cast::<libc::sockaddr_in>().write(address) };
            size_of::<libc::sockaddr_in>() as u32
        }
        SocketAddr::V6(v6) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above, for sockaddr_in6.
            unsafe { (&raw mut *name).cast::<libc::sockaddr_in6>().write(address) };
            size_of::<libc::sockaddr_in6>() as u32
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::endpoint::Source;
    use super::*;

    const LENGTHS: [usize; 12] = [100, 100, 100, 40, 1000, 1000, 1, 1, 1, 1400, 1401, 5];

    fn sockets() -> Sockets {
        let recheck = Recheck::new().expect("an event");
        Sockets::bind(0, 0, false, &recheck).expect("loopback")
    }

    fn commit(sender: &mut Sender, endpoint: Endpoint) {
        for (n, length) in LENGTHS.iter().enumerate() {
            sender.space()[..*length].fill(n as u8);
            sender.commit(*length, endpoint);
        }
    }

    /// What of one family arrives, until there are as many datagrams as [`commit`] makes.
    fn received(sockets: &Sockets, family: usize) -> Vec<(Vec<u8>, Endpoint)> {
        let mut receiver = Receiver::new();
        let mut got = Vec::new();
        for _ in 0..500 {
            receiver
                .receive(sockets.descriptors()[family], |d, from| {
                    got.push((d.to_vec(), from))
                })
                .expect("bound");
            if got.len() >= LENGTHS.len() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        got
    }

    fn to(address: [u8; 4], sockets: &Sockets) -> SocketAddr {
        SocketAddr::from((address, sockets.port()))
    }

    #[test]
    fn runs_arrive_as_the_datagrams_they_were() {
        let (a, b) = (sockets(), sockets());
        let drops = DropCounters::default();
        let mut sender = Sender::new();
        for gso in [true, false] {
            a.gso.store(gso, Ordering::Relaxed);
            commit(&mut sender, to([127, 0, 0, 1], &b).into());
            sender.flush(&a, &drops);
            let got = received(&b, 0);
            let sent: Vec<Vec<u8>> = LENGTHS
                .iter()
                .enumerate()
                .map(|(n, length)| vec![n as u8; *length])
                .collect();
            assert_eq!(got.iter().map(|(d, _)| d.clone()).collect::<Vec<_>>(), sent);
            assert!(got.iter().all(|(_, from)| from.address.port() == a.port()));
        }
        assert_eq!(drops.read().of(DropReason::SendFailed), 0);
    }

    #[test]
    fn what_is_sent_back_leaves_from_the_address_that_was_asked() {
        let (a, b) = (sockets(), sockets());
        let drops = DropCounters::default();
        let mut sender = Sender::new();
        for gso in [true, false] {
            b.gso.store(gso, Ordering::Relaxed);
            for asked in [[127, 0, 0, 2], [127, 77, 0, 3]] {
                commit(&mut sender, to(asked, &b).into());
                sender.flush(&a, &drops);
                let from = received(&b, 0).first().expect("they arrive").1;
                assert_eq!(from.source.expect("known").address, IpAddr::from(asked));
                commit(&mut sender, from);
                sender.flush(&b, &drops);
                let back = received(&a, 0);
                assert_eq!(back.len(), LENGTHS.len());
                assert!(back.iter().all(|(_, from)| from.address == to(asked, &b)));
            }
        }
        assert_eq!(drops.read().of(DropReason::SendFailed), 0);
    }

    #[test]
    fn a_run_holds_only_datagrams_of_one_source() {
        let b = sockets();
        let mut sender = Sender::new();
        let from = |last| Endpoint {
            address: to([127, 0, 0, 1], &b),
            source: Some(Source {
                address: IpAddr::from([127, 0, 0, last]),
                interface: 1,
            }),
        };
        for last in [1, 1, 2, 2, 1] {
            sender.commit(100, from(last));
        }
        sender.commit(100, from(1).without_source());
        let counts: Vec<usize> = sender.runs.iter().map(|run| run.count).collect();
        assert_eq!(counts, [2, 2, 1, 1]);
    }

    #[test]
    fn a_source_that_is_gone_is_left_out_and_reported_and_nothing_is_lost() {
        let (a, b) = (sockets(), sockets());
        let drops = DropCounters::default();
        let mut sender = Sender::new();
        let gone = |source: &str, to: SocketAddr| Endpoint {
            address: to,
            source: Some(Source {
                address: source.parse().expect("a literal"),
                interface: 1,
            }),
        };
        let v4 = gone("203.0.113.9", to([127, 0, 0, 1], &b));
        let v6 = gone(
            "2001:db8::9",
            SocketAddr::from((Ipv6Addr::LOCALHOST, b.port())),
        );
        for (family, endpoint) in [v4, v6].into_iter().enumerate() {
            for gso in [true, false] {
                a.gso.store(gso, Ordering::Relaxed);
                commit(&mut sender, endpoint);
                sender.flush(&a, &drops);
                assert_eq!(received(&b, family).len(), LENGTHS.len(), "{endpoint:?}");
                assert_eq!(a.recheck.refused(), [endpoint]);
            }
        }
        assert_eq!(drops.read().of(DropReason::SendFailed), 0);
    }

    #[test]
    fn a_source_that_is_gone_and_a_peer_without_a_route_do_not_end_merging() {
        let a = sockets();
        let drops = DropCounters::default();
        let mut sender = Sender::new();
        // A broadcast is refused, whatever it leaves from.
        let endpoint = Endpoint {
            address: SocketAddr::from((Ipv4Addr::BROADCAST, 9)),
            source: Some(Source {
                address: IpAddr::from([203, 0, 113, 9]),
                interface: 1,
            }),
        };
        commit(&mut sender, endpoint);
        sender.flush(&a, &drops);
        assert!(a.gso.load(Ordering::Relaxed));
        assert_eq!(
            drops.read().of(DropReason::SendFailed),
            LENGTHS.len() as u64
        );
    }
}
