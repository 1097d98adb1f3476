//! The messages about paths that two nodes exchange inside the tunnel, over UDP port 7446 between their mesh addresses.
//!
//! The data plane receives and answers them as it does probes, so no kernel sees them. The session authenticates them: a message
//! comes from the peer whose session decrypted it. All numbers are big-endian.
//!
//! ```text
//! 0 type u8 | 1 version u8 | 2 length of the body u16 | 4 nonce u64 | 12 body
//!
//! 1 probe: path u32, sent_us u64, padding           is answered on the path that it came by
//! 2 echo:  path u32, sent_us u64, seen address, via u32, offer u8, load u8, tag u32
//! 3 paths: seq u32, flags u8, mapping u8, filtering u8, ports_kept u8,
//!          count u8 x {kind u8, address}, count u8 x {relay u32, rtt_us u32}
//! 4 bye:   reason u8                                the sender stops or roams: its peer uses another path at once
//! 5 call:  to 32 bytes, call                        the receiver is asked to pass the call on to this node
//! 6 called: from 32 bytes, call                     the sender passes on the call of this node
//! 7 ask:   after u32, zeros                         asks for the paths of the receiver to nodes with addresses above this one
//! 8 row:   after u32, more u8, count u8 x {node u32, state u8, rtt_us u32}
//!
//! call:    asks u8, at u64, count u8 x address, signature 64 bytes
//!
//! address: family u8 = 0                            none
//!          family u8 = 4, port u16, 4 bytes
//!          family u8 = 6, port u16, 16 bytes
//! ```
//!
//! A receiver ignores types that it does not have, and bytes after the body that it has in messages of a later version. It reads
//! a value that it does not have, such as the kind of a candidate, as if it were absent. A message of version 1 whose parts do
//! not fill its body exactly is refused; only a probe may have padding.
//!
//! An echo is never larger than a probe of at least [`PROBE`] bytes, which is the size that this node sends. The data plane
//! answers no shorter probe, so that nobody gets more bytes than they sent.

use std::net::{Ipv4Addr, SocketAddr};

use crate::model::address::is_routable;

mod bytes;
mod calls;
mod error;
mod rows;
#[cfg(test)]
mod tests;

use bytes::{Reader, Writer};
pub use calls::{CallEnd, PeerCall};
pub use error::PathMessageError;
pub use rows::{MAX_ROW, RowPart, RowPath};

pub use super::call::MAX_CANDIDATES;

/// The UDP port of these messages at a node's mesh addresses.
pub const PORT: u16 = 7446;
/// The size in bytes of the header.
pub const HEADER: usize = 12;
/// The size in bytes of a probe without a size of its own: that of the largest echo.
pub const PROBE: usize = HEADER + ECHO_BODY;
/// The maximum number of relays in a message.
pub const MAX_RELAYS: usize = 8;
/// The maximum size in bytes of a message other than a probe.
pub const MAX_MESSAGE: usize = HEADER + larger(PATHS_BODY, calls::MAX_BODY);

// A part of a row fits the buffers for other messages.
const _: () = assert!(HEADER + rows::MAX_BODY <= MAX_MESSAGE);

/// The version that is written.
const VERSION: u8 = 1;
/// The maximum size in bytes of an address with its family and port.
const ADDRESS: usize = 1 + 2 + 16;
/// The maximum size in bytes of the body of a list of paths.
const PATHS_BODY: usize = 10 + MAX_CANDIDATES * (1 + ADDRESS) + MAX_RELAYS * 8;
/// The size in bytes of a probe's body without padding.
const PROBE_BODY: usize = 4 + 8;
/// The maximum size in bytes of an echo's body.
const ECHO_BODY: usize = PROBE_BODY + ADDRESS + 4 + 1 + 1 + 4;

/// A message and its nonce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathMessage {
    /// A random number. An echo has the nonce of its probe.
    pub nonce: u64,
    /// What the message says.
    pub message: Message,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Asks for an echo by the same path.
    Probe(Probe),
    /// Answers a probe.
    Echo(Echo),
    /// Lists where the sender may be reached.
    Paths(Paths),
    /// The sender is about to be unreachable on its present paths.
    Bye(ByeReason),
    /// A call by way of a common peer.
    Call(PeerCall),
    /// Asks for the part of the receiver's row after this address.
    AskRow(u32),
    /// A part of the sender's row.
    Row(RowPart),
}

