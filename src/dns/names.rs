//! From the octets of a query to the octets of a reply, or to what is to be done about it. Pure.

use std::borrow::Cow;

use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Record, RecordType};

use super::answer::{Verdict, answer};
use super::fast_path::{FastPath, options_hold};
use super::forward::Forwarded;
use super::query::Question;
use super::transport::{
    EXTENDED_ERROR, MAX_QUERY, MAX_UDP, PLAIN_UDP, PROHIBITED, PROHIBITED_TEXT, Transport,
};
use super::zone::Zone;

/// Why a query gets no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// No whole header: there is nothing to reply to.
    NoHeader,
    /// It is itself a reply; to answer it could go on for ever.
    IsReply,
}

/// What to do about a query.
#[derive(Debug)]
pub enum Outcome {
    /// Send this.
    Reply(Vec<u8>),
    /// Ask the upstreams, and then [`Pending::finish`].
    Forward(Box<Pending>),
    /// Send nothing.
    Silence(Silence),
}

/// A query that waits for the upstreams.
#[derive(Debug)]
pub struct Pending {
    query: Message,
    transport: Transport,
    /// What is asked.
    pub asked: Question,
}

/// Deals with the query in `octets` as every way in does: the short way if it is plain, else in full. For tests and
/// fuzzing; a server keeps the room for its replies.
#[must_use]
pub fn deal(zone: &Zone, octets: &[u8], transport: Transport, entropy: u64) -> Outcome {
    let mut reply = Vec::new();
    match super::fast_path::answer(zone, octets, transport, entropy, &mut reply) {
        FastPath::Replied => Outcome::Reply(reply),
        FastPath::Forward | FastPath::NeedsFullParse => handle(zone, octets, transport, entropy),
    }
}

/// Deals with the query in `octets`, taking it apart in full.
#[must_use]
pub fn handle(zone: &Zone, octets: &[u8], transport: Transport, entropy: u64) -> Outcome {
    let Some(header) = octets.first_chunk::<12>() else {
        return Outcome::Silence(Silence::NoHeader);
    };
    if header[2] & 0x80 != 0 {
        return Outcome::Silence(Silence::IsReply);
    }
    // Whatever else is in it: of an unknown kind of message that is unknown too (RFC 8906 section 8.1.4).
    if header[2] & 0x78 != 0 {
        return bare(header, ResponseCode::NotImp);
    }
    let query = match Message::from_vec(&without_options(octets)) {
        Ok(query) if octets.len() <= MAX_QUERY => query,
        _ => return bare(header, ResponseCode::FormErr),
    };
    let [question] = query.queries.as_slice() else {
        return bare(header, ResponseCode::FormErr);
    };
    let (name, record_type, class) = (
        question.name().clone(),
        question.query_type(),
        question.query_class(),
    );
    if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return reply(
            &query,
            transport,
            ResponseCode::BADVERS,
            false,
            Vec::new(),
            Vec::new(),
            Vec::new(),
        );
    }
    // A transfer of the zone, and questions that are about messages rather than names, are for nobody.
    let odd = matches!(
        record_type,
        RecordType::AXFR | RecordType::IXFR | RecordType::OPT | RecordType::TSIG
    );
    if odd || class != DNSClass::IN {
        return reply(
            &query,
            transport,
            ResponseCode::Refused,
            false,
            Vec::new(),
            Vec::new(),
            Vec::new(),
        );
    }
    match answer(zone, &name, record_type, entropy) {
        Verdict::Answer(a) => reply(
            &query,
            transport,
            a.code,
            true,
            a.answers,
            a.authority,
            a.additional,
        ),
        // Whoever does not ask for recursion gets none (RFC 1035 section 4.1.1).
        Verdict::Forward if !query.metadata.recursion_desired => reply(
            &query,
            transport,
            ResponseCode::Refused,
            false,
            Vec::new(),
            Vec::new(),
            Vec::new(),
        ),
        Verdict::Forward => {
            let asked = Question {
                name,
                record_type,
                dnssec_ok: query.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok),
                checking_disabled: query.metadata.checking_disabled,
                authentic: query.metadata.authentic_data,
            };
            Outcome::Forward(Box::new(Pending {
                query,
                transport,
                asked,
            }))
        }
    }
}

impl Pending {
    /// The reply to a client that gets no recursion.
    #[must_use]
    pub fn refuse(&self) -> Vec<u8> {
        let mut message = begin(&self.query, ResponseCode::Refused);
        message.metadata.recursion_available = false;
        if let Some(edns) = &mut message.edns {
            let mut error = PROHIBITED.to_be_bytes().to_vec();
            error.extend_from_slice(PROHIBITED_TEXT.as_bytes());
            let option = EdnsOption::Unknown(EXTENDED_ERROR, error);
            edns.options_mut().insert(option);
        }
        reply_of(message, &self.query, self.transport)
    }

    /// The reply.
    #[must_use]
    pub fn finish(&self, mut forwarded: Forwarded) -> Vec<u8> {
        // The name stands there as the upstream was asked; some clients look for it as they asked (RFC 4343).
        for record in &mut forwarded.answers {
            if record.name == self.asked.name {
                record.name = self.asked.name.clone();
            }
        }
        // RFC 6840 section 5.8.
        let understood = self.asked.authentic || self.asked.dnssec_ok;
        let mut message = begin(&self.query, forwarded.code);
        message.metadata.authentic_data = forwarded.authentic && understood;
        message.answers = forwarded.answers;
        message.authorities = forwarded.authority;
        reply_of(message, &self.query, self.transport)
    }
}

