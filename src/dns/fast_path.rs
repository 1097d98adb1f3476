//! The fast path: it answers the bulk of all queries, which ask for addresses of a name of the mesh. It reads the bytes of the
//! query and writes the bytes of the reply, without parsing the message in full and without allocating memory. Pure.
//!
//! All other queries are left to the full path ([`super::names`]), which would give the same answers; a test holds both to the
//! same bytes. A name with more instances than the caller permits is left to the full path too, because the threads that carry
//! packets have time for a few instances only.

use std::net::{IpAddr, Ipv4Addr};

use super::answer::is_local;
use super::choice::{Allocation, Found, address_at, count_addresses, find};
use super::transport::{
    EXTENDED_ERROR, MAX_UDP, PLAIN_UDP, PROHIBITED, PROHIBITED_TEXT, Transport,
};
use super::zone::{NEGATIVE_TTL, TTL, Zone};

const HEADER: usize = 12;
/// The maximum size of a name in bytes (RFC 1035 section 3.1).
const MAX_NAME: usize = 255;
const A: u16 = 1;
const SOA: u16 = 6;
const AAAA: u16 = 28;
const OPT: u16 = 41;
const IN: u16 = 1;
const NXDOMAIN: u8 = 3;
const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;
/// A pointer to a name earlier in the message (RFC 1035 section 4.1.4).
const POINTER: u16 = 0xc000;
/// The most instances of a name that are visited in threads that carry packets. An instance has at most four addresses.
pub(super) const FEW_INSTANCES: usize = 64;

/// The result of the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FastPath {
    /// The reply is written.
    Replied,
    /// The query is well formed and asks for a name outside the mesh. [`fail`] and [`refuse`] can answer it.
    Forward,
    /// The query has to be parsed in full.
    NeedsFullParse,
}

/// Writes the answer to `query` into `reply`, if the fast path can answer it.
pub(super) fn answer(
    zone: &Zone,
    query: &[u8],
    transport: Transport,
    entropy: u64,
    reply: &mut Vec<u8>,
) -> FastPath {
    answer_within(usize::MAX, zone, query, transport, entropy, reply)
}

/// Like [`answer`], but a name with more than `most` instances is [`FastPath::NeedsFullParse`].
pub(super) fn answer_within(
    most: usize,
    zone: &Zone,
    query: &[u8],
    transport: Transport,
    entropy: u64,
    reply: &mut Vec<u8>,
) -> FastPath {
    let mut text = [0; MAX_NAME];
    let Some(question) = Question::parse(query, &mut text) else {
        return FastPath::NeedsFullParse;
    };
    let Some(name) = question.name(&text) else {
        return FastPath::NeedsFullParse;
    };
    let Some(relative) = zone.relative(name) else {
        // The mesh has reverse names too.
        let elsewhere =
            question.recursion_desired(query) && !name.ends_with("arpa") && !is_local(name);
        return if elsewhere {
            FastPath::Forward
        } else {
            FastPath::NeedsFullParse
        };
    };
    let of_family: fn(&IpAddr) -> bool = match question.record_type {
        A => IpAddr::is_ipv4,
        AAAA => IpAddr::is_ipv6,
        _ => return FastPath::NeedsFullParse,
    };
    let found = find(zone, relative);
    if found.is_some_and(|found| found.entry.answered.len() > most) {
        return FastPath::NeedsFullParse;
    }
    question.begin(query, reply);
    let count = found.map_or(0, |found| {
        question.addresses(zone, found, entropy, of_family, reply)
    });
    if count == 0 {
        question.negative(zone, relative, reply);
        if found.is_none() {
            set_code(reply, NXDOMAIN);
        }
    }
    set_count(reply, 6, count);
    question.end(&[], reply);
    if transport == Transport::Udp && reply.len() > question.room() {
        return FastPath::NeedsFullParse;
    }
    FastPath::Replied
}

