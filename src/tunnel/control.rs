//! Ancillary data of datagrams: at which address one arrived or leaves (ip(7), ipv6(7), RFC 3542 section 6.2), and the
//! size of merged ones (udp(7)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::endpoint::Source;

/// Octets of ancillary data: a source of either family and a segment size.
const SPACE: usize = 64;

// SAFETY: CMSG_SPACE only computes.
const _: () = assert!(
    unsafe { libc::CMSG_SPACE(size_of::<libc::in6_pktinfo>() as u32) + libc::CMSG_SPACE(4) }
        as usize
        <= SPACE
);

/// Space for the ancillary data of one message.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Control([u8; SPACE]);

impl Control {
    pub(super) const EMPTY: Self = Self([0; SPACE]);

    /// Has the kernel write into this when `header` is received.
    pub(super) fn receive_into(&mut self, header: &mut libc::msghdr) {
        header.msg_control = (&raw mut *self).cast();
        header.msg_controllen = SPACE as _;
    }

    /// Attaches a source and a segment size to `header`, whose ancillary data this is from then on. The space has to be
    /// [`Control::EMPTY`].
    pub(super) fn attach(
        &mut self,
        header: &mut libc::msghdr,
        source: Option<&Source>,
        segment: Option<u16>,
    ) {
        let mut used = 0;
        if let Some(source) = source {
            let interface = source.bound_interface();
            used = match source.address {
                IpAddr::V4(v4) => {
                    let info = libc::in_pktinfo {
                        ipi_ifindex: interface.cast_signed(),
                        ipi_spec_dst: libc::in_addr {
                            s_addr: u32::from(v4).to_be(),
                        },
                        ipi_addr: libc::in_addr { s_addr: 0 },
                    };
                    self.put(used, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
                }
                IpAddr::V6(v6) => {
                    let info = libc::in6_pktinfo {
                        ipi6_addr: libc::in6_addr {
                            s6_addr: v6.octets(),
                        },
                        ipi6_ifindex: interface,
                    };
                    self.put(used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
                }
            };
        }
        if let Some(segment) = segment {
            used = self.put(used, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
        }
        if used > 0 {
            header.msg_control = (&raw mut *self).cast();
            header.msg_controllen = used as _;
        }
    }

    /// Writes a message at octet `at`; gives the octet after it.
    fn put<T: Copy>(&mut self, at: usize, level: i32, kind: i32, value: T) -> usize {
        let length = size_of::<T>() as u32;
        // SAFETY: CMSG_SPACE only computes.
        let end = at + unsafe { libc::CMSG_SPACE(length) } as usize;
        assert!(end <= SPACE, "the space holds one source and one size");
        // SAFETY: the message lies within the space by the line above; `at` is a sum of CMSG_SPACEs, so the header is
        // aligned as the space is. The value is written without that assumption.
        unsafe {
            let message: *mut libc::cmsghdr = self.0.as_mut_ptr().add(at).cast();
            (*message).cmsg_level = level;
            (*message).cmsg_type = kind;
            (*message).cmsg_len = libc::CMSG_LEN(length) as _;
            std::ptr::write_unaligned(libc::CMSG_DATA(message).cast(), value);
        }
        end
    }
}

/// What the kernel says of a received message.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// The size of merged datagrams, if it merged any.
    pub(super) segment: Option<usize>,
    /// The address of this host at which it arrived.
    pub(super) source: Option<Source>,
}

impl Received {
    /// Reads the ancillary data of a header that the kernel filled in.
    pub(super) fn read(header: &libc::msghdr) -> Self {
        let mut received = Self::default();
        // SAFETY: the header was filled in by the kernel, and its control buffer lives as long as `header`.
        let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
        while !message.is_null() {
            // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give valid headers or null; each kind of data has the type that
            // the manual names for it.
            unsafe {
                let data = libc::CMSG_DATA(message);
                match ((*message).cmsg_level, (*message).cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) => {
                        let size: i32 = std::ptr::read_unaligned(data.cast());
                        received.segment = usize::try_from(size).ok();
                    }
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        received.source = source_v4(&std::ptr::read_unaligned(data.cast()));
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        received.source = source_v6(&std::ptr::read_unaligned(data.cast()));
                    }
                    _ => {}
                }
                message = libc::CMSG_NXTHDR(header, message);
            }
        }
        received
    }
}

fn source_v4(info: &libc::in_pktinfo) -> Option<Source> {
    // The local address: of a broadcast the kernel gives the interface's own here.
    let address = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr));
    let usable = !address.is_unspecified() && !address.is_multicast();
    usable.then(|| Source {
        address: address.into(),
        interface: info.ipi_ifindex.cast_unsigned(),
    })
}

fn source_v6(info: &libc::in6_pktinfo) -> Option<Source> {
    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
    let usable = !address.is_unspecified() && !address.is_multicast();
    usable.then(|| Source {
        address: address.into(),
        interface: info.ipi6_ifindex,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with this ancillary data attached, as the kernel would read it.
    fn attached(source: Option<Source>, segment: Option<u16>) -> (Option<Source>, usize) {
        let mut control = Control::EMPTY;
        // SAFETY: zeros are a valid value.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        control.attach(&mut header, source.as_ref(), segment);
        let length = header.msg_controllen as usize;
        (Received::read(&header).source, length)
    }

    #[test]
    fn a_source_is_read_as_it_was_attached_with_and_without_a_segment_size() {
        for (address, interface) in [("192.0.2.7", 0), ("2001:db8::7", 0), ("fe80::7", 4)] {
            let source = Source {
                address: address.parse().expect("a literal"),
                interface,
            };
            let (alone, short) = attached(Some(source), None);
            let (both, long) = attached(Some(source), Some(1452));
            assert_eq!([alone, both], [Some(source); 2]);
            assert!(short < long && long <= SPACE);
        }
        assert_eq!(attached(None, None), (None, 0));
    }

    #[test]
    fn only_a_link_local_source_is_bound_to_its_interface() {
        for (address, bound) in [("192.0.2.7", 0), ("2001:db8::7", 0), ("fe80::7", 4)] {
            let source = Source {
                address: address.parse().expect("a literal"),
                interface: 4,
            };
            let read = attached(Some(source), None).0.expect("attached");
            assert_eq!(read.interface, bound, "{address}");
        }
    }

    #[test]
    fn what_is_no_address_of_a_host_is_no_source() {
        let of = |v4: Ipv4Addr| {
            source_v4(&libc::in_pktinfo {
                ipi_ifindex: 2,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from(v4).to_be(),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            })
        };
        assert_eq!(of(Ipv4Addr::UNSPECIFIED), None);
        assert_eq!(of(Ipv4Addr::new(224, 0, 0, 1)), None);
        assert!(of(Ipv4Addr::new(192, 0, 2, 1)).is_some());
        let all_nodes = libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr {
                s6_addr: Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets(),
            },
            ipi6_ifindex: 2,
        };
        assert_eq!(source_v6(&all_nodes), None);
    }
}
