//! Signed envelopes, and the records in them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::records::kinds::Record;
use meshd::records::Envelope;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(envelope) = serde_json::from_slice::<Envelope>(bytes) {
        let _ = envelope.is_authentic();
        let _ = Record::parse(&envelope.payload);
    }
    if let Ok(payload) = std::str::from_utf8(bytes) {
        let _ = Record::parse(payload);
    }
});
