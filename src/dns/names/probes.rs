//! The probes of RFC 8906 section 8 and what else a client may try, each as a whole message, over UDP and TCP.

use super::tests::zone;
use super::*;

const ID: [u8; 2] = [0x12, 0x34];
const SOA: u16 = 6;
const DNSKEY: u16 = 48;
const AXFR: u16 = 252;
/// The SOA of the zone as a record: its owner, `ns` and `hostmaster` point at the question.
const SOA_RECORD: &[u8] = b"\xc0\x0c\x00\x06\x00\x01\x00\x00\x00\x05\x00\x26\
    \x02ns\xc0\x0c\x0ahostmaster\xc0\x0c\
    \x00\x00\x00\x01\x00\x00\x00\x05\x00\x00\x00\x05\x00\x01\x51\x80\x00\x00\x00\x05";

fn header(flags: [u8; 2], counts: [u8; 4]) -> Vec<u8> {
    let counts = counts.map(|n| [0, n]).concat();
    [&ID[..], &flags, &counts].concat()
}

fn question(record_type: u16) -> Vec<u8> {
    [&b"\x04mesh\x00"[..], &record_type.to_be_bytes(), &[0, 1]].concat()
}

/// An OPT record: bytes the sender takes, upper bits of the code, version, flags, options.
fn opt(payload: u16, code: u8, version: u8, flags: u16, options: &[u8]) -> Vec<u8> {
    [
        &[0, 0, 41][..],
        &payload.to_be_bytes(),
        &[code, version],
        &flags.to_be_bytes(),
        &(options.len() as u16).to_be_bytes(),
        options,
    ]
    .concat()
}

fn asked(flags: [u8; 2], record_type: u16) -> Vec<u8> {
    [header(flags, [1, 0, 0, 0]), question(record_type)].concat()
}

fn asked_with(record_type: u16, opt: &[u8]) -> Vec<u8> {
    [
        &header([0, 0], [1, 0, 0, 1])[..],
        &question(record_type),
        opt,
    ]
    .concat()
}

/// Asks both ways, and wants this reply or none.
fn probe(query: &[u8], wanted: Option<&[u8]>) {
    for transport in [Transport::Udp, Transport::Tcp] {
        let reply = match handle(&zone(), query, transport, 1) {
            Outcome::Reply(reply) => Some(reply),
            Outcome::Silence(_) => None,
            Outcome::Forward(_) => panic!("{query:02x?} is forwarded"),
        };
        assert_eq!(reply.as_deref(), wanted, "{transport:?} {query:02x?}");
    }
}

fn answered_soa(flags: [u8; 2]) -> Vec<u8> {
    [&header(flags, [1, 1, 0, 0])[..], &question(SOA), SOA_RECORD].concat()
}

fn no_data(record_type: u16) -> Vec<u8> {
    [
        &header([0x84, 0x80], [1, 0, 1, 0])[..],
        &question(record_type),
        SOA_RECORD,
    ]
    .concat()
}

fn answered_soa_with_edns(flags: u16) -> Vec<u8> {
    [
        &header([0x84, 0x80], [1, 1, 0, 1])[..],
        &question(SOA),
        SOA_RECORD,
        &opt(1232, 0, 0, flags, &[]),
    ]
    .concat()
}

fn bad_version(flags: u16) -> Vec<u8> {
    [
        &header([0x80, 0x80], [1, 0, 0, 1])[..],
        &question(SOA),
        &opt(1232, 1, 0, flags, &[]),
    ]
    .concat()
}

#[test]
fn the_zone_is_there_and_unknown_types_have_no_data() {
    // Sections 8.1.1, 8.1.2 and 8.1.5.
    probe(&asked([0, 0], SOA), Some(&answered_soa([0x84, 0x80])));
    probe(&asked([0, 0], 1000), Some(&no_data(1000)));
}

#[test]
fn flags_in_the_header_are_ignored_or_come_back_as_they_should() {
    // Section 8.1.3: CD comes back, AD and the reserved bit do not; RD does, and TC and AA mean nothing in a query.
    for (sent, returned) in [
        ([0x00, 0x10], [0x84, 0x90]),
        ([0x00, 0x20], [0x84, 0x80]),
        ([0x00, 0x40], [0x84, 0x80]),
        ([0x00, 0x80], [0x84, 0x80]),
        ([0x01, 0x00], [0x85, 0x80]),
        ([0x06, 0x00], [0x84, 0x80]),
    ] {
        probe(&asked(sent, SOA), Some(&answered_soa(returned)));
    }
}

#[test]
fn kinds_of_messages_other_than_queries_are_not_implemented() {
    // Section 8.1.4, with nothing after the header, with a question, and with bytes that mean nothing.
    for opcode in 1..16u8 {
        let flags = [opcode << 3, 0];
        let wanted = header([0x80 | opcode << 3, 0x84], [0, 0, 0, 0]);
        probe(&header(flags, [0, 0, 0, 0]), Some(&wanted));
        probe(&asked(flags, SOA), Some(&wanted));
        probe(
            &[&header(flags, [9, 9, 9, 9])[..], b"nonsense"].concat(),
            Some(&wanted),
        );
    }
}

