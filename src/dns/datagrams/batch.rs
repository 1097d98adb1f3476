//! Datagrams received together, and the replies to them sent together.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;

use socket2::Socket;

use crate::dns::message::MAX_QUERY;

/// Datagrams received and sent at once at most; no more than the kernel makes of one (UDP_MAX_SEGMENTS).
const BATCH: usize = 64;
/// Octets of a run of replies at most, so that it is a datagram of IPv4 or IPv6 whatever its headers.
const MAX_RUN: usize = 60_000;
const NAME_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

/// Room for a batch. The addresses of buffers in it are handed to the system once and do not change: nothing in it is
/// ever moved or grown but the replies, of which the addresses are taken anew for each batch.
pub(super) struct Batch {
    queries: Vec<[u8; MAX_QUERY + 1]>,
    replies: Vec<Vec<u8>>,
    names: Vec<libc::sockaddr_storage>,
    receive_slices: Vec<libc::iovec>,
    receive: Vec<libc::mmsghdr>,
    send_slices: Vec<libc::iovec>,
    send: Vec<libc::mmsghdr>,
    controls: Vec<Control>,
    /// Replies there are: to whom, how long and which.
    order: Vec<(SocketAddr, usize, usize)>,
    /// Whether the kernel takes several as one.
    merges: bool,
}

impl Batch {
    pub(super) fn new() -> Self {
        // SAFETY: all of these are plain data for which zeros are values.
        let (name, header, slice) = unsafe {
            (
                std::mem::zeroed::<libc::sockaddr_storage>(),
                std::mem::zeroed::<libc::mmsghdr>(),
                std::mem::zeroed::<libc::iovec>(),
            )
        };
        let mut batch = Self {
            queries: vec![[0; MAX_QUERY + 1]; BATCH],
            replies: (0..BATCH).map(|_| Vec::with_capacity(512)).collect(),
            names: vec![name; BATCH],
            receive_slices: vec![slice; BATCH],
            receive: vec![header; BATCH],
            send_slices: vec![slice; BATCH],
            send: vec![header; BATCH],
            controls: vec![Control([0; 32]); BATCH],
            order: Vec::with_capacity(BATCH),
            merges: true,
        };
        let slices = batch.receive_slices.iter_mut().zip(&mut batch.queries);
        let headers = batch.receive.iter_mut().zip(&mut batch.names);
        for ((slice, query), (header, name)) in slices.zip(headers) {
            slice.iov_base = query.as_mut_ptr().cast();
            slice.iov_len = query.len();
            header.msg_hdr.msg_iov = std::ptr::from_mut(slice);
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = NAME_LENGTH;
        }
        batch
    }

    /// Waits for a datagram and takes those that are there.
    pub(super) fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        for reply in &mut self.replies {
            reply.clear();
        }
        // SAFETY: each header points to a slice and a name, and each slice to a query, all of this batch, which are not
        // moved and not used by anybody else meanwhile, with their true lengths.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.receive.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// A datagram received, who sent it, and room for the reply.
    pub(super) fn at(&mut self, index: usize) -> Option<(&[u8], Option<SocketAddr>, &mut Vec<u8>)> {
        let header = self.receive.get_mut(index)?;
        header.msg_hdr.msg_namelen = NAME_LENGTH;
        let query = self.queries.get(index)?.get(..header.msg_len as usize)?;
        let client = address(self.names.get(index)?);
        Some((query, client, self.replies.get_mut(index)?))
    }

