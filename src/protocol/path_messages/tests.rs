use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use std::net::IpAddr;

use super::bytes::canonical;
use super::*;
use crate::model::{PublicKey, SigningKey};
use crate::protocol::call::Call;
use crate::protocol::local::PeerState;
use crate::records::envelope::Signature;

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| canonical(SocketAddr::new(ip, port)))
}

fn behaviour() -> impl Strategy<Value = NatBehaviour> {
    (0u8..5).prop_map(NatBehaviour::of)
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let address = address().prop_filter("a candidate", |a| is_routable(a.ip()) && a.port() != 0);
    (1u8..5, address).prop_map(|(kind, address)| Candidate {
        kind: CandidateKind::of(kind).expect("one of four"),
        address,
    })
}

fn paths() -> impl Strategy<Value = Paths> {
    let nat = (behaviour(), behaviour(), any::<Option<bool>>());
    let nat = nat.prop_map(|(mapping, filtering, ports_kept)| Nat {
        mapping,
        filtering,
        ports_kept,
    });
    let relay = any::<(Ipv4Addr, u32)>();
    let relay = relay.prop_map(|(relay, rtt_us)| RelayRoundTrip { relay, rtt_us });
    let candidates = vec(candidate(), 0..=MAX_CANDIDATES);
    let relays = vec(relay, 0..=MAX_RELAYS);
    (any::<(u32, [bool; 4])>(), nat, candidates, relays).prop_map(
        |((seq, flags), nat, candidates, relays)| Paths {
            seq,
            punch: flags[0],
            udp_blocked: flags[1],
            try_my_mapping: flags[2],
            tries_mapping: flags[3],
            nat,
            candidates,
            relays,
        },
    )
}

fn call() -> impl Strategy<Value = PeerCall> {
    let signature = (any::<[u8; 32]>(), any::<[u8; 32]>());
    let candidates = vec(address(), 0..=MAX_CANDIDATES);
    let parts = (any::<([u8; 32], [bool; 2], u64)>(), candidates, signature);
    parts.prop_map(
        |((member, [passes, asks], at), candidates, (first, second))| {
            let member = PublicKey(member);
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&first);
            signature[32..].copy_from_slice(&second);
            PeerCall {
                end: if passes {
                    CallEnd::To(member)
                } else {
                    CallEnd::From(member)
                },
                call: Call {
                    asks,
                    candidates,
                    at,
                    signature: Signature(signature),
                },
            }
        },
    )
}

fn row() -> impl Strategy<Value = RowPart> {
    let states = [
        PeerState::Direct,
        PeerState::Relay,
        PeerState::Stream,
        PeerState::Connecting,
        PeerState::Idle,
        PeerState::Unreachable,
    ];
    let state = of(prop::sample::select(states.to_vec()));
    let path = (any::<Ipv4Addr>(), state, of(1u32..));
    let path = path.prop_map(|(to, state, rtt_us)| RowPath { to, state, rtt_us });
    let part = (any::<u32>(), any::<bool>(), vec(path, 0..=MAX_ROW));
    part.prop_map(|(after, has_more, paths)| RowPart {
        after,
        has_more,
        paths,
    })
}

fn message() -> impl Strategy<Value = PathMessage> {
    let probe = (any::<(u32, u64)>(), 0u16..1500);
    let probe = probe.prop_map(|((path, sent_us), padding)| {
        Message::Probe(Probe {
            path,
            sent_us,
            padding,
        })
    });
    let relay = any::<(u8, u32)>().prop_map(|(load, tag)| RelayOffer { load, tag });
    let via = any::<Ipv4Addr>().prop_filter("an address", |via| !via.is_unspecified());
    let echo = (any::<(u32, u64)>(), of(address()), of(via), of(relay));
    let echo = echo.prop_map(|((path, sent_us), seen, via, relay)| {
        Message::Echo(Echo {
            path,
            sent_us,
            seen,
            via,
            relay,
        })
    });
    let message = prop_oneof![
        probe,
        echo,
        paths().prop_map(Message::Paths),
        call().prop_map(Message::Call),
        (0u8..3).prop_map(|reason| Message::Bye(ByeReason::of(reason))),
        any::<u32>().prop_map(Message::AskRow),
        row().prop_map(Message::Row),
    ];
    (any::<u64>(), message).prop_map(|(nonce, message)| PathMessage { nonce, message })
}

