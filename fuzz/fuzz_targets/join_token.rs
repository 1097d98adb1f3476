//! The word `meshctl join` takes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::protocol::JoinToken;

fuzz_target!(|text: &str| {
    let _ = JoinToken::parse(text);
});
