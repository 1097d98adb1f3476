//! STUN requests and answers. An answer is never larger than its request, and is read as the address that was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::protocol::stun::{REQUEST, parse_answer, parse_request, write_answer};

fuzz_target!(|datagram: &[u8]| {
    let client = ([192, 0, 2, 1], 51820).into();
    let _ = parse_answer(datagram, b"transaction1");
    let Some(transaction) = parse_request(datagram) else {
        return;
    };
    let mut out = [0; REQUEST];
    if let Some(length) = write_answer(&transaction, client, datagram.len(), &mut out) {
        assert!(length <= datagram.len());
        assert_eq!(parse_answer(&out[..length], &transaction), Some(client));
    }
});