/// Writes SERVFAIL into `reply`, for a query that is [`FastPath::Forward`].
pub(super) fn fail(query: &[u8], reply: &mut Vec<u8>) {
    without_records(query, SERVFAIL, &[], reply);
}

/// Writes REFUSED into `reply` with the reason (RFC 8914), for a query that is [`FastPath::Forward`].
pub(super) fn refuse(query: &[u8], reply: &mut Vec<u8>) {
    let mut option = Vec::with_capacity(64);
    let length = 2 + PROHIBITED_TEXT.len() as u16;
    for number in [EXTENDED_ERROR, length, PROHIBITED] {
        put16(&mut option, number);
    }
    option.extend_from_slice(PROHIBITED_TEXT.as_bytes());
    without_records(query, REFUSED, &option, reply);
    if let Some(flags) = reply.get_mut(3) {
        // No recursion is available to this client.
        *flags &= !0x80;
    }
}

fn without_records(query: &[u8], code: u8, options: &[u8], reply: &mut Vec<u8>) {
    let mut text = [0; MAX_NAME];
    let Some(question) = Question::parse(query, &mut text) else {
        return reply.clear();
    };
    question.begin(query, reply);
    if let Some(flags) = reply.get_mut(2) {
        // The reply is not authoritative.
        *flags &= !4;
    }
    set_code(reply, code);
    question.end(options, reply);
}

/// Returns how many instances an answer to `query` may visit. If the query is not for addresses, their ports are counted too.
pub(super) fn walked(zone: &Zone, query: &[u8]) -> usize {
    let mut text = [0; MAX_NAME];
    let Some(question) = Question::parse(query, &mut text) else {
        return 0;
    };
    let relative = question.name(&text).and_then(|name| zone.relative(name));
    let Some(found) = relative.and_then(|relative| find(zone, relative)) else {
        return 0;
    };
    let answered = found.entry.answered.iter();
    match question.record_type {
        A | AAAA => answered.len(),
        _ => answered.map(|instance| 1 + instance.ports.len()).sum(),
    }
}

#[derive(Debug, Clone, Copy)]
struct Question {
    /// The position in the query at which the question ends.
    end: usize,
    /// The length of the name as text, and the positions of its last two labels in the query.
    length: usize,
    last: usize,
    before_last: usize,
    record_type: u16,
    edns: Option<Edns>,
}

#[derive(Debug, Clone, Copy)]
struct Edns {
    payload: u16,
    dnssec_ok: bool,
}

impl Question {
    /// Parses a query whose name has letters, digits, hyphens and underscores only. Writes the name to `text` in lower case.
    fn parse(query: &[u8], text: &mut [u8; MAX_NAME]) -> Option<Self> {
        let header = query.first_chunk::<HEADER>()?;
        // A query with the operation QUERY, one question, and at most an OPT record.
        if header[2] & 0xf8 != 0 || header[4..10] != [0, 1, 0, 0, 0, 0] || header[10] != 0 {
            return None;
        }
        let (mut at, mut length, mut last, mut before_last) = (HEADER, 0, 0, 0);
        loop {
            let label_length = usize::from(*query.get(at)?);
            if label_length == 0 {
                break;
            }
            if label_length > 63 {
                return None;
            }
            if length > 0 {
                *text.get_mut(length)? = b'.';
                length += 1;
            }
            let label = query.get(at + 1..at + 1 + label_length)?;
            for (to, from) in text
                .get_mut(length..length + label_length)?
                .iter_mut()
                .zip(label)
            {
                if !from.is_ascii_alphanumeric() && !matches!(from, b'-' | b'_') {
                    return None;
                }
                *to = from.to_ascii_lowercase();
            }
            length += label_length;
            (before_last, last) = (last, at);
            at += 1 + label_length;
        }
        // The text is one byte shorter than the name without its end, and the name has at most 255 of them.
        if at + 1 - HEADER > MAX_NAME {
            return None;
        }
        let [a, b, c, d] = *query.get(at + 1..)?.first_chunk()?;
        let end = at + 5;
        let rest = query.get(end..)?;
        let edns = match (header[11], rest.is_empty()) {
            (0, true) => None,
            (1, false) => Some(Edns::parse(rest)?),
            _ => return None,
        };
        (u16::from_be_bytes([c, d]) == IN).then_some(Self {
            end,
            length,
            last,
            before_last,
            record_type: u16::from_be_bytes([a, b]),
            edns,
        })
    }