    /// Sends the replies to the first `count` datagrams, each to where its query came from. Those of one length to one
    /// client go through the kernel as one (UDP_SEGMENT, udp(7)), since that way is most of what a reply costs.
    pub(super) fn send(&mut self, socket: &Socket, count: usize) {
        let filled = self.gather(count);
        let mut from = 0;
        while let Some(rest) = self.send.get_mut(from..filled).filter(|r| !r.is_empty()) {
            // SAFETY: `gather` pointed each of these headers to slices of replies, a name and a control message of this
            // batch, which have not been touched since, with their true lengths.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as u32,
                    libc::MSG_DONTWAIT,
                )
            };
            if let Ok(sent @ 1..) = usize::try_from(sent) {
                from += sent;
                continue;
            }
            let error = io::Error::last_os_error().raw_os_error();
            if let Some(run) = rest.first().filter(|first| first.msg_hdr.msg_iovlen > 1) {
                // The device on the way has no checksums to give, say, or the kernel takes none of that.
                self.merges &= !matches!(error, Some(libc::EIO | libc::EINVAL));
                send_singly(socket, &run.msg_hdr);
            }
            // One that cannot be sent, to a client that is gone, say, must not keep the others back.
            from += 1;
        }
    }

    /// Makes messages of the replies to the first `count` datagrams; gives how many.
    fn gather(&mut self, count: usize) -> usize {
        self.order.clear();
        let replies = self.replies.iter().zip(&self.names).take(count);
        for (index, (reply, name)) in replies.enumerate() {
            if let Some(client) = address(name).filter(|_| !reply.is_empty()) {
                self.order.push((client, reply.len(), index));
            }
        }
        self.order.sort_unstable();
        for (slice, (.., index)) in self.send_slices.iter_mut().zip(&self.order) {
            if let Some(reply) = self.replies.get_mut(*index) {
                slice.iov_base = reply.as_mut_ptr().cast();
                slice.iov_len = reply.len();
            }
        }
        let mut slices = self.send_slices.as_mut_slice();
        let mut rest = self.order.as_slice();
        let mut filled = 0;
        for (header, control) in self.send.iter_mut().zip(&mut self.controls) {
            let Some((client, length, index)) = rest.first() else {
                break;
            };
            let most = if self.merges { MAX_RUN / length } else { 1 };
            let same =
                |(other, of, _): &&(SocketAddr, usize, usize)| other == client && of == length;
            let run = rest.iter().take(most.max(1)).take_while(same).count();
            let of_run = std::mem::take(&mut slices).split_at_mut_checked(run);
            let (Some((of_run, others)), Some(name)) = (of_run, self.names.get_mut(*index)) else {
                break;
            };
            header.msg_hdr.msg_iov = of_run.as_mut_ptr();
            header.msg_hdr.msg_iovlen = run;
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = match client {
                SocketAddr::V4(_) => size_of::<libc::sockaddr_in>() as libc::socklen_t,
                SocketAddr::V6(_) => size_of::<libc::sockaddr_in6>() as libc::socklen_t,
            };
            control.say(&mut header.msg_hdr, run, *length);
            slices = others;
            rest = rest.get(run..).unwrap_or_default();
            filled += 1;
        }
        filled
    }
}

/// Sends the replies of a run that the kernel does not take as one, one by one.
fn send_singly(socket: &Socket, run: &libc::msghdr) {
    for place in 0..run.msg_iovlen {
        let mut one = *run;
        // SAFETY: the run has that many slices, one after another.
        one.msg_iov = unsafe { run.msg_iov.add(place) };
        one.msg_iovlen = 1;
        one.msg_control = std::ptr::null_mut();
        one.msg_controllen = 0;
        // SAFETY: the header points to one slice and the name of the run, which outlive the call. What cannot be sent is
        // lost, as on the way.
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const one, libc::MSG_DONTWAIT) };
    }
}

/// Room for the control message that says how long the datagrams of a run are.
#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control([u8; 32]);

impl Control {
    /// Says so in `header`, or nothing if there is only one.
    fn say(&mut self, header: &mut libc::msghdr, count: usize, length: usize) {
        header.msg_control = std::ptr::null_mut();
        header.msg_controllen = 0;
        let Some(length) = u16::try_from(length).ok().filter(|_| count > 1) else {
            return;
        };
        header.msg_control = self.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE of two octets is 24, which this has; CMSG_FIRSTHDR of a header with so much room is not null,
        // and its data has room for them.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as usize;
            let message = libc::CMSG_FIRSTHDR(header);
            (*message).cmsg_level = libc::SOL_UDP;
            (*message).cmsg_type = libc::UDP_SEGMENT;
            (*message).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as usize;
            std::ptr::write_unaligned(libc::CMSG_DATA(message).cast(), length);
        }
    }
}

fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: of this family the storage holds this structure, and is large and aligned enough for all.
            let v4 = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = u32::from_be(v4.sin_addr.s_addr).into();
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let port = u16::from_be(v6.sin6_port);
            let ip = v6.sin6_addr.s6_addr.into();
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    /// Sends each client's queries from it, answers each with what `reply` makes of it, and gives what each client got.
    fn exchange(
        batch: &mut Batch,
        queries: &[&[&str]],
        reply: fn(&str) -> String,
        prepare: fn(&Socket),
    ) -> Vec<Vec<String>> {
        let server = UdpSocket::bind("127.0.0.1:0").expect("loopback");
        let at = server.local_addr().expect("an address");
        let clients: Vec<UdpSocket> = queries
            .iter()
            .map(|own| {
                let client = UdpSocket::bind("127.0.0.1:0").expect("loopback");
                client
                    .set_read_timeout(Some(Duration::from_secs(5)))
                    .expect("a socket");
                for query in *own {
                    client.send_to(query.as_bytes(), at).expect("loopback");
                }
                client
            })
            .collect();
        let server = Socket::from(server);
        prepare(&server);
        let mut left: usize = queries.iter().map(|own| own.len()).sum();
        while left > 0 {
            let count = batch.receive(&server).expect("a socket");
            for index in 0..count {
                let (query, _, room) = batch.at(index).expect("a datagram");
                let query = std::str::from_utf8(query).expect("text");
                room.extend_from_slice(reply(query).as_bytes());
            }
            batch.send(&server, count);
            left -= count;
        }
        let got = clients.iter().zip(queries).map(|(client, own)| {
            let mut buffer = [0; 2000];
            let mut got: Vec<String> = own
                .iter()
                .filter(|query| !reply(query).is_empty())
                .map(|_| {
                    let (length, _) = client.recv_from(&mut buffer).expect("a reply");
                    String::from_utf8_lossy(&buffer[..length]).into_owned()
                })
                .collect();
            client.set_nonblocking(true).expect("a socket");
            assert!(client.recv(&mut buffer).is_err(), "one reply too many");
            got.sort();
            got
        });
        got.collect()
    }

    #[test]
    fn every_client_gets_the_replies_to_its_queries_merged_or_not() {
        let reply = |query: &str| match query {
            "silence" => String::new(),
            "long" => "l".repeat(1232),
            other => format!("re {other}"),
        };
        let queries: &[&[&str]] = &[
            &["a", "b", "cc", "silence", "d", "ee", "f"],
            &["x"],
            &["long", "y", "long", "z", "silence"],
        ];
        for merges in [true, false] {
            let mut batch = Batch::new();
            batch.merges = merges;
            for _ in 0..2 {
                let got = exchange(&mut batch, queries, reply, |_| ());
                for (got, own) in got.iter().zip(queries) {
                    let mut wanted: Vec<String> = own.iter().map(|query| reply(query)).collect();
                    wanted.retain(|reply| !reply.is_empty());
                    wanted.sort();
                    assert_eq!(*got, wanted);
                }
            }
            assert_eq!(batch.merges, merges);
        }
    }

    #[test]
    fn replies_that_the_kernel_does_not_take_as_one_go_one_by_one() {
        let mut batch = Batch::new();
        let without_checksums = |server: &Socket| {
            let on: libc::c_int = 1;
            // SAFETY: the option's value is an int, of which the address and size are given.
            let done = unsafe {
                libc::setsockopt(
                    server.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_NO_CHECK,
                    (&raw const on).cast(),
                    size_of_val(&on) as libc::socklen_t,
                )
            };
            assert_eq!(done, 0);
        };
        let got = exchange(
            &mut batch,
            &[&["1", "2", "3"]],
            str::to_owned,
            without_checksums,
        );
        assert_eq!(got, [["1", "2", "3"]]);
        assert!(!batch.merges);
    }
}
