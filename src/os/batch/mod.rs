//! Many UDP datagrams with one system call: [`Receiver`] (recvmmsg(2)) and [`send`] (sendmmsg(2)), both with the segment
//! sizes of merged datagrams and the local address of each (udp(7), ip(7), ipv6(7)).
//!
//! No library fits. The `sendmmsg` of nix attaches one set of ancillary data to all messages, while each message here has
//! its own segment size and source. The `recvmmsg` of nix does not set the space for addresses and ancillary data again:
//! after a datagram with less of it, a later one loses the rest. socket2 has neither call. Addresses and ancillary data
//! are written and read as bytes, so the three blocks of `unsafe` here are all that this needs.

mod address;
mod ancillary;

use std::io::{self, IoSlice};
use std::iter::Chain;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _};
use std::{option, slice};

use self::address::Name;
pub use self::ancillary::Source;
use self::ancillary::{Ancillary, Control};

/// The maximum number of messages that [`send`] hands to the kernel.
pub const MAX_MESSAGES: usize = 64;

/// A header without an address, a buffer and ancillary data.
// SAFETY: an `mmsghdr` consists of integers and raw pointers, for which zeros are valid values.
const EMPTY_HEADER: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };

const EMPTY_SLICE: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Whether a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Wait for the first datagram to receive, or for space in the send buffer.
    Blocking,
    /// Return an error instead.
    NonBlocking,
}

/// Whether a receiver reads segment sizes and sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithAncillary {
    /// It does. The socket options that make the kernel report them are the caller's to set.
    Yes,
    /// It does not: one datagram a buffer.
    No,
}

/// Receives datagrams into buffers that it reuses.
pub struct Receiver {
    buffers: Vec<u8>,
    /// The size of each buffer.
    size: usize,
    names: Vec<Name>,
    /// Empty if no ancillary data is read.
    controls: Vec<Control>,
    slices: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    /// How many messages the last call received.
    received: usize,
}

/// A datagram, or several of one sender that the kernel merged.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// The payload.
    pub bytes: &'a [u8],
    /// The sender, if it has an address of IPv4 or IPv6.
    pub from: Option<SocketAddr>,
    /// The address of this host at which it arrived.
    pub source: Option<Source>,
    segment: Option<usize>,
}

/// The datagrams that the kernel merged, in order.
pub type Segments<'a> = Chain<option::IntoIter<&'a [u8]>, slice::Chunks<'a, u8>>;

impl<'a> Datagram<'a> {
    /// The datagrams that were merged, or the only one. An empty datagram is one of no bytes.
    #[inline]
    pub fn segments(&self) -> Segments<'a> {
        let whole = self.bytes.len().max(1);
        let segment = self.segment.filter(|size| *size > 0).unwrap_or(whole);
        let empty = self.bytes.is_empty().then_some(self.bytes);
        empty.into_iter().chain(self.bytes.chunks(segment))
    }
}

impl Receiver {
    /// A receiver of at most `messages` datagrams a call, each of at most `size` bytes.
    #[must_use]
    pub fn new(messages: usize, size: usize, ancillary: WithAncillary) -> Self {
        let controls = match ancillary {
            WithAncillary::Yes => messages,
            WithAncillary::No => 0,
        };
        Self {
            buffers: vec![0; messages * size],
            size,
            names: vec![Name::EMPTY; messages],
            controls: vec![Control::EMPTY; controls],
            slices: vec![EMPTY_SLICE; messages],
            headers: vec![EMPTY_HEADER; messages],
            // All headers are to be prepared.
            received: messages,
        }
    }

    /// Points the headers that the last call used, at first all of them, to their buffers: the kernel has written the
    /// lengths of what it received over those of the space.
    #[inline]
    fn prepare(&mut self) {
        let buffers = self.buffers.chunks_mut(self.size);
        let slices = self.slices.iter_mut().zip(buffers);
        let headers = self.headers.iter_mut().zip(&mut self.names).zip(slices);
        let mut controls = self.controls.iter_mut();
        for ((header, name), (slice, buffer)) in headers.take(self.received) {
            slice.iov_base = buffer.as_mut_ptr().cast();
            slice.iov_len = buffer.len();
            let header = &mut header.msg_hdr;
            header.msg_iov = std::ptr::from_mut(slice);
            header.msg_iovlen = 1;
            header.msg_name = name.as_mut_ptr();
            header.msg_namelen = Name::LENGTH;
            if let Some(control) = controls.next() {
                header.msg_control = control.as_mut_ptr();
                header.msg_controllen = Control::LENGTH as _;
            }
        }
    }

