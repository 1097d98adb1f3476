use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const TRANSACTION: Transaction = *b"0123456789ab";

fn answer(client: &str, asked: usize) -> Option<Vec<u8>> {
    let client = client.parse().expect("a literal");
    let mut out = [0; REQUEST];
    let length = write_answer(&TRANSACTION, client, asked, &mut out)?;
    Some(out[..length].to_vec())
}

/// The answers of RFC 5769 section 2.2 and 2.3, without the attributes for authentication.
#[test]
fn the_answers_of_the_test_vectors_are_read() {
    let transaction = [
        0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae,
    ];
    let head = |length: u8| {
        let start = [&[1, 1, 0, length, 0x21, 0x12, 0xa4, 0x42][..], &transaction];
        [&start.concat()[..], b"\x80\x22\x00\x0btest vector\x20"].concat()
    };
    let v4 = [0, 0x20, 0, 8, 0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];
    assert_eq!(
        parse_answer(&[&head(28)[..], &v4].concat(), &transaction),
        "192.0.2.1:32853".parse().ok()
    );
    let v6 = [
        0, 0x20, 0, 0x14, 0, 2, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc,
        0x25, 0xf4, 0xb5, 0xbe, 0xd2, 0xb9, 0xd9,
    ];
    assert_eq!(
        parse_answer(&[&head(40)[..], &v6].concat(), &transaction),
        "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().ok()
    );
}

#[test]
fn an_answer_is_never_larger_than_its_request() {
    let asked = request(&TRANSACTION);
    assert_eq!(parse_request(&asked), Some(TRANSACTION));
    for client in [
        "192.0.2.7:51820",
        "[2001:db8::7]:51820",
        "[::ffff:192.0.2.7]:1",
    ] {
        let answer = answer(client, asked.len()).expect("our requests are large enough");
        assert!(answer.len() <= asked.len());
        let client: SocketAddr = client.parse().expect("a literal");
        let seen = SocketAddr::new(client.ip().to_canonical(), client.port());
        assert_eq!(parse_answer(&answer, &TRANSACTION), Some(seen));
        assert_eq!(parse_answer(&answer, b"another one!"), None);
        assert!(is_stun(&answer) && parse_request(&answer).is_none());
    }
    assert_eq!(answer("192.0.2.7:51820", 31), None);
    assert_eq!(answer("[2001:db8::7]:51820", 43), None);
}

#[test]
fn what_is_no_request_is_not_answered() {
    let good = request(&TRANSACTION);
    for length in 0..good.len() {
        assert_eq!(parse_request(&good[..length]), None, "{length}");
    }
    for (at, byte) in [
        (0, 1),
        (1, 2),
        (3, 20),
        (3, 25),
        (4, 0x22),
        (23, 21),
        (23, 255),
    ] {
        let mut changed = good;
        changed[at] = byte;
        assert_eq!(parse_request(&changed), None, "byte {at}");
    }
    // An attribute that must be known.
    let mut required = good;
    required[20] = 0;
    assert_eq!(parse_request(&required), None);
    let mut long = [0; MAX_MESSAGE + 4];
    let length = (long.len() - HEADER) as u16;
    write_header(&mut long, BINDING_REQUEST, length, &TRANSACTION);
    assert_eq!(parse_request(&long), None);
}

#[test]
fn no_wireguard_message_is_taken_for_stun() {
    for kind in 1..=4 {
        let mut message = [0; 148];
        message[0] = kind;
        assert!(!is_stun(&message));
    }
    assert!(!is_stun(&[]) && !is_stun(&[0; 7]));
}

proptest! {
    #[test]
    fn any_address_survives_an_answer(ip in any::<IpAddr>(), port in any::<u16>(), transaction in any::<Transaction>()) {
        let client = SocketAddr::new(ip.to_canonical(), port);
        let mut out = [0; REQUEST];
        let length = write_answer(&transaction, client, REQUEST, &mut out).expect("it fits");
        prop_assert_eq!(parse_answer(&out[..length], &transaction), Some(client));
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..100), kind in 0u8..2, whole in any::<bool>()) {
        let mut bytes = bytes;
        if whole && bytes.len() >= HEADER {
            let length = (bytes.len() - HEADER) as u16;
            bytes[..2].copy_from_slice(&[kind, 1]);
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[4..8].copy_from_slice(&MAGIC_COOKIE);
            bytes[8..20].copy_from_slice(&TRANSACTION);
        }
        let _ = parse_request(&bytes);
        let _ = parse_answer(&bytes, &TRANSACTION);
    }
}
