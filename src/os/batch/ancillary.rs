//! Ancillary data of datagrams (cmsg(3)): the local address at which a datagram arrived or from which it leaves (ip(7),
//! ipv6(7), RFC 3542 section 6.2), and the segment size of merged datagrams (udp(7)).
//!
//! The messages are written and read as bytes, in the layout of the kernel's `struct cmsghdr`: length, level, type, data,
//! padded to the size of a word. The macros of cmsg(3) work on raw pointers, and nix allocates for each message it encodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a message before its data.
const HEADER: usize = size_of::<usize>() + 8;
/// Messages begin at a multiple of this.
const ALIGNMENT: usize = size_of::<usize>();
/// Bytes of ancillary data: a source of either family and a segment size.
const SPACE: usize = 64;

const _: () = assert!((HEADER + 20).next_multiple_of(ALIGNMENT) + HEADER + 4 <= SPACE);

/// An address of this host, from which a datagram leaves or at which one arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    pub address: IpAddr,
    /// The index of the interface at which the datagram arrived.
    pub interface: u32,
}

impl Source {
    /// The interface that a datagram has to leave by, or 0 for any. A link-local address is bound to its interface
    /// (RFC 4007 section 6). A datagram from any other address leaves by the interface that the route names.
    #[must_use]
    pub fn bound_interface(&self) -> u32 {
        match self.address {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => self.interface,
            _ => 0,
        }
    }
}

/// Space for the ancillary data of one message.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; SPACE]);

impl Control {
    pub(super) const EMPTY: Self = Self([0; SPACE]);

    /// The space in bytes.
    pub(super) const LENGTH: usize = SPACE;

    /// Ancillary data with a source and a segment size, and its length: 0 if both are absent.
    #[inline]
    pub(super) fn of(source: Option<&Source>, segment: Option<u16>) -> (Self, usize) {
        let (mut control, mut used) = (Self::EMPTY, 0);
        if let Some(source) = source {
            let interface = source.bound_interface().to_ne_bytes();
            match source.address {
                IpAddr::V4(v4) => {
                    // struct in_pktinfo: interface, local address, destination (ignored when sending).
                    let mut info = [0; 12];
                    info[..4].copy_from_slice(&interface);
                    info[4..8].copy_from_slice(&v4.octets());
                    used = control.put(used, (libc::IPPROTO_IP, libc::IP_PKTINFO), &info);
                }
                IpAddr::V6(v6) => {
                    // struct in6_pktinfo: local address, interface.
                    let mut info = [0; 20];
                    info[..16].copy_from_slice(&v6.octets());
                    info[16..].copy_from_slice(&interface);
                    used = control.put(used, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), &info);
                }
            }
        }
        if let Some(segment) = segment {
            let kind = (libc::SOL_UDP, libc::UDP_SEGMENT);
            used = control.put(used, kind, &segment.to_ne_bytes());
        }
        (control, used)
    }

    /// Writes a message at byte `at` and returns where the next one begins.
    #[inline]
    fn put(&mut self, at: usize, (level, kind): (i32, i32), data: &[u8]) -> usize {
        let length = HEADER + data.len();
        let message = &mut self.0[at..at + length];
        let (header, space) = message.split_at_mut(HEADER);
        let (size, kinds) = header.split_at_mut(size_of::<usize>());
        size.copy_from_slice(&length.to_ne_bytes());
        kinds[..4].copy_from_slice(&level.to_ne_bytes());
        kinds[4..].copy_from_slice(&kind.to_ne_bytes());
        space.copy_from_slice(data);
        at + length.next_multiple_of(ALIGNMENT)
    }

    /// Reads ancillary data of which the kernel wrote the first `length` bytes.
    #[inline]
    pub(super) fn read(&self, length: usize) -> Ancillary {
        let mut ancillary = Ancillary::default();
        let mut rest = self.0.get(..length).unwrap_or_default();
        while let Some(message) = first_message(rest) {
            let data = message.data;
            match message.kind {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = data.first_chunk().map(|size| i32::from_ne_bytes(*size));
                    ancillary.segment = size.and_then(|size| usize::try_from(size).ok());
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => ancillary.source = source_v4(data),
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => ancillary.source = source_v6(data),
                _ => {}
            }
            rest = message.rest;
        }
        ancillary
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.0.as_mut_ptr().cast()
    }
}

