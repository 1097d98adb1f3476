//! Messages of a stream to a relay: frames, and the opening. What is accepted is written again in the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::protocol::stream::{Frames, FromNode, FromRelay, StreamTarget, first_length};

fuzz_target!(|input: &[u8]| {
    if let Ok(frames) = Frames::parse(input) {
        assert!(first_length(input) <= input.len());
        let mut again = Vec::with_capacity(input.len());
        for frame in frames {
            again.extend(frame.header().expect("it was read from a frame"));
            again.extend(frame.datagram);
        }
        assert_eq!(again, input);
    }
    let _ = serde_json::from_slice::<FromNode>(input);
    let _ = serde_json::from_slice::<FromRelay>(input);
    if let Ok(text) = std::str::from_utf8(input)
        && let Some(target) = StreamTarget::parse(text, None)
    {
        let shown = target.url.to_string();
        assert_eq!(StreamTarget::parse(&shown, None), Some(target));
    }
});
