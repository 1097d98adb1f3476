//! The client's half.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    BINDING_REQUEST, BINDING_SUCCESS, HEADER, MAGIC_COOKIE, OPTIONAL, REQUEST, Transaction,
    XOR_MAPPED_ADDRESS, each_attribute, mask, parse, write_header,
};

/// An attribute of servers before RFC 5389.
const MAPPED_ADDRESS: u16 = 0x0001;
const SOFTWARE: u16 = 0x8022;
/// The value of SOFTWARE in requests. Its length makes the request as large as the largest answer.
const NAME: &[u8; 20] = b"meshd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Whether `datagram` may be a STUN message. No WireGuard message is one.
#[must_use]
#[inline]
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| *first < 64)
        && datagram.get(4..8) == Some(&MAGIC_COOKIE[..])
}

/// Makes a request.
#[must_use]
pub fn request(transaction: &Transaction) -> [u8; REQUEST] {
    let mut out = [0; REQUEST];
    let (header, attribute) = out.split_at_mut(HEADER);
    write_header(header, BINDING_REQUEST, attribute.len() as u16, transaction);
    attribute[..2].copy_from_slice(&SOFTWARE.to_be_bytes());
    attribute[2..4].copy_from_slice(&(NAME.len() as u16).to_be_bytes());
    attribute[4..].copy_from_slice(NAME);
    out
}

/// Reads the answer to the request with this transaction: the address from which the server saw it come.
#[must_use]
pub fn parse_answer(datagram: &[u8], transaction: &Transaction) -> Option<SocketAddr> {
    let (kind, found, attributes) = parse(datagram)?;
    if kind != BINDING_SUCCESS || found != *transaction {
        return None;
    }
    let (mut masked, mut plain, mut has_unknown) = (None, None, false);
    let is_whole = each_attribute(attributes, |kind, value| match kind {
        XOR_MAPPED_ADDRESS => masked = masked.or_else(|| address(value, Some(transaction))),
        MAPPED_ADDRESS => plain = plain.or_else(|| address(value, None)),
        _ => has_unknown |= kind < OPTIONAL,
    });
    masked.or(plain).filter(|_| is_whole && !has_unknown)
}

/// Reads an address, which is masked with a transaction or plain.
fn address(value: &[u8], transaction: Option<&Transaction>) -> Option<SocketAddr> {
    let mut bytes = [0; 20];
    let bytes = bytes.get_mut(..value.len())?;
    bytes.copy_from_slice(value);
    let ([_, family], rest) = bytes.split_first_chunk_mut::<2>()?;
    if let Some(transaction) = transaction {
        mask(rest, transaction);
    }
    let (port, ip) = rest.split_first_chunk::<2>()?;
    let ip: IpAddr = match (*family, ip.len()) {
        (1, 4) => Ipv4Addr::from(*ip.first_chunk::<4>()?).into(),
        (2, 16) => Ipv6Addr::from(*ip.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(
        ip.to_canonical(),
        u16::from_be_bytes(*port),
    ))
}