    fn name<'a>(&self, text: &'a [u8; MAX_NAME]) -> Option<&'a str> {
        std::str::from_utf8(text.get(..self.length)?).ok()
    }

    fn recursion_desired(&self, query: &[u8]) -> bool {
        query.get(2).is_some_and(|flags| flags & 1 != 0)
    }

    /// Returns the maximum size of a datagram that the client accepts and that passes every path.
    fn room(&self) -> usize {
        let payload = self.edns.map_or(PLAIN_UDP, |edns| edns.payload);
        payload.clamp(PLAIN_UDP, MAX_UDP).into()
    }

    /// Writes the header, and the question in the case of the query (RFC 4343).
    fn begin(&self, query: &[u8], reply: &mut Vec<u8>) {
        reply.clear();
        reply.extend_from_slice(query.get(..self.end).unwrap_or_default());
        if let Some([flags, more, counts @ ..]) = reply.get_mut(2..HEADER) {
            // QR, AA and RA are set. RD and CD are copied from the query.
            *flags = 0x84 | (*flags & 1);
            *more = 0x80 | (*more & 0x10);
            counts.copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        }
    }

    /// Writes the addresses of one family, and returns how many there are.
    fn addresses(
        &self,
        zone: &Zone,
        found: Found<'_>,
        entropy: u64,
        of_family: fn(&IpAddr) -> bool,
        reply: &mut Vec<u8>,
    ) -> u16 {
        let before = reply.len();
        let mut count = 0;
        zone.each_address(found, entropy, of_family, |address| {
            count += 1;
            put16(reply, POINTER | HEADER as u16);
            put16(reply, self.record_type);
            put16(reply, IN);
            put32(reply, TTL);
            match address {
                IpAddr::V4(v4) => {
                    put16(reply, 4);
                    reply.extend_from_slice(&v4.octets());
                }
                IpAddr::V6(v6) => {
                    put16(reply, 16);
                    reply.extend_from_slice(&v6.octets());
                }
            }
            // No message is longer. Whether the reply is too long for the client is checked at the end.
            reply.len() - before < usize::from(u16::MAX) / 2
        });
        count
    }

    /// Writes the SOA of the zone that the name is in. Its names are pointers to the end of the name in the question.
    fn negative(&self, zone: &Zone, relative: &str, reply: &mut Vec<u8>) {
        let apex = match relative.rsplit('.').next() {
            Some("svc" | "node") => self.before_last,
            _ => self.last,
        };
        put16(reply, POINTER | apex as u16);
        put16(reply, SOA);
        put16(reply, IN);
        put32(reply, NEGATIVE_TTL);
        let length_at = reply.len();
        put16(reply, 0);
        for label in [&b"\x02ns"[..], b"\x0ahostmaster"] {
            reply.extend_from_slice(label);
            put16(reply, POINTER | self.last as u16);
        }
        for number in [zone.serial, 5, 5, 86_400, NEGATIVE_TTL] {
            put32(reply, number);
        }
        let length = reply.len() - length_at - 2;
        set16(reply, length_at, length as u16);
        set_count(reply, 8, 1);
    }

    /// Writes an OPT record if the query has one (RFC 6891 section 6.1.1).
    fn end(&self, options: &[u8], reply: &mut Vec<u8>) {
        let Some(edns) = self.edns else { return };
        reply.push(0);
        put16(reply, OPT);
        put16(reply, MAX_UDP);
        put32(reply, if edns.dnssec_ok { 0x8000 } else { 0 });
        put16(reply, options.len() as u16);
        reply.extend_from_slice(options);
        set_count(reply, 10, 1);
    }
}