fn written(message: &PathMessage) -> Vec<u8> {
    let mut out = [1; 4096];
    let length = message.write(&mut out).expect("there is room");
    out[..length].to_vec()
}

/// The message with another version in its header.
fn of_version(version: u8, mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[1] = version;
    bytes
}

/// The message with `more` after its body, which its length includes.
fn longer(mut bytes: Vec<u8>, more: &[u8]) -> Vec<u8> {
    bytes.extend(more);
    let length = (bytes.len() - HEADER) as u16;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn echo() -> PathMessage {
    PathMessage {
        nonce: 0x0102_0304_0506_0708,
        message: Message::Echo(Echo {
            path: 9,
            sent_us: 10,
            seen: Some("192.0.2.7:51820".parse().expect("a literal")),
            via: Some(Ipv4Addr::new(10, 210, 3, 1)),
            relay: Some(RelayOffer {
                load: 11,
                tag: 0xa1a2_a3a4,
            }),
        }),
    }
}

#[test]
fn an_echo_has_these_bytes() {
    assert_eq!(
        written(&echo()),
        [
            &[2, 1, 0, 29][..],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 0, 9],
            &[0, 0, 0, 0, 0, 0, 0, 10],
            &[4, 0xca, 0x6c, 192, 0, 2, 7],
            &[10, 210, 3, 1],
            &[1, 11, 0xa1, 0xa2, 0xa3, 0xa4],
        ]
        .concat()
    );
}

#[test]
fn no_echo_is_larger_than_the_probe_that_it_answers() {
    let probe = |size| Probe::with_size(1, 2, size);
    for size in [0, PROBE, PROBE + 1, 1400] {
        assert!(probe(size).pays_for_its_echo());
        let message = PathMessage {
            nonce: 3,
            message: Message::Probe(probe(size)),
        };
        assert_eq!(written(&message).len(), size.max(PROBE));
    }
    let largest = PathMessage {
        nonce: 3,
        message: Message::Echo(Echo {
            path: 1,
            sent_us: 2,
            seen: Some("[2001:db8::1]:1".parse().expect("a literal")),
            via: Some(Ipv4Addr::LOCALHOST),
            relay: Some(RelayOffer { load: 1, tag: 2 }),
        }),
    };
    assert_eq!(written(&largest).len(), PROBE);
    let short = Probe {
        padding: (PROBE - HEADER - PROBE_BODY - 1) as u16,
        ..probe(0)
    };
    assert!(!short.pays_for_its_echo());
}

#[test]
fn a_type_of_a_later_version_is_told_apart_from_a_fault() {
    let mut bytes = written(&echo());
    bytes[0] = 9;
    assert_eq!(
        PathMessage::parse(&bytes),
        Err(PathMessageError::UnknownType(9))
    );
    bytes[0] = 0;
    assert_eq!(
        PathMessage::parse(&bytes),
        Err(PathMessageError::UnknownType(0))
    );
}

#[test]
fn a_message_that_lies_about_its_length_is_refused() {
    let bytes = written(&echo());
    let with_length = |length: u16| {
        let mut bytes = bytes.clone();
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        PathMessage::parse(&bytes)
    };
    assert_eq!(with_length(28), Err(PathMessageError::Length));
    assert_eq!(with_length(30), Err(PathMessageError::Truncated));
    assert_eq!(with_length(u16::MAX), Err(PathMessageError::Truncated));
    let more = [&bytes[..], &[0]].concat();
    assert_eq!(PathMessage::parse(&more), Err(PathMessageError::Length));
    let version_0 = of_version(0, bytes.clone());
    assert_eq!(
        PathMessage::parse(&version_0),
        Err(PathMessageError::Version)
    );
}

