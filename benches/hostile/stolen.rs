//! The attacks of a stolen coordinator, which has the TLS key and all records, but no key that signs records.

use meshd::protocol::control::FromCoordinator;
use meshd::records::Envelope;

use crate::kit::{Identity, Stolen, record};

fn changes(records: Vec<Envelope>) -> String {
    let revision = 1;
    serde_json::to_string(&FromCoordinator::Changes { revision, records }).expect("plain data")
}

pub(crate) fn forged(stolen: &Stolen) {
    let (thief, victim) = (Identity::of(66), Identity::of(67));
    let forged = (0..256).map(|n| record::unknown("weather", n).forged(thief.key(), victim.id()));
    stolen.flood(changes(forged.collect()));
}

/// Sends the records that the node itself has published, again and again.
pub(crate) fn repeated(stolen: &Stolen) {
    let held = stolen.published();
    let records = held.iter().cycle().take(256).cloned().collect();
    stolen.flood(changes(records));
}

pub(crate) fn unknown(stolen: &Stolen) {
    let padding = "x".repeat(4 * 1024 * 1024 - 100);
    let message = serde_json::json!({"type": "sing", "song": padding});
    stolen.flood(message.to_string());
}
