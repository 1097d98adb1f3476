//! Reads and writes the numbers and addresses of messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::error::PathMessageError;

/// Reads from the front of a slice.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], PathMessageError> {
        let split = self.0.split_at_checked(length);
        let (taken, rest) = split.ok_or(PathMessageError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Returns all bytes that are left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], PathMessageError> {
        let split = self.0.split_first_chunk::<N>();
        let (taken, rest) = split.ok_or(PathMessageError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, PathMessageError> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, PathMessageError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, PathMessageError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, PathMessageError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn address(&mut self) -> Result<Option<SocketAddr>, PathMessageError> {
        let family = self.u8()?;
        if family == 0 {
            return Ok(None);
        }
        let address: (u16, IpAddr) = match family {
            4 => (self.u16()?, Ipv4Addr::from(self.array::<4>()?).into()),
            6 => (self.u16()?, Ipv6Addr::from(self.array::<16>()?).into()),
            _ => return Err(PathMessageError::Family(family)),
        };
        let (port, ip) = address;
        Ok(Some(canonical(SocketAddr::new(ip, port))))
    }
}

/// Writes to the front of a slice. Each method returns none if there is no room.
pub(super) struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0 }
    }

    /// The number of bytes written so far.
    pub(super) fn written(&self) -> usize {
        self.at
    }

    fn room(&mut self, length: usize) -> Option<&mut [u8]> {
        let end = self.at.checked_add(length)?;
        let room = self.out.get_mut(self.at..end)?;
        self.at = end;
        Some(room)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        self.room(bytes.len())?.copy_from_slice(bytes);
        Some(())
    }

    pub(super) fn zeros(&mut self, length: usize) -> Option<()> {
        self.room(length)?.fill(0);
        Some(())
    }

    pub(super) fn u8(&mut self, number: u8) -> Option<()> {
        self.bytes(&[number])
    }

    pub(super) fn u16(&mut self, number: u16) -> Option<()> {
        self.bytes(&number.to_be_bytes())
    }

    pub(super) fn u32(&mut self, number: u32) -> Option<()> {
        self.bytes(&number.to_be_bytes())
    }

    pub(super) fn u64(&mut self, number: u64) -> Option<()> {
        self.bytes(&number.to_be_bytes())
    }

    pub(super) fn address(&mut self, address: Option<SocketAddr>) -> Option<()> {
        let Some(address) = address.map(canonical) else {
            return self.u8(0);
        };
        self.u8(if address.is_ipv4() { 4 } else { 6 })?;
        self.u16(address.port())?;
        match address.ip() {
            IpAddr::V4(v4) => self.bytes(&v4.octets()),
            IpAddr::V6(v6) => self.bytes(&v6.octets()),
        }
    }
}

/// The address without a scope, in its own family.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::to_canonical(&address.ip()), address.port())
}