/// The ancillary data of a received datagram.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ancillary {
    /// The segment size, if the kernel merged several datagrams.
    pub(super) segment: Option<usize>,
    /// The address of this host at which the datagram arrived.
    pub(super) source: Option<Source>,
}

/// A message, and the bytes after it.
struct Parsed<'a> {
    /// Its level and type.
    kind: (i32, i32),
    data: &'a [u8],
    rest: &'a [u8],
}

#[inline]
fn first_message(bytes: &[u8]) -> Option<Parsed<'_>> {
    let size = usize::from_ne_bytes(*bytes.first_chunk()?);
    let kinds = bytes.get(size_of::<usize>()..)?;
    let level = i32::from_ne_bytes(*kinds.first_chunk()?);
    let kind = i32::from_ne_bytes(*kinds.get(4..)?.first_chunk()?);
    // A size below that of the header gives no range, so each message makes the rest shorter.
    let data = bytes.get(HEADER..size)?;
    let rest = bytes.get(size.next_multiple_of(ALIGNMENT)..);
    Some(Parsed {
        kind: (level, kind),
        data,
        rest: rest.unwrap_or_default(),
    })
}

fn source_v4(info: &[u8]) -> Option<Source> {
    let interface = u32::from_ne_bytes(*info.first_chunk()?);
    // The local address. For a broadcast the kernel reports the interface's own address here.
    let address = Ipv4Addr::from(*info.get(4..)?.first_chunk::<4>()?);
    let usable = !address.is_unspecified() && !address.is_multicast();
    usable.then(|| Source {
        address: address.into(),
        interface,
    })
}

fn source_v6(info: &[u8]) -> Option<Source> {
    let address = Ipv6Addr::from(*info.first_chunk::<16>()?);
    let interface = u32::from_ne_bytes(*info.get(16..)?.first_chunk()?);
    let usable = !address.is_unspecified() && !address.is_multicast();
    usable.then(|| Source {
        address: address.into(),
        interface,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(address: &str) -> Source {
        Source {
            address: address.parse().expect("a literal"),
            interface: 4,
        }
    }

    #[test]
    fn a_source_is_read_as_it_was_written_with_and_without_a_segment_size() {
        for address in ["192.0.2.7", "2001:db8::7", "fe80::7"] {
            let source = source(address);
            let expected = Source {
                interface: source.bound_interface(),
                ..source
            };
            let (alone, short) = Control::of(Some(&source), None);
            let (both, long) = Control::of(Some(&source), Some(1452));
            assert_eq!(alone.read(short).source, Some(expected));
            assert_eq!(both.read(long).source, Some(expected));
            assert!(short < long && long <= SPACE);
        }
        assert_eq!(Control::of(None, None).1, 0);
    }

    #[test]
    fn only_a_link_local_source_is_bound_to_its_interface() {
        for (address, bound) in [("192.0.2.7", 0), ("2001:db8::7", 0), ("fe80::7", 4)] {
            let (control, length) = Control::of(Some(&source(address)), None);
            let read = control.read(length).source.expect("one was written");
            assert_eq!(read.interface, bound, "{address}");
        }
    }

    #[test]
    fn an_address_that_no_host_has_is_no_source() {
        let v4 = |address: [u8; 4]| {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&address);
            source_v4(&info)
        };
        assert_eq!(v4([0; 4]), None);
        assert_eq!(v4([224, 0, 0, 1]), None);
        assert!(v4([192, 0, 2, 1]).is_some());
        let mut info = [0; 20];
        info[..16].copy_from_slice(&Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets());
        assert_eq!(source_v6(&info), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in prop::array::uniform32(any::<u8>()), small in 0u8..80, length in 0usize..100) {
            let mut control = Control::EMPTY;
            control.0[..32].copy_from_slice(&bytes);
            control.0[32..].copy_from_slice(&bytes);
            let _ = control.read(length);
            // A size that lies within the space.
            control.0[..size_of::<usize>()].copy_from_slice(&usize::from(small).to_ne_bytes());
            let _ = control.read(length);
        }
    }
}
