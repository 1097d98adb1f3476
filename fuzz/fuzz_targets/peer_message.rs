//! Messages between nodes, one on each line. What is read can be written and read again as the same; the records in the messages are
//! applied to a ledger, cut into messages again, and a second ledger with the same records has the same digests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::model::SigningKey;
use meshd::protocol::gossip::{MAX_RECORDS, PeerMessage, messages};
use meshd::records::Ledger;
use meshd::records::digest::Digests;

fuzz_target!(|text: &[u8]| {
    let mut ledger = Ledger::new(SigningKey::from_seed(&[1; 32]).public());
    let mut held = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<PeerMessage>(line) else {
            continue;
        };
        let again = serde_json::to_vec(&message).expect("plain data");
        assert_eq!(
            serde_json::from_slice::<PeerMessage>(&again).ok(),
            Some(message.clone())
        );
        match message {
            PeerMessage::Records { records }
            | PeerMessage::Vouch {
                memberships: records,
            } => {
                for record in records {
                    if ledger.apply(record.clone()).is_ok() {
                        assert!(ledger.holds(&record));
                    }
                    held.push(record);
                }
            }
            PeerMessage::Signers { signers, .. } => {
                let own = Digests::of(&ledger);
                let theirs = Digests(signers);
                for signer in own.differing(&theirs) {
                    assert_ne!(own.0.get(&signer), theirs.0.get(&signer));
                }
                assert_eq!(own.differing(&theirs).len(), theirs.differing(&own).len());
            }
            _ => {}
        }
    }
    let sent: usize = messages(held.clone())
        .into_iter()
        .map(|message| match message {
            PeerMessage::Records { records } => {
                assert!(!records.is_empty() && records.len() <= MAX_RECORDS);
                records.len()
            }
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(sent, held.len());
    // A peer with the same records has the same digests.
    let mut copy = Ledger::new(ledger.mesh_key());
    for envelope in ledger.envelopes() {
        copy.apply(envelope.clone())
            .expect("the first ledger holds it");
    }
    assert_eq!(Digests::of(&copy), Digests::of(&ledger));
});
