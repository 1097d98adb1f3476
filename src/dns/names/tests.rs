use super::*;
use crate::dns::reply::shorten;
use crate::dns::transport::{EXTENDED_ERROR, MAX_UDP};
use crate::dns::zone::ZoneInput;
use crate::model::{Label, MeshAddresses, PublicKey};
use crate::records::kinds::{MESH_ID, Mesh};
use crate::records::netmap::Netmap;
use crate::records::service_address::ServiceAddresses;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, Record, RecordType};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn zone() -> Zone {
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
            coordinators: vec![],
        }),
        ..Netmap::default()
    };
    Zone::build(&ZoneInput {
        netmap: &netmap,
        own: PublicKey([1; 32]),
        unreachable: &BTreeSet::new(),
        groups: &BTreeMap::new(),
        when_none_usable: Default::default(),
        lingering: &BTreeSet::new(),
        balanced: &BTreeSet::new(),
        held: &ServiceAddresses::default(),
        serial: 1,
        most_addresses: crate::dns::zone::MAX_ADDRESSES,
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

fn replied_to(bytes: &[u8]) -> Message {
    match handle(&zone(), bytes, Transport::Udp, 1) {
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
fn malformed_queries_get_the_right_response_code() {
    let bytes = query("mesh.", RecordType::A)
        .to_vec()
        .expect("a small message");
    assert_eq!(
        replied_to(&bytes[..20]).metadata.response_code,
        ResponseCode::FormErr
    );
    let mut update = bytes.clone();
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
    let mut reply = bytes.clone();
    reply[2] |= 0x80;
    assert!(matches!(
        handle(&zone(), &reply, Transport::Udp, 0),
        Outcome::Silence(Silence::IsReply)
    ));
    assert!(matches!(
        handle(&zone(), &bytes[..11], Transport::Udp, 0),
        Outcome::Silence(Silence::NoHeader)
    ));
}

#[test]
fn a_reply_that_does_not_fit_into_a_datagram_is_marked_as_truncated() {
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
    let bytes = shorten(message.to_vec().expect("encodable"), 512, &[]).expect("a message");
    let cut = Message::from_vec(&bytes).expect("it parses");
    assert!(cut.metadata.truncation && bytes.len() <= 512);
    // The header and the question have 30 bytes, and each record 16.
    assert_eq!(cut.answers.len(), 30);
    let whole = shorten(message.to_vec().expect("encodable"), 65_535, &[]).expect("a message");
    let whole = Message::from_vec(&whole).expect("it parses");
    assert!(!whole.metadata.truncation && whole.answers.len() == 100);
}

/// An answer from outside the mesh whose SRV records point to long names, which are not compressed (RFC 2782).
fn services(count: u16) -> Forwarded {
    let owner = Name::from_ascii("_x._tcp.example.org.").expect("a literal");
    let target = |n: u16| {
        let labels = format!("{n}.{0}.{0}.{0}.example.org.", "t".repeat(60));
        Name::from_ascii(labels).expect("a literal")
    };
    let record = |n| {
        let data = hickory_proto::rr::rdata::SRV::new(0, 0, n, target(n));
        Record::from_rdata(owner.clone(), 60, hickory_proto::rr::RData::SRV(data))
    };
    Forwarded {
        answers: (0..count).map(record).collect(),
        ..Forwarded::default()
    }
}

#[test]
fn over_a_stream_a_reply_is_whole_or_a_failure_and_never_cut() {
    let bytes = query("_x._tcp.example.org.", RecordType::SRV)
        .to_vec()
        .expect("a small message");
    for (records, whole) in [(10, true), (250, true), (400, false), (5_000, false)] {
        let Outcome::Forward(pending) = handle(&zone(), &bytes, Transport::Tcp, 1) else {
            panic!("a name of elsewhere");
        };
        let reply = pending.finish(services(records));
        let reply = Message::from_vec(&reply).expect("it parses");
        assert!(!reply.metadata.truncation, "{records}");
        assert_eq!(reply.queries.len(), 1, "{records}");
        let (code, count) = match whole {
            true => (ResponseCode::NoError, usize::from(records)),
            false => (ResponseCode::ServFail, 0),
        };
        assert_eq!(
            (reply.metadata.response_code, reply.answers.len()),
            (code, count)
        );
        // A reply in a datagram is truncated, so the client asks again over a stream and gets the failure there.
        let Outcome::Forward(pending) = handle(&zone(), &bytes, Transport::Udp, 1) else {
            panic!("a name of elsewhere");
        };
        let reply = pending.finish(services(records));
        assert!(
            Message::from_vec(&reply)
                .expect("it parses")
                .metadata
                .truncation
        );
    }
}

#[test]
fn another_node_gets_the_reason_why_there_is_no_recursion() {
    let mut message = query("www.example.org.", RecordType::A);
    for edns in [false, true] {
        if edns {
            message.set_edns(Edns::new());
        }
        let bytes = message.to_vec().expect("a small message");
        let Outcome::Forward(pending) = handle(&zone(), &bytes, Transport::Udp, 1) else {
            panic!("a name of elsewhere");
        };
        let reply = Message::from_vec(&pending.refuse()).expect("it parses");
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
        assert!(!reply.metadata.recursion_available && !reply.metadata.authoritative);
        let error = reply.edns.as_ref().and_then(|own| {
            own.option(EXTENDED_ERROR.into())
                .map(|option| match option {
                    EdnsOption::Unknown(_, bytes) => bytes[..2].to_vec(),
                    other => panic!("{other:?}"),
                })
        });
        assert_eq!(error, edns.then(|| vec![0, 18]));
    }
}

/// A zone with services, made once.
static FULL: std::sync::LazyLock<Zone> = std::sync::LazyLock::new(|| {
    use crate::dns::answer::tests::{HEALTHY, netmap, zone_of};
    zone_of(&netmap(HEALTHY), &[3], Default::default())
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200_000))]
    #[test]
    fn a_mutated_query_gets_at_most_one_reply_that_fits_it(
        flips in prop::collection::vec((0usize..80, any::<u8>()), 0..6),
        cut in 0usize..90,
        usual in any::<bool>(),
        record_type in any::<u16>(),
        name in "([a-z]{1,8}|web|_web\\._tcp\\.web|nearest\\.web|n1)\\.(svc|node)\\.mesh\\.|1\\.1\\.210\\.10\\.in-addr\\.arpa\\.",
        payload in prop::option::of(any::<u16>()),
    ) {
        const USUAL: [u16; 8] = [1, 28, 33, 16, 6, 12, 255, 65];
        let record_type = if usual { USUAL[usize::from(record_type) % 8] } else { record_type };
        let mut message = query(&name, RecordType::from(record_type));
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload).set_version(0);
            message.set_edns(edns);
        }
        let mut bytes = message.to_vec().expect("a small message");
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
        }
        bytes.truncate(cut.max(bytes.len().saturating_sub(cut)));
        for transport in [Transport::Udp, Transport::Tcp] {
            let reply = match answer(&FULL, &bytes, transport, 3) {
                Outcome::Reply(reply) => reply,
                Outcome::Forward(pending) => pending.finish(Forwarded::default()),
                Outcome::Silence(_) => continue,
            };
            prop_assert!(is_reply_to(&reply, &bytes), "{bytes:?} -> {reply:?}");
            prop_assert!(transport == Transport::Tcp || reply.len() <= MAX_UDP.into());
        }
    }
}

/// Whether `reply` is a well-formed reply to `query`.
fn is_reply_to(reply: &[u8], query: &[u8]) -> bool {
    let Ok(message) = Message::from_vec(reply) else {
        return false;
    };
    let questions = Message::from_vec(query)
        .map(|q| q.queries)
        .unwrap_or_default();
    message.metadata.message_type == MessageType::Response
        && reply.get(..2) == query.get(..2)
        && (message.queries.is_empty() || message.queries == questions)
}
