//! Messages of the control stream, both ways, and between nodes: what is read can be written and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::protocol::control::{FromCoordinator, FromNode};
use meshd::protocol::gossip::PeerMessage;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = serde_json::from_slice::<FromNode>(bytes) {
        let again = serde_json::to_vec(&message).expect("plain data");
        assert_eq!(
            serde_json::from_slice::<FromNode>(&again).ok(),
            Some(message)
        );
    }
    if let Ok(message) = serde_json::from_slice::<FromCoordinator>(bytes) {
        let again = serde_json::to_vec(&message).expect("plain data");
        assert_eq!(
            serde_json::from_slice::<FromCoordinator>(&again).ok(),
            Some(message)
        );
    }
    if let Ok(message) = serde_json::from_slice::<PeerMessage>(bytes) {
        let again = serde_json::to_vec(&message).expect("plain data");
        assert_eq!(
            serde_json::from_slice::<PeerMessage>(&again).ok(),
            Some(message)
        );
    }
});