/// Asks for an echo by the same path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The sender's number of the path.
    pub path: u32,
    /// When the probe was sent, in microseconds of the sender's own clock.
    pub sent_us: u64,
    /// The number of bytes that follow, which nobody reads.
    pub padding: u16,
}

/// Answers a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// The path of the probe.
    pub path: u32,
    /// The time of the probe.
    pub sent_us: u64,
    /// The address that the datagram of the probe came from. None if it came through a relay or a stream.
    pub seen: Option<SocketAddr>,
    /// The mesh address of the relay that the probe came through.
    pub via: Option<Ipv4Addr>,
    /// The sender's offer to forward for the receiver.
    pub relay: Option<RelayOffer>,
}

/// A node's offer to relay for one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayOffer {
    /// How much of its capacity the relay uses: 0 is nothing, 255 is all.
    pub load: u8,
    /// The tag that the peer writes into its frames to this relay.
    pub tag: u32,
}

/// Lists where the sender may be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// Grows with each such message of the sender, so that an older one does not replace a newer one.
    pub seq: u32,
    /// Whether the receiver is asked to open its router for the candidates, and to answer with its own. It does not probe them yet.
    pub punch: bool,
    /// Whether the sender's network drops UDP.
    pub udp_blocked: bool,
    /// Whether the receiver is asked to send first to the sender's mapped candidate, as a proof that the mapping works.
    pub try_my_mapping: bool,
    /// Whether the sender, which was asked for that, sends to the receiver's mapped candidate now.
    pub tries_mapping: bool,
    /// What the sender has found out about its NAT.
    pub nat: Nat,
    /// The addresses at which the sender may be reached, best first.
    pub candidates: Vec<Candidate>,
    /// The relays that the sender can use.
    pub relays: Vec<RelayRoundTrip>,
}

/// What a node has found out about the NAT that it is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nat {
    /// For which destinations the NAT uses one mapping (RFC 4787 section 4.1).
    pub mapping: NatBehaviour,
    /// From which sources the NAT accepts packets to a mapping (RFC 4787 section 5).
    pub filtering: NatBehaviour,
    /// Whether the external port is the port of the node.
    pub ports_kept: Option<bool>,
}

/// How a NAT maps or filters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NatBehaviour {
    /// Nobody has measured it.
    #[default]
    Unknown,
    /// There is no NAT.
    Absent,
    /// Independent of the address of the other end.
    EndpointIndependent,
    /// Depends on the address of the other end.
    AddressDependent,
    /// Depends on the address and port of the other end.
    AddressAndPortDependent,
}

/// An address at which a node may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// How the node knows the address.
    pub kind: CandidateKind,
    /// The address.
    pub address: SocketAddr,
}

/// How a node knows an address of its own. The first kind is the best evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// The operator configured it.
    Set,
    /// The gateway mapped it on request.
    Mapped,
    /// An interface of the machine has it.
    Host,
    /// Peers or servers saw packets come from it.
    Observed,
}

/// A relay and the round trip to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayRoundTrip {
    /// The mesh address of the relay.
    pub relay: Ipv4Addr,
    /// The round trip in microseconds.
    pub rtt_us: u32,
}

/// Why a node leaves its paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByeReason {
    /// It stops.
    Stopping,
    /// Its network changes.
    Roaming,
    /// A reason of a later version.
    Unknown,
}

impl PathMessage {
    /// Reads a message, which is the whole payload of a UDP datagram.
    ///
    /// # Errors
    /// The payload is no message, or is one of a type that only later versions have.
    pub fn parse(payload: &[u8]) -> Result<Self, PathMessageError> {
        let mut reader = Reader::new(payload);
        let (kind, version, length) = (reader.u8()?, reader.u8()?, reader.u16()?);
        let nonce = reader.u64()?;
        if version == 0 {
            return Err(PathMessageError::Version);
        }
        let mut body = Reader::new(reader.take(usize::from(length))?);
        if !reader.is_empty() {
            return Err(PathMessageError::Length);
        }
        let message = match kind {
            1 => Message::Probe(Probe::read(&mut body)?),
            2 => Message::Echo(Echo::read(&mut body)?),
            3 => Message::Paths(Paths::read(&mut body)?),
            4 => Message::Bye(ByeReason::of(body.u8()?)),
            5 => Message::Call(PeerCall::read(&mut body, CallEnd::To)?),
            6 => Message::Call(PeerCall::read(&mut body, CallEnd::From)?),
            7 => Message::AskRow(rows::read_request(&mut body)?),
            8 => Message::Row(RowPart::read(&mut body)?),
            _ => return Err(PathMessageError::UnknownType(kind)),
        };
        if version == VERSION && !body.is_empty() {
            return Err(PathMessageError::Length);
        }
        Ok(Self { nonce, message })
    }