    /// Receives the datagrams that the socket has and returns how many there are.
    ///
    /// # Errors
    /// The error of recvmmsg(2), among them that there is none (`WouldBlock`) and that a signal arrived (`Interrupted`).
    #[inline]
    pub fn receive(&mut self, socket: impl AsFd, mode: Mode) -> io::Result<usize> {
        self.prepare();
        self.received = 0;
        let flags = match mode {
            Mode::Blocking => libc::MSG_WAITFORONE,
            Mode::NonBlocking => libc::MSG_DONTWAIT,
        };
        // SAFETY: `prepare` pointed each header to a name, to one slice of one buffer and to a control buffer, with their
        // true lengths. They are vectors of this receiver that are never resized, and nothing else uses them in this call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                flags,
                std::ptr::null_mut(),
            )
        };
        self.received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        Ok(self.received)
    }

    /// A datagram of the last call.
    #[inline]
    #[must_use]
    pub fn datagram(&self, index: usize) -> Option<Datagram<'_>> {
        let header = self.headers.get(..self.received)?.get(index)?;
        let buffer = self.buffers.get(index * self.size..)?;
        let length = (header.msg_len as usize).min(self.size);
        let ancillary = match self.controls.get(index) {
            Some(control) => control.read(header.msg_hdr.msg_controllen),
            None => Ancillary::default(),
        };
        Some(Datagram {
            bytes: buffer.get(..length)?,
            from: self.names.get(index)?.address(),
            source: ancillary.source,
            segment: ancillary.segment,
        })
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("messages", &self.headers.len())
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// A datagram to send, or several of one size that the kernel separates again (UDP_SEGMENT).
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The receiver.
    pub to: SocketAddr,
    /// The address of this host that it leaves from. Without one, the kernel chooses.
    pub source: Option<Source>,
    /// The size of each datagram but the last, if there are several.
    pub segment: Option<u16>,
    /// The payload.
    pub parts: &'a [IoSlice<'a>],
}

