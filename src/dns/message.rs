//! From the octets of a query to the octets of a reply, or to what is to be done about it. Pure.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

use super::answer::{Verdict, answer};
use super::zone::Zone;

/// Octets of a UDP reply at most, whatever the client says it takes: what passes every path unsplit (RFC 9715).
pub const MAX_UDP: u16 = 1232;
/// Octets of a UDP reply to a client that says nothing (RFC 1035 section 4.2.1).
const PLAIN_UDP: u16 = 512;
/// Octets of a query at most.
pub const MAX_QUERY: usize = 4096;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram: the reply may have to be cut.
    Udp,
    /// A stream: it never is.
    Tcp,
}

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
    /// The name asked for.
    pub name: Name,
    /// The type asked for.
    pub record_type: RecordType,
}

/// What the upstreams said.
#[derive(Debug, Clone, Default)]
pub struct Forwarded {
    /// NOERROR, NXDOMAIN or SERVFAIL.
    pub code: ResponseCode,
    /// Records of the answer section.
    pub answers: Vec<Record>,
    /// The SOA of a negative answer.
    pub authority: Vec<Record>,
}

/// Deals with the query in `octets`.
#[must_use]
pub fn handle(zone: &Zone, octets: &[u8], transport: Transport, entropy: u64) -> Outcome {
    let Some(header) = octets.first_chunk::<12>() else {
        return Outcome::Silence(Silence::NoHeader);
    };
    if header[2] & 0x80 != 0 {
        return Outcome::Silence(Silence::IsReply);
    }
    let query = match Message::from_vec(octets) {
        Ok(query) if octets.len() <= MAX_QUERY => query,
        _ => return bare(header, ResponseCode::FormErr),
    };
    if query.metadata.op_code != OpCode::Query {
        return bare(header, ResponseCode::NotImp);
    }
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
        Verdict::Forward => Outcome::Forward(Box::new(Pending {
            query,
            transport,
            name,
            record_type,
        })),
    }
}

impl Pending {
    /// The reply.
    #[must_use]
    pub fn finish(self, forwarded: Forwarded) -> Vec<u8> {
        match reply(
            &self.query,
            self.transport,
            forwarded.code,
            false,
            forwarded.answers,
            forwarded.authority,
            Vec::new(),
        ) {
            Outcome::Reply(octets) => octets,
            Outcome::Forward(_) | Outcome::Silence(_) => Vec::new(),
        }
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
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.checking_disabled = query.metadata.checking_disabled;
    message.metadata.recursion_available = true;
    message.metadata.authoritative = authoritative;
    message.metadata.response_code = code;
    message.queries.clone_from(&query.queries);
    message.answers = answers;
    message.authorities = authority;
    message.additionals = additional;
    let client = query
        .edns
        .as_ref()
        .map(|edns| edns.max_payload().clamp(PLAIN_UDP, MAX_UDP));
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP)
            .set_version(0)
            .set_rcode_high(code.high());
        message.edns = Some(edns);
    }
    let most = match transport {
        Transport::Udp => usize::from(client.unwrap_or(PLAIN_UDP)),
        Transport::Tcp => usize::from(u16::MAX),
    };
    match fit(message, most) {
        Some(octets) => Outcome::Reply(octets),
        None => bare(&header_of(query), ResponseCode::ServFail),
    }
}

/// Encodes a message in `most` octets: without the additional section if need be (RFC 2181 section 9), else empty and
/// marked as cut, so that the client asks again over TCP.
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
    message.answers.clear();
    message.authorities.clear();
    message.metadata.truncation = true;
    message.to_vec().ok()
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
    let mut octets = [0u8; 12];
    octets[..2].copy_from_slice(&header[..2]);
    // QR, and of the query: OPCODE and RD.
    octets[2] = 0x80 | (header[2] & 0x79);
    octets[3] = 0x80 | code.low();
    Outcome::Reply(octets.to_vec())
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
mod tests {
    use super::*;
    use crate::dns::zone::ZoneInput;
    use crate::model::netmap::Netmap;
    use crate::model::record::{MESH_ID, Mesh};
    use crate::model::{Label, MeshAddresses, PublicKey};
    use hickory_proto::op::Query;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn zone() -> Zone {
        let addresses = MeshAddresses {
            prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
            prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
            node_block_v4: 24,
            node_block_v6: 64,
        };
        let domain = Label::parse("mesh").expect("a literal");
        let netmap = Netmap {
            mesh: Some(Mesh {
                id: MESH_ID.into(),
                version: 1,
                domain,
                addresses,
            }),
            ..Netmap::default()
        };
        Zone::build(&ZoneInput {
            netmap: &netmap,
            own: PublicKey([1; 32]),
            unreachable: &BTreeSet::new(),
            round_trips: &BTreeMap::new(),
            when_none_usable: Default::default(),
            lingering: &BTreeSet::new(),
            balanced: &BTreeSet::new(),
            serial: 1,
        })
    }

