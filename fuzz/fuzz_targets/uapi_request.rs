//! Requests of `wg`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::tunnel::uapi::Request;

fuzz_target!(|text: &str| {
    let _ = Request::parse(text);
});
