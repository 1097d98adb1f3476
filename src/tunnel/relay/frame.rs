//! The frames between a node and its relay.
//!
//! ```text
//! 0 4d 01 00 00 | 4 label u32 | 8 tag u32 | 12 WireGuard message
//! ```
//!
//! Numbers are big-endian. To a relay, the label is the destination's mesh address and the tag is the one that the relay gave to the
//! sender. From a relay, the label is the source's mesh address and the tag is zero. The first byte belongs to no WireGuard message
//! (1 to 4), and the second one is the version.

use std::net::Ipv4Addr;

use super::reasons::RelayDrop;
use super::tag::Tag;
use crate::tunnel::noise::Message;

/// The size in bytes of the header of a frame.
pub const HEADER: usize = 12;

/// The first bytes of a frame: the mark, the version, and two bytes that are not used.
const START: [u8; 4] = [0x4d, 1, 0, 0];

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The mesh address of the destination in a frame to a relay, and of the source in a frame from a relay.
    pub label: Ipv4Addr,
    /// The sender's tag. None in a frame from a relay.
    pub tag: Option<Tag>,
}

/// A frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header,
    /// The WireGuard message.
    pub message: &'a [u8],
}

/// Whether `datagram` is meant as a frame. No WireGuard message is.
#[must_use]
#[inline]
pub fn is_frame(datagram: &[u8]) -> bool {
    datagram.first() == START.first()
}

impl<'a> Frame<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// The datagram is no frame of this version with a WireGuard message.
    #[inline]
    pub fn parse(datagram: &'a [u8]) -> Result<Self, RelayDrop> {
        let (header, message) = Header::split(datagram).ok_or(RelayDrop::Malformed)?;
        if Message::parse(message).is_err() {
            return Err(RelayDrop::Malformed);
        }
        Ok(Self { header, message })
    }
}

impl Header {
    /// Splits the header of a frame from what follows it.
    #[inline]
    fn split(datagram: &[u8]) -> Option<(Self, &[u8])> {
        let (start, rest) = datagram.split_first_chunk::<4>()?;
        let (label, rest) = rest.split_first_chunk::<4>()?;
        let (tag, message) = rest.split_first_chunk::<4>()?;
        if *start != START {
            return None;
        }
        let header = Self {
            label: Ipv4Addr::from(*label),
            tag: Tag::from_bits(u32::from_be_bytes(*tag)),
        };
        Some((header, message))
    }

    /// The bytes of the header.
    #[must_use]
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&START);
        bytes[4..8].copy_from_slice(&self.label.octets());
        let tag = self.tag.map_or(0, Tag::to_bits);
        bytes[8..].copy_from_slice(&tag.to_be_bytes());
        bytes
    }
}