    /// Writes the message into `out`, and returns its length. Returns none if there is no room, or if a list is longer than a
    /// message may have.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let (head, body) = out.split_at_mut_checked(HEADER)?;
        let mut writer = Writer::new(body);
        let kind = match &self.message {
            Message::Probe(probe) => {
                probe.write(&mut writer)?;
                1
            }
            Message::Echo(echo) => {
                echo.write(&mut writer)?;
                2
            }
            Message::Paths(paths) => {
                paths.write(&mut writer)?;
                3
            }
            Message::Bye(reason) => {
                writer.u8(reason.number())?;
                4
            }
            Message::Call(call) => {
                call.write(&mut writer)?;
                match call.end {
                    CallEnd::To(_) => 5,
                    CallEnd::From(_) => 6,
                }
            }
            Message::AskRow(after) => {
                rows::write_request(*after, &mut writer)?;
                7
            }
            Message::Row(part) => {
                part.write(&mut writer)?;
                8
            }
        };
        let length = writer.written();
        let mut header = Writer::new(head);
        header.u8(kind)?;
        header.u8(VERSION)?;
        header.u16(u16::try_from(length).ok()?)?;
        header.u64(self.nonce)?;
        Some(HEADER + length)
    }
}

impl Probe {
    /// A probe of `size` bytes, or of [`PROBE`] bytes if that is more.
    #[must_use]
    pub fn with_size(path: u32, sent_us: u64, size: usize) -> Self {
        let padding = size.max(PROBE) - HEADER - PROBE_BODY;
        Self {
            path,
            sent_us,
            padding: u16::try_from(padding).unwrap_or(u16::MAX - PROBE_BODY as u16),
        }
    }

    /// Whether the probe is so large that no echo is larger. Only such a probe is answered.
    #[must_use]
    pub fn pays_for_its_echo(&self) -> bool {
        usize::from(self.padding) >= ECHO_BODY - PROBE_BODY
    }

    fn read(body: &mut Reader<'_>) -> Result<Self, PathMessageError> {
        let (path, sent_us) = (body.u32()?, body.u64()?);
        let padding = body.rest().len();
        Ok(Self {
            path,
            sent_us,
            // The body is at most 65,535 bytes long.
            padding: u16::try_from(padding).map_err(|_| PathMessageError::Length)?,
        })
    }

    fn write(self, body: &mut Writer<'_>) -> Option<()> {
        body.u32(self.path)?;
        body.u64(self.sent_us)?;
        body.zeros(usize::from(self.padding))
    }
}

impl Echo {
    fn read(body: &mut Reader<'_>) -> Result<Self, PathMessageError> {
        let (path, sent_us) = (body.u32()?, body.u64()?);
        let seen = body.address()?;
        let via = Ipv4Addr::from_bits(body.u32()?);
        let (offer, load, tag) = (body.u8()?, body.u8()?, body.u32()?);
        Ok(Self {
            path,
            sent_us,
            seen,
            via: (!via.is_unspecified()).then_some(via),
            relay: (offer == OFFERED).then_some(RelayOffer { load, tag }),
        })
    }

    fn write(&self, body: &mut Writer<'_>) -> Option<()> {
        body.u32(self.path)?;
        body.u64(self.sent_us)?;
        body.address(self.seen)?;
        body.u32(self.via.map_or(0, Ipv4Addr::to_bits))?;
        body.u8(if self.relay.is_some() { OFFERED } else { 0 })?;
        body.u8(self.relay.map_or(0, |offer| offer.load))?;
        body.u32(self.relay.map_or(0, |offer| offer.tag))
    }
}

