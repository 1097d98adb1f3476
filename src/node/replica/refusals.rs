//! Counts the records of peers that were refused, for one log line a minute about each peer. Pure: the clock is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::PublicKey;
use crate::records::ledger::Refused;

/// The shortest time between two log lines about one peer.
const INTERVAL: Duration = Duration::from_secs(60);
/// A conversation ends after more than this many records that break a rule. A peer of another version may hold records of
/// other nodes that this version does not accept.
const MAX_OFFENCES: u32 = 64;
/// A conversation ends after this many records that break a rule and that the peer signed itself.
const MAX_OWN_OFFENCES: u32 = 4;

/// The refused records of a peer since the last log line about it.
#[derive(Debug)]
struct Refusals {
    count: u64,
    first: String,
    logged: Option<Instant>,
}

/// The refused records of all peers.
#[derive(Debug, Default)]
pub(in crate::node) struct PeerRefusals(BTreeMap<PublicKey, Refusals>);

impl PeerRefusals {
    /// A record that `peer` sent was refused.
    pub(in crate::node) fn note(&mut self, peer: PublicKey, why: &Refused) {
        let held = self.0.entry(peer).or_insert(Refusals {
            count: 0,
            first: String::new(),
            logged: None,
        });
        if held.count == 0 {
            held.first = why.to_string();
        }
        held.count += 1;
    }

    /// Returns what is to be logged now: each peer, the number of its refused records, and the reason of the first refusal.
    pub(in crate::node) fn poll(&mut self, now: Instant) -> Vec<(PublicKey, u64, String)> {
        let is_due = |held: &Refusals| {
            let logged = held.logged;
            logged.is_none_or(|at| now.saturating_duration_since(at) >= INTERVAL)
        };
        self.0.retain(|_, held| held.count > 0 || !is_due(held));
        // Peers that are due and have no refused records are forgotten by now.
        let due = self.0.iter_mut().filter(|(_, held)| is_due(held));
        due.map(|(peer, held)| {
            held.logged = Some(now);
            let count = std::mem::take(&mut held.count);
            (*peer, count, std::mem::take(&mut held.first))
        })
        .collect()
    }
}

/// The refused records of one conversation.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::node) struct Offences {
    all: u32,
    own: u32,
}

impl Offences {
    /// Adds the offences of a message.
    pub(in crate::node) fn add(&mut self, applied: &Applied) {
        self.all = self.all.saturating_add(applied.offences);
        self.own = self.own.saturating_add(applied.own_offences);
    }

    /// Whether the conversation has to end.
    pub(in crate::node) fn is_over(&self) -> bool {
        self.all > MAX_OFFENCES || self.own >= MAX_OWN_OFFENCES
    }
}

/// The result of applying the records of one message.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// One record has no valid signature. The records after it were not processed.
    pub forged: bool,
    /// The number of signatures that were verified.
    pub verified: u64,
    /// Whether any record changed the ledger.
    pub changed: bool,
    /// The number of records that this version accepts from no node.
    pub offences: u32,
    /// The number of those that the peer signed itself.
    pub own_offences: u32,
}

impl Applied {
    /// Adds the refusal of a record that `peer` sent and `signer` signed.
    pub(in crate::node) fn add(&mut self, peer: &PublicKey, signer: &PublicKey, why: &Refused) {
        match why {
            Refused::Signature | Refused::TooLong(_) => self.forged = true,
            Refused::Record(_) | Refused::Signer(_) | Refused::ForeignAddress(_) => {
                self.offences += 1;
                self.own_offences += u32::from(peer == signer);
            }
            // The ledgers of the two nodes may differ.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::kinds::RecordKey;

    #[test]
    fn a_peer_whose_records_are_refused_for_ever_is_a_line_a_minute_and_all_are_counted() {
        let (mut refusals, start) = (PeerRefusals::default(), Instant::now());
        let peer = PublicKey([1; 32]);
        let mut lines = Vec::new();
        for n in 0..55_000 {
            refusals.note(peer, &Refused::NotAMember);
            lines.extend(refusals.poll(start + Duration::from_millis(4) * n));
        }
        assert_eq!(lines.len(), 4, "{lines:?}");
        lines.extend(refusals.poll(start + Duration::from_secs(3600)));
        assert_eq!(lines.iter().map(|(_, count, _)| count).sum::<u64>(), 55_000);
        assert_eq!(lines[0].2, Refused::NotAMember.to_string());
        refusals.poll(start + Duration::from_secs(7200));
        assert!(refusals.0.is_empty(), "a quiet peer is forgotten");
    }

    #[test]
    fn a_conversation_ends_after_few_records_that_break_rules_and_not_for_what_two_nodes_know_differently()
     {
        let (peer, other) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let signer = Refused::Signer(RecordKey::parse("node", "x"));
        let messages_until_over = |signed_by: &PublicKey, why: &Refused| {
            let mut offences = Offences::default();
            (1..1000).find(|_| {
                let mut applied = Applied::default();
                applied.add(&peer, signed_by, why);
                offences.add(&applied);
                offences.is_over()
            })
        };
        assert_eq!(messages_until_over(&peer, &signer), Some(4));
        assert_eq!(messages_until_over(&other, &signer), Some(65));
        assert_eq!(messages_until_over(&peer, &Refused::NodeRevoked), None);
        let mut applied = Applied::default();
        applied.add(&peer, &other, &Refused::Signature);
        assert!(applied.forged);
    }
}
