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

    /// The size of the space in bytes, which the kernel reads before it writes an address.
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
    use super::*;

    #[test]
    fn an_address_is_written_in_the_kernel_s_layout_and_read_again() {
        let v4: SocketAddr = "192.0.2.7:258".parse().expect("a literal");
        let (name, length) = Name::of(&v4);
        assert_eq!(length as usize, size_of::<libc::sockaddr_in>());
        let family = (libc::AF_INET as u16).to_ne_bytes();
        assert_eq!(name.0[..2], family);
        assert_eq!(name.0[2..8], [1, 2, 192, 0, 2, 7]);
        assert_eq!(name.address(), Some(v4));

        let v6: SocketAddr = "[fe80::1%3]:258".parse().expect("a literal");
        let (name, length) = Name::of(&v6);
        assert_eq!(length as usize, size_of::<libc::sockaddr_in6>());
        let family = (libc::AF_INET6 as u16).to_ne_bytes();
        assert_eq!(name.0[..2], family);
        assert_eq!(name.0[2..8], [1, 2, 0, 0, 0, 0]);
        assert_eq!((name.0[8], name.0[23]), (0xfe, 1));
        assert_eq!(name.0[24..28], 3u32.to_ne_bytes());
        assert_eq!(name.address(), Some(v6));
    }

    #[test]
    fn a_structure_of_no_family_is_no_address() {
        assert_eq!(Name::EMPTY.address(), None);
    }
}