impl Edns {
    /// Parses an OPT record of version 0, which must be the end of the message.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [name, t0, t1, p0, p1, _code, version, flags, _, l0, l1] = *bytes.first_chunk()?;
        let options = bytes.get(11..)?;
        let whole = usize::from(u16::from_be_bytes([l0, l1])) == options.len();
        if name != 0 || u16::from_be_bytes([t0, t1]) != OPT || version != 0 || !whole {
            return None;
        }
        if !options_hold(options) {
            return None;
        }
        Some(Self {
            payload: u16::from_be_bytes([p0, p1]),
            dnssec_ok: flags & 0x80 != 0,
        })
    }
}

/// Returns whether the lengths of the options are consistent (RFC 6891 section 6.1.2).
pub(super) fn options_hold(mut options: &[u8]) -> bool {
    while let Some([_, _, high, low]) = options.first_chunk() {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        match options.get(4 + length..) {
            Some(rest) => options = rest,
            None => return false,
        }
    }
    options.is_empty()
}

impl Zone {
    /// Returns the part of `name` in front of the domain, or `None` if `name` is not in the domain. `name` is in lower
    /// case and has no dot at its end.
    fn relative<'a>(&self, name: &'a str) -> Option<&'a str> {
        if self.domain.is_empty() {
            return None;
        }
        match name.strip_suffix(self.domain.as_str())? {
            "" => Some(""),
            rest => rest.strip_suffix('.'),
        }
    }

    /// Passes the addresses of a name in one family to `take`, each once, the nearest first and in random order among
    /// equals, until an answer is full or `take` returns false.
    pub(super) fn each_address(
        &self,
        found: Found<'_>,
        entropy: u64,
        of_family: fn(&IpAddr) -> bool,
        mut take: impl FnMut(IpAddr) -> bool,
    ) {
        let mut fixed = found.entry.addresses.iter().copied().filter(of_family);
        if !found.entry.kind.has_addresses {
            // The name is that of a node and has all its addresses.
            fixed.all(take);
            return;
        }
        let balanced = |address: &Ipv4Addr| self.balanced.contains(address);
        if let Some(address) = found.entry.service_address.filter(balanced) {
            // A service address exists in one family only. A client that gets no answer in the other family uses this one.
            let address = IpAddr::V4(address);
            if !found.entry.answered.is_empty() && of_family(&address) && !take(address) {
                return;
            }
            fixed.all(take);
            return;
        }
        let wants = |share| count_addresses(share, of_family);
        let mut stopped = false;
        Allocation::allocate(found, entropy, self.most_addresses, wants).each(
            |share, place, random| {
                let address = address_at(share, of_family, place, random);
                stopped = !address.is_none_or(&mut take);
                !stopped
            },
        );
        if !stopped {
            fixed.all(take);
        }
    }
}

fn put16(to: &mut Vec<u8>, number: u16) {
    to.extend_from_slice(&number.to_be_bytes());
}

fn put32(to: &mut Vec<u8>, number: u32) {
    to.extend_from_slice(&number.to_be_bytes());
}

fn set16(to: &mut [u8], at: usize, number: u16) {
    if let Some(room) = to.get_mut(at..at + 2) {
        room.copy_from_slice(&number.to_be_bytes());
    }
}

/// Sets the number of records of a section. `at` is the position of the count in the header.
fn set_count(reply: &mut [u8], at: usize, count: u16) {
    set16(reply, at, count);
}

fn set_code(reply: &mut [u8], code: u8) {
    if let Some(byte) = reply.get_mut(3) {
        *byte = (*byte & 0xf0) | code;
    }
}

#[cfg(test)]
mod tests;