fn reply(
    query: &Message,
    transport: Transport,
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authority: Vec<Record>,
    additional: Vec<Record>,
) -> Outcome {
    let mut message = begin(query, code);
    message.metadata.authoritative = authoritative;
    message.answers = answers;
    message.authorities = authority;
    message.additionals = additional;
    Outcome::Reply(reply_of(message, query, transport))
}

/// The beginning of a reply: what it has of the query.
fn begin(query: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.checking_disabled = query.metadata.checking_disabled;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.queries.clone_from(&query.queries);
    if let Some(edns) = &query.edns {
        let mut own = Edns::new();
        own.set_max_payload(MAX_UDP)
            .set_version(0)
            .set_rcode_high(code.high())
            // RFC 3225 section 3: the bit comes back.
            .set_dnssec_ok(edns.flags().dnssec_ok);
        message.edns = Some(own);
    }
    message
}

/// Encodes a reply: truncated to what the client accepts in a datagram, and complete over a stream.
fn reply_of(message: Message, query: &Message, transport: Transport) -> Vec<u8> {
    let client = query.edns.as_ref().map(Edns::max_payload);
    let fitting = match transport {
        Transport::Udp => {
            let most = client.map_or(PLAIN_UDP, |most| most.clamp(PLAIN_UDP, MAX_UDP));
            fit(message, most.into())
        }
        Transport::Tcp => whole(message),
    };
    let failure = || begin(query, ResponseCode::ServFail).to_vec().ok();
    fitting
        .or_else(failure)
        .unwrap_or_else(|| bare_octets(&header_of(query), ResponseCode::ServFail))
}

/// Takes the options out of a query's OPT record. None of them is understood here, and what is in those that others
/// understand must not matter (RFC 6891 section 6.1.2).
fn without_options(octets: &[u8]) -> Cow<'_, [u8]> {
    let emptied = || {
        if octets.get(4..12)? != [0, 1, 0, 0, 0, 0, 0, 1] {
            return None;
        }
        let mut at = 12;
        loop {
            match usize::from(*octets.get(at)?) {
                0 => break,
                length @ 1..=63 => at += 1 + length,
                _ => return None,
            }
        }
        // The end of the name, type and class; then the record up to the length of its options.
        let record = at + 5;
        let options = record + 11;
        let [0, 0, 41, .., high, low] = *octets.get(record..options)? else {
            return None;
        };
        let rest = octets.get(options..)?;
        let whole = usize::from(u16::from_be_bytes([high, low])) == rest.len();
        if !whole || !options_hold(rest) {
            return None;
        }
        let mut emptied = octets.get(..options)?.to_vec();
        emptied.truncate(options - 2);
        emptied.extend([0, 0]);
        Some(emptied)
    };
    emptied().map_or(Cow::Borrowed(octets), Cow::Owned)
}

/// Encodes a message in `most` octets: without the additional section if need be (RFC 2181 section 9), else marked as
/// cut, so that the client asks again over TCP, with as many answers as fit for one that cannot.
fn fit(mut message: Message, most: usize) -> Option<Vec<u8>> {
    let whole = message.to_vec().ok()?;
    if whole.len() <= most {
        return Some(whole);
    }
    message.additionals.clear();
    let without = message.to_vec().ok()?;
    if without.len() <= most {
        return Some(without);
    }
    message.authorities.clear();
    message.metadata.truncation = true;
    // Records are about as long as each other: hardly any is left over to be taken out one by one.
    let about = message.answers.len() * most / without.len();
    message.answers.truncate(about + 1);
    loop {
        let cut = message.to_vec().ok()?;
        if cut.len() <= most || message.answers.pop().is_none() {
            return Some(cut);
        }
    }
}

/// Encodes a message for a stream. The additional section is left out if the message does not fit with it. Returns `None` if
/// the message does not fit at all: after a truncated reply over a stream, the client would repeat the query over a stream.
fn whole(mut message: Message) -> Option<Vec<u8>> {
    // The encoder leaves out what does not fit into 65,535 bytes, and sets the TC flag.
    let is_whole = |octets: &Vec<u8>| octets.get(2).is_some_and(|flags| flags & 2 == 0);
    let first = message.to_vec().ok()?;
    if is_whole(&first) {
        return Some(first);
    }
    message.additionals.clear();
    message.to_vec().ok().filter(is_whole)
}

fn header_of(query: &Message) -> [u8; 12] {
    let [a, b] = query.metadata.id.to_be_bytes();
    [
        a,
        b,
        u8::from(query.metadata.recursion_desired),
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ]
}

/// A reply of a header alone, to a query that cannot be repeated in it.
fn bare(header: &[u8; 12], code: ResponseCode) -> Outcome {
    Outcome::Reply(bare_octets(header, code))
}

fn bare_octets(header: &[u8; 12], code: ResponseCode) -> Vec<u8> {
    let mut octets = [0u8; 12];
    octets[..2].copy_from_slice(&header[..2]);
    // QR, and of the query: OPCODE and RD.
    octets[2] = 0x80 | (header[2] & 0x79);
    octets[3] = 0x80 | code.low();
    octets.to_vec()
}

/// Whether `message` is a well-formed reply to `query`: for tests and fuzzing.
#[must_use]
pub fn is_reply_to(reply: &[u8], query: &[u8]) -> bool {
    let Ok(message) = Message::from_vec(reply) else {
        return false;
    };
    let same_id = reply.get(..2) == query.get(..2);
    let questions = Message::from_vec(query)
        .map(|q| q.queries)
        .unwrap_or_default();
    message.metadata.message_type == MessageType::Response
        && same_id
        && (message.queries.is_empty() || message.queries == questions)
}

#[cfg(test)]
mod probes;
#[cfg(test)]
mod tests;
