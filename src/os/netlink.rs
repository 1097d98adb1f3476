//! Netlink: subscriptions to notifications of the kernel, and the format of messages and attributes.
//!
//! Decision: the parsers of the crate netlink-packet-core are not used for these. They decode each message into owned values. The
//! kernel of a busy host sends very many notifications and has millions of tracked connections. The functions here read them in
//! place.

use std::io;

use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

/// The size of the header of a message (`nlmsghdr`) in bytes: length, type, flags, sequence number, port.
pub const HEADER: usize = 16;
/// The size of the header of an attribute (`nlattr`) in bytes: length and type.
const ATTRIBUTE_HEADER: usize = 4;
/// The alignment of messages and attributes in bytes (`NLMSG_ALIGNTO`, `NLA_ALIGNTO`).
const ALIGNMENT: usize = 4;
/// `NLA_TYPE_MASK`: the type of an attribute without the flags for nesting and byte order.
const TYPE_MASK: u16 = 0x3fff;

/// A subscription to notifications of the kernel.
pub struct Subscription(io::Result<TokioSocket>);

impl Subscription {
    /// Subscribes to multicast groups of a protocol. This must be called in a tokio runtime.
    pub fn open(protocol: isize, groups: &[u32]) -> Self {
        Self(subscribe(protocol, groups))
    }

    /// Why there are no notifications, if there are none.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.0.as_ref().err().map(ToString::to_string)
    }

    /// Returns after a datagram for which `concerns` is true, or after notifications were lost. Never returns if there are no
    /// notifications. Dropping the future loses no notification.
    pub async fn next(&mut self, concerns: impl Fn(&[u8]) -> bool) {
        loop {
            let Ok(socket) = &mut self.0 else {
                return std::future::pending().await;
            };
            match socket.recv_from_full().await {
                Ok((datagram, _)) if concerns(&datagram) => return,
                Ok(_) => {}
                // Notifications were lost because the buffer was full. Some of them may have been the wanted ones.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return,
                Err(error) => self.0 = Err(error),
            }
        }
    }
}

fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.socket_mut().add_membership(*group)?;
    }
    Ok(socket)
}

/// A message in a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// The type of the message.
    pub kind: u16,
    /// The whole message with its header.
    pub bytes: &'a [u8],
    /// The bytes after the header.
    pub body: &'a [u8],
}

/// The messages in a datagram. The iterator ends at the first malformed message.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        let message = Message {
            kind: u16_at(rest, 4)?,
            bytes: rest.get(..length)?,
            body: rest.get(HEADER..length)?,
        };
        rest = rest
            .get(length.checked_next_multiple_of(ALIGNMENT)?..)
            .unwrap_or_default();
        Some(message)
    })
}

/// The types and values of the attributes in `bytes`. The iterator ends at the first malformed attribute.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & TYPE_MASK;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        rest = rest
            .get(length.next_multiple_of(ALIGNMENT)..)
            .unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of type `kind`.
#[must_use]
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// Appends an attribute.
pub fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + ATTRIBUTE_HEADER).unwrap_or(u16::MAX);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(ALIGNMENT), 0);
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pushed_attributes_are_read_again() {
        let mut bytes = Vec::new();
        push_attribute(&mut bytes, 2, b"x");
        push_attribute(&mut bytes, 1 | 0x8000, b"meshd");
        let read: Vec<(u16, &[u8])> = attributes(&bytes).collect();
        assert_eq!(read, [(2, &b"x"[..]), (1, b"meshd")]);
        assert_eq!(attribute(&bytes, 1), Some(&b"meshd"[..]));
        assert_eq!(attribute(&bytes, 3), None);
    }

    proptest! {
        #[test]
        fn received_bytes_cause_no_panic_and_no_endless_loop(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }
    }
}