    fn query(name: &str, record_type: RecordType) -> Message {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(
            Name::from_ascii(name).expect("a literal"),
            record_type,
        ));
        message
    }

    fn replied(message: &Message) -> Message {
        replied_to(&message.to_vec().expect("a small message"))
    }

    fn replied_to(octets: &[u8]) -> Message {
        match handle(&zone(), octets, Transport::Udp, 1) {
            Outcome::Reply(reply) => Message::from_vec(&reply).expect("a reply that parses"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_name_of_the_mesh_is_answered_with_authority_and_the_question_as_asked() {
        let reply = replied(&query("NeVeR.svc.MESH.", RecordType::A));
        assert_eq!(
            (reply.metadata.id, reply.metadata.response_code),
            (77, ResponseCode::NXDomain)
        );
        assert!(
            reply.metadata.authoritative
                && reply.metadata.recursion_available
                && reply.metadata.recursion_desired
        );
        assert_eq!(reply.queries[0].name().to_string(), "NeVeR.svc.MESH.");
        assert!(reply.edns.is_none(), "the client speaks no EDNS");
    }

    #[test]
    fn edns_is_answered_with_edns_and_a_later_version_refused() {
        let mut message = query("mesh.", RecordType::SOA);
        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_version(0);
        message.set_edns(edns.clone());
        assert_eq!(
            replied(&message).edns.map(|e| e.max_payload()),
            Some(MAX_UDP)
        );
        edns.set_version(1);
        message.set_edns(edns);
        let reply = replied(&message);
        // 16 is BADSIG in a signature and BADVERS in an OPT record.
        assert_eq!(
            (u16::from(reply.metadata.response_code), reply.answers.len()),
            (16, 0)
        );
    }

    #[test]
    fn queries_that_are_none_get_the_code_they_deserve() {
        let octets = query("mesh.", RecordType::A)
            .to_vec()
            .expect("a small message");
        assert_eq!(
            replied_to(&octets[..20]).metadata.response_code,
            ResponseCode::FormErr
        );
        let mut update = octets.clone();
        update[2] |= 5 << 3;
        assert_eq!(
            replied_to(&update).metadata.response_code,
            ResponseCode::NotImp
        );
        assert_eq!(
            replied(&query("mesh.", RecordType::AXFR))
                .metadata
                .response_code,
            ResponseCode::Refused
        );
        let mut reply = octets.clone();
        reply[2] |= 0x80;
        assert!(matches!(
            handle(&zone(), &reply, Transport::Udp, 0),
            Outcome::Silence(Silence::IsReply)
        ));
        assert!(matches!(
            handle(&zone(), &octets[..11], Transport::Udp, 0),
            Outcome::Silence(Silence::NoHeader)
        ));
    }

    #[test]
    fn what_does_not_fit_into_a_datagram_is_marked_as_cut() {
        let mut message = Message::response(1, OpCode::Query);
        message.add_query(Query::query(
            Name::from_ascii("web.svc.mesh.").expect("a literal"),
            RecordType::A,
        ));
        for n in 0..100u8 {
            let data = hickory_proto::rr::RData::A(std::net::Ipv4Addr::new(10, 0, 0, n).into());
            message.add_answer(Record::from_rdata(
                Name::from_ascii("web.svc.mesh.").expect("a literal"),
                5,
                data,
            ));
        }
        let cut =
            Message::from_vec(&fit(message.clone(), 512).expect("encodable")).expect("it parses");
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let whole =
            Message::from_vec(&fit(message, 65_535).expect("encodable")).expect("it parses");
        assert!(!whole.metadata.truncation && whole.answers.len() == 100);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn a_mutated_query_gets_at_most_one_reply_that_fits_it(
            flips in prop::collection::vec((0usize..80, any::<u8>()), 0..6),
            cut in 0usize..90,
            record_type in any::<u16>(),
            name in "[a-z]{1,8}\\.(svc|node)\\.mesh\\.",
        ) {
            let mut message = query(&name, RecordType::from(record_type));
            message.set_edns(Edns::new());
            let mut octets = message.to_vec().expect("a small message");
            for (at, value) in flips {
                if let Some(octet) = octets.get_mut(at) { *octet = value; }
            }
            octets.truncate(cut.max(octets.len().saturating_sub(cut)));
            for transport in [Transport::Udp, Transport::Tcp] {
                match handle(&zone(), &octets, transport, 3) {
                    Outcome::Reply(reply) => prop_assert!(is_reply_to(&reply, &octets), "{octets:?} -> {reply:?}"),
                    Outcome::Forward(pending) => prop_assert!(is_reply_to(&pending.finish(Forwarded::default()), &octets)),
                    Outcome::Silence(_) => {}
                }
            }
        }
    }
}