/// Sends the first [`MAX_MESSAGES`] of `messages` with one system call and returns how many of them the kernel accepted: at
/// least one, unless there are none.
///
/// # Errors
/// The kernel's error for the first message. For any later one, the kernel returns how many it accepted before.
#[inline]
pub fn send<'a>(
    socket: impl AsFd,
    messages: impl IntoIterator<Item = Message<'a>>,
    mode: Mode,
) -> io::Result<usize> {
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MAX_MESSAGES];
    let mut names = [const { MaybeUninit::<Name>::uninit() }; MAX_MESSAGES];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; MAX_MESSAGES];
    let mut count = 0;
    let places = headers.iter_mut().zip(&mut names).zip(&mut controls);
    for (((header, name), control), message) in places.zip(messages) {
        let header = &mut header.write(EMPTY_HEADER).msg_hdr;
        let (address, length) = Name::of(&message.to);
        header.msg_name = name.write(address).as_mut_ptr();
        header.msg_namelen = length;
        header.msg_iov = message.parts.as_ptr().cast_mut().cast();
        header.msg_iovlen = message.parts.len() as _;
        if message.source.is_some() || message.segment.is_some() {
            let (data, length) = Control::of(message.source.as_ref(), message.segment);
            header.msg_control = control.write(data).as_mut_ptr();
            header.msg_controllen = length as _;
        }
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    let flags = match mode {
        Mode::Blocking => 0,
        Mode::NonBlocking => libc::MSG_DONTWAIT,
    };
    // SAFETY: the first `count` headers are initialized. Each points to a name and to ancillary data in the arrays above and
    // to an array of `IoSlice`, which has the layout of `iovec`. All of these live until the call returns, and the kernel
    // only reads them.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count,
            flags,
        )
    };
    match usize::try_from(sent) {
        Ok(sent @ 1..) => Ok(sent),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    fn socket(address: &str) -> UdpSocket {
        let socket = UdpSocket::bind(address).expect("loopback");
        let limit = Some(Duration::from_secs(5));
        socket.set_read_timeout(limit).expect("a socket");
        socket
    }

    fn message<'a>(to: SocketAddr, parts: &'a [IoSlice<'a>]) -> Message<'a> {
        Message {
            to,
            source: None,
            segment: None,
            parts,
        }
    }

    /// The datagrams that arrive until there are `count`.
    fn received(receiver: &mut Receiver, socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while all.len() < count {
            let received = receiver.receive(socket, Mode::Blocking).expect("datagrams");
            for index in 0..received {
                let datagram = receiver.datagram(index).expect("it was received");
                all.extend(datagram.segments().map(<[u8]>::to_vec));
            }
            assert!(receiver.datagram(received).is_none());
        }
        all
    }

    #[test]
    fn datagrams_arrive_in_order_whatever_their_length_and_their_parts() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = (socket(address), socket(address));
            let to = b.local_addr().expect("bound");
            let payloads: Vec<Vec<u8>> = (0..100).map(|n| vec![n as u8; n % 7 * 40]).collect();
            let parts: Vec<[IoSlice<'_>; 2]> = payloads
                .iter()
                .map(|bytes| {
                    let (head, tail) = bytes.split_at(bytes.len() / 3);
                    [IoSlice::new(head), IoSlice::new(tail)]
                })
                .collect();
            let messages = || parts.iter().map(|parts| message(to, parts));
            assert_eq!(
                send(&a, messages(), Mode::Blocking).expect("loopback"),
                MAX_MESSAGES
            );
            let rest = messages().skip(MAX_MESSAGES);
            assert_eq!(send(&a, rest, Mode::NonBlocking).expect("loopback"), 36);
            let mut receiver = Receiver::new(8, 300, WithAncillary::No);
            assert_eq!(received(&mut receiver, &b, 100), payloads);
        }
    }

    #[test]
    fn merged_datagrams_are_separated_and_their_local_address_is_reported_every_time() {
        let (a, b) = (socket("127.0.0.1:0"), socket("0.0.0.0:0"));
        setsockopt(&b, sockopt::UdpGroSegment, &true).expect("Linux 5.0");
        setsockopt(&b, sockopt::Ipv4PacketInfo, &true).expect("IPv4");
        let port = b.local_addr().expect("bound").port();
        let mut receiver = Receiver::new(2, 65_536, WithAncillary::Yes);
        let bytes = [7; 1000];
        for last in [2, 3, 4, 5] {
            let to = SocketAddr::from(([127, 0, 0, last], port));
            // Without a segment size in every other round.
            let segment = (last % 2 == 0).then_some(300);
            let parts = [IoSlice::new(&bytes)];
            let messages = [Message {
                segment,
                ..message(to, &parts)
            }];
            assert_eq!(send(&a, messages, Mode::Blocking).expect("loopback"), 1);
            assert_eq!(receiver.receive(&b, Mode::Blocking).expect("a datagram"), 1);
            let datagram = receiver.datagram(0).expect("it was received");
            let lengths: Vec<usize> = datagram.segments().map(<[u8]>::len).collect();
            let expected = match segment {
                Some(_) => vec![300, 300, 300, 100],
                None => vec![1000],
            };
            assert_eq!(lengths, expected);
            assert_eq!(datagram.from, a.local_addr().ok());
            let source = datagram.source.expect("it was asked for");
            assert_eq!(source.address, to.ip());
        }
    }

    #[test]
    fn the_kernel_s_error_for_the_first_message_is_returned() {
        let a = socket("127.0.0.1:0");
        let parts = [IoSlice::new(&[0; 66_000])];
        let messages = [message(SocketAddr::from(([127, 0, 0, 1], 9)), &parts)];
        let error = send(&a, messages, Mode::Blocking).expect_err("longer than a datagram");
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(send(&a, [], Mode::Blocking).expect("nothing to send"), 0);
        let mut receiver = Receiver::new(1, 10, WithAncillary::No);
        let error = receiver
            .receive(&a, Mode::NonBlocking)
            .expect_err("there is none");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
