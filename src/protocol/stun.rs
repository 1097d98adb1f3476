//! STUN Binding (RFC 8489): a server tells a client the address from which the client's datagram came.
//!
//! Coordinators answer requests, and nodes send them where no peer tells them their address. This is the one method, with the
//! attributes that it needs, over UDP and without authentication. An answer is never larger than its request, so nobody can use a
//! server to send more to others than they send themselves.

use std::net::{IpAddr, SocketAddr};

mod client;
#[cfg(test)]
mod tests;

pub use client::{is_stun, parse_answer, request};

/// The random number by which a client finds the answer to its request.
pub type Transaction = [u8; 12];

/// The size in bytes of the header (section 5).
const HEADER: usize = 20;
/// The size in bytes of the largest answer: one with an IPv6 address. A smaller request may get no answer.
pub const REQUEST: usize = HEADER + 4 + 20;
/// The maximum size in bytes of a message that is read.
pub const MAX_MESSAGE: usize = 548;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// An attribute from this number on may be ignored by a receiver that does not know it (section 14).
const OPTIONAL: u16 = 0x8000;

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