impl Paths {
    fn read(body: &mut Reader<'_>) -> Result<Self, PathMessageError> {
        let (seq, flags) = (body.u32()?, body.u8()?);
        let nat = Nat {
            mapping: NatBehaviour::of(body.u8()?),
            filtering: NatBehaviour::of(body.u8()?),
            ports_kept: match body.u8()? {
                1 => Some(true),
                2 => Some(false),
                _ => None,
            },
        };
        let mut candidates = Vec::new();
        for _ in 0..count(body, MAX_CANDIDATES)? {
            let (kind, address) = (CandidateKind::of(body.u8()?), body.address()?);
            if let (Some(kind), Some(address)) = (kind, address) {
                // Nobody sends to an address that means another machine to each node.
                if is_routable(address.ip()) && address.port() != 0 {
                    candidates.push(Candidate { kind, address });
                }
            }
        }
        let mut relays = Vec::new();
        for _ in 0..count(body, MAX_RELAYS)? {
            relays.push(RelayRoundTrip {
                relay: Ipv4Addr::from_bits(body.u32()?),
                rtt_us: body.u32()?,
            });
        }
        Ok(Self {
            seq,
            punch: flags & PUNCH != 0,
            udp_blocked: flags & UDP_BLOCKED != 0,
            try_my_mapping: flags & TRY_MY_MAPPING != 0,
            tries_mapping: flags & TRIES_MAPPING != 0,
            nat,
            candidates,
            relays,
        })
    }

    fn write(&self, body: &mut Writer<'_>) -> Option<()> {
        if self.candidates.len() > MAX_CANDIDATES || self.relays.len() > MAX_RELAYS {
            return None;
        }
        body.u32(self.seq)?;
        let flag = |is_set, bit| if is_set { bit } else { 0 };
        body.u8(flag(self.punch, PUNCH)
            | flag(self.udp_blocked, UDP_BLOCKED)
            | flag(self.try_my_mapping, TRY_MY_MAPPING)
            | flag(self.tries_mapping, TRIES_MAPPING))?;
        body.u8(self.nat.mapping.number())?;
        body.u8(self.nat.filtering.number())?;
        body.u8(match self.nat.ports_kept {
            None => 0,
            Some(true) => 1,
            Some(false) => 2,
        })?;
        body.u8(u8::try_from(self.candidates.len()).ok()?)?;
        for candidate in &self.candidates {
            body.u8(candidate.kind.number())?;
            body.address(Some(candidate.address))?;
        }
        body.u8(u8::try_from(self.relays.len()).ok()?)?;
        for relay in &self.relays {
            body.u32(relay.relay.to_bits())?;
            body.u32(relay.rtt_us)?;
        }
        Some(())
    }
}

const fn larger(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// Reads the length of a list.
fn count(body: &mut Reader<'_>, most: usize) -> Result<usize, PathMessageError> {
    let found = usize::from(body.u8()?);
    if found > most {
        return Err(PathMessageError::TooMany { found, most });
    }
    Ok(found)
}

impl NatBehaviour {
    fn of(number: u8) -> Self {
        match number {
            1 => Self::Absent,
            2 => Self::EndpointIndependent,
            3 => Self::AddressDependent,
            4 => Self::AddressAndPortDependent,
            _ => Self::Unknown,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Absent => 1,
            Self::EndpointIndependent => 2,
            Self::AddressDependent => 3,
            Self::AddressAndPortDependent => 4,
        }
    }
}

impl CandidateKind {
    fn of(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Set),
            2 => Some(Self::Mapped),
            3 => Some(Self::Host),
            4 => Some(Self::Observed),
            _ => None,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Set => 1,
            Self::Mapped => 2,
            Self::Host => 3,
            Self::Observed => 4,
        }
    }

    /// The word for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Mapped => "mapped",
            Self::Host => "host",
            Self::Observed => "observed",
        }
    }
}

impl ByeReason {
    fn of(number: u8) -> Self {
        match number {
            1 => Self::Stopping,
            2 => Self::Roaming,
            _ => Self::Unknown,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Stopping => 1,
            Self::Roaming => 2,
        }
    }
}

/// The value of `offer` in an echo of a node that relays.
const OFFERED: u8 = 1;
const PUNCH: u8 = 1;
const UDP_BLOCKED: u8 = 2;
const TRY_MY_MAPPING: u8 = 4;
const TRIES_MAPPING: u8 = 8;
