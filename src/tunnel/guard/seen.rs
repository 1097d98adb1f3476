//! The values of a packet that the check looks at. Pure.

use std::net::IpAddr;

use crate::tunnel::packet::{ICMP, ICMP6, Ip, TCP, UDP};

/// The flags of a TCP segment that matter, in the byte that has them.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Loose and strict source route (RFC 791 section 3.1): the packet goes on to an address that is not in its header.
const SOURCE_ROUTES: [u8; 2] = [131, 137];
/// The options that end the list, and that only fill a byte.
const END_OF_OPTIONS: u8 = 0;
const NO_OPTION: u8 = 1;

/// A packet as the policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tunnel) struct Seen {
    pub(in crate::tunnel) source: IpAddr,
    pub(in crate::tunnel) destination: IpAddr,
    pub(in crate::tunnel) kind: Kind,
}

/// The protocol of a packet, and the values in its header that the policy is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tunnel) enum Kind {
    Tcp {
        source: u16,
        destination: u16,
        /// Whether the segment can begin a connection: it has SYN and no ACK.
        opens: bool,
    },
    Udp {
        source: u16,
        destination: u16,
    },
    Echo {
        is_request: bool,
        identifier: u16,
    },
    /// An ICMP error about this packet.
    Error(Quoted),
    /// Another protocol, a fragment, or IPv6 extension headers.
    Other,
    /// An IPv4 packet whose sender chose other stations on the way, or whose options cannot be read.
    SourceRouted,
}

/// The packet inside an ICMP error. Only its first bytes are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tunnel) struct Quoted {
    pub(in crate::tunnel) source: IpAddr,
    pub(in crate::tunnel) destination: IpAddr,
    pub(in crate::tunnel) kind: QuotedKind,
}

/// The protocol of a packet inside an ICMP error, with its source port and destination port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tunnel) enum QuotedKind {
    Tcp(u16, u16),
    Udp(u16, u16),
    Echo,
    Other,
}

impl Seen {
    /// Reads a packet, whose header is `ip`.
    pub(in crate::tunnel) fn read(packet: &[u8], ip: &Ip) -> Self {
        let body = packet.get(ip.transport..ip.total).unwrap_or_default();
        let kind = if has_source_route(packet, ip) {
            Kind::SourceRouted
        } else if ip.fragment {
            Kind::Other
        } else {
            kind(body, ip)
        };
        Self {
            source: ip.source,
            destination: ip.destination,
            kind,
        }
    }
}

fn kind(body: &[u8], ip: &Ip) -> Kind {
    let is_v4 = ip.source.is_ipv4();
    match (ip.protocol, body) {
        (TCP, [a, b, c, d, _, _, _, _, _, _, _, _, _, flags, ..]) => Kind::Tcp {
            source: u16::from_be_bytes([*a, *b]),
            destination: u16::from_be_bytes([*c, *d]),
            opens: flags & (SYN | ACK) == SYN,
        },
        (UDP, [a, b, c, d, _, _, _, _, ..]) => Kind::Udp {
            source: u16::from_be_bytes([*a, *b]),
            destination: u16::from_be_bytes([*c, *d]),
        },
        (ICMP, [kind, _, _, _, a, b, _, _, inside @ ..]) if is_v4 => match kind {
            0 | 8 => echo(*kind == 8, *a, *b),
            // Unreachable, source quench, time exceeded, parameter problem (RFC 792). A redirect is no error.
            3 | 4 | 11 | 12 => error(inside),
            _ => Kind::Other,
        },
        (ICMP6, [kind, _, _, _, a, b, _, _, inside @ ..]) if !is_v4 => match kind {
            128 | 129 => echo(*kind == 128, *a, *b),
            // Unreachable, too big, time exceeded, parameter problem (RFC 4443).
            1..=4 => error(inside),
            _ => Kind::Other,
        },
        _ => Kind::Other,
    }
}

fn echo(is_request: bool, a: u8, b: u8) -> Kind {
    Kind::Echo {
        is_request,
        identifier: u16::from_be_bytes([a, b]),
    }
}

/// An error about the packet that begins with these bytes. If they are too few, it is not known which packet that is.
fn error(inside: &[u8]) -> Kind {
    quoted(inside).map_or(Kind::Other, Kind::Error)
}

fn quoted(inside: &[u8]) -> Option<Quoted> {
    let (source, destination, protocol, is_fragment, body) = match inside.first()? >> 4 {
        4 => {
            let header = inside.first_chunk::<20>()?;
            let [.., a, b, c, d, e, f, g, h] = *header;
            let transport = usize::from(header[0] & 15) * 4;
            let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
            (
                IpAddr::from([a, b, c, d]),
                IpAddr::from([e, f, g, h]),
                header[9],
                is_fragment,
                inside.get(transport.max(20)..),
            )
        }
        6 => {
            let header = inside.first_chunk::<40>()?;
            let source: [u8; 16] = header[8..24].try_into().ok()?;
            let destination: [u8; 16] = header[24..40].try_into().ok()?;
            (
                IpAddr::from(source),
                IpAddr::from(destination),
                header[6],
                false,
                inside.get(40..),
            )
        }
        _ => return None,
    };
    let is_v4 = source.is_ipv4();
    let ports = body.and_then(|body| body.first_chunk::<4>());
    let ports = ports.filter(|_| !is_fragment);
    let kind = match (protocol, ports) {
        (TCP | UDP, Some([a, b, c, d])) => {
            let ports = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
            if protocol == TCP {
                QuotedKind::Tcp(ports.0, ports.1)
            } else {
                QuotedKind::Udp(ports.0, ports.1)
            }
        }
        (ICMP, Some([0 | 8, ..])) if is_v4 => QuotedKind::Echo,
        (ICMP6, Some([128 | 129, ..])) if !is_v4 => QuotedKind::Echo,
        _ => QuotedKind::Other,
    };
    Some(Quoted {
        source,
        destination,
        kind,
    })
}

/// Whether an IPv4 packet has an option by which it goes on to another address than the one in its header, or a list of options
/// that cannot be read.
fn has_source_route(packet: &[u8], ip: &Ip) -> bool {
    if !ip.source.is_ipv4() || ip.transport == 20 {
        return false;
    }
    let mut options = packet.get(20..ip.transport).unwrap_or_default();
    while let [kind, rest @ ..] = options {
        options = match *kind {
            END_OF_OPTIONS => return false,
            NO_OPTION => rest,
            kind if SOURCE_ROUTES.contains(&kind) => return true,
            _ => {
                let length = rest.first().map_or(0, |length| usize::from(*length));
                match options.get(length..).filter(|_| length >= 2) {
                    Some(rest) => rest,
                    None => return true,
                }
            }
        };
    }
    false
}