#[test]
fn more_entries_than_a_message_may_have_are_neither_written_nor_read() {
    let candidate = Candidate {
        kind: CandidateKind::Host,
        address: "192.0.2.1:1".parse().expect("a literal"),
    };
    let relay = RelayRoundTrip {
        relay: Ipv4Addr::new(10, 210, 3, 1),
        rtt_us: 1,
    };
    let message = |candidates, relays| PathMessage {
        nonce: 1,
        message: Message::Paths(Paths {
            candidates: vec![candidate; candidates],
            relays: vec![relay; relays],
            ..Paths::default()
        }),
    };
    let mut out = [0; 4096];
    assert_eq!(message(MAX_CANDIDATES + 1, 0).write(&mut out), None);
    assert_eq!(message(0, MAX_RELAYS + 1).write(&mut out), None);
    let mut bytes = written(&message(MAX_CANDIDATES, MAX_RELAYS));
    assert!(bytes.len() <= MAX_MESSAGE);
    bytes[20] = 17;
    assert_eq!(
        PathMessage::parse(&bytes),
        Err(PathMessageError::TooMany {
            found: 17,
            most: 16
        })
    );
}

#[test]
fn candidates_that_nobody_may_send_to_are_left_out() {
    let candidate = |address: &str| Candidate {
        kind: CandidateKind::Set,
        address: address.parse().expect("a literal"),
    };
    let message = PathMessage {
        nonce: 1,
        message: Message::Paths(Paths {
            candidates: [
                "127.0.0.1:22",
                "169.254.1.1:51820",
                "224.0.0.1:51820",
                "0.0.0.0:51820",
                "192.0.2.1:0",
                "[fe80::1]:51820",
                "[::1]:51820",
                "[64:ff9b::7f00:1]:51820",
                "192.0.2.1:51820",
            ]
            .map(candidate)
            .to_vec(),
            ..Paths::default()
        }),
    };
    let read = PathMessage::parse(&written(&message)).expect("just written");
    let Message::Paths(paths) = read.message else {
        panic!("{read:?}");
    };
    assert_eq!(paths.candidates, [candidate("192.0.2.1:51820")]);
}

#[test]
fn a_signed_call_is_read_as_it_was_signed_and_its_addresses_are_all_there_or_it_is_refused() {
    let (key, to) = (SigningKey::from_seed(&[1; 32]), PublicKey([2; 32]));
    let candidates = [
        "192.0.2.1:51820",
        "127.0.0.1:22",
        "[2001:db8::1]:51820",
        "[fe80::1]:9",
    ];
    let candidates = candidates.map(|text| text.parse().expect("a literal"));
    let call = Call::sign(&key, &to, true, candidates.to_vec(), 7);
    for (end, kind) in [(CallEnd::To(to), 5), (CallEnd::From(key.public()), 6)] {
        let call = call.clone();
        let message = PathMessage {
            nonce: 1,
            message: Message::Call(PeerCall { end, call }),
        };
        let mut bytes = written(&message);
        assert_eq!(bytes[0], kind);
        let read = PathMessage::parse(&bytes).expect("just written");
        let Message::Call(read) = read.message else {
            panic!("{read:?}");
        };
        assert_eq!(read.end, end);
        assert!(read.call.is_authentic(&key.public(), &to));
        // The number of addresses, after the header, the key, `asks` and the time.
        let count = HEADER + 32 + 1 + 8;
        assert_eq!(bytes[count], 4);
        bytes[count + 1] = 0;
        assert_eq!(PathMessage::parse(&bytes), Err(PathMessageError::Family(0)));
        bytes[count] = 17;
        let refused = PathMessageError::TooMany {
            found: 17,
            most: 16,
        };
        assert_eq!(PathMessage::parse(&bytes), Err(refused));
    }
}