#[test]
fn edns_is_spoken_in_version_0_whatever_options_and_flags_come_with_it() {
    let plain = answered_soa_with_edns(0);
    let nsid = b"\x00\x03\x00\x00";
    let cookie = b"\x00\x0a\x00\x08\x01\x02\x03\x04\x05\x06\x07\x08";
    let expire = b"\x00\x09\x00\x00";
    let no_subnet = b"\x00\x08\x00\x04\x00\x00\x00\x00";
    let subnet = b"\x00\x08\x00\x07\x00\x01\x18\x00\xc0\x00\x02";
    let all = [&nsid[..], cookie, expire, no_subnet].concat();
    // Sections 8.2.1, 8.2.3, 8.2.4 and 8.2.10.
    for (flags, options) in [
        (0, &b""[..]),
        (0, b"\x00\x64\x00\x00"),
        (0, b"\x00\x64\x00\x03abc"),
        (0x40, b""),
        (0x7fff, b""),
        (0, nsid),
        (0, cookie),
        (0, expire),
        (0, no_subnet),
        (0, subnet),
        (0, &all),
    ] {
        let query = asked_with(SOA, &opt(4096, 0, 0, flags, options));
        probe(&query, Some(&plain));
    }
    // Section 8.2.8 and RFC 3225 section 3.
    let query = asked_with(SOA, &opt(4096, 0, 0, 0x8000, &[]));
    probe(&query, Some(&answered_soa_with_edns(0x8000)));
    // RFC 6891 section 6.2.3: less than 512 means 512.
    let query = asked_with(SOA, &opt(0, 0, 0, 0, &[]));
    probe(&query, Some(&plain));
    // Section 8.2.7.
    let query = asked_with(DNSKEY, &opt(512, 0, 0, 0x8000, &[]));
    let mut wanted = no_data(DNSKEY);
    wanted[11] = 1;
    wanted.extend(opt(1232, 0, 0, 0x8000, &[]));
    probe(&query, Some(&wanted));
}

#[test]
fn edns_of_a_later_version_is_refused_with_the_version_spoken() {
    // Sections 8.2.2, 8.2.5, 8.2.6 and 8.2.9.
    for (flags, options, returned) in [
        (0, &b""[..], 0),
        (0x40, b"", 0),
        (0, b"\x00\x64\x00\x00", 0),
        (0x8000, b"", 0x8000),
    ] {
        let query = asked_with(SOA, &opt(4096, 0, 1, flags, options));
        probe(&query, Some(&bad_version(returned)));
    }
}

#[test]
fn two_opt_records_or_a_truncated_one_are_malformed() {
    let wanted = header([0x80, 0x81], [0, 0, 0, 0]);
    let one = opt(4096, 0, 0, 0, &[]);
    let two = [
        &header([0, 0], [1, 0, 0, 2])[..],
        &question(SOA),
        &one,
        &one,
    ]
    .concat();
    probe(&two, Some(&wanted));
    let cut = asked_with(SOA, &one[..one.len() - 1]);
    probe(&cut, Some(&wanted));
}

#[test]
fn other_than_one_question_is_no_query() {
    let wanted = header([0x80, 0x81], [0, 0, 0, 0]);
    probe(&header([0, 0], [0, 0, 0, 0]), Some(&wanted));
    let twice = [header([0, 0], [2, 0, 0, 0]), question(SOA), question(SOA)].concat();
    probe(&twice, Some(&wanted));
}

#[test]
fn transfers_and_other_classes_are_refused() {
    let refused = |query: &[u8]| {
        let mut wanted = query.to_vec();
        wanted[2..4].copy_from_slice(&[0x80, 0x85]);
        probe(query, Some(&wanted));
    };
    refused(&asked([0, 0], AXFR));
    let mut chaos = asked([0, 0], SOA);
    let last = chaos.len() - 1;
    chaos[last] = 3;
    refused(&chaos);
}

#[test]
fn replies_and_messages_without_a_header_get_no_reply() {
    probe(&asked([0x80, 0], SOA), None);
    probe(&header([0xf8, 0], [0, 0, 0, 0]), None);
    probe(&ID, None);
    probe(&[], None);
}

#[test]
fn any_gets_one_small_record() {
    // RFC 8482 section 4.2.
    let hinfo = b"\xc0\x0c\x00\x0d\x00\x01\x00\x00\x00\x05\x00\x09\x07RFC8482\x00";
    let wanted = [
        &header([0x84, 0x80], [1, 1, 0, 0])[..],
        &question(255),
        hinfo,
    ]
    .concat();
    probe(&asked([0, 0], 255), Some(&wanted));
}
