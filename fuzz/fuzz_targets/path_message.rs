//! Messages about paths, inside the tunnel. What is read is within its bounds, can be written, and is then read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::protocol::path_messages::{
    MAX_CANDIDATES, MAX_MESSAGE, MAX_RELAYS, MAX_ROW, Message, PathMessage,
};

fuzz_target!(|payload: &[u8]| {
    let Ok(message) = PathMessage::parse(payload) else {
        return;
    };
    let mut out = vec![0; payload.len().max(MAX_MESSAGE)];
    let length = message.write(&mut out).expect("there is room");
    assert_eq!(PathMessage::parse(&out[..length]), Ok(message.clone()));
    match message.message {
        Message::Probe(probe) => assert!(usize::from(probe.padding) < payload.len()),
        Message::Paths(paths) => {
            assert!(paths.candidates.len() <= MAX_CANDIDATES);
            assert!(paths.relays.len() <= MAX_RELAYS);
        }
        Message::Call(call) => assert!(call.call.candidates.len() <= MAX_CANDIDATES),
        Message::Row(part) => assert!(part.paths.len() <= MAX_ROW),
        Message::Echo(_) | Message::Bye(_) | Message::AskRow(_) => {}
    }
});
