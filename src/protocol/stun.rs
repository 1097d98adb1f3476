//! STUN Binding (RFC 8489): a server tells a client the address from which the client's datagram came.
//!
//! meshd needs this only where no peer can tell. So this is the one method, with the attributes that it needs, over UDP and without
//! authentication. An answer is never larger than its request: our requests are as large as the largest answer, and a server does
//! not answer smaller ones. So nobody can use a server to send more to others than they send themselves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

#[cfg(test)]
mod tests;

/// The random number by which a client finds the answer to its request.
pub type Transaction = [u8; 12];

/// The size in bytes of the header (section 5).
const HEADER: usize = 20;
/// The size in bytes of a request, and of the largest answer: one with an IPv6 address.
pub const REQUEST: usize = HEADER + 4 + 20;
/// The maximum size in bytes of a message that is read.
pub const MAX_MESSAGE: usize = 548;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
/// An attribute of servers before RFC 5389.
const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const SOFTWARE: u16 = 0x8022;
/// The value of SOFTWARE in requests. Its length makes the request as large as the largest answer.
const NAME: &[u8; 20] = b"meshd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// An attribute from this number on may be ignored by a receiver that does not know it (section 14).
const OPTIONAL: u16 = 0x8000;

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

/// Reads a request. Returns none if the datagram is none, or if it has an attribute that must be known and is not.
#[must_use]
pub fn parse_request(datagram: &[u8]) -> Option<Transaction> {
    let (kind, transaction, attributes) = parse(datagram)?;
    let mut has_unknown = false;
    let is_whole = each_attribute(attributes, |kind, _| has_unknown |= kind < OPTIONAL);
    (kind == BINDING_REQUEST && is_whole && !has_unknown).then_some(transaction)
}

/// Writes the answer to a request of `asked` bytes that came from `client`, and returns its length. Returns none if the answer would
/// be larger than the request.
pub fn write_answer(
    transaction: &Transaction,
    client: SocketAddr,
    asked: usize,
    out: &mut [u8; REQUEST],
) -> Option<usize> {
    let ip = client.ip().to_canonical();
    let value = if ip.is_ipv4() { 8 } else { 20 };
    let length = HEADER + 4 + value;
    if length > asked {
        return None;
    }
    let (header, attribute) = out.get_mut(..length)?.split_at_mut(HEADER);
    write_header(header, BINDING_SUCCESS, (4 + value) as u16, transaction);
    attribute[..2].copy_from_slice(&XOR_MAPPED_ADDRESS.to_be_bytes());
    attribute[2..4].copy_from_slice(&(value as u16).to_be_bytes());
    attribute[4] = 0;
    attribute[5] = if ip.is_ipv4() { 1 } else { 2 };
    attribute[6..8].copy_from_slice(&client.port().to_be_bytes());
    match ip {
        IpAddr::V4(v4) => attribute[8..].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => attribute[8..].copy_from_slice(&v6.octets()),
    }
    mask(&mut attribute[6..], transaction);
    Some(length)
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

/// Splits a message into its type, its transaction and its attributes.
fn parse(datagram: &[u8]) -> Option<(u16, Transaction, &[u8])> {
    let (header, attributes) = datagram.split_first_chunk::<HEADER>()?;
    let [a, b, c, d, cookie @ .., _, _, _, _, _, _, _, _, _, _, _, _] = *header;
    let length = usize::from(u16::from_be_bytes([c, d]));
    let transaction = *header.last_chunk::<12>()?;
    let is_valid = cookie == MAGIC_COOKIE
        && length == attributes.len()
        && length.is_multiple_of(4)
        && datagram.len() <= MAX_MESSAGE;
    is_valid.then_some((u16::from_be_bytes([a, b]), transaction, attributes))
}

/// Calls `each` with the type and value of each attribute. Returns false if one is not complete.
fn each_attribute(mut rest: &[u8], mut each: impl FnMut(u16, &[u8])) -> bool {
    while !rest.is_empty() {
        let Some(([a, b, c, d], after)) = rest.split_first_chunk::<4>() else {
            return false;
        };
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        let Some(value) = after.get(..length) else {
            return false;
        };
        each(u16::from_be_bytes([*a, *b]), value);
        // Each value is padded to a multiple of four bytes.
        let Some(next) = after.get(length.next_multiple_of(4)..) else {
            return false;
        };
        rest = next;
    }
    true
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

/// Masks a port and the address after it, or removes the mask (section 14.2).
fn mask(port_and_address: &mut [u8], transaction: &Transaction) {
    let key = MAGIC_COOKIE.iter().chain(transaction);
    let (port, address) = port_and_address.split_at_mut(port_and_address.len().min(2));
    for (byte, key) in port.iter_mut().zip(&MAGIC_COOKIE) {
        *byte ^= key;
    }
    for (byte, key) in address.iter_mut().zip(key) {
        *byte ^= key;
    }
}

fn write_header(out: &mut [u8], kind: u16, length: u16, transaction: &Transaction) {
    out[..2].copy_from_slice(&kind.to_be_bytes());
    out[2..4].copy_from_slice(&length.to_be_bytes());
    out[4..8].copy_from_slice(&MAGIC_COOKIE);
    out[8..HEADER].copy_from_slice(transaction);
}