#[test]
fn nobody_gets_more_bytes_of_a_row_than_they_sent() {
    let of = |message| PathMessage { nonce: 1, message };
    let request = written(&of(Message::AskRow(7)));
    let path = RowPath {
        to: Ipv4Addr::LOCALHOST,
        state: Some(PeerState::Direct),
        rtt_us: Some(u32::MAX),
    };
    let part = |paths: usize| RowPart {
        after: u32::MAX,
        has_more: true,
        paths: vec![path; paths],
    };
    let largest = written(&of(Message::Row(part(MAX_ROW))));
    assert_eq!(request.len(), largest.len());
    assert!(largest.len() <= MAX_MESSAGE);
    let mut short = request.clone();
    short.pop();
    let length = (short.len() - HEADER) as u16;
    short[2..4].copy_from_slice(&length.to_be_bytes());
    assert_eq!(PathMessage::parse(&short), Err(PathMessageError::Truncated));

    let too_long = of(Message::Row(part(MAX_ROW + 1)));
    assert_eq!(too_long.write(&mut [0; 4096]), None);
    let mut announced = largest;
    // The number of paths, after the header, `after` and `more`.
    announced[HEADER + 5] += 1;
    let refused = PathMessageError::TooMany {
        found: MAX_ROW + 1,
        most: MAX_ROW,
    };
    assert_eq!(PathMessage::parse(&announced), Err(refused));
}

#[test]
fn values_of_a_later_version_are_read_as_absent() {
    let mut bytes = written(&echo());
    // `offer`, after the header, the path, the time, an IPv4 address and `via`.
    bytes[35] = 2;
    let read = PathMessage::parse(&bytes).expect("a known message");
    assert!(matches!(
        read.message,
        Message::Echo(Echo { relay: None, .. })
    ));
    let paths = [
        &[3, 1, 0, 18][..],
        &[0; 8],
        &[0, 0, 0, 1, 0xf0, 9, 9, 9],
        &[1, 77, 4, 0, 1, 192, 0, 2, 1],
        &[0],
    ]
    .concat();
    let read = PathMessage::parse(&paths).expect("a known message");
    let expected = Paths {
        seq: 1,
        ..Paths::default()
    };
    assert_eq!(read.message, Message::Paths(expected));
    let bye = PathMessage::parse(&[4, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 200]);
    assert_eq!(
        bye.map(|bye| bye.message),
        Ok(Message::Bye(ByeReason::Unknown))
    );
}

#[test]
fn every_prefix_of_a_message_is_refused_and_no_room_is_noticed() {
    let bytes = written(&echo());
    for length in 0..bytes.len() {
        assert_eq!(
            PathMessage::parse(&bytes[..length]),
            Err(PathMessageError::Truncated),
            "{length}"
        );
        assert_eq!(echo().write(&mut vec![0; length]), None);
    }
}

proptest! {
    #[test]
    fn a_message_is_read_as_it_was_written(message in message()) {
        let bytes = written(&message);
        prop_assert_eq!(PathMessage::parse(&bytes), Ok(message.clone()));
        if !matches!(message.message, Message::Probe(_)) {
            prop_assert!(bytes.len() <= MAX_MESSAGE);
        }
    }

    #[test]
    fn more_bytes_are_ignored_in_a_later_version_and_refused_in_this_one(
        message in message(),
        more in vec(any::<u8>(), 1..64),
        version in 2u8..,
    ) {
        let bytes = longer(written(&message), &more);
        let later = PathMessage::parse(&of_version(version, bytes.clone()));
        if let Message::Probe(probe) = &message.message {
            let padding = probe.padding + more.len() as u16;
            let message = Message::Probe(Probe { padding, ..*probe });
            prop_assert_eq!(later.map(|read| read.message), Ok(message));
        } else {
            prop_assert_eq!(later, Ok(message));
            prop_assert_eq!(PathMessage::parse(&bytes), Err(PathMessageError::Length));
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic_and_again_as_the_same(
        kind in 0u8..8,
        version in 0u8..3,
        body in vec(any::<u8>(), 0..200),
        length in prop_oneof![Just(None), any::<u16>().prop_map(Some)],
    ) {
        let length = length.unwrap_or(body.len() as u16);
        let head = [&[kind, version][..], &length.to_be_bytes(), &[7; 8]].concat();
        if let Ok(message) = PathMessage::parse(&[head, body].concat()) {
            prop_assert_eq!(PathMessage::parse(&written(&message)), Ok(message));
        }
    }
}
