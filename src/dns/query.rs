//! Reads a query, and decides whether the zone answers it or the upstreams are asked. Pure.
//!
//! hickory-server parses the message. This module adds what a resolver for any client must do before and after: it answers
//! messages that cannot be parsed (RFC 8906), ignores EDNS options, and refuses zone transfers and other classes.

use std::borrow::Cow;
use std::net::SocketAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_resolver::net::xfer::Protocol;
use hickory_server::server::Request;

use super::answer::{Verdict, answer};
use super::fast_path::options_hold;
use super::reply::{Response, header_only};
use super::transport::{MAX_QUERY, Transport};
use super::zone::Zone;

/// A question of class IN, with the flags that change its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name, in the case in which the client wrote it.
    pub name: Name,
    /// The record type, or a query type such as ANY.
    pub record_type: RecordType,
    /// The DO flag: the client wants signatures (RFC 3225).
    pub dnssec_ok: bool,
    /// The CD flag: the client wants the records even if their signatures are wrong (RFC 4035 section 3.2.2).
    pub checking_disabled: bool,
    /// The AD flag: the client understands the AD flag of the reply (RFC 6840 section 5.7).
    pub authentic: bool,
}

impl Question {
    /// Makes a question without any flag, as a simple client does.
    #[must_use]
    pub fn new(name: Name, record_type: RecordType) -> Self {
        Self {
            name,
            record_type,
            dnssec_ok: false,
            checking_disabled: false,
            authentic: false,
        }
    }
}

/// The reason why a message gets no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// The message is shorter than a header.
    NoHeader,
    /// The message is a reply. If replies were answered, two servers could answer each other without end.
    IsReply,
}

/// A message, as far as it can be understood.
pub(super) enum Parsed {
    /// A request with one question.
    Request(Box<Request>),
    /// Not a valid query. This is the reply.
    Reply(Vec<u8>),
    /// Not a query.
    Silence(Silence),
}

/// Parses a message from `source`.
pub(super) fn parse(message: &[u8], source: SocketAddr, transport: Transport) -> Parsed {
    let Some(header) = message.first_chunk::<12>() else {
        return Parsed::Silence(Silence::NoHeader);
    };
    if header[2] & 0x80 != 0 {
        return Parsed::Silence(Silence::IsReply);
    }
    // An unknown operation is refused whatever else is in the message (RFC 8906 section 8.1.4).
    if header[2] & 0x78 != 0 {
        return Parsed::Reply(header_only(header, ResponseCode::NotImp));
    }
    let protocol = match transport {
        Transport::Udp => Protocol::Udp,
        Transport::Tcp => Protocol::Tcp,
    };
    let request = match message.len() <= MAX_QUERY {
        true => Request::from_bytes(without_options(message).into_owned(), source, protocol).ok(),
        false => None,
    };
    match request.filter(has_one_question) {
        Some(request) => Parsed::Request(Box::new(request)),
        None => Parsed::Reply(header_only(header, ResponseCode::FormErr)),
    }
}

/// Returns whether a request has one question, whose name is not compressed. The name comes first, so that a pointer in it can
/// only lead into the header, which the reply has with other flags.
fn has_one_question(request: &Request) -> bool {
    const TYPE_AND_CLASS: usize = 4;
    match request.queries.queries() {
        [query] => {
            let name = query.original().name();
            // The length of a name other than the root does not count the byte at its end.
            let length = name.len() + usize::from(!name.is_root());
            request.queries.as_bytes().len() == length + TYPE_AND_CLASS
        }
        _ => false,
    }
}

/// Removes the options from a query's OPT record. This resolver supports none of them, and a malformed option must not matter
/// either (RFC 6891 section 6.1.2), but the parser would reject the message for it.
fn without_options(message: &[u8]) -> Cow<'_, [u8]> {
    let emptied = || {
        if message.get(4..12)? != [0, 1, 0, 0, 0, 0, 0, 1] {
            return None;
        }
        let mut at = 12;
        loop {
            match usize::from(*message.get(at)?) {
                0 => break,
                length @ 1..=63 => at += 1 + length,
                _ => return None,
            }
        }
        // The end of the name, the type and the class; then the record up to the length of its options.
        let record = at + 5;
        let options = record + 11;
        let [0, 0, 41, .., high, low] = *message.get(record..options)? else {
            return None;
        };
        let rest = message.get(options..)?;
        let whole = usize::from(u16::from_be_bytes([high, low])) == rest.len();
        if !whole || !options_hold(rest) {
            return None;
        }
        let mut emptied = message.get(..options)?.to_vec();
        emptied.truncate(options - 2);
        emptied.extend([0, 0]);
        Some(emptied)
    };
    emptied().map_or(Cow::Borrowed(message), Cow::Owned)
}

/// How a request is answered.
#[derive(Debug)]
pub(super) enum Decision {
    /// With this response.
    Reply(Response),
    /// With the answer of an upstream.
    Forward(Question),
}

/// Decides how `request` is answered.
pub(super) fn decide(zone: &Zone, request: &Request, entropy: u64) -> Decision {
    let Some(query) = request.queries.queries().first().map(|q| q.original()) else {
        return Decision::Reply(Response::of(ResponseCode::FormErr));
    };
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Decision::Reply(Response::of(ResponseCode::BADVERS));
    }
    // Nobody may transfer the zone, and the other types are about messages and not about names.
    let refused = matches!(
        query.query_type(),
        RecordType::AXFR | RecordType::IXFR | RecordType::OPT | RecordType::TSIG
    );
    if refused || query.query_class() != DNSClass::IN {
        return Decision::Reply(Response::of(ResponseCode::Refused));
    }
    match answer(zone, query.name(), query.query_type(), entropy) {
        Verdict::Answer(answer) => Decision::Reply(Response {
            authoritative: true,
            answers: answer.answers,
            authority: answer.authority,
            additional: answer.additional,
            ..Response::of(answer.code)
        }),
        // A client that does not ask for recursion gets none (RFC 1035 section 4.1.1).
        Verdict::Forward if !request.metadata.recursion_desired => {
            Decision::Reply(Response::of(ResponseCode::Refused))
        }
        Verdict::Forward => Decision::Forward(Question {
            name: query.name().clone(),
            record_type: query.query_type(),
            dnssec_ok: request.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok),
            checking_disabled: request.metadata.checking_disabled,
            authentic: request.metadata.authentic_data,
        }),
    }
}
