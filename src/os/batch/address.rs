//! Socket addresses as the kernel's structures: `sockaddr_in` (ip(7)) and `sockaddr_in6` (ipv6(7)).
//!
//! They are written and read as bytes. The structures of `libc` would need an unchecked cast in each direction.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// The size of a `sockaddr_in`.
const LENGTH_V4: usize = 16;
/// The size of a `sockaddr_in6`.
const LENGTH_V6: usize = 28;

/// Space for an address of either family.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Name([u8; 32]);

impl Name {
    pub(super) const EMPTY: Self = Self([0; 32]);

    /// The space in bytes, as the kernel wants to know it.
    pub(super) const LENGTH: libc::socklen_t = size_of::<Self>() as libc::socklen_t;

    /// The structure for `address`, and its length.
    #[inline]
    pub(super) fn of(address: &SocketAddr) -> (Self, libc::socklen_t) {
        let mut name = Self::EMPTY;
        let bytes = &mut name.0;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let length = match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                LENGTH_V4
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                LENGTH_V6
            }
        };
        (name, length as libc::socklen_t)
    }

    /// The address that the kernel wrote. The flow information of IPv6 is always 0 here: the kernel reports none for UDP.
    #[inline]
    pub(super) fn address(&self) -> Option<SocketAddr> {
        let [f0, f1, p0, p1, v4 @ .., _, _, _, _] = self.0;
        let port = u16::from_be_bytes([p0, p1]);
        match i32::from(u16::from_ne_bytes([f0, f1])) {
            libc::AF_INET => {
                let ip = Ipv4Addr::from(*v4.first_chunk::<4>()?);
                Some(SocketAddrV4::new(ip, port).into())
            }
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(*self.0.get(8..)?.first_chunk::<16>()?);
                let scope = u32::from_ne_bytes(*self.0.get(24..)?.first_chunk::<4>()?);
                Some(SocketAddrV6::new(ip, port, 0, scope).into())
            }
            _ => None,
        }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.0.as_mut_ptr().cast()
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockAddr;

    use super::*;

    #[test]
    fn an_address_is_written_as_socket2_writes_it_and_read_again() {
        for text in [
            "192.0.2.7:51820",
            "[2001:db8::7]:51820",
            "[fe80::1%3]:65535",
            "0.0.0.0:0",
        ] {
            let address: SocketAddr = text.parse().expect("a literal");
            let (name, length) = Name::of(&address);
            let theirs = SockAddr::from(address);
            assert_eq!(length, theirs.len());
            // SAFETY: the storage holds an initialized structure of this length.
            let bytes = unsafe {
                std::slice::from_raw_parts(theirs.as_ptr().cast::<u8>(), length as usize)
            };
            assert_eq!(&name.0[..length as usize], bytes, "{text}");
            assert_eq!(name.address(), Some(address));
        }
    }

    #[test]
    fn a_structure_of_no_family_is_no_address() {
        assert_eq!(Name::EMPTY.address(), None);
    }
}
