//! A row: what a node tells of its paths to all others, in parts that fit a message. A node sends a part only to a member that asks for it.

use std::net::Ipv4Addr;

use super::bytes::{Reader, Writer};
use super::count;
use super::error::PathMessageError;
use crate::protocol::local::PeerState;

/// The maximum number of paths in a part.
pub const MAX_ROW: usize = 40;
/// The size in bytes of a path.
const PATH: usize = 4 + 1 + 4;
/// The maximum size in bytes of the body of a part. A request has the same size, so that nobody gets more bytes than they sent.
pub(super) const MAX_BODY: usize = 4 + 1 + 1 + MAX_ROW * PATH;
/// The value of `more` if the row goes on after this part.
const MORE: u8 = 1;

/// A part of the row of the sender.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowPart {
    /// The address in the request that this part answers, or 0.0.0.0 for the first part. The paths lead to nodes with higher addresses.
    pub after: u32,
    /// Whether the row goes on after this part.
    pub has_more: bool,
    /// At most [`MAX_ROW`] paths, in the order of the addresses.
    pub paths: Vec<RowPath>,
}

/// The path of the sender to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowPath {
    /// The mesh address of the other node.
    pub to: Ipv4Addr,
    /// The state of the path. None if it is one of a later version.
    pub state: Option<PeerState>,
    /// The round trip in microseconds. None if it was not measured.
    pub rtt_us: Option<u32>,
}

/// Reads a request for the part after an address.
pub(super) fn read_request(body: &mut Reader<'_>) -> Result<u32, PathMessageError> {
    let after = body.u32()?;
    body.take(MAX_BODY - 4)?;
    Ok(after)
}

pub(super) fn write_request(after: u32, body: &mut Writer<'_>) -> Option<()> {
    body.u32(after)?;
    body.zeros(MAX_BODY - 4)
}

impl RowPart {
    pub(super) fn read(body: &mut Reader<'_>) -> Result<Self, PathMessageError> {
        let (after, more) = (body.u32()?, body.u8()?);
        let mut paths = Vec::new();
        for _ in 0..count(body, MAX_ROW)? {
            let (to, state, rtt_us) = (body.u32()?, body.u8()?, body.u32()?);
            paths.push(RowPath {
                to: Ipv4Addr::from_bits(to),
                state: state_of(state),
                rtt_us: (rtt_us != 0).then_some(rtt_us),
            });
        }
        Ok(Self {
            after,
            has_more: more == MORE,
            paths,
        })
    }

    pub(super) fn write(&self, body: &mut Writer<'_>) -> Option<()> {
        if self.paths.len() > MAX_ROW {
            return None;
        }
        body.u32(self.after)?;
        body.u8(if self.has_more { MORE } else { 0 })?;
        body.u8(u8::try_from(self.paths.len()).ok()?)?;
        for path in &self.paths {
            body.u32(path.to.to_bits())?;
            body.u8(path.state.map_or(0, number_of))?;
            body.u32(path.rtt_us.unwrap_or(0))?;
        }
        Some(())
    }
}

fn number_of(state: PeerState) -> u8 {
    match state {
        PeerState::Direct => 1,
        PeerState::Relay => 2,
        PeerState::Stream => 3,
        PeerState::Connecting => 4,
        PeerState::Idle => 5,
        PeerState::Unreachable => 6,
    }
}

fn state_of(number: u8) -> Option<PeerState> {
    Some(match number {
        1 => PeerState::Direct,
        2 => PeerState::Relay,
        3 => PeerState::Stream,
        4 => PeerState::Connecting,
        5 => PeerState::Idle,
        6 => PeerState::Unreachable,
        _ => return None,
    })
}
